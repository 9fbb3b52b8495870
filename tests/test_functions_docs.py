"""The programs in the README and in docs/functions.md that show functions and values: they run, and do as they say."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nexcache import NexCache, Settings

ROOT = Path(__file__).parent.parent
GUIDE = re.findall(r"```python\n(.*?)```", (ROOT / "docs/functions.md").read_text(), re.DOTALL)
[SHORT] = re.findall(r"## Functions and values\n.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@dataclass(frozen=True)
class User:
    user_id: int


def names() -> dict[str, Any]:
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    return {"cache": cache, "User": User, "Preferences": User, "values": cache.tenant("acme")}


async def run(program: str, known: dict[str, Any], *, kept: str) -> Any:
    """Run a program with `await` at its top, and return its name `kept`."""
    body = textwrap.indent(program, "    ")
    exec(compile(f"async def main():\n{body}\n    return {kept}", "shown", "exec"), known)
    return await known["main"]()


@pytest.mark.parametrize("program", [SHORT, GUIDE[0]], ids=["README", "guide"])
async def test_the_functions_that_are_shown_are_cached(program: str) -> None:
    known = names()
    program = program.replace("cache = NexCache.from_env()", "pass").replace(
        "-> User: ...", "-> User:\n    calls.append(user_id)\n    return User(user_id)"
    )
    calls: list[int] = []
    known["calls"] = calls
    user_info = await run(program, known, kept="user_info")

    calls.clear()
    assert [await user_info("acme", 7), await user_info("acme", 7)] == [User(7), User(7)]
    assert calls == [7]
    await known["cache"].invalidate("acme", tags=["user:7"])
    await user_info("acme", 7)
    assert calls == [7, 7]


async def test_the_calls_of_values_that_are_shown_work() -> None:
    count = await run(GUIDE[1].replace('values = cache.tenant("acme")', "pass"), names(), kept="count.value")

    assert count == 1
