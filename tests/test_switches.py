"""Operations switched off: for one tenant or for all, on every node, and remembered by the store."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest

from nexcache.errors import StoreUnavailable
from nexcache.stores.redis import RedisStore
from nexcache.stores.target import Target
from nexcache.switches import Switches
from nexcache.telemetry.events import Emitter

Make = Callable[[], tuple[Switches, RedisStore]]


def target(url: str) -> Target:
    place = urlsplit(url)
    return Target(host=place.hostname or "", port=place.port or 0)


@pytest.fixture
async def node(redis_url: str) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        def make() -> tuple[Switches, RedisStore]:
            store = RedisStore(target(redis_url), emitter=Emitter(), timeout=2.0)
            stack.push_async_callback(store.aclose)
            switches = Switches(store)
            stack.push_async_callback(switches.aclose)
            return switches, store

        yield make


async def test_a_tenants_switch_is_its_own() -> None:
    switches = Switches(None)
    assert await switches.switch("overview", "acme", off=True)
    assert switches.is_off("overview", "acme")
    assert not switches.is_off("overview", "globex")
    assert not switches.is_off("overview", None)
    assert not switches.is_off("details", "acme")
    assert await switches.switch("overview", "acme", off=False)
    assert not switches.is_off("overview", "acme")


async def test_a_switch_for_all_is_for_every_tenant_and_leaves_their_own() -> None:
    switches = Switches(None)
    await switches.switch("overview", "acme", off=True)
    await switches.switch("overview", None, off=True)
    assert switches.is_off("overview", "globex")
    await switches.switch("overview", None, off=False)
    assert not switches.is_off("overview", "globex")
    assert switches.is_off("overview", "acme")


async def test_a_forked_process_knows_what_its_parent_knew() -> None:
    parent, child = Switches(None), Switches(None)
    await parent.switch("overview", "acme", off=True)
    parent.here("details", off=True)
    child.take_over(parent.known)
    assert child.is_off("overview", "acme")
    assert child.is_off("details", "globex")


async def test_another_node_takes_it_over_and_so_does_one_that_starts_later(node: Make) -> None:
    (a, _), (b, _) = node(), node()
    await b.look()
    assert await a.switch("overview", "acme", off=True)
    await b.look()
    assert b.is_off("overview", "acme")
    later, _ = node()
    await later.look()
    assert later.is_off("overview", "acme")

    assert await b.switch("overview", "acme", off=False)
    await a.look()
    assert not a.is_off("overview", "acme")


async def test_names_may_hold_anything(node: Make) -> None:
    (a, _), (b, _) = node(), node()
    pairs = [("a|b", "c"), ("*", "x"), ("é:\u202e", "@"), ("@", "*")]
    for tenant, operation in pairs:
        await a.switch(operation, tenant, off=True)
    await b.look()
    assert all(b.is_off(operation, tenant) for tenant, operation in pairs)
    assert not b.is_off("x", "acme")
    assert not b.is_off("b|c", "a")


async def test_two_who_switch_at_once_do_not_undo_each_other(node: Make) -> None:
    (a, store), (b, _) = node(), node()
    await store.add(b"nexarch.switch:all", {b"acme|overview": 2}, once={b"@": 1}, ttl_ms=60_000)  # both added one
    await a.look()
    await b.look()
    assert a.is_off("overview", "acme")
    await b.switch("overview", "acme", off=False)
    await a.look()
    assert not a.is_off("overview", "acme")
    await store.add(b"nexarch.switch:all", {b"acme|overview": -1}, once={}, ttl_ms=60_000)  # both took one away
    await a.switch("overview", "acme", off=True)
    await b.look()
    assert b.is_off("overview", "acme")


async def test_a_store_that_lost_it_is_given_it_again(node: Make) -> None:
    (a, store), (b, _) = node(), node()
    await a.switch("overview", "acme", off=True)
    await b.look()
    await store._call("stats", (("UNLINK", b"nexarch.switch:all"),), deadline=None)

    await b.look()
    later, _ = node()
    await later.look()

    assert b.is_off("overview", "acme")
    assert later.is_off("overview", "acme")


async def test_while_the_store_is_away_it_holds_here_and_is_told_afterwards(
    node: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a, store), (b, _) = node(), node()
    await a.switch("details", "acme", off=True)
    asked = 0

    async def away(*_: object, **__: object) -> None:
        nonlocal asked
        asked += 1
        raise StoreUnavailable("breaker", "away")

    monkeypatch.setattr(store, "_call", away)
    assert not await a.switch("overview", "acme", off=True)
    assert not await a.switch("details", "acme", off=False)
    assert asked, "the fault was not seen to happen"
    assert a.is_off("overview", "acme")
    with pytest.raises(StoreUnavailable):
        await a.look()
    monkeypatch.undo()

    await a.look()
    await b.look()
    for switches in (a, b):
        assert switches.is_off("overview", "acme")
        assert not switches.is_off("details", "acme")
