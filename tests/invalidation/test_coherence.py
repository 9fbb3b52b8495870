"""Several nodes with memories of their own over one server: never an answer older than an acknowledged invalidation."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nexcache import CacheMiddleware, NexCache, Policy, Settings, StoreUnavailable, tenants
from nexcache.demo.valkey import EmbeddedValkey
from nexcache.invalidation import coherence as coherence_module
from nexcache.invalidation.coherence import Coherence
from nexcache.invalidation.view import View
from nexcache.stores.base import SENTINEL, Reading, Register
from nexcache.stores.redis import NODES, RedisStore


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with EmbeddedValkey() as valkey:
        yield valkey.url


@dataclass
class Source:
    """What the handlers of all nodes read: a version that only grows."""

    version: int = 0
    calls: int = 0
    wait: Callable[[], Any] = field(default=lambda: asyncio.sleep(0))


def _advance(monkeypatch: pytest.MonkeyPatch, node: "Node", seconds: float) -> None:
    """Move the clock that a node's trust is measured by."""
    view, memory = node.coherence.view, node.cache.entries.memory
    real = view.clock
    monkeypatch.setattr(view, "clock", lambda: real() + seconds)
    monkeypatch.setattr(memory, "_clock", view.clock)


class Node:
    """An app of its own with a memory of its own."""

    def __init__(self, url: str, source: Source, **settings: Any) -> None:
        self.cache = NexCache(Settings(redis_url=url, op_timeout_ms=2000, **settings))
        self.source = source
        app = Starlette(
            routes=[Route("/{name}", self.handler)],
            middleware=[
                Middleware(
                    CacheMiddleware,
                    cache=self.cache,
                    tenant=tenants.fixed("acme"),
                    policies=[Policy("/{name}", op="page", ttl="1h", tags=["name:{name}"])],
                )
            ],
        )
        self.client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://node")

    async def handler(self, _: Request) -> Response:
        self.source.calls += 1
        version = self.source.version
        await self.source.wait()
        return JSONResponse({"version": version})

    async def get(self, path: str = "/a") -> tuple[int, str]:
        """Return the version, and what Cache-Status says of where it came from."""
        answer = await self.client.get(path)
        assert answer.status_code == 200
        return answer.json()["version"], answer.headers["cache-status"]

    @property
    def coherence(self) -> Coherence:
        found = self.cache._parts.coherence
        assert found is not None
        return found

    @property
    def store(self) -> RedisStore:
        found = self.cache._parts.store
        assert isinstance(found, RedisStore)
        return found

    async def until_in_memory(self, path: str = "/a") -> None:
        """Ask until this node answers from its memory and hears of other nodes."""
        for _ in range(500):
            _, status = await self.get(path)
            if "detail=memory" in status and self.coherence.connected:
                return
            await asyncio.sleep(0.005)
        raise AssertionError("never answered from memory")


@pytest.fixture
async def node(server: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Node]]:
    monkeypatch.setattr(coherence_module, "_FORGOTTEN", 0.0)  # nobody stood in a register before a test's own
    async with AsyncExitStack() as stack:
        first: list[Node] = []

        def make(source: Source, **settings: Any) -> Node:
            made = Node(server, source, **settings)
            first.append(made)
            stack.push_async_callback(made.cache.aclose)
            stack.push_async_callback(made.client.aclose)
            return made

        yield make
        await first[0].store._lanes[0].execute((("FLUSHALL",),))


async def test_a_hit_in_memory_asks_the_server_nothing(node: Callable[..., Node]) -> None:
    a = node(Source())
    await a.until_in_memory()
    before = a.store.commands

    for _ in range(50):
        await a.get()

    renewals = 3 * 2  # HSET, MGET and an epoch's INFO, had a renewal come in between
    assert a.store.commands - before <= renewals


async def test_a_strict_invalidation_is_seen_by_every_node_at_once(node: Callable[..., Node]) -> None:
    source = Source()
    a, b = node(source), node(source)
    for _ in range(30):
        await asyncio.gather(a.until_in_memory(), b.until_in_memory())
        source.version += 1

        done = await a.cache.invalidate("acme", "page", wait="strict")

        assert done.acknowledged
        assert (await b.get())[0] == source.version


