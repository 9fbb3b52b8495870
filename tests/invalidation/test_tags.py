"""Tags that responses name, how many of a tenant are told apart, and what a flood of names costs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from pydantic import SecretStr

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Receive, Scope, Send
from nexcache.errors import StoreUnavailable
from nexcache.invalidation import generations
from nexcache.invalidation.apply import Invalidations
from nexcache.message import StoredResponse
from nexcache.stores.base import Capture
from nexcache.stores.redis import RedisCommands
from nexcache.telemetry.events import NotStored
from tests.invalidation.nodes import Node
from tests.servers import Valkey
from tests.wire.server import Exchange, ask, until


class Tagging:
    """An app whose answers name their tags, and count."""

    def __init__(self, *headers: tuple[str, str]) -> None:
        self.headers = headers
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number, self.calls, headers = self.calls, self.calls + 1, self.headers
        await self.gate.wait()
        fields = [(name.encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"answer %d" % number})


class Site:
    """One or more nodes in front of one app."""

    def __init__(self, app: Tagging, url: str | None, *, nodes: int = 1, **settings: Any) -> None:
        self.app = app
        given = Settings(redis_url=SecretStr(url) if url else None, redis_host=None, op_timeout_ms=2000, **settings)
        self.caches = [NexCache(given) for _ in range(nodes)]
        self.options: dict[str, Any] = {}
        self.reasons: list[object] = []
        for cache in self.caches:
            cache.emitter.subscribe(lambda event: self.reasons.append(event.reason), NotStored)  # type: ignore[union-attr]

    def middleware(self, number: int = 0) -> CacheMiddleware:
        policies = [Policy("/{page}", op="page", **self.options)]
        return CacheMiddleware(self.app, cache=self.caches[number], tenant=tenants.fixed("acme"), policies=policies)

    async def body(self, number: int = 0, path: str = "/x") -> bytes:
        answer = await ask(self.middleware(number), path)
        await until(lambda: not any(cache.flights.running for cache in self.caches))
        return answer.body


@pytest.fixture(params=["memory", "valkey", "valkey without L1"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Site]]:
    url = None if request.param == "memory" else request.getfixturevalue("redis_url")
    made: list[Site] = []

    def make(*headers: tuple[str, str], **options: Any) -> Site:
        made.append(Site(Tagging(*headers), url, l1_enabled=request.param != "valkey without L1", **options))
        return made[-1]

    yield make
    for each in made:
        for cache in each.caches:
            await cache.aclose()


@pytest.mark.parametrize(
    "header", [("cache-groups", '"cart", "shop"'), ("surrogate-key", "cart shop"), ("cache-tag", "cart,shop")]
)
async def test_an_answer_is_invalidated_by_each_tag_that_it_names(
    site: Callable[..., Site], header: tuple[str, str]
) -> None:
    shop = site(header)
    for number, tag in enumerate(("cart", "shop", "other")):
        before = await shop.body()
        assert before == await shop.body() == b"answer %d" % number, tag
        await shop.caches[0].invalidate("acme", tags=[tag], wait="strict")
    assert await shop.body() == b"answer 2"  # the last tag was not its own


async def test_tags_can_be_found_in_the_value(site: Callable[..., Site]) -> None:
    shop = site()

    def services(response: StoredResponse) -> Sequence[str]:
        return [f"answer:{response.body.split()[-1].decode()}"]

    shop.options = {"tags": [services, "page:{page}"]}
    assert [await shop.body(), await shop.body()] == [b"answer 0", b"answer 0"]
    await shop.caches[0].invalidate("acme", tags=["answer:7"], wait="strict")
    assert await shop.body() == b"answer 0"
    await shop.caches[0].invalidate("acme", tags=["answer:0"], wait="strict")
    assert await shop.body() == b"answer 1"
    await shop.caches[0].invalidate("acme", tags=["page:x"], wait="strict")
    assert await shop.body() == b"answer 2"


@pytest.mark.parametrize(
    ("headers", "derive"),
    [
        ((("cache-tag", "x" * 300),), None),
        ((("cache-groups", "no strings"),), None),
        ((("cache-tag", ",".join(map(str, range(33)))),), None),
        ((), lambda _: 1 / 0),
        ((), lambda _: "one string"),
        ((), lambda _: [7]),
    ],
    ids=["too long", "malformed", "too many", "raises", "a string", "a number"],
)
async def test_an_answer_that_could_not_be_invalidated_by_what_it_names_is_not_stored(
    site: Callable[..., Site], headers: tuple[tuple[str, str], ...], derive: Any
) -> None:
    shop = site(*headers)
    shop.options = {"tags": [derive] if derive else []}
    assert [await shop.body(), await shop.body()] == [b"answer 0", b"answer 1"]
    assert set(shop.reasons) == {"tags"}


async def test_a_tag_that_was_unknown_when_its_computation_began_may_have_been_invalidated_since(
    site: Callable[..., Site],
) -> None:
    """Nobody could capture its generation: the answer is not stored, and who began after that does not get it."""
    shop = site(("cache-tag", "cart"))
    shop.app.gate.clear()
    first = Exchange(shop.middleware(), "/x")
    running = asyncio.create_task(first.run())
    await until(lambda: shop.app.calls == 1)
    await shop.caches[0].invalidate("acme", tags=["cart"], wait="strict")
    second = Exchange(shop.middleware(), "/x")
    waiting = asyncio.create_task(second.run())
    await until(lambda: any(fill.followers for fill in shop.caches[0].flights._running))
    shop.app.gate.set()
    await asyncio.gather(running, waiting)
    assert (first.answer.body, second.answer.body) == (b"answer 0", b"answer 1")
    assert shop.reasons == ["invalidated"]
    assert await shop.body() == b"answer 1"


async def test_a_tag_that_is_remembered_is_captured_in_advance(site: Callable[..., Site]) -> None:
    """An invalidation of something else during the computation does not keep the answer from being stored."""
    shop = site(("cache-tag", "cart"))
    await shop.body()
    await shop.caches[0].invalidate("acme", tags=["cart"], wait="strict")
    shop.app.gate.clear()
    exchange = Exchange(shop.middleware(), "/x")
    running = asyncio.create_task(exchange.run())
    await until(lambda: shop.app.calls == 2)
    await shop.caches[0].invalidate("acme", tags=["something else"], wait="strict")
    shop.app.gate.set()
    await running
    assert await shop.body() == b"answer 1"
    assert not shop.reasons


async def test_a_tag_that_an_answer_no_longer_names_no_longer_concerns_it(site: Callable[..., Site]) -> None:
    shop = site(("cache-tag", "cart,shop"))
    await shop.body()
    shop.app.headers = (("cache-tag", "shop"),)
    await shop.caches[0].invalidate("acme", tags=["cart"], wait="strict")
    assert await shop.body() == b"answer 1"
    await shop.caches[0].invalidate("acme", tags=["cart"], wait="strict")
    assert await shop.body() == b"answer 1"
    await shop.caches[0].invalidate("acme", tags=["shop"], wait="strict")
    assert await shop.body() == b"answer 2"


async def test_another_node_reads_and_captures_what_the_first_has_learnt(redis_url: str, valkey: Valkey) -> None:
    shop = Site(Tagging(("cache-tag", "cart")), redis_url, nodes=3)
    assert await shop.body(0) == await shop.body(1) == b"answer 0"
    await shop.caches[2].invalidate("acme", tags=["cart"], wait="strict")
    shop.app.gate.clear()
    exchange = Exchange(shop.middleware(1), "/x")
    running = asyncio.create_task(exchange.run())
    await until(lambda: shop.app.calls == 2)
    await shop.caches[2].invalidate("acme", tags=["something else"], wait="strict")
    shop.app.gate.set()
    await running
    assert await shop.body(1) == await shop.body(0) == await shop.body(2) == b"answer 1"
    (remembered,) = [key for key in valkey.ask("KEYS", "nexarch:acme:page:*") if key.endswith(b":t")]
    valkey.ask("SET", remembered, b"\xc1 not a list")
    await shop.caches[2].invalidate("acme", tags=["cart"], wait="strict")
    fresh = Site(shop.app, redis_url)
    assert await fresh.body() == b"answer 2"
    for cache in (*shop.caches, *fresh.caches):
        await cache.aclose()


async def test_the_store_going_away_between_answer_and_tags_stores_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Site(Tagging(("cache-tag", "cart")), redis_url)
    await shop.body(path="/other")
    faults = []

    async def away(*_: Any, **__: Any) -> Capture:
        faults.append(1)
        raise StoreUnavailable("timeout", "as the test wants it")

    shop.app.headers = (("cache-tag", "new"),)
    shop.app.gate.clear()
    exchange = Exchange(shop.middleware(), "/x")
    running = asyncio.create_task(exchange.run())
    await until(lambda: shop.app.calls == 2)
    with monkeypatch.context() as patch:
        patch.setattr(RedisCommands, "capture", away)
        shop.app.gate.set()
        await running
        await until(lambda: not shop.caches[0].flights.running)
    assert faults
    assert exchange.answer.body == b"answer 1"
    assert shop.reasons == ["backend"]
    await shop.caches[0].aclose()


async def test_the_check_of_a_new_tag_comes_after_its_creation(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant that stores without comparing what every invalidation changes is caught by the second test above."""
    monkeypatch.setattr(
        generations, "_same", lambda _, captured: tuple(t + captured.epoch for t in captured.tokens[:-1])
    )
    shop = site(("cache-tag", "cart"))
    shop.app.gate.clear()
    exchange = Exchange(shop.middleware(), "/x")
    running = asyncio.create_task(exchange.run())
    await until(lambda: shop.app.calls == 1)
    await shop.caches[0].invalidate("acme", tags=["cart"], wait="strict")
    shop.app.gate.set()
    await running
    assert await shop.body() == b"answer 0"  # stale: what the safeguard prevents


