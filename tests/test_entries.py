"""Entries in the store, in this process, and in the fallback while the store is away."""

import asyncio
import gc
import os
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from nexcache.entries import Entries, Found, Memory, Missing
from nexcache.errors import StoreUnavailable
from nexcache.key import CacheKey, KeySpace
from nexcache.message import Entry, StoredResponse
from nexcache.stores.memory import MemoryStore
from nexcache.telemetry.counts import OperationCounts
from nexcache.telemetry.events import Emitter, Event, Evicted
from nexcache.telemetry.names import Tier
from nexcache.testing import FakeClock
from tests.invalidation.nodes import Node, response
from tests.servers import Valkey

Made = Callable[..., Node]


@pytest.fixture
async def make() -> AsyncIterator[Made]:
    made: list[Node] = []

    def node(url: str | None, **settings: Any) -> Node:
        made.append(Node(url, **settings))
        return made[-1]

    yield node
    for each in made:
        await each.cache.aclose()


@pytest.fixture
def shared(make: Made, redis_url: str) -> Node:
    return make(redis_url)


async def _away(*_: object, **__: object) -> None:
    raise StoreUnavailable("connection", "away")


# --- the store ---------------------------------------------------------------------------------------------


async def test_what_one_node_kept_another_finds(make: Made, redis_url: str) -> None:
    a, b = make(redis_url), make(redis_url)
    key = a.key(tags=("t",))
    assert await a.fill(key, b"body") == (Tier.REDIS, True)

    assert await b.body(key) == b"body"
    assert await a.body(key) == b"body"


async def test_a_miss_names_the_generations_only_if_all_of_them_are_there(shared: Node) -> None:
    key = shared.key(tags=("t",))
    first = await shared.look(key)
    snapshot = await shared.capture(key, first)  # type: ignore[arg-type]
    second = await shared.look(key)
    await shared.store.unlink([key.generations[2]])
    third = await shared.look(key)

    assert isinstance(first, Missing)
    assert first.generations is None
    assert isinstance(second, Missing)
    assert second.generations == snapshot.generations
    assert isinstance(third, Missing)
    assert third.generations is None


async def test_an_entry_of_another_request_with_the_same_hash_is_a_miss(shared: Node) -> None:
    key = shared.key("x")
    collision = CacheKey(key.tenant, key.operation, key.name, b"another request", key.generations)
    await shared.fill(key)

    assert await shared.body(collision) is None
    assert await shared.body(key) == b"1"


@pytest.mark.parametrize(
    ("kept_with", "asked_with"),
    [
        pytest.param((), ("t",), id="the entry does not depend on a tag that the request has"),
        pytest.param(("t",), ("u",), id="another tag"),
    ],
)
async def test_an_entry_with_other_tags_than_the_request_is_a_miss(
    shared: Node, kept_with: tuple[str, ...], asked_with: tuple[str, ...]
) -> None:
    """Two releases of an app may give one operation different tags while they are rolled out."""
    await shared.fill(shared.key(tags=kept_with))
    key = shared.key(tags=asked_with)
    await shared.capture(key, Missing(Tier.REDIS, None))

    assert await shared.body(key) is None


async def test_an_entry_may_depend_on_more_than_its_request_says(shared: Node) -> None:
    """Its response has named a tag, of which this process has not heard: that generation is read too."""
    await shared.fill(shared.key(tags=("t",)))
    key = shared.key()
    assert await shared.body(key) == b"1"

    await shared.cache.invalidate("acme", tags=["t"])
    assert await shared.body(key) is None


async def test_an_entry_without_generations_is_a_miss(shared: Node) -> None:
    key = shared.key()
    codec = shared.entries._shared._codec  # type: ignore[union-attr]
    forged = codec.encode(key.name, Entry(key.request, response(b"forged"), ()))
    await shared.store.write(key.name, forged, ttl_ms=60_000)

    assert await shared.body(key) is None


