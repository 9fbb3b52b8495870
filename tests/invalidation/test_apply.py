"""What an invalidation removes, on every kind of store, and what becomes of it while the store is away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import pytest

from nexcache import InvalidName
from nexcache.errors import StoreUnavailable
from nexcache.invalidation import apply as apply_module
from nexcache.stores.redis import RedisStore
from nexcache.telemetry.names import Tier
from tests.invalidation.nodes import Node
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


@pytest.fixture(params=["memory", "valkey"])
def node(request: pytest.FixtureRequest, make: Made) -> Node:
    return make(None if request.param == "memory" else request.getfixturevalue("redis_url"))


@pytest.fixture
def shared(make: Made, redis_url: str) -> Node:
    """A node with a server that is there."""
    return make(redis_url)


class Away:
    """Lets a store be away, as its breaker does."""

    def __init__(self, node: Node, patch: pytest.MonkeyPatch) -> None:
        self._node, self._patch = node, patch
        self.refused: list[str] = []

    def __enter__(self) -> Self:
        async def away(operation: str, *_: object, **__: object) -> None:
            self.refused.append(operation)
            raise StoreUnavailable("connection", "away")

        self._patch.setattr(self._node.store, "_call", away)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        assert self.refused, "the fault was not seen to happen"


# --- what is removed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(4), ids=["the tenant", "the operation", "a tag", "another tag"])
async def test_an_entry_is_valid_until_one_of_its_generations_goes(node: Node, index: int) -> None:
    key = node.key(tags=("service:a", "host:b"))
    assert await node.fill(key) == (node.store.tier, True)
    assert await node.body(key) == b"1"

    await node.store.unlink([key.generations[index]])

    assert await node.body(key) is None


@pytest.mark.parametrize(
    ("operation", "tags", "gone"),
    [
        pytest.param("overview", (), {"overview", "tagged"}, id="a name"),
        pytest.param("over*", (), {"overview", "overdue", "tagged"}, id="a glob"),
        pytest.param("over????", (), {"overview", "tagged"}, id="a glob of single characters"),
        pytest.param("nothing*", (), set(), id="a glob that matches nothing"),
        pytest.param("Overview", (), set(), id="another case"),
        pytest.param(None, ("service:a",), {"tagged"}, id="a tag"),
        pytest.param("map", ("service:a",), {"map", "tagged"}, id="the union of both"),
        pytest.param("*", (), {"overview", "overdue", "map", "tagged"}, id="the whole tenant"),
        pytest.param("**", (), {"overview", "overdue", "map", "tagged"}, id="the whole tenant, said twice"),
    ],
)
async def test_the_union_of_the_targets_goes_and_nothing_else(
    node: Node, operation: str | None, tags: tuple[str, ...], gone: set[str]
) -> None:
    keys = {name: node.key(operation=name) for name in ("overview", "overdue", "map")}
    keys["tagged"] = node.key("y", operation="overview", tags=("service:a",))
    other = node.keys.key("globex", "overview", b"x", ("service:a",))
    for key in (*keys.values(), other):
        await node.fill(key)

    done = await node.cache.invalidate("acme", operation, tags=tags)

    assert (done.acknowledged, done.queued) == (True, False)
    assert {name for name, key in keys.items() if await node.body(key) is None} == gone
    assert await node.body(other) == b"1"


async def test_a_name_with_special_characters_is_found_by_a_glob(node: Node) -> None:
    key = node.key(operation="a:b/é [x]*")
    await node.fill(key)

    done = await node.cache.invalidate("acme", "a:b/*")

    assert done.targets == ("a:b/é [x]*",)
    assert await node.body(key) is None


async def test_a_glob_over_a_registry_that_is_lost_widens_to_the_tenant(node: Node) -> None:
    keys = [node.key(operation=name) for name in ("overview", "map")]
    for key in keys:
        await node.fill(key)
    registry = node.keys.registry("acme")
    await node.store.unlink([registry])
    node.local._registries.clear()
    node.local._complete.clear()

    done = await node.cache.invalidate("acme", "over*")

    assert done.targets == ("*",)
    assert [await node.body(key) for key in keys] == [None, None]


async def test_a_capture_over_a_lost_registry_removes_what_a_glob_could_not_find(node: Node) -> None:
    first, second = node.key(operation="overview"), node.key(operation="map")
    await node.fill(first)
    await node.store.unlink([node.keys.registry("acme")])
    node.local._registries.clear()
    node.local._complete.clear()

    await node.fill(second)

    assert await node.body(first) is None
    assert await node.body(second) == b"1"
    assert (await node.cache.invalidate("acme", "m*")).targets == ("map",)


async def test_an_invalidation_costs_the_same_for_any_number_of_entries(shared: Node, valkey: Valkey) -> None:
    for number in range(200):
        await shared.fill(shared.key(str(number)))
    valkey.ask("CONFIG", "RESETSTAT")

    await shared.cache.invalidate("acme", "overview", tags=["a", "b"])

    calls = {name: count for name, count in valkey.calls().items() if name in ("unlink", "del", "smembers", "eval")}
    assert calls == {"unlink": 1}


async def test_nothing_is_ever_searched_for(shared: Node, valkey: Valkey) -> None:
    for number in range(50):
        await shared.fill(shared.key(str(number), operation=f"op{number % 5}", tags=(f"t{number}",)))
    for operation in ("op1", "op*", "*", "none*"):
        await shared.cache.invalidate("acme", operation, tags=["t1"])
        await shared.look(shared.key("1", operation="op1"))

    assert not {"keys", "scan", "sscan", "hscan", "multi", "eval", "incr"} & valkey.calls().keys()


@pytest.mark.parametrize("name", ["", "a\nb", "a" * 201])
async def test_a_bad_name_raises(node: Node, name: str) -> None:
    with pytest.raises(InvalidName):
        await node.cache.invalidate("acme", name)
    with pytest.raises(InvalidName):
        await node.cache.invalidate("acme", tags=[name])


async def test_no_target_and_a_bad_tenant_raise(node: Node) -> None:
    with pytest.raises(ValueError, match="needs a target"):
        await node.cache.invalidate("acme")
    with pytest.raises(InvalidName):
        await node.cache.invalidate("a\nb", "*")


# --- while it is computed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["overview", "over*", "*", None])
async def test_a_fill_whose_generations_changed_meanwhile_is_not_kept(node: Node, target: str | None) -> None:
    key = node.key(tags=("service:a",))
    tags = ["service:a"] if target is None else []

    _, kept = await node.fill(key, meanwhile=lambda: node.cache.invalidate("acme", target, tags=tags))

    assert kept is False
    assert await node.body(key) is None


async def test_a_capture_after_an_invalidation_differs(node: Node) -> None:
    key = node.key(tags=("service:a",))
    missing = await node.look(key)
    assert not hasattr(missing, "prepared")
    before = await node.capture(key, missing)
    again = await node.capture(key, missing)
    await node.cache.invalidate("acme", tags=["service:a"])
    after = await node.capture(key, missing)

    assert (again.generations, again.any) == (before.generations, before.any)
    assert after.generations[:2] == before.generations[:2]
    assert after.generations[2] != before.generations[2]
    assert after.any != before.any


# --- the store is away -------------------------------------------------------------------------------------


async def test_with_the_store_away_it_is_queued_holds_here_and_is_told_before_the_next_read(
    shared: Node, make: Made, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make(redis_url)
    key = shared.key()
    await shared.fill(key)
    with Away(shared, monkeypatch):
        await shared.fill(key, b"fallback")
        done = await shared.cache.invalidate("acme", "overview")
        assert (done.acknowledged, done.queued) == (False, True)
        assert await shared.body(key) is None
    assert await other.body(key) == b"1", "the fault was not seen to happen"

    assert await shared.body(key) is None  # the store is there again: it was told first
    assert shared.invalidations.queued == 0
    assert await other.body(key) is None


async def test_what_is_queued_is_delivered_although_nobody_reads_here(
    shared: Node, make: Made, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that only takes spans in never looks anything up."""
    other = make(redis_url)
    key = shared.key()
    await other.fill(key)
    with Away(shared, monkeypatch):
        await shared.cache.invalidate("acme", "overview")

    for _ in range(200):
        if not shared.invalidations.queued:
            break
        await asyncio.sleep(0.01)

    assert await other.body(key) is None


