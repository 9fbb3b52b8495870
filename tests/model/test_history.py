"""The guarantee, judged from outside: many requests and invalidations at once on two nodes, and their history.

The source's version only grows. An invalidation of a version names it once it is acknowledged; a request that
started after that and was answered with an older version is a violation. The check must be able to fail: with
each safeguard taken out in turn, it finds violations.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Message, Receive, Scope, Send
from nexcache.collapse import Flights
from nexcache.entries import Entries, Missing, Shared
from nexcache.invalidation.generations import Snapshot
from nexcache.key import CacheKey
from nexcache.message import Entry

REQUESTS: Final = 3_000
READERS: Final = 16
PAGES: Final = 5


@dataclass(frozen=True)
class Answer:
    """One request: when it started, and what it was told."""

    started: int
    page: int
    version: int
    status: str


@dataclass(frozen=True)
class Acknowledged:
    """One invalidation: when it was acknowledged, of which page (None: all), and the version before it."""

    at: int
    page: int | None
    version: int


@dataclass
class History:
    """What happened, in the order of a clock that ticks with every event."""

    answers: list[Answer] = field(default_factory=list)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    now: int = 0

    def tick(self) -> int:
        self.now += 1
        return self.now

    def violations(self) -> list[tuple[Answer, Acknowledged]]:
        """Return the answers older than an invalidation that was acknowledged before they were asked for."""
        found = []
        newest: dict[int, Acknowledged] = {}
        events: list[tuple[int, Answer | Acknowledged]] = [(each.at, each) for each in self.acknowledged]
        events += [(each.started, each) for each in self.answers]
        for _, event in sorted(events, key=lambda pair: pair[0]):
            if isinstance(event, Acknowledged):
                for page in range(PAGES) if event.page is None else (event.page,):
                    if page not in newest or newest[page].version < event.version:
                        newest[page] = event
            elif event.page in newest and event.version < newest[event.page].version:
                found.append((event, newest[event.page]))
        return found


class Source:
    """What the handlers of both nodes read, and how long they take to answer afterwards."""

    def __init__(self, draw: random.Random) -> None:
        self.version = 0
        self.calls = 0
        self._draw = draw
        self._gates: set[asyncio.Event] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        version = self.version
        if self._draw.random() < 0.7:
            gate = asyncio.Event()
            self._gates.add(gate)
            await gate.wait()
        body = b"%d" % version
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body})

    async def release(self, done: Callable[[], bool]) -> None:
        """Let some of those that wait go on, again and again."""
        while not done():
            for _ in range(self._draw.randint(1, 30)):
                await asyncio.sleep(0)
            for gate in self._draw.sample(sorted(self._gates, key=id), self._draw.randint(0, len(self._gates))):
                gate.set()
                self._gates.discard(gate)
        for gate in self._gates:
            gate.set()


class Node:
    """A cache of its own in front of the common source."""

    def __init__(self, url: str, source: Source) -> None:
        self.cache = NexCache(Settings(redis_url=url, redis_host=None, l1_enabled=False, op_timeout_ms=5_000))
        self.app = CacheMiddleware(
            source,
            cache=self.cache,
            tenant=tenants.fixed("acme"),
            policies=[Policy("/{page}", op="page", ttl="1h", tags=["page:{page}"])],
        )

    async def get(self, page: int) -> tuple[int, str]:
        """Return the version and how the cache came by it."""
        messages: list[Message] = []
        path = f"/{page}"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"node")],
            "client": None,
            "server": None,
        }

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            messages.append(message)

        await self.app(scope, receive, send)
        headers = dict(messages[0]["headers"])
        return int(b"".join(each["body"] for each in messages[1:])), headers[b"cache-status"].decode()


@pytest.fixture
async def run(redis_url: str) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def run(seed: int, requests: int = REQUESTS) -> History:
            draw = random.Random(seed)
            source = Source(draw)
            nodes = [Node(redis_url, source) for _ in range(2)]
            for node in nodes:
                stack.push_async_callback(node.cache.aclose)
            return await _run(nodes, source, draw, requests)

        yield run


def answer_late(node: Node, draw: random.Random) -> None:
    """Hold the store's answers back, each for a time of its own, so that they come in any order."""
    store = node.cache._parts.store
    for name in ("read", "capture"):
        call = getattr(store, name)

        async def late(*args: Any, call: Callable[..., Any] = call, **options: Any) -> Any:
            answer = await call(*args, **options)
            for _ in range(draw.choice((0, 0, 5, 60))):
                await asyncio.sleep(0)
            return answer

        setattr(store, name, late)


