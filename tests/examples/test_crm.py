"""The engine as its README tells it: preferences, kept templates, the quota, statistics, with and without a server."""

import importlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.servers import Valkey

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples/crm/README.md").read_text()
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "CACHE_"))}
Start = Callable[..., Any]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for name in {*set(os.environ) - set(CLEAN), "REDIS_MAX_CONNECTIONS", "REDIS_SOCKET_TIMEOUT"}:
        monkeypatch.setenv(name, "")  # so that what the module sets there is taken back
        monkeypatch.delenv(name)
    sys.modules.pop("examples.crm.engine", None)
    yield importlib.import_module("examples.crm.engine")
    del sys.modules["examples.crm.engine"]


@pytest.fixture
def start(module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    """Opens engines on one database, and closes them."""
    engines: list[Any] = []

    def opened(url: str | None = None, **environment: str) -> Any:
        for name, value in {**({"REDIS_URL": url} if url else {}), "REDIS_SOCKET_TIMEOUT": "2", **environment}.items():
            monkeypatch.setenv(name, value)
        engines.append(module.Engine(str(tmp_path / "crm.db")))
        return engines[-1]

    yield opened
    for engine in engines:
        with engine:
            pass


def test_the_command_of_the_readme_runs(valkey: Valkey, redis_url: str) -> None:
    [command] = re.findall(r"```sh\npython -m (\S+) ", README)

    printed = subprocess.run(
        [sys.executable, "-m", command],
        cwd=ROOT,
        env=CLEAN | {"REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert "[whatsapp/en] Hello!\n[mail/de] Hello!\n[mail/de] Welcome!\n" in printed.stdout
    assert re.search(r"from memory: +\d+\.\d µs", printed.stdout)
    assert re.search(r"INFO +nexcache +nexcache.started", printed.stdout)
    assert re.search(r'INFO +crm +statistics .*"enabled": true.*"version": .*"pool": {"size": 10, ', printed.stdout)
    assert "'healthy': True, 'mode': 'redis'" in printed.stdout
    assert printed.stderr == ""


def test_preferences_are_kept_for_an_hour_and_an_update_is_seen_at_once_by_every_engine(
    start: Start, module: ModuleType, redis_url: str
) -> None:
    one, other = start(redis_url), start(redis_url)
    one.clients.update(module.Preferences(1, "en", "mail"))
    assert [each.clients.preferences(1).language for each in (one, other, one)] == ["en"] * 3
    assert 3500 < one.clients.preferences.explain(1).remaining <= 3600
    one._database.execute("UPDATE clients SET language = 'fr'")
    one._database.commit()
    assert one.clients.preferences(1).language == "en"  # by other means: nobody has said so

    one.clients.update(module.Preferences(1, "de", "mail"))

    assert one.clients.preferences(1).language == "de"
    other.cache.sync.invalidate("crm", tags=["none"], wait="strict")  # so that the other node has heard
    assert other.clients.preferences(1).language == "de"


def test_a_template_without_expiry_survives_until_it_is_invalidated(
    start: Start, valkey: Valkey, redis_url: str
) -> None:
    crm = start(redis_url)
    crm.templates.save("welcome", "Hello!")
    crm._database.execute("UPDATE templates SET text = 'Changed'")
    crm._database.commit()

    assert crm.templates.get("welcome") == "Hello!"
    assert valkey.ask("PTTL", "nexarch.value:crm:template%3Awelcome") == -1  # it has no expiry
    crm.cache.sync.invalidate("crm", "*", wait="strict")
    assert crm.templates.get("welcome") == "Hello!"  # no invalidation of results reaches it
    with crm:
        pass
    crm = start(redis_url)
    assert crm.templates.get("welcome") == "Hello!"  # nor does a restart

    assert crm.templates.invalidate("welcome")

    assert crm.templates.get("welcome") == "Changed"
    assert not crm.templates.invalidate("nothing")
    with pytest.raises(KeyError):
        crm.templates.get("nothing")


@pytest.mark.parametrize("where", ["memory", "store"])
def test_the_quota_of_the_api_is_counted_for_all_engines(
    request: pytest.FixtureRequest, start: Start, module: ModuleType, where: str
) -> None:
    crm = start(request.getfixturevalue("redis_url") if where == "store" else None)
    crm.clients.update(module.Preferences(1, "en", "mail"))
    crm.templates.save("welcome", "Hello!")
    counted = [crm.cache.sync.check_rate_limit("whatsapp", limit=3, window=86400, tenant="crm") for _ in range(4)]
    assert counted == [(True, 1), (True, 2), (True, 3), (False, 3)]

    assert crm.send(1, "welcome") == "[mail/en] Hello!"
    assert crm.send(2, "welcome") is None


def test_switched_off_as_a_whole_it_works_without_a_cache(start: Start, module: ModuleType) -> None:
    crm = start(CACHE_ENABLED="false")
    crm.clients.update(module.Preferences(1, "en", "mail"))
    crm.templates.save("welcome", "Hello!")
    crm._database.execute("UPDATE clients SET language = 'fr'")

    assert crm.send(1, "welcome") == "[mail/fr] Hello!"
    assert crm.statistics()["enabled"] is False


def test_statistics_name_the_pool_and_a_low_hit_rate_is_warned_of(
    start: Start, module: ModuleType, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "crm")
    crm = start(redis_url, REDIS_MAX_CONNECTIONS="10")
    for number in range(30):
        crm.clients.preferences(number)
    for _ in range(2):
        crm.clients.preferences(1)

    figures = crm.statistics()

    assert figures["hit_rate"] == pytest.approx(2 / 32)
    assert figures["pool"]["size"] == 10
    assert 1 <= figures["pool"]["in_use"] <= 3
    assert figures["total_keys"] >= 30
    assert figures["redis"]["connected_clients"] >= 1
    assert [(record.levelname, record.getMessage()[:17]) for record in caplog.records if record.name == "crm"] == [
        ("INFO", 'statistics {"enab'),
        ("WARNING", "the hit rate is 6"),
    ]


def test_with_its_server_gone_the_engine_works_and_says_so(
    start: Start, module: ModuleType, own_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    crm = start(own_valkey.url)
    crm.clients.update(module.Preferences(1, "en", "mail"))
    crm.templates.save("welcome", "Hello!")
    own_valkey.kill()

    assert crm.send(1, "welcome") == "[mail/en] Hello!"
    crm.clients.update(module.Preferences(1, "de", "mail"))
    assert crm.send(1, "welcome") == "[mail/de] Hello!"
    assert crm.health()["healthy"] is False
    levels = {(record.name, record.levelname) for record in caplog.records}
    assert {("crm", "ERROR"), ("nexcache", "WARNING")} <= levels
