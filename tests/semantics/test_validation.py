import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache.semantics.validation import entity_tag, none_match, not_modified_headers


@pytest.mark.parametrize(
    ("field", "etag", "matches"),
    [
        pytest.param(b'"a"', b'"a"', True, id="equal"),
        pytest.param(b'"a"', b'"b"', False, id="different"),
        pytest.param(b"*", b'"a"', True, id="any"),
        pytest.param(b" * ", b'"a"', True, id="any with spaces"),
        pytest.param(b'"*"', b'"a"', False, id="a quoted star is a tag"),
        pytest.param(b'W/"a"', b'"a"', True, id="weak against strong"),
        pytest.param(b'"a"', b'W/"a"', True, id="strong against weak"),
        pytest.param(b'W/"a"', b'W/"a"', True, id="weak against weak"),
        pytest.param(b'w/"a"', b'"a"', False, id="the weak mark has a case"),
        pytest.param(b'"x", "a"', b'"a"', True, id="second in a list"),
        pytest.param(b'"x" ,W/"y",\t"a"', b'"a"', True, id="third in a list"),
        pytest.param(b', "a",', b'"a"', True, id="empty members"),
        pytest.param(b'"x,"a"', b'"a"', False, id="malformed"),
        pytest.param(b'"x" "a"', b'"a"', False, id="missing comma"),
        pytest.param(b'"x, y", "a"', b'"a"', True, id="a comma inside a tag"),
        pytest.param(b'"x, \\"a\\""', b'"a"', False, id="no escapes in tags"),
        pytest.param(b'"A"', b'"a"', False, id="case counts"),
        pytest.param(b"a", b"a", True, id="unquoted, and so is the stored one"),
        pytest.param(b"a", b'"a"', False, id="unquoted"),
        pytest.param(b'""', b'""', True, id="empty tag"),
        pytest.param(b"", b'"a"', False, id="empty"),
        pytest.param(b'"ab"', b'"a"', False, id="prefix"),
        pytest.param(b'"a"\n', b'"a"', True, id="trailing white space"),
    ],
)
def test_if_none_match_compares_weakly(field: bytes, etag: bytes, matches: bool) -> None:
    assert none_match(field, etag) is matches


TAG = st.binary(max_size=4).filter(lambda tag: b'"' not in tag).map(lambda tag: b'"' + tag + b'"')


@given(st.lists(TAG, max_size=4), TAG)
def test_a_list_matches_exactly_its_members(tags: list[bytes], etag: bytes) -> None:
    assert none_match(b", ".join(tags), etag) is (etag in tags)


@given(st.binary(), TAG)
def test_any_field_is_compared(field: bytes, etag: bytes) -> None:
    assert none_match(field, etag) in (True, False)


@given(st.binary(), st.none() | st.binary(), st.binary(), st.none() | st.binary())
def test_an_entity_tag_names_bytes_and_type(
    body: bytes, kind: bytes | None, other_body: bytes, other_kind: bytes | None
) -> None:
    same = (body, kind or b"") == (other_body, other_kind or b"")
    assert (entity_tag(body, kind) == entity_tag(other_body, other_kind)) is same
    assert none_match(entity_tag(body, kind), entity_tag(body, kind))


def test_an_entity_tag_is_strong_and_the_same_in_every_process() -> None:
    script = (
        "from nexcache.semantics.validation import entity_tag; print(entity_tag(b'{}', b'application/json').decode())"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert printed.encode() == entity_tag(b"{}", b"application/json")
    assert entity_tag(b"{}").startswith(b'"')
    assert len(entity_tag(b"{}")) == 34
    assert entity_tag(b"{}", b"text/plain") != entity_tag(b"{}")


def test_a_body_cannot_be_shifted_into_its_type() -> None:
    assert entity_tag(b"ab", b"c") != entity_tag(b"a", b"bc")


def test_a_304_carries_what_a_browser_updates_and_nothing_that_describes_a_body() -> None:
    kept = [b"cache-control", b"content-location", b"date", b"etag", b"expires", b"vary", b"cdn-cache-control"]
    dropped = [b"content-length", b"content-type", b"content-encoding", b"last-modified", b"set-cookie", b"x-a"]
    headers = [(name, b"x") for name in [*dropped, *kept, b"vary"]]
    assert not_modified_headers(headers) == tuple((name, b"x") for name in [*kept, b"vary"])