async def _run(nodes: list[Node], source: Source, draw: random.Random, requests: int) -> History:
    history = History()
    left = requests
    for node in nodes:
        answer_late(node, draw)

    async def read() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            page = draw.randrange(PAGES)
            started = history.tick()
            version, status = await draw.choice(nodes).get(page)
            history.answers.append(Answer(started, page, version, status))
            for _ in range(draw.randint(0, 3)):
                await asyncio.sleep(0)

    async def invalidate() -> None:
        while left > 0:
            source.version += 1
            version, page = source.version, draw.choice((None, *range(PAGES)))
            cache = draw.choice(nodes).cache
            match page, draw.randrange(3):
                case None, 0:
                    done = await cache.invalidate("acme", "*")
                case None, 1:
                    done = await cache.invalidate("acme", "pa*")
                case None, _:
                    done = await cache.invalidate("acme", "page")
                case _:
                    done = await cache.invalidate("acme", tags=[f"page:{page}"])
            if done.acknowledged:
                history.acknowledged.append(Acknowledged(history.tick(), page, version))
            for _ in range(draw.randint(0, 120)):
                await asyncio.sleep(0)

    readers = [asyncio.create_task(read()) for _ in range(READERS)]
    await asyncio.gather(
        source.release(lambda: all(reader.done() for reader in readers)), invalidate(), invalidate(), *readers
    )
    return history


@pytest.mark.parametrize("seed", range(3))
async def test_no_request_is_answered_from_before_an_acknowledged_invalidation(
    run: Callable[..., Any], seed: int
) -> None:
    history = await run(seed)
    statuses = [answer.status for answer in history.answers]

    assert len(history.answers) == REQUESTS
    assert history.violations() == []
    # and the run was one that could have gone wrong
    assert len(history.acknowledged) > 50
    assert sum("; hit" in status for status in statuses) > REQUESTS / 20
    assert sum("collapsed" in status for status in statuses) > 50
    assert sum("fwd=" in status and "collapsed" not in status for status in statuses) > 50


# --- the check can fail ------------------------------------------------------------------------------------


def captured_after_the_computation(patch: pytest.MonkeyPatch) -> None:
    keep = Entries.keep

    async def late(self: Entries, key: CacheKey, snapshot: Snapshot, *kept: Any) -> Any:
        again = await self.capture(key, Missing(snapshot.tier, None), deadline=None)
        return await keep(self, key, again, *kept)

    patch.setattr(Entries, "keep", late)


def joined_across_an_invalidation(patch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a key that is being computed waits for that, under whatever generations it was begun."""

    def any_of(self: Flights, key: CacheKey, generations: tuple[bytes, ...] | None) -> Any:
        return next((fill for (request, _), fill in self._fills.items() if request == key.request), None)

    patch.setattr(Flights, "get", any_of)


def generations_not_compared(patch: pytest.MonkeyPatch) -> None:
    """An entry is served whatever its generations have become; invalidation has no effect but on what is stored."""
    lookup = Shared.lookup

    async def trusting(self: Shared, key: CacheKey, **options: Any) -> Any:
        looked = await lookup(self, key, **options)
        if not isinstance(looked, Missing):
            return looked
        value = (await self._store.read((key.name,))).values[0]
        entry = self._codec.decode(key.name, value) if value is not None else None
        return (entry, None, None) if isinstance(entry, Entry) else looked

    patch.setattr(Shared, "lookup", trusting)


def lookups_shared_after_they_have_left(patch: pytest.MonkeyPatch) -> None:
    lookup = Entries.lookup

    async def held_open(self: Entries, key: CacheKey, counts: Any, **options: Any) -> Any:
        return await lookup(self, key, counts, **{**options, "on_sent": None})

    patch.setattr(Entries, "lookup", held_open)


@pytest.mark.parametrize(
    "mutant",
    [
        captured_after_the_computation,
        joined_across_an_invalidation,
        generations_not_compared,
        lookups_shared_after_they_have_left,
    ],
)
@pytest.mark.parametrize("seed", range(2))
async def test_a_missing_safeguard_is_found(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None], seed: int
) -> None:
    mutant(monkeypatch)

    history = await run(seed, REQUESTS)

    assert history.violations(), f"{mutant.__name__} was not noticed"


def test_the_judge_counts_what_was_acknowledged_before_the_request_and_nothing_else() -> None:
    history = History(
        answers=[
            Answer(started=1, page=0, version=0, status=""),  # before
            Answer(started=3, page=0, version=0, status=""),  # after: a violation
            Answer(started=4, page=1, version=0, status=""),  # another page
            Answer(started=5, page=0, version=1, status=""),  # new enough
            Answer(started=7, page=1, version=1, status=""),  # after one of all pages: a violation
        ],
        acknowledged=[Acknowledged(at=2, page=0, version=1), Acknowledged(at=6, page=None, version=2)],
    )

    assert [(answer.started, newest.at) for answer, newest in history.violations()] == [(3, 2), (7, 6)]