async def test_what_is_queued_is_delivered_at_the_end(
    make: Made, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = make(redis_url), make(redis_url)
    key = other.key()
    await other.fill(key)
    with Away(first, monkeypatch):
        await first.cache.invalidate("acme", "over*")
    await first.cache.aclose()

    assert await other.body(key) is None


async def test_a_glob_that_could_not_be_resolved_is_queued_as_the_whole_tenant(
    shared: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Away(shared, monkeypatch):
        await shared.cache.invalidate("acme", "over*", tags=["a"])
        assert set(shared.invalidations._queue["acme"]) == {
            shared.keys.of_tenant("acme"),
            shared.keys.of_tag("acme", "a"),
            shared.keys.shared_by(shared.keys.of_tag("acme", "a")),
            shared.keys.of_any("acme"),
        }


async def test_too_much_for_the_queue_becomes_the_whole_tenant(shared: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    key = shared.key(operation="untouched")
    await shared.fill(key)
    whole = {shared.keys.of_tenant("acme"), shared.keys.of_any("acme")}
    with Away(shared, monkeypatch):
        for number in range(300):
            await shared.cache.invalidate("acme", tags=[f"tag-{number}"])
            assert len(shared.invalidations._queue["acme"]) <= 256
        assert whole <= shared.invalidations._queue["acme"].keys()

    assert await shared.body(key) is None


async def test_too_much_of_all_tenants_becomes_each_tenants_whole(
    shared: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_module, "_MOST_QUEUED_IN_ALL", 50)
    with monkeypatch.context() as patch, Away(shared, patch):
        for number in range(20):
            await shared.cache.invalidate(f"tenant-{number}", tags=["a", "b", "c"])
        sizes = [len(tokens) for tokens in shared.invalidations._queue.values()]
        assert len(sizes) == 20
        assert sum(sizes) <= 50
    assert await shared.invalidations.caught_up()


async def test_what_is_queued_again_while_it_is_told_is_told_again(
    shared: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server carried the first telling out before the second invalidation was made."""
    key = shared.key()
    with monkeypatch.context() as patch, Away(shared, patch):
        await shared.cache.invalidate("acme", "overview")
    unlink = RedisStore.unlink
    told, go_on = asyncio.Event(), asyncio.Event()

    async def slow(self: RedisStore, *args: Any, **kwargs: Any) -> int:
        count = await unlink(self, *args, **kwargs)
        told.set()
        await go_on.wait()
        return count

    monkeypatch.setattr(RedisStore, "unlink", slow)
    replaying = asyncio.create_task(shared.invalidations.caught_up())
    await told.wait()
    monkeypatch.undo()
    tokens = await shared.redis.capture(
        key.generations, registry=shared.keys.registry("acme"), operation=b"overview", ttl_ms=60_000
    )
    with monkeypatch.context() as patch, Away(shared, patch):
        await shared.cache.invalidate("acme", "overview")
    go_on.set()
    assert await replaying

    now = await shared.redis.read(key.generations)
    assert now.values[1] is None, "the second invalidation was forgotten"
    assert tokens.tokens[1] is not None


async def test_a_request_does_not_wait_for_the_queue_beyond_its_deadline(
    shared: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, Away(shared, patch):
        await shared.cache.invalidate("acme", "overview")
    hangs = asyncio.Event()

    async def hang(*_: object, **__: object) -> int:
        await hangs.wait()
        return 0

    monkeypatch.setattr(shared.store, "unlink", hang)
    loop = asyncio.get_running_loop()
    started = loop.time()
    key = shared.key()
    found = await shared.entries.lookup(key, shared.cache.counts.of("acme", "overview"), deadline=loop.time() + 0.02)
    took = loop.time() - started
    hangs.set()

    assert found.tier is Tier.FALLBACK
    assert took < 0.5


async def test_an_invalidation_that_is_cancelled_half_way_is_carried_out(
    shared: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = shared.key()
    await shared.fill(key)
    called = asyncio.Event()

    async def never(*_: object, **__: object) -> int:
        called.set()
        await asyncio.Event().wait()
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(shared.store, "unlink", never)
        invalidating = asyncio.create_task(shared.cache.invalidate("acme", "overview"))
        await called.wait()
        invalidating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await invalidating

    assert await shared.body(key) is None


async def test_a_lookup_that_was_under_way_when_the_store_went_away_is_not_shared_with_later_requests(
    shared: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read before the store hears of the invalidation; here it holds at once."""
    key = shared.key()
    await shared.fill(key)
    read = shared.redis.read
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def late(*args: Any, **kwargs: Any) -> Any:
        asked.set()
        await go_on.wait()
        return await read(*args, **kwargs)

    async def away(*_: object, **__: object) -> int:
        raise StoreUnavailable("timeout", "away")

    monkeypatch.setattr(shared.store, "read", late)
    monkeypatch.setattr(shared.store, "unlink", away)
    looking = asyncio.create_task(shared.look(key))
    await asked.wait()
    done = await shared.cache.invalidate("acme", "overview")
    go_on.set()

    assert done.queued
    assert not hasattr(await looking, "prepared")
    monkeypatch.undo()


async def test_two_nodes_see_each_others_invalidations_at_the_next_request(make: Made, redis_url: str) -> None:
    a, b = make(redis_url), make(redis_url)
    for target in ({"operation": "overview"}, {"operation": "over*"}, {"operation": "*"}, {"tags": ["t"]}):
        key = a.key(tags=("t",))
        await a.fill(key)
        assert await b.body(key) == b"1"

        assert (await a.cache.invalidate("acme", **target)).acknowledged

        assert await b.body(key) is None
