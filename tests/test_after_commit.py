"""Invalidations that wait for a commit: what is rolled back does nothing, and a commit returns when they are done."""

import asyncio
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.event import listen
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from nexcache import NexCache, Settings
from nexcache.errors import InvalidName
from nexcache.telemetry.events import Event, Invalidated
from tests.servers import Valkey

ROOT = Path(__file__).parents[1]


class Heard:
    """A cache, and the targets that were invalidated."""

    def __init__(self, **settings: Any) -> None:
        self.cache = NexCache(Settings(**{"redis_url": None, "redis_host": None} | settings))
        self.targets: list[str] = []
        self.cache.emitter.subscribe(self._hear, Invalidated)

    def _hear(self, event: Event) -> None:
        assert isinstance(event, Invalidated)
        self.targets += [*event.operations, *event.tags]


@pytest.fixture
def heard() -> Iterator[Heard]:
    made = Heard()
    with made.cache.sync:
        yield made


@pytest.fixture
def session() -> Iterator[Session]:
    engine = create_engine("sqlite://")
    with Session(engine) as made:
        yield made
    engine.dispose()


# --- SQLAlchemy --------------------------------------------------------------------------------------------------


def test_it_is_done_when_the_commit_returns_and_not_before(heard: Heard, session: Session) -> None:
    session.execute(text("SELECT 1"))
    heard.cache.after_commit("acme", "overview", session=session)
    heard.cache.after_commit("acme", tags=["user:7"], session=session)
    session.flush()
    assert heard.targets == []
    listen(session.get_bind(), "commit", lambda _: heard.targets.append("(the commit)"))

    session.commit()

    assert heard.targets == ["(the commit)", "overview", "user:7"]
    heard.targets.remove("(the commit)")
    session.execute(text("SELECT 1"))
    session.commit()
    assert heard.targets == ["overview", "user:7", "(the commit)"]  # once
    heard.cache.after_commit("acme", "details", session=session)
    session.commit()
    assert heard.targets[3:] == ["details"]


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_what_is_rolled_back_invalidates_nothing(heard: Heard, session: Session, end: str) -> None:
    session.execute(text("SELECT 1"))
    heard.cache.after_commit("acme", "overview", session=session)
    getattr(session, end)()
    session.execute(text("SELECT 1"))
    session.commit()
    assert heard.targets == []


def test_a_savepoint_that_is_released_is_no_commit(heard: Heard, session: Session) -> None:
    session.execute(text("SELECT 1"))
    with session.begin_nested():
        heard.cache.after_commit("acme", "overview", session=session)
    assert heard.targets == []
    with session.begin_nested() as savepoint:
        savepoint.rollback()
    assert heard.targets == []
    session.commit()
    assert heard.targets == ["overview"]


@pytest.fixture
async def async_session() -> AsyncIterator[AsyncSession]:
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with AsyncSession(engine) as made:
        yield made
    await engine.dispose()


async def test_an_asynchronous_session_awaits_it(async_session: AsyncSession, redis_url: str) -> None:
    heard = Heard(redis_url=redis_url, op_timeout_ms=2000)
    async with heard.cache:
        await async_session.execute(text("SELECT 1"))
        heard.cache.after_commit("acme", "overview", wait="strict", session=async_session)
        await async_session.rollback()
        heard.cache.after_commit("acme", "details", wait="strict", session=async_session)
        await asyncio.sleep(0)
        assert heard.targets == []
        await async_session.commit()
        assert heard.targets == ["details"]

        def within(session: Session) -> None:
            heard.cache.after_commit("acme", "map", session=session)
            session.commit()

        await async_session.run_sync(within)
        assert heard.targets == ["details", "map"]


async def test_a_plain_session_in_a_coroutine_is_refused_at_once(session: Session) -> None:
    heard = Heard()
    with pytest.raises(RuntimeError, match="use an AsyncSession"):
        heard.cache.after_commit("acme", "overview", session=session)


def test_a_store_that_is_away_does_not_break_the_commit(own_valkey: Valkey, session: Session) -> None:
    heard = Heard(redis_url=own_valkey.url, op_timeout_ms=500)
    with heard.cache.sync:
        heard.cache.sync.health()
        own_valkey.kill()
        heard.cache.after_commit("acme", "overview", session=session)
        session.commit()
        assert heard.cache.queued == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        pytest.param({"tenant": "a\nb", "operation": "overview"}, InvalidName, id="tenant"),
        pytest.param({"tenant": "acme", "operation": "a\nb"}, InvalidName, id="operation"),
        pytest.param({"tenant": "acme"}, ValueError, id="no target"),
        pytest.param({"tenant": "acme", "tags": "user:7"}, TypeError, id="one string"),
        pytest.param({"tenant": "acme", "operation": "x", "wait": "long"}, ValueError, id="wait"),
    ],
)
def test_what_cannot_be_is_refused_before_the_commit(
    heard: Heard, session: Session, words: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        heard.cache.after_commit(**words, session=session)


# --- Django ------------------------------------------------------------------------------------------------------

DJANGO = """
import asyncio
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
import django
django.setup()
from asgiref.sync import sync_to_async
from django.db import transaction
from nexcache import NexCache, Settings
from nexcache.telemetry.events import Invalidated

cache = NexCache(Settings(redis_url=None, redis_host=None))
done = []
cache.emitter.subscribe(lambda event: done.extend(event.operations), Invalidated)

def change(name, undo=False):
    try:
        with transaction.atomic():
            cache.after_commit("acme", name)
            with transaction.atomic():
                pass
            assert name not in done
            if undo:
                raise LookupError
    except LookupError:
        pass
    return list(done)

with cache.sync:
    assert change("undone", undo=True) == []
    assert change("plain") == ["plain"]
    cache.after_commit("acme", "at once", using="default")
    assert done == ["plain", "at once"]

async def main():
    async with cache:
        assert await sync_to_async(change)("from a loop") == ["plain", "at once", "from a loop"]

asyncio.run(main())
print(done)
"""


def test_with_django_it_waits_for_the_outermost_atomic_block() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", DJANGO],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "['plain', 'at once', 'from a loop']"


# --- as it is shown ----------------------------------------------------------------------------------------------


async def test_the_program_of_the_page_runs(async_session: AsyncSession) -> None:
    page = (ROOT / "docs" / "functions.md").read_text(encoding="utf-8")
    [program] = [each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "after_commit" in each]
    heard = Heard()
    names: dict[str, Any] = {"cache": heard.cache, "session": async_session, "user": None}
    program = program.replace("session.add(user)", "pass")
    exec(f"async def main():\n{textwrap.indent(program, '    ')}", names)
    async with heard.cache:
        await names["main"]()
    assert heard.targets == ["user:7"]