async def test_a_node_without_a_memory_waits_for_those_that_have_one(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coherence_module, "LONGEST_LEASE", 0.5)
    source = Source()
    a, b = node(source, l1_enabled=False), node(source)
    for turn in range(10):
        await b.until_in_memory()
        source.version += 1

        done = await a.cache.invalidate("acme", "page", wait="strict")

        assert done.acknowledged
        assert (await b.get())[0] == source.version
        assert turn < 2 or done.waited < 0.5, "what it waits for is confirmed"
    await b.until_in_memory()
    monkeypatch.setattr(b.coherence._backplane, "_received", _nothing)
    source.version += 1
    done = await a.cache.invalidate("acme", "page", wait="strict")
    assert done.waited >= 0.5
    assert (await b.get())[0] == source.version
    assert a.coherence.hears is None


async def test_a_node_without_a_memory_tells_those_that_have_one_at_once(node: Callable[..., Node]) -> None:
    source = Source()
    a, b = node(source, l1_enabled=False), node(source)
    await b.until_in_memory()
    barriers = len(b.coherence.view._barriers)

    assert (await a.cache.invalidate("acme", "page")).acknowledged

    for _ in range(500):
        if len(b.coherence.view._barriers) > barriers:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("nobody told it")


async def test_where_no_node_has_a_memory_strict_waits_for_nobody(node: Callable[..., Node]) -> None:
    a = node(Source(), l1_enabled=False)
    await a.cache.invalidate("acme", "page", wait="strict")

    assert (await a.cache.invalidate("acme", "page", wait="strict")).waited < coherence_module.LONGEST_LEASE


