import time
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache.errors import InvalidName
from nexcache.invalidation.targets import Targets, check_name, is_glob, matches


@pytest.mark.parametrize(
    "name", ["a", "*", "a:b", "../x", "é", "a b", "[x]", "x" * 200, "é" * 100, "{a}", "%2A", "@any"]
)
@pytest.mark.parametrize("kind", ["operation", "tag"])
def test_a_name_is_printable_text_of_at_most_200_bytes(kind: str, name: str) -> None:
    assert check_name(kind, name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "the tag must not be empty"),
        (None, "the tag must be a string, not NoneType"),
        (b"a", "the tag must be a string, not bytes"),
        (5, "the tag must be a string, not int"),
        ("x" * 201, "the tag is longer than 200 bytes"),
        ("é" * 101, "the tag is longer than 200 bytes"),
        ("\ud800" * 67, "the tag is longer than 200 bytes"),
        ("a\nb", "the tag contains control or unprintable characters: 'a\\nb'"),
        ("\x00", "the tag contains control or unprintable characters: '\\x00'"),
        ("\u202e", "the tag contains control or unprintable characters: '\\u202e'"),
        ("\ud800", "the tag contains control or unprintable characters: '\\ud800'"),
    ],
)
def test_any_other_name_is_refused_with_the_reason(name: Any, reason: str) -> None:
    with pytest.raises(InvalidName) as raised:
        check_name("tag", name)
    assert str(raised.value) == reason


@pytest.mark.parametrize(
    ("pattern", "operation", "is_match"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("a", "A", False),
        ("*", "", True),
        ("*", "a\nb", True),
        ("dashboard_*", "dashboard_", True),
        ("dashboard_*", "dashboard_x", True),
        ("dashboard_*", "my_dashboard_x", False),
        ("*_map", "a_map", True),
        ("*_map", "a_map2", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("a?c", "abbc", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("[*]", "[xyz]", True),
        ("[!a]", "b", False),
        ("a.c", "abc", False),
        ("a*b*c", "a--b--c", True),
        ("a*b*c", "acb", False),
        ("**", "x", True),
        ("é*", "éx", True),
        ("a", "a\n", False),
        ("\\*", "*", False),
        ("\\*", "\\x", True),
    ],
)
def test_a_glob_has_stars_and_question_marks_only(pattern: str, operation: str, is_match: bool) -> None:
    assert matches(pattern, operation) is is_match
    assert is_glob(pattern) is ("*" in pattern or "?" in pattern)


PIECES = st.text(st.sampled_from("ab*?."), max_size=8)


@given(PIECES, st.text(st.sampled_from("ab."), max_size=8))
def test_globs_match_what_the_shells_do(pattern: str, operation: str) -> None:
    assert matches(pattern, operation) is fnmatchcase(operation, pattern)


@given(st.text(st.characters(exclude_characters="*?"), max_size=8), st.text(max_size=8))
def test_a_name_without_wildcards_matches_itself_only(name: str, other: str) -> None:
    assert matches(name, name)
    assert matches(name, other) is (name == other)


def test_a_glob_of_many_stars_takes_no_time() -> None:
    """200 characters of `a*a*…` against text that never ends as the glob does: 2^100 steps if it backtracked."""
    began = time.process_time()
    assert not matches("a*" * 99 + "b", "a" * 100_000)
    assert not matches("*a" * 99 + "?b", "a" * 100_000)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("operations", "tags", "scope", "whole"),
    [
        (["a"], [], "operation", False),
        (["a", "b"], ["t"], "operation", False),
        (["a*"], [], "pattern", False),
        (["a", "b?"], ["t"], "pattern", False),
        (["*"], [], "tenant", True),
        (["***"], ["t"], "tenant", True),
        (["a", "*"], [], "tenant", True),
        (["?"], [], "pattern", False),
        ([], ["t"], "tag", False),
        ([], ["*"], "tag", False),
    ],
)
def test_targets_know_how_wide_they_are(operations: list[str], tags: list[str], scope: str, whole: bool) -> None:
    targets = Targets.of(operations, tags)
    assert (targets.scope, targets.whole_tenant, bool(targets)) == (scope, whole, True)


def test_no_targets_are_false() -> None:
    assert not Targets()
    assert not Targets.of()
    assert Targets.of() == Targets()


def test_the_union_aims_at_everything_that_either_aims_at() -> None:
    assert Targets.of(["a"], ["t"]) | Targets.of(["b", "a"], ["u"]) == Targets.of(["a", "b"], ["t", "u"])


@pytest.mark.parametrize(
    "names", [{"operations": [""]}, {"operations": ["a", "\n"]}, {"tags": [""]}, {"tags": ["x" * 201]}]
)
def test_a_target_that_cannot_be_part_of_a_key_is_refused(names: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidName):
        Targets.of(**names)
