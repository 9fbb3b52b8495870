"""The command line against the store that the settings name."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexcache import NexCache, Settings
from tests.cli.conftest import CommandLine, Get, Served, application, asking


@pytest.fixture
def app(redis_url: str) -> Iterator[Get]:
    """Ask an app that keeps its entries in the store that the command line is told of."""
    application_, _ = application(Settings(redis_url=redis_url, op_timeout_ms=1000))
    with Served(application_) as url:
        yield asking(url)


def test_the_store_tells_what_all_processes_counted(nexcache: CommandLine, redis_url: str) -> None:
    app, _ = application(Settings(redis_url=redis_url, op_timeout_ms=1000))
    with Served(app) as url:
        asking(url)("/overview", times=4)
    # what an app has counted is in the store once it has ended
    here = {"REDIS_URL": redis_url, "NEXCACHE_TENANT": "acme"}
    figures = json.loads(nexcache("stats", "--json", **here).stdout)
    operations = json.loads(nexcache("operations", "--json", **here).stdout)["operations"]
    known = json.loads(nexcache("tenants", "--json", REDIS_URL=redis_url).stdout)

    assert (figures["hits"] + figures["misses"], figures["merged"]) == (4, True)
    assert operations == [{"name": "overview", "requests": 4, "hits": figures["hits"]}]
    assert known == {"tenants": ["acme"], "complete": True}
    assert redis_url.removeprefix("redis://") in nexcache("monitor", **here).stdout


def test_an_invalidation_from_here_reaches_a_running_app(nexcache: CommandLine, app: Get, redis_url: str) -> None:
    here = {"REDIS_URL": redis_url, "NEXCACHE_TENANT": "acme"}
    app("/overview", times=2)
    preview = json.loads(nexcache("invalidate", "overview", "--dry-run", "--json", **here).stdout)
    done = json.loads(nexcache("invalidate", "overview", "--strict", "--json", **here).stdout)
    again = json.loads(nexcache("invalidate", "overview", "--dry-run", "--json", **here).stdout)

    assert (preview["entries"], again["entries"]) == (1, 0)
    assert (done["acknowledged"], done["queued"], done["targets"]) == (True, False, ["overview"])


def test_an_operation_is_switched_off_from_here(nexcache: CommandLine, redis_url: str) -> None:
    here = {"REDIS_URL": redis_url, "NEXCACHE_TENANT": "acme"}
    off = json.loads(nexcache("disable", "overview", "--json", **here).stdout)
    again = asyncio.run(disabled(redis_url))
    nexcache("enable", "overview", **here)

    assert (off["disabled"], off["scope"]) == (True, "all-nodes")
    assert (again, asyncio.run(disabled(redis_url))) == (True, False)


async def disabled(url: str) -> bool:
    """Ask a process that starts now."""
    async with NexCache(Settings(redis_url=url, op_timeout_ms=1000)) as cache:
        for _ in range(100):
            if cache.is_disabled("overview", "acme"):
                return True
            await asyncio.sleep(0.005)
        return False


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        pytest.param(("stats",), {}, "name the tenant with --tenant", id="no tenant"),
        pytest.param(("explain", "/x"), {}, "the policies are in the app", id="explain"),
        pytest.param(("warm", "overview"), {}, "only the app can compute", id="warm"),
        pytest.param(("stats", "-t", "a\x01"), {}, "not a tenant's id", id="no name"),
        pytest.param(("stats",), {"REDIS_URL": "redis://:secret#1@x"}, "REDIS_URL must look like", id="bad URL"),
    ],
)
def test_what_cannot_be_had_here_is_said(
    nexcache: CommandLine, redis_url: str, words: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    result = nexcache(*words, **({"REDIS_URL": redis_url} | environment))
    assert result.exit_code == 2
    assert said.lower() in result.stderr.lower()
    assert "secret" not in result.output


def test_without_a_store_there_is_nothing_to_ask(nexcache: CommandLine) -> None:
    result = nexcache("stats", "-t", "acme")
    assert result.exit_code == 2
    assert "the settings name no store" in result.stderr


@pytest.mark.parametrize("words", [("stats",), ("tenants",), ("invalidate", "overview"), ("operations",)])
def test_a_store_that_is_away_is_said_to_be_and_nothing_is_promised(
    nexcache: CommandLine, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / ".env").write_text("REDIS_URL=redis://:a-secret@127.0.0.1:9\n", encoding="utf-8")
    result = nexcache(*words, NEXCACHE_TENANT="acme")
    assert result.exit_code in (1, 2)
    assert "does not answer" in result.stderr
    assert "secret" not in result.output


def test_a_tenant_is_forgotten_only_if_that_is_meant(nexcache: CommandLine, app: Get, redis_url: str) -> None:
    app("/overview", times=2)
    here = {"REDIS_URL": redis_url, "NEXCACHE_TENANT": "acme"}

    asked = nexcache("forget", "acme", REDIS_URL=redis_url)
    before = json.loads(nexcache("invalidate", "overview", "--dry-run", "--json", **here).stdout)["entries"]
    done = json.loads(nexcache("forget", "acme", "--yes", "--json", REDIS_URL=redis_url).stdout)
    after = json.loads(nexcache("invalidate", "overview", "--dry-run", "--json", **here).stdout)["entries"]
    bad = nexcache("forget", "a\x01", "--yes", REDIS_URL=redis_url)

    assert "--yes" in asked.stderr
    assert asked.exit_code != 0
    assert (before, after) == (1, 0)
    assert done["done"]
    assert done["removed"] > 0
    assert bad.exit_code != 0
