"""`nexcache bench`."""

import json

import pytest

from tests.cli.conftest import CommandLine


def test_pages_are_asked_with_the_cache_and_without(nexcache: CommandLine, served: str) -> None:
    words = ("bench", f"{served}/overview", f"{served}/fails-because-it-is-not-there", "--requests", "30")
    pages = json.loads(nexcache(*words, "--uncached", "5", "--json").stdout)
    cached, missing = pages

    assert cached["without"] | {"mean": 0, "p50": 0, "p95": 0, "p99": 0} == {
        "requests": 5,
        "hits": 0,
        "failures": 0,
        "mean": 0,
        "p50": 0,
        "p95": 0,
        "p99": 0,
    }
    assert (cached["with"]["requests"], cached["with"]["hits"], cached["with"]["failures"]) == (30, 30, 0)
    assert 0 < cached["with"]["p50"] <= cached["with"]["p99"]
    assert (missing["with"]["hits"], missing["with"]["failures"]) == (0, 30)


def test_the_table_names_the_factor(nexcache: CommandLine, served: str) -> None:
    shown = nexcache("bench", f"{served}/overview", "--requests", "3", "--uncached", "1", "--concurrency", "2").stdout
    assert "100.0 %" in shown
    assert "x" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ftp://x/",), "a page is named by its URL"),
        (("http://x:99999/",), "a page is named by its URL"),
        (("http://127.0.0.1:9/",), "cannot be reached"),
        (("http://127.0.0.1:9/", "--header", "no colon"), "NAME:VALUE"),
        (("http://127.0.0.1:9/", "--header", "a:b\nc: d"), "NAME:VALUE"),
    ],
)
def test_what_cannot_be_measured_is_said(nexcache: CommandLine, words: tuple[str, ...], said: str) -> None:
    result = nexcache("bench", *words)
    assert result.exit_code == 2
    assert said in result.stderr
