"""One computation over all nodes, and nobody left waiting when its node dies, is silent, or computed for itself."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from nexcache import CacheMiddleware, NexCache, Policy, Settings, fill_lease, tenants
from nexcache.asgi import Receive, Scope, Send
from nexcache.fill_lease import End
from tests.servers import Valkey
from tests.wire.server import Exchange, Origin, ask, until

CROWD = 50


class Gated:
    """The app of all nodes: it answers when the test opens a gate, and counts."""

    def __init__(self, answer: Callable[[int, Send], Awaitable[None]] | None = None) -> None:
        self.calls = 0
        self.inside = 0
        self.gates = [asyncio.Event() for _ in range(3 * CROWD)]
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number, self.calls = self.calls, self.calls + 1
        self.inside += 1
        try:
            await self.gates[number].wait()
        finally:
            self.inside -= 1
        if self._answer is not None:
            await self._answer(number, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer %d" % number})

    def open(self, *numbers: int) -> None:
        for number in numbers or range(len(self.gates)):
            self.gates[number].set()


class Nodes:
    """Two nodes of one service."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.app = Gated()
        given = Settings(redis_url=SecretStr(url), op_timeout_ms=2000, **settings)
        self.caches = [NexCache(given), NexCache(given)]
        self.options: dict[str, Any] = {}

    def site(self, number: int) -> CacheMiddleware:
        policies = [Policy("/", op="home", **self.options)]
        return CacheMiddleware(self.app, cache=self.caches[number], tenant=tenants.fixed("acme"), policies=policies)

    async def start(self) -> None:
        """Make tenant and operation known, and let both nodes hear each other."""
        for cache in self.caches:
            await cache.start()
            policies = [Policy("/introduction", op="home")]
            site = CacheMiddleware(Origin(), cache=cache, tenant=tenants.fixed("acme"), policies=policies)
            await ask(site, "/introduction")
            await until(lambda cache=cache: cache.flights.running == 0)  # type: ignore[misc]
            coherence = cache._parts.coherence
            if coherence is not None and coherence.hears is not None:
                await until(lambda coherence=coherence: coherence.connected)  # type: ignore[misc]

    def crowd(self, number: int, size: int = CROWD) -> tuple[list[Exchange], "asyncio.Future[list[Any]]"]:
        exchanges = [Exchange(self.site(number)) for _ in range(size)]
        return exchanges, asyncio.gather(*(each.run() for each in exchanges), return_exceptions=True)

    async def first(self) -> tuple[list[Exchange], "asyncio.Future[list[Any]]"]:
        """Let node 0 compute."""
        exchanges, running = self.crowd(0)
        await until(lambda: self.app.calls == 1)
        return exchanges, running

    async def waiting(self, number: int = 1) -> None:
        """Wait until a node waits for the other."""
        leases = self.caches[number].leases
        assert leases is not None
        await until(lambda: leases._waiting)

    async def aclose(self) -> None:
        self.app.open()
        for cache in self.caches:
            await cache.aclose()


@pytest.fixture
async def nodes(redis_url: str) -> AsyncIterator[Nodes]:
    nodes = Nodes(redis_url)
    await nodes.start()
    yield nodes
    await nodes.aclose()


def leases(valkey: Valkey) -> list[bytes]:
    return [key for key in valkey.ask("KEYS", "nexarch:*") if b":l:" in key]


def bodies(exchanges: list[Exchange]) -> set[bytes]:
    return {each.answer.body for each in exchanges}


async def test_two_nodes_compute_once(nodes: Nodes, valkey: Valkey) -> None:
    here, running = await nodes.first()
    valkey.ask("CONFIG", "RESETSTAT")
    there, waiting = nodes.crowd(1)
    await nodes.waiting()
    assert nodes.app.calls == 1
    nodes.app.open()
    await asyncio.gather(running, waiting)
    assert nodes.app.calls == 1
    assert bodies(here) == bodies(there) == {b"answer 0"}
    assert {each.answer.cache for each in there} == {"NexCache; fwd=uri-miss; collapsed"}
    calls = valkey.calls()
    assert calls["smismember"] == 1, calls  # one capture for the crowd
    assert calls["mget"] <= 1 + 1 + 1 + 1 + calls.get("hset", 0), calls  # lookup, capture, lookup again; before storing
    await until(lambda: not leases(valkey))  # released, not lapsed


async def test_an_unknown_tenants_first_requests_to_two_nodes_are_one_computation(redis_url: str) -> None:
    for _ in range(5):
        nodes = Nodes(redis_url)
        _, first = nodes.crowd(0)
        _, second = nodes.crowd(1)
        await until(lambda nodes=nodes: nodes.app.calls)  # type: ignore[misc]
        await asyncio.sleep(0.1)  # what is to be shown does not happen
        nodes.app.open()
        await asyncio.gather(first, second)
        assert nodes.app.calls == 1
        await nodes.aclose()
        await asyncio.to_thread(_flush, redis_url)


def _flush(url: str) -> None:
    import redis  # noqa: PLC0415

    with redis.Redis.from_url(url) as client:
        client.flushall()