@pytest.mark.parametrize("value", [b"", b"\x00", b"x" * 1000, None], ids=["empty", "a zero", "garbage", "a list"])
async def test_what_is_not_an_entry_is_a_miss(shared: Node, valkey: Valkey, value: bytes | None) -> None:
    key = shared.key()
    if value is None:
        valkey.ask("RPUSH", key.name, b"a")
    else:
        valkey.ask("SET", key.name, value)

    assert await shared.body(key) is None
    assert await shared.fill(key, b"new") == (Tier.REDIS, True)
    assert await shared.body(key) == b"new"


async def test_an_entry_expires_in_the_store_by_the_servers_clock(shared: Node, valkey: Valkey) -> None:
    key = shared.key()
    snapshot = await shared.capture(key, Missing(Tier.REDIS, None))
    await shared.keep(key, snapshot, b"1", ttl=90.0)

    assert 80_000 < valkey.ask("PTTL", key.name) <= 90_000


async def test_a_lifetime_below_a_millisecond_is_no_error(shared: Node) -> None:
    key = shared.key()
    snapshot = await shared.capture(key, Missing(Tier.REDIS, None))

    assert await shared.keep(key, snapshot, b"1", ttl=0.000_4) is True


async def test_an_entry_restored_from_an_old_dump_is_a_miss(make: Made, own_valkey: Valkey) -> None:
    node = make(own_valkey.url)
    key = node.key()
    await node.fill(key, b"old")
    own_valkey.ask("SAVE")
    assert (await node.cache.invalidate("acme", "overview")).acknowledged
    own_valkey.kill()
    own_valkey.start()

    assert own_valkey.ask("EXISTS", key.name, *key.generations) == 3, "the fault was not seen to happen"
    assert await node.body(key) is None
    assert await make(own_valkey.url).body(key) is None


async def test_a_flushed_server_costs_a_miss(shared: Node, valkey: Valkey) -> None:
    key = shared.key()
    await shared.fill(key)
    valkey.ask("FLUSHALL")

    assert await shared.body(key) is None
    assert await shared.fill(key, b"2") == (Tier.REDIS, True)


# --- the fallback ------------------------------------------------------------------------------------------


