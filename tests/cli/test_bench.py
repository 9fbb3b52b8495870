"""`nexcache bench`."""

import json
from typing import Any

import pytest

from nexcache import Settings
from nexcache.cli.speed import Speed, advice
from tests.cli.conftest import CommandLine
from tests.servers import Valkey


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


def test_without_pages_the_store_is_measured_and_nothing_stays_there(
    nexcache: CommandLine, redis_url: str, valkey: Valkey
) -> None:
    here = {"REDIS_URL": redis_url, "CACHE_L1_ENABLED": "false"}

    found = json.loads(nexcache("bench", "--json", **here).stdout)

    figures = found["microseconds"]
    assert list(figures) == ["round_trip", "memory", "store", "together", "miss"]
    assert all(value > 0 for value in figures.values())
    assert figures["memory"] < figures["store"]
    assert any("CACHE_L1_ENABLED=true" in line for line in found["advice"])
    assert not [key for key in valkey.ask("KEYS", "*bench-*") if b"stats" not in key and b"trend" not in key]
    shown = nexcache("bench", **here).stdout
    assert "hit in memory" in shown
    assert "the memory is off" in shown


def test_without_pages_and_without_a_store_it_says_what_to_do(nexcache: CommandLine) -> None:
    result = nexcache("bench")
    assert (result.exit_code, "set REDIS_URL" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("speed", "settings", "uvloop", "said"),
    [
        (Speed(100, 5, 90, 20, 400), {}, True, []),
        (Speed(8_000, 5, 8_100, 200, 9_000), {}, True, ["CACHE_OP_TIMEOUT_MS=50 is short", "8.0 ms away"]),
        (Speed(8_000, 5, 8_100, 200, 9_000), {"op_timeout_ms": 100}, True, ["8.0 ms away"]),
        (Speed(100, 5, 90, 20, 400), {"l1_enabled": False}, True, ["the memory is off"]),
        (Speed(100, 5, 90, 20, 400), {}, False, ["uvloop is not installed"]),
        (Speed(100, 5, 90, 80, 400), {}, True, ["this processor is the"]),
    ],
)
def test_the_advice_follows_from_the_figures(
    speed: Speed, settings: dict[str, Any], uvloop: bool, said: list[str]
) -> None:
    found = advice(speed, Settings(redis_url="redis://h/0", **settings), uvloop=uvloop)
    assert len(found) == len(said)
    assert all(words in line for words, line in zip(said, found, strict=True))