@pytest.mark.parametrize("settings", [{}, {"l1_enabled": False}], ids=["heard", "looked for"])
async def test_when_the_announcement_is_lost_the_lease_tells(
    redis_url: str, valkey: Valkey, settings: dict[str, Any]
) -> None:
    nodes = Nodes(redis_url, **settings)
    await nodes.start()
    leases_there = nodes.caches[1].leases
    assert leases_there is not None
    lost: list[object] = []
    if (coherence := nodes.caches[1]._parts.coherence) is not None:
        coherence.on_announcement(lost.append)
    _, running = await nodes.first()
    there, waiting = nodes.crowd(1)
    await nodes.waiting()
    nodes.app.open()
    await asyncio.gather(running, waiting)
    assert nodes.app.calls == 1
    assert bodies(there) == {b"answer 0"}
    assert len(lost) == (0 if settings else 1)
    await nodes.aclose()


async def test_when_the_computing_node_is_killed_one_of_those_who_wait_takes_over(nodes: Nodes, valkey: Valkey) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.wire.node", valkey.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"computing\n"
        exchanges, waiting = nodes.crowd(1)
        await nodes.waiting()
        assert nodes.app.calls == 0
        [lease] = leases(valkey)
    finally:
        process.kill()  # while it computes: it has said so, and not that it has ended
        await process.wait()
    assert valkey.ask("PTTL", lease) > 0
    await until(lambda: nodes.app.calls == 1)
    nodes.app.open()
    await waiting
    assert nodes.app.calls == 1
    assert bodies(exchanges) == {b"answer 0"}


async def test_what_cannot_be_shared_lets_the_other_node_go_on_all_together(nodes: Nodes) -> None:
    async def private(number: int, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"private")]})
        await send({"type": "http.response.body", "body": b"answer %d" % number})

    nodes.app = Gated(private)
    _, running = await nodes.first()
    there, waiting = nodes.crowd(1, 10)
    await nodes.waiting()
    nodes.app.open(0)
    await until(lambda: nodes.app.inside == CROWD - 1 + 10)  # nobody waits for anybody
    nodes.app.open()
    await asyncio.gather(running, waiting)
    assert len(bodies(there)) == 10
    calls = nodes.app.calls
    _, again = nodes.crowd(1, 5)  # remembered there too
    await again
    assert nodes.app.calls == calls + 5


async def test_when_a_node_fails_one_takes_over_for_all(nodes: Nodes) -> None:
    async def fail(number: int, send: Send) -> None:
        if number == 0:
            raise LookupError("as the test wants it")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer %d" % number})

    nodes.app = Gated(fail)
    _, running = await nodes.first()
    there, waiting = nodes.crowd(1)
    await nodes.waiting()
    nodes.app.open()
    await asyncio.gather(running, waiting)
    assert nodes.app.calls == 2
    assert bodies(there) == {b"answer 1"}


async def test_after_the_soft_limit_a_node_computes_itself_once(nodes: Nodes) -> None:
    _, running = await nodes.first()
    nodes.options = {"fill_soft_limit": 0.05}
    there, waiting = nodes.crowd(1)
    await until(lambda: nodes.app.calls == 2)
    nodes.app.open(1)
    await waiting
    assert nodes.app.calls == 2
    assert bodies(there) == {b"answer 1"}
    nodes.app.open()
    await running


async def test_a_node_that_waited_twice_in_vain_computes_itself_once(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a stream of invalidations other nodes could always be a step ahead."""
    monkeypatch.setattr(fill_lease, "LEASE_MS", 30_000)  # a busy machine renews late
    _, running = await nodes.first()
    waited: list[bytes] = []

    async def ended(name: bytes, *, since: float, limit: float) -> End:
        waited.append(name)
        return End.OVER  # and nothing is there

    monkeypatch.setattr(nodes.caches[1].leases, "ended", ended)
    there, waiting = nodes.crowd(1)
    await until(lambda: nodes.app.calls == 2)
    nodes.app.open(1)
    await waiting
    assert (nodes.app.calls, len(waited)) == (2, 2)
    assert bodies(there) == {b"answer 1"}
    nodes.app.open()
    await running


async def test_a_request_after_an_invalidation_waits_for_no_computation_from_before(nodes: Nodes) -> None:
    _, running = await nodes.first()
    await nodes.caches[0].invalidate("acme", "home", wait="strict")
    there, waiting = nodes.crowd(1)
    await until(lambda: nodes.app.calls == 2)
    nodes.app.open()
    await asyncio.gather(running, waiting)
    assert bodies(there) == {b"answer 1"}


async def test_clients_that_leave_take_nobody_with_them(nodes: Nodes) -> None:
    leading = asyncio.create_task(Exchange(nodes.site(0)).run())
    await until(lambda: nodes.app.calls == 1)
    there, waiting = nodes.crowd(1)
    leaver = asyncio.create_task(Exchange(nodes.site(1)).run())
    await nodes.waiting()
    for task in (leading, leaver):
        task.cancel()
    await asyncio.gather(leading, leaver, return_exceptions=True)
    nodes.app.open()
    await waiting
    assert nodes.app.calls == 1
    assert bodies(there) == {b"answer 0"}


async def test_a_lease_is_renewed_while_its_node_computes_and_not_after_the_hard_limit(
    redis_url: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexcache.fill_lease._RENEWAL", 0.01)
    monkeypatch.setattr("nexcache.fill_lease.LEASE_MS", 100)
    nodes = Nodes(redis_url)
    nodes.options = {"fill_soft_limit": 0.4, "fill_hard_limit": 0.4}
    await nodes.start()
    _, running = nodes.crowd(0, 1)
    await until(lambda: nodes.app.calls == 1)
    await asyncio.sleep(0.2)
    assert leases(valkey)  # twice its life
    await until(lambda: not leases(valkey))  # its node still computes
    assert nodes.app.inside == 1
    nodes.app.open()
    await running
    await nodes.aclose()