async def test_the_fallback_serves_this_processs_own_fills_only(shared: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    known, own = shared.key("known"), shared.key("own")
    await shared.fill(known)
    monkeypatch.setattr(shared.store, "_call", _away)

    assert await shared.body(known) is None
    assert await shared.fill(own, b"own") == (Tier.FALLBACK, True)
    found = await shared.look(own)

    assert isinstance(found, Found)
    assert found.tier is Tier.FALLBACK


async def test_the_fallback_is_bounded_in_time(shared: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    memory = shared.entries._local.memory
    monkeypatch.setattr(memory, "_clock", clock)
    monkeypatch.setattr(memory._entries, "_clock", clock)
    monkeypatch.setattr(shared.store, "_call", _away)
    key = shared.key()
    await shared.fill(key)
    found = await shared.look(key)
    clock.advance(9.9)
    assert await shared.body(key) == b"1"
    clock.advance(0.1)

    assert isinstance(found, Found)
    assert found.prepared.response.ttl == 10
    assert await shared.body(key) is None


async def test_the_fallback_is_not_longer_than_the_responses_own_lifetime(
    shared: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.store, "_call", _away)
    key = shared.key()
    snapshot = await shared.capture(key, Missing(Tier.FALLBACK, None))
    await shared.keep(key, snapshot, b"1", ttl=2.0)
    found = await shared.look(key)

    assert isinstance(found, Found)
    assert found.prepared.response.ttl == 2


async def test_no_fallback_where_it_is_switched_off(
    make: Made, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make(redis_url, fallback_ttl_seconds=0)
    monkeypatch.setattr(node.store, "_call", _away)
    key = node.key()

    assert await node.fill(key) == (Tier.FALLBACK, None)
    assert await node.body(key) is None


async def test_an_invalidation_reaches_the_fallback(shared: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.store, "_call", _away)
    keys = [shared.key("a"), shared.key("b", tags=("t",))]
    for key in keys:
        await shared.fill(key)
    await shared.cache.invalidate("acme", tags=["t"])

    assert [await shared.body(key) for key in keys] == [b"1", None]
    monkeypatch.undo()


async def test_the_fallback_is_forgotten_as_soon_as_the_store_answers(
    shared: Node, make: Made, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node may have invalidated meanwhile; with the store away once more, nothing may be left of it."""
    key = shared.key()
    with monkeypatch.context() as patch:
        patch.setattr(shared.store, "_call", _away)
        await shared.fill(key, b"fallback")
        assert await shared.body(key) == b"fallback"
    assert await shared.body(key) is None
    await make(redis_url).cache.invalidate("acme", "overview")
    monkeypatch.setattr(shared.store, "_call", _away)

    assert await shared.body(key) is None


async def test_a_server_that_dies_and_returns_is_fallen_back_from_and_to(make: Made, own_valkey: Valkey) -> None:
    node = make(own_valkey.url, op_timeout_ms=100)
    key = node.key()
    await node.fill(key, b"stored")
    own_valkey.kill()
    for _ in range(10):
        assert await node.body(key) is None
    assert await node.fill(key, b"fallback") == (Tier.FALLBACK, True)
    assert await node.body(key) == b"fallback"
    own_valkey.start()
    for _ in range(300):
        if node.redis.available:
            break
        await asyncio.sleep(0.01)

    assert await node.body(key) is None
    assert node.entries._local.memory.size == (0, 0)
    assert await node.fill(key, b"stored again") == (Tier.REDIS, True)


async def test_a_fill_begun_in_the_store_is_not_kept_when_it_went_away(
    shared: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = shared.key()
    snapshot = await shared.capture(key, Missing(Tier.REDIS, None))
    monkeypatch.setattr(shared.store, "_call", _away)

    assert await shared.keep(key, snapshot, b"1") is None
    assert await shared.body(key) is None


# --- entries in this process -------------------------------------------------------------------------------


def memory(**bounds: int) -> tuple[Memory, MemoryStore, FakeClock, list[Event]]:
    clock, emitter = FakeClock(), Emitter()
    left: list[Event] = []
    emitter.subscribe(left.append, Evicted)
    tokens = MemoryStore(clock=clock)
    given: dict[str, Any] = {"max_bytes": 1_000_000, "max_entries": 1_000, **bounds}
    entries = Memory(generations=tokens, tier=Tier.MEMORY, emitter=emitter, clock=clock, **given)
    return entries, tokens, clock, left


def kept(entries: Memory, tokens: MemoryStore, name: str = "x", body: bytes = b"1") -> CacheKey:
    generations = (b"nexarch:acme:@tenant", b"nexarch:acme:@op:o")
    key = CacheKey("acme", "o", b"nexarch:acme:o:" + name.encode(), name.encode(), generations)
    captured = tokens.capture_now(key.generations, registry=b"@ops", operation=b"o", ttl_ms=3_600_000)
    pairs = tuple((name, token) for name, token in zip(key.generations, captured.tokens, strict=True) if token)
    entries.keep(key, Entry(key.request, response(body), pairs), OperationCounts(), lifetime=60.0)
    return key


def test_a_raw_request_finds_its_entry_until_it_may_not_be_used() -> None:
    entries, tokens, clock, _ = memory()
    key = kept(entries, tokens)
    found = entries.lookup(key)
    assert found is not None
    assert found.live is not None
    entries.alias(("GET", "/x"), found.live)
    assert entries.peek(("GET", "/x")) is found.live
    clock.advance(60)

    assert entries.peek(("GET", "/x")) is None
    assert entries._aliases == {}
    assert entries.size == (0, 0)


def test_an_invalidated_entry_leaves_with_all_its_raw_requests() -> None:
    entries, tokens, _, _ = memory()
    key = kept(entries, tokens)
    found = entries.lookup(key)
    assert found is not None
    assert found.live is not None
    for number in range(20):
        entries.alias(("GET", number), found.live)
    assert len(entries._aliases) <= 8
    tokens.unlink_now(key.generations[1:])

    assert entries.peek(("GET", 0)) is None
    assert entries.lookup(key) is None
    assert entries._aliases == {}


def test_a_replaced_entry_takes_its_raw_requests_along() -> None:
    entries, tokens, _, _ = memory()
    found = entries.lookup(kept(entries, tokens))
    assert found is not None
    assert found.live is not None
    entries.alias(("GET", "/x"), found.live)
    kept(entries, tokens, body=b"2")

    assert entries.peek(("GET", "/x")) is None
    entries.alias(("GET", "/x"), found.live)  # of the old one, by a request that was under way
    assert entries.peek(("GET", "/x")) is None


def test_raw_requests_count_against_the_bound() -> None:
    """A client can ask for one entry in many long spellings."""
    entries, tokens, _, left = memory(max_bytes=100_000)
    for number in range(50):
        found = entries.lookup(kept(entries, tokens, str(number)))
        assert found is not None
        assert found.live is not None
        for spelling in range(8):
            entries.alias(("GET", b"x" * 8_000, number, spelling), found.live)
    held = sum(8_000 for _ in entries._aliases)

    assert held <= 100_000
    assert entries.size[1] <= 100_000
    assert left


@pytest.mark.parametrize("size", [200, 2_000, 16_000])
@pytest.mark.parametrize("own", [0, 6], ids=["as others", "with headers and a tag of its own"])
def test_what_an_entry_counts_is_about_what_it_takes(size: int, own: int) -> None:
    """The bound of the memory is one of real bytes: never much less than what is taken, nor twice as much."""
    entries, tokens, _, _ = memory(max_bytes=1 << 30, max_entries=1 << 20)
    keys, counts = KeySpace(), OperationCounts()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(500):
            tags = [f"trace:{number:032x}"] if own else ["all"]
            key = keys.key("acme", "overview", b"16:/api/v1/services" + b"%d" % number * 40, tags)
            capture = tokens.capture_now(key.generations, registry=b"r", operation=b"o", ttl_ms=60_000)
            pairs = tuple(zip(key.generations, [token or b"" for token in capture.tokens], strict=True))
            headers = [(b"content-type", b"application/json"), (b"x-page", b"%d" % (number % 3))]
            headers += [(b"x-own-%d" % each, b"%d" % number * 8) for each in range(own)]
            etag = b'"%032x"' % number
            answer = StoredResponse(
                200, (*headers, (b"etag", etag)), os.urandom(size), etag, 1000.0 + number, 60.0 + number / 7, 0, 0.01
            )
            live = entries.keep(key, Entry(key.request, answer, pairs), counts, lifetime=60.0 + number / 9)
            assert live is not None
            entries.alias((("GET", "/api/v1/services"), b"from=%d&to=now" % number), live)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    if own:  # which is held elsewhere, and counted there
        taken -= tokens._values.bytes
    assert 0.95 <= entries.size[1] / taken <= 1.25, taken / 500 - size


def test_eviction_is_told_and_drops_the_least_recently_used() -> None:
    entries, tokens, _, left = memory(max_entries=2)
    first, second = kept(entries, tokens, "1"), kept(entries, tokens, "2")
    assert entries.lookup(first) is not None
    kept(entries, tokens, "3")

    assert entries.lookup(second) is None
    assert entries.lookup(first) is not None
    assert left == [Evicted("capacity", 1)]


async def test_in_memory_mode_an_entry_that_is_too_large_is_told_apart(make: Made) -> None:
    node = make(None, l1_max_bytes=2_000_000)
    key = node.key()

    _, kept_large = await node.fill(key, b"x" * 3_000_000)

    assert kept_large is None
    assert isinstance(node.entries, Entries)