async def test_what_others_invalidate_is_not_remembered_for_ever_by_a_node_that_nobody_asks(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = node(Source())
    _advance(monkeypatch, a, 0.0)
    for number in range(100):
        _advance(monkeypatch, a, 1.0)
        a.coherence.view.invalidated([b"tag %d" % number])

    assert len(a.coherence.view._barriers) < 20


async def test_ones_own_invalidation_is_seen_at_once(node: Callable[..., Node]) -> None:
    source = Source()
    a = node(source)
    for targets in ({"operation": "page"}, {"operation": "*"}, {"operation": "pa*"}, {"tags": ["name:a"]}):
        await a.until_in_memory()
        source.version += 1

        await a.cache.invalidate("acme", **targets)

        assert (await a.get())[0] == source.version


async def test_a_message_reaches_the_other_nodes_memory(node: Callable[..., Node]) -> None:
    source = Source()
    a, b = node(source), node(source)
    await b.until_in_memory()
    source.version += 1

    await a.cache.invalidate("acme", "page")

    for _ in range(200):  # far less than a lease; the message needs a few turns of the loop
        if (await b.get())[0] == source.version:
            break
        await asyncio.sleep(0.001)
    else:
        raise AssertionError("the message did not arrive")


async def test_without_messages_a_node_lags_behind_by_its_lease_at_most(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source()
    a, b = node(source), node(source)
    await b.until_in_memory()
    monkeypatch.setattr(b.coherence._backplane, "_received", _nothing)
    await b.coherence.aclose()  # no renewal and no backplane from here on
    await b.get()
    view = b.coherence.view
    view.registered(sent_at=view.clock())
    await b.get()
    assert "detail=memory" in (await b.get())[1]
    source.version += 1
    await a.cache.invalidate("acme", "page")
    assert (await b.get())[0] == source.version - 1, "the fault was not seen to happen"

    _advance(monkeypatch, b, view.lease)

    assert (await b.get())[0] == source.version


async def test_who_was_suspended_asks_the_server_first(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source()
    a = node(source)
    await a.until_in_memory()
    await a.coherence.aclose()
    _advance(monkeypatch, a, 3600)

    _, status = await a.get()

    assert "detail=redis" in status


async def test_a_node_that_does_not_confirm_is_waited_for_and_then_forgotten(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coherence_module, "LONGEST_LEASE", 0.3)
    source = Source()
    a, b = node(source), node(source)
    await asyncio.gather(a.until_in_memory(), b.until_in_memory())
    gone = b.coherence._backplane.node
    monkeypatch.setattr(b.coherence._backplane, "_confirm", _nothing)
    monkeypatch.setattr(b.store, "renew", _away)
    source.version += 1

    done = await a.cache.invalidate("acme", "page", wait="strict")

    assert done.waited >= 0.3
    assert (await b.get())[0] == source.version
    for _ in range(100):
        if gone not in (await a.store.nodes()).nodes:
            break
        await asyncio.sleep(0.02)
    assert gone not in (await a.store.nodes()).nodes


async def test_a_node_that_ends_leaves_the_register(node: Callable[..., Node]) -> None:
    a, b = node(Source()), node(Source())
    await asyncio.gather(a.until_in_memory(), b.until_in_memory())
    assert b.coherence._backplane.node in (await a.store.nodes()).nodes

    await b.cache.aclose()

    assert b.coherence._backplane.node not in (await a.store.nodes()).nodes


async def test_a_node_that_registered_itself_again_is_not_removed(node: Callable[..., Node]) -> None:
    a = node(Source())
    await a.until_in_memory()
    nodes = (await a.store.nodes()).nodes
    name = a.coherence._backplane.node

    await a.store.remove_node(name, b"an older registration")

    assert name in (await a.store.nodes()).nodes
    assert nodes[name]
    await a.store._lanes[0].execute((("DEL", NODES),))


async def test_with_the_store_away_an_invalidation_holds_at_once_in_its_process(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source()
    a = node(source)
    await a.until_in_memory()
    await a.get("/b")
    with monkeypatch.context() as away:
        away.setattr(a.store, "_call", _away)
        source.version += 1
        done = await a.cache.invalidate("acme", "page")
        assert (done.acknowledged, done.queued) == (False, True)
        assert (await a.get())[0] == source.version
        assert (await a.get("/b"))[0] == source.version

    # it is back: what was queued is told first, and nothing old is read
    assert (await a.get())[0] == source.version
    assert (await a.get("/b"))[0] == source.version
    await a.until_in_memory()


async def test_500_cold_requests_cost_a_handful_of_commands(node: Callable[..., Node]) -> None:
    source = Source()
    a = node(source)
    await a.until_in_memory()
    await a.cache.invalidate("acme", "page", wait="strict")
    calls, commands = source.calls, a.store.commands
    gate = asyncio.Event()
    source.wait = gate.wait

    requests = [asyncio.create_task(a.get()) for _ in range(500)]
    while source.calls == calls:  # noqa: ASYNC110 - the handler's start is what is waited for
        await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*requests)

    assert source.calls == calls + 1
    assert a.store.commands - commands <= 60  # lookup, capture, storing, and some renewals meanwhile


def _ignore_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    def invalidated(self: View, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._trusted.pop(key, None)

    monkeypatch.setattr(View, "invalidated", invalidated)


async def test_a_lost_register_is_not_relied_on_until_nobody_can_trust_what_it_stood_for(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server evicts the register; until the other node has renewed its place, it stands nowhere and trusts."""
    source = Source()
    a, b = node(source), node(source)
    await asyncio.gather(a.until_in_memory(), b.until_in_memory())
    monkeypatch.setattr(coherence_module, "_FORGOTTEN", 1.5)
    monkeypatch.setattr(b.store, "renew", _away)
    monkeypatch.setattr(View, "invalidated", lambda *_: None)  # and no message comes
    await a.store._lanes[0].execute((("DEL", NODES),))
    assert await a.store.nodes() == Register({}, None)
    await b.get()
    assert "detail=memory" in (await b.get())[1]
    source.version += 1

    done = await a.cache.invalidate("acme", "page", wait="strict")

    assert done.waited >= coherence_module.LONGEST_LEASE
    assert (await b.get())[0] == source.version


async def test_who_comes_new_relies_on_a_register_that_another_node_vouches_for(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = node(Source())
    await a.until_in_memory()
    for _ in range(200):
        if (await a.store.nodes()).vouched:
            break
        await asyncio.sleep(0.01)
    monkeypatch.setattr(coherence_module, "_FORGOTTEN", 1.5)

    new = node(Source())
    await new.cache.start()
    for _ in range(200):
        if new.coherence.connected and a.coherence.connected:
            break
        await asyncio.sleep(0.01)

    assert (await new.cache.invalidate("acme", "page", wait="strict")).waited < coherence_module.LONGEST_LEASE

    await a.store._lanes[0].execute((("HSET", NODES, SENTINEL, b"begun anew by somebody else"),))
    register = await a.store.nodes()
    assert (register.name, register.vouched) == (b"begun anew by somebody else" + a.store._lanes[0]._epoch, False)


@pytest.mark.parametrize("barriers", [True, False], ids=["with barriers", "without: the check can fail"])
async def test_a_reply_that_comes_after_the_message_is_not_trusted(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, barriers: bool
) -> None:
    source = Source()
    a, b = node(source), node(source)
    await asyncio.gather(a.until_in_memory(), b.until_in_memory("/other"))
    if not barriers:
        _ignore_barriers(monkeypatch)
    read, was_read, late = b.store.read, asyncio.Event(), asyncio.Event()

    async def hold(*args: Any, **kwargs: Any) -> Reading:
        reading: Reading = await read(*args, **kwargs)
        was_read.set()
        await late.wait()
        return reading

    with monkeypatch.context() as held:
        held.setattr(b.store, "read", hold)
        early = asyncio.create_task(b.get())
        await was_read.wait()
    source.version += 1
    await a.cache.invalidate("acme", "page", wait="strict")
    late.set()

    assert (await early)[0] == source.version - 1  # it started before the invalidation
    assert (await b.get())[0] == (source.version if barriers else source.version - 1)


@pytest.mark.parametrize("barriers", [True, False], ids=["with barriers", "without: the check can fail"])
async def test_a_node_confirms_after_it_has_raised_its_barrier(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, barriers: bool
) -> None:
    source = Source()
    a, b = node(source, l1_lease_ms=1000), node(source, l1_lease_ms=1000)
    await asyncio.gather(a.until_in_memory(), b.until_in_memory())
    if not barriers:
        monkeypatch.setattr(View, "invalidated", lambda self, keys: None)
    source.version += 1

    await a.cache.invalidate("acme", "page", wait="strict")

    assert (await b.get())[0] == (source.version if barriers else source.version - 1)


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "without: the check can fail"])
async def test_a_strict_invalidation_waits_for_a_node_whose_messages_come_late(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    source = Source()
    a, b = node(source, l1_lease_ms=1000), node(source, l1_lease_ms=1000)
    await asyncio.gather(a.until_in_memory(), b.until_in_memory())
    received, arrive = b.coherence._backplane._received, asyncio.Event()

    async def late(channel: bytes, payload: bytes) -> None:
        await arrive.wait()
        await received(channel, payload)

    monkeypatch.setattr(b.coherence._backplane, "_received", late)
    if not waits:
        monkeypatch.setattr(Coherence, "confirmed", _nothing)
    source.version += 1

    invalidating = asyncio.create_task(a.cache.invalidate("acme", "page", wait="strict"))
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert invalidating.done() is not waits
    if waits:
        arrive.set()
    await invalidating

    assert (await b.get())[0] == (source.version if waits else source.version - 1)
    arrive.set()


# --- many requests and invalidations at once, judged afterwards ----------------------------------------------


async def violations(nodes: Sequence[Node], source: Source, *, seed: int, requests: int) -> tuple[int, int]:
    """Run readers and strict invalidations at once; returns how many answers were checked, and how many were stale.

    An answer is stale if its request started after the acknowledgement of an invalidation of newer data.
    """
    draw = random.Random(seed)
    acknowledged = 0
    checked = stale = 0
    left = requests

    async def delay() -> None:
        await asyncio.sleep(draw.choice((0, 0, 0.001, 0.004)))

    source.wait = delay

    async def read() -> None:
        nonlocal checked, stale, left
        while left > 0:
            left -= 1
            needed = acknowledged
            version, _ = await draw.choice(nodes).get(draw.choice(("/a", "/b", "/c", "/d")))
            checked += 1
            stale += version < needed

    async def invalidate() -> None:
        nonlocal acknowledged
        while left > 0:
            source.version += 1
            version = source.version
            done = await draw.choice(nodes).cache.invalidate("acme", "page", wait="strict")
            if done.acknowledged:
                acknowledged = max(acknowledged, version)
            await asyncio.sleep(draw.choice((0.0, 0.005, 0.02, 0.03)))

    await asyncio.gather(invalidate(), *(read() for _ in range(12)))
    return checked, stale


def late_replies(nodes: Sequence[Node], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Hold some replies and messages back, so that they arrive in another order than they were sent in."""
    draw = random.Random(seed)
    for each in nodes:
        read = each.store.read

        async def late(*args: Any, read: Callable[..., Any] = read, **kwargs: Any) -> Reading:
            reading: Reading = await read(*args, **kwargs)
            if draw.random() < 0.5:
                await asyncio.sleep(draw.choice((0.002, 0.01, 0.02)))
            return reading

        monkeypatch.setattr(each.store, "read", late)
        received = each.coherence._backplane._received

        async def late_message(*args: Any, received: Callable[..., Any] = received) -> None:
            await asyncio.sleep(draw.choice((0, 0, 0.002, 0.006)))
            await received(*args)

        monkeypatch.setattr(each.coherence._backplane, "_received", late_message)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_no_request_is_answered_from_before_an_acknowledged_invalidation(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    source = Source()
    nodes = [node(source) for _ in range(3)]
    for each in nodes:
        await each.until_in_memory()
    late_replies(nodes, monkeypatch, seed)

    checked, stale = await violations(nodes, source, seed=seed, requests=2500)

    assert checked >= 2500
    assert stale == 0


async def _nothing(*_: object, **__: object) -> None:
    pass


async def _away(*_: object, **__: object) -> None:
    raise StoreUnavailable("connection", "away")
