"""Capturing generations: only from a whole registry, and with the epoch of the server they were read from."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from nexcache.errors import StoreUnavailable
from nexcache.invalidation.generations import Generations, seen
from nexcache.key import KeySpace
from nexcache.stores.base import Capture, Reading
from nexcache.stores.memory import MemoryStore

KEYS = KeySpace()
KEY = KEYS.key("acme", "overview", b"x", ("service:a",))


class Recording(MemoryStore):
    """A store that notes what is asked of it, and can be made to lose what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.loses: Sequence[str] = ()
        self.epoch = b""

    async def capture(self, *args: Any, **kwargs: Any) -> Capture:
        self.asked.append("capture")
        captured = (await super().capture(*args, **kwargs))._replace(epoch=self.epoch)
        if "operation" in self.loses:
            captured = captured._replace(registered=False)
        if "token" in self.loses:
            captured = captured._replace(tokens=[*captured.tokens[:-1], None])
        return captured

    async def restore_sentinel(self, *args: Any, **kwargs: Any) -> None:
        self.asked.append("restore")
        await super().restore_sentinel(*args, **kwargs)


async def test_a_new_tenants_registry_is_restored_first_and_only_once() -> None:
    store = Recording()
    generations = Generations(store, KEYS)

    first = await generations.capture(KEY)
    second = await generations.capture(KEY)

    assert store.asked == ["capture", "restore", "capture", "capture"]
    assert first == second
    assert len(first.generations) == len(KEY.generations)
    assert await store.members(KEYS.registry("acme")) == frozenset((b"overview",))


class Late:
    """A second node's way to the same store: its turn to restore is asked for when the test says so."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.asking = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def acquire(self, *args: Any, **kwargs: Any) -> bool:
        self.asking.set()
        await self.goes_on.wait()
        return await self._store.acquire(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


async def test_a_node_that_saw_the_registry_lost_leaves_alone_what_another_has_restored() -> None:
    """Otherwise the first requests of a tenant would be computed once per node."""
    store = Recording()
    late: Any = Late(store)
    there = asyncio.create_task(Generations(late, KEYS).capture(KEY))
    await late.asking.wait()
    here = await Generations(store, KEYS).capture(KEY)
    late.goes_on.set()

    assert await there == here
    assert store.asked.count("restore") == 1


async def test_a_node_that_is_to_restore_the_registry_and_does_not_is_not_waited_for() -> None:
    store = Recording()
    assert await store.acquire(KEYS.of_restoration("acme"), b"of a node that died", ttl_ms=60_000)

    await Generations(store, KEYS).capture(KEY)

    assert store.asked == ["capture", "restore", "capture"]


async def test_a_capture_that_was_taken_before_the_restoring_is_not_used() -> None:
    """Its token of the tenant has just been removed."""
    store = Recording()
    snapshot = await Generations(store, KEYS).capture(KEY)

    current = await store.read(KEY.generations)

    assert list(snapshot.generations) == list(current.values)


@pytest.mark.parametrize("lost", ["operation", "token"])
async def test_a_store_that_loses_what_it_is_given_is_given_up_on(lost: str) -> None:
    store = Recording()
    store.loses = (lost,)

    with pytest.raises(StoreUnavailable, match="is its memory full"):
        await Generations(store, KEYS).capture(KEY)
    assert store.asked.count("capture") == 4


async def test_a_loss_in_passing_costs_one_more_attempt() -> None:
    store = Recording()
    generations = Generations(store, KEYS)
    await generations.capture(KEY)
    store._complete.clear()

    await generations.capture(KEY)

    assert store.asked[3:] == ["capture", "restore", "capture"]


async def test_on_sent_belongs_to_the_first_attempt() -> None:
    calls: list[int] = []

    await Generations(Recording(), KEYS).capture(KEY, on_sent=lambda: calls.append(1))

    assert calls == [1]


async def test_the_same_tokens_under_another_epoch_are_other_generations() -> None:
    store = Recording()
    generations = Generations(store, KEYS)
    store.epoch = b"one"
    one = await generations.capture(KEY)
    store.epoch = b"two"
    two = await generations.capture(KEY)

    assert not set(one.generations) & set(two.generations)
    assert [token[:24] for token in one.generations] == [token[:24] for token in two.generations]


async def test_every_capture_is_shown_to_who_observes() -> None:
    shown: list[tuple[Sequence[bytes], Reading]] = []
    store = Recording()
    store.epoch = b"e"
    generations = Generations(store, KEYS, observe=lambda keys, reading: shown.append((keys, reading)))

    snapshot = await generations.capture(KEY)

    keys, reading = shown[-1]
    assert tuple(keys) == (*KEY.generations, KEYS.of_any("acme"))
    assert tuple(seen(token, reading.epoch) for token in reading.values) == (*snapshot.generations, snapshot.any)


def test_tokens_live_twice_as_long_as_the_longest_entry() -> None:
    generations = Generations(MemoryStore(), KEYS)
    assert generations.ttl_ms == 120_000
    generations.keep_for(3600)
    generations.keep_for(5)

    assert generations.ttl_ms == 7_200_000


def test_a_memory_that_cannot_hold_one_requests_generations_says_so() -> None:
    store = MemoryStore(max_entries=1)
    snapshot = Generations(store, KEYS).capture_now(store, KEY)

    assert not store.current(tuple(zip(KEY.generations, snapshot.generations, strict=True)))


def test_an_absent_token_is_absent_in_every_epoch() -> None:
    assert seen(None, b"epoch") is None
    assert seen(b"token", b"epoch") == b"tokenepoch"