# --- how many are told apart -------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "valkey"])
async def node(request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    url = None if request.param == "memory" else request.getfixturevalue("redis_url")
    node = Node(url, max_tags=20)
    yield node
    await node.cache.aclose()


async def stored(node: Node, tag: str) -> bool:
    key = node.entries.known(node.key(tag, tags=(tag,)))
    await node.fill(key, tag.encode())
    return await node.body(node.entries.known(node.key(tag, tags=(tag,)))) == tag.encode()


async def test_beyond_its_bound_a_tenants_tags_share_generations_and_each_still_invalidates_its_entries(
    node: Node,
) -> None:
    tags = [f"t{number}" for number in range(400)]
    assert all([await stored(node, tag) for tag in tags])
    names = await node.store.names(b"nexarch:acme:@tag", most=100_000)
    own = [name for name in names.keys if b"@tag:" in name]
    shared = [name for name in names.keys if b"@tags:" in name]
    assert len(own) <= 20 + 3
    assert 200 < len(shared) <= 380

    for tag in (tags[0], tags[399]):
        await node.cache.invalidate("acme", tags=[tag])
        assert await node.body(node.entries.known(node.key(tag, tags=(tag,)))) is None
    left = [await node.body(node.entries.known(node.key(tag, tags=(tag,)))) is not None for tag in tags]
    assert 390 < sum(left) < 399  # those that share with the second are gone, too


async def test_nodes_that_disagree_about_a_tag_find_each_others_entries_and_invalidate_them(redis_url: str) -> None:
    full, roomy = Node(redis_url, max_tags=1), Node(redis_url, max_tags=1000)
    assert await stored(full, "first")
    for writer, reader in ((full, roomy), (roomy, full)):
        for tag in (f"{writer is full}-{number}" for number in range(5)):
            assert await stored(writer, tag)
            key = reader.key(tag, tags=(tag,))
            assert await reader.body(reader.entries.known(key)) == tag.encode()
            await reader.cache.invalidate("acme", tags=[tag])
            assert await writer.body(writer.entries.known(key)) is None
    await full.cache.aclose()
    await roomy.cache.aclose()


async def test_the_bound_is_that_of_all_nodes_together(redis_url: str) -> None:
    nodes = [Node(redis_url, max_tags=20) for _ in range(4)]
    for number in range(200):
        node = nodes[number % 4]
        assert await stored(node, f"t{number}")
        await node.entries.aclose()  # what is counted in the background is
    names = await nodes[0].store.names(b"nexarch:acme:@tag:", most=100_000)
    assert len(names.keys) <= 20 + 4 + 1
    for node in nodes:
        await node.cache.aclose()


async def test_without_its_other_half_an_invalidation_of_a_shared_tag_is_lost(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant that removes a tag's own generation only is caught."""
    tokens = Invalidations._tokens

    def own_only(self: Invalidations, *aimed: Any) -> tuple[bytes, ...]:
        return tuple(token for token in tokens(self, *aimed) if b"@tags:" not in token)

    monkeypatch.setattr(Invalidations, "_tokens", own_only)
    node = Node(redis_url, max_tags=1)
    for tag in ("first", "second"):
        assert await stored(node, tag)
    await node.cache.invalidate("acme", tags=["second"])
    assert await node.body(node.entries.known(node.key("second", tags=("second",)))) == b"second"
    await node.cache.aclose()
