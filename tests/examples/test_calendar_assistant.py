"""The example as its README tells it: its one command, its factors, and one event that reaches one user only."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples/calendar_assistant/README.md").read_text()
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "CACHE_"))}


def run(*words: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "examples.calendar_assistant", *words],
        cwd=ROOT,
        env=CLEAN | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def test_the_promised_factors_are_exceeded(redis_url: str) -> None:
    """Against a directory a hundredth as slow: the factors are a hundredth of what the README shows."""
    rows = json.loads(run("--json", "--hits", "50", DIRECTORY_SCALE="0.01", REDIS_URL=redis_url))

    assert [(row["operation"], row["to_beat"]) for row in rows] == [
        ("get_all_users(100)", 50),
        ("get_user_by_user_id", 40),
        ("search_users", 40),
        ("get_all_departments", 77),
        ("get_calendar_events", 25),
    ]
    latencies = [0.025, 0.008, 0.012, 0.031, 0.015]
    for row, latency in zip(rows, latencies, strict=True):
        assert row["without"] >= latency
        assert row["factor"] > row["to_beat"], row
        assert 0 < row["dict"] < row["with"] < row["get"]
        assert row["store_factor"] > 1


def test_the_one_command_prints_the_tables_that_the_readme_shows(redis_url: str) -> None:
    [command] = re.findall(r"```sh\npython -m (\S+)\n```", README)
    assert command == "examples.calendar_assistant"

    printed = run("--hits", "20", DIRECTORY_SCALE="0.01", REDIS_URL=redis_url)

    [shown] = re.findall(r"```\n( +without.*?)```", README, re.DOTALL)
    assert printed.splitlines()[:2] == shown.splitlines()[:2]
    for line in shown.splitlines()[2:]:
        assert re.search(rf"^{re.escape(line.split()[0])} .*\({line.split('(')[-1][:3]}\)", printed, re.MULTILINE)
    assert re.search(r"^user_info +\d+ +3 +\d+\.\d%  600 s$", printed, re.MULTILINE)
    assert "nexarch:contoso:user_info:" in printed


@pytest.fixture
def assistant(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for name in set(os.environ) - set(CLEAN):
        monkeypatch.delenv(name)
    monkeypatch.setenv("DIRECTORY_SCALE", "0")
    monkeypatch.setenv("CACHE_TTL_CALENDAR", "2m")
    name = "examples.calendar_assistant.assistant"
    sys.modules.pop(name, None)
    yield importlib.import_module(name)
    del sys.modules[name]


async def test_one_event_makes_all_that_is_known_of_one_user_a_miss(assistant: ModuleType) -> None:
    directory = assistant.directory

    async def ask(user: str) -> int:
        before = directory.calls
        await assistant.get_user_by_user_id(user)
        await assistant.get_calendar_events(user)
        await assistant.get_users_manager_by_user_id(user)
        await assistant.validate_user_mailbox(f"user{user[1:]}@contoso.example")
        return int(directory.calls - before)

    async with assistant.cache:
        assert [await ask("u1"), await ask("u2"), await ask("u1"), await ask("u2")] == [4, 4, 0, 0]
        assert len(await assistant.get_all_users(100)) == 100
        directory.rename("u1", "Somebody Else")
        done = await assistant.user_changed("u1", "user1@contoso.example")

        assert done.acknowledged
        assert (await assistant.get_user_by_user_id("u1")).name == "Somebody Else"
        assert await ask("u1") == 3
        assert await ask("u2") == 1  # who manages whom depends on others, too
        assert (await assistant.get_all_users(100))[1].name == "Somebody Else"
        assert [user.name for user in await assistant.search_users("somebody")] == ["Somebody Else"]


async def test_lifetimes_come_from_the_environment(assistant: ModuleType) -> None:
    async with assistant.cache:
        assert (await assistant.get_calendar_events.explain("u1")).ttl == 120
        assert (await assistant.get_user_by_user_id.explain("u1")).ttl == 600
        assert (await assistant.get_all_departments.explain()).ttl == 3600


async def test_a_mailbox_that_is_not_there_is_asked_for_again(assistant: ModuleType) -> None:
    async with assistant.cache:
        for _ in range(2):
            assert not await assistant.validate_user_mailbox("nobody@contoso.example")
    assert assistant.directory.calls == 2


def test_switched_off_every_call_goes_to_the_directory() -> None:
    script = """
import asyncio
from examples.calendar_assistant.assistant import cache, directory, get_all_departments
async def main():
    async with cache:
        for _ in range(3):
            await get_all_departments()
asyncio.run(main())
print(directory.calls)
"""
    printed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=CLEAN | {"REDIS_CACHE_ENABLED": "false", "DIRECTORY_SCALE": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert printed.stdout.split() == ["3"]
