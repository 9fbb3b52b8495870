"""Requests that are known ask the store whether it still says the same; whatever it says else goes the long way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Message, Receive, Scope, Send
from nexcache.entries import Entries, ReadingAgain
from nexcache.known import Known, KnownRequests
from nexcache.refresh import Target
from nexcache.stores import lane
from nexcache.telemetry.counts import OperationCounts
from nexcache.telemetry.events import LookedUp
from nexcache.telemetry.names import Result, Tier
from tests.servers import Valkey


class Node:
    """An app of one node, and the count of its calls."""

    def __init__(self, url: str, **settings: Any) -> None:
        values: dict[str, Any] = {"op_timeout_ms": 2000, "l1_enabled": False} | settings
        self.cache = NexCache(Settings(redis_url=url, **values))
        self.calls = 0
        self.body = b"first"
        self.lookups = 0
        policy = Policy("/things/{thing}", op="things", ttl="1h", tags=["thing:{thing}"])
        tenant = tenants.header("x-tenant", trusted=True)
        self.app = CacheMiddleware(self._origin, cache=self.cache, tenant=tenant, policies=[policy])

        def looked_up(event: object) -> None:
            assert isinstance(event, LookedUp)
            self.lookups += event.result is Result.HIT and event.tier is Tier.REDIS

        self.cache.emitter.subscribe(looked_up, LookedUp)

    async def _origin(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": self.body})

    async def ask(self, tenant: str = "acme", thing: str = "a", **fields: str) -> tuple[int, bytes, str]:
        """Return status, body and Cache-Status."""
        headers = [(b"host", b"h"), (b"x-tenant", tenant.encode())]
        headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
        path = f"/things/{thing}"
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"q=1"}
        scope |= {"root_path": "", "scheme": "http", "headers": headers, "http_version": "1.1"}
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        await self.app(scope, receive, send)
        answered = dict(sent[0]["headers"])
        return sent[0]["status"], b"".join(part["body"] for part in sent[1:]), answered[b"cache-status"].decode()

    @property
    def known(self) -> int:
        """How many requests are known."""
        return len(self.cache.recent.known)


Make = Callable[..., Node]


@pytest.fixture
async def make(redis_url: str) -> AsyncIterator[Make]:
    nodes: list[Node] = []

    def make(url: str = redis_url, **settings: Any) -> Node:
        nodes.append(Node(url, **settings))
        return nodes[-1]

    yield make
    for node in nodes:
        await node.cache.aclose()


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the short way said each time it was gone."""
    said: list[bool] = []
    read_again, may_use = Entries.read_again, Entries.may_use

    def noted(self: Entries, known: Known, *now: Any) -> ReadingAgain | None:
        asked = read_again(self, known, *now)
        if asked is None:
            said.append(False)
        else:
            asked[0].add_done_callback(lambda same: said.append(same.exception() is None and same.result()))
        return asked

    def told(self: Entries, known: Known, asked: ReadingAgain) -> bool:
        said[-1] = may_use(self, known, asked)
        return said[-1]

    monkeypatch.setattr(Entries, "read_again", noted)
    monkeypatch.setattr(Entries, "may_use", told)
    return said


async def warm(node: Node, **asked: Any) -> None:
    """Ask twice: the second time it is stored, and becomes known."""
    for _ in range(2):
        assert (await node.ask(**asked))[:2] == (200, node.body)


async def test_a_request_that_is_known_costs_one_command_and_says_so_like_any_hit(
    make: Make, valkey: Valkey, again: list[bool]
) -> None:
    node = make()
    await warm(node)
    valkey.ask("CONFIG", "RESETSTAT")
    lookups = node.lookups

    status, body, cache_status = await node.ask()

    assert (status, body, node.calls, again) == (200, b"first", 1, [True])
    assert "hit" in cache_status
    assert "detail=redis" in cache_status
    assert (valkey.calls().get("mget"), valkey.calls().get("getrange"), valkey.calls().get("get")) == (1, 1, None)
    assert node.lookups == lookups + 1
    assert node.cache.counts.of("acme", "things").redis_hits == 2
    assert (await node.ask(if_none_match="*"))[0] == 304
    assert again == [True, True]


@pytest.mark.parametrize("how", ["tag", "operation", "tenant"])
async def test_what_another_node_invalidates_is_not_served_again(make: Make, how: str, again: list[bool]) -> None:
    node, other = make(), make()
    await warm(node)
    node.body = b"second"
    match how:
        case "tag":
            await other.cache.invalidate("acme", tags=["thing:a"])
        case "operation":
            await other.cache.invalidate("acme", "things")
        case _:
            await other.cache.invalidate("acme", "*")

    assert (await node.ask())[1] == b"second"
    assert (again, node.calls) == ([False], 2)


async def test_what_another_node_stored_since_is_served(make: Make, again: list[bool]) -> None:
    node, other = make(), make()
    await warm(node)
    other.body = b"second"
    await other.cache.invalidate("acme", "*")
    await other.ask()

    assert (await node.ask())[1] == b"second"
    assert (await node.ask())[1] == b"second"
    assert (again, node.calls, other.calls) == ([False, True], 1, 1)


@pytest.mark.parametrize(("part", "verified"), [(b"nexcache", True), (b"\xc4\x10", False)])
async def test_a_value_that_somebody_changed_is_never_served(
    make: Make, valkey: Valkey, again: list[bool], part: bytes, verified: bool
) -> None:
    """Behind the MAC that was verified, what was verified is served; for another MAC, the app answers."""
    node = make(signing_keys={"k": "s" * 32})
    node.body = b"nexcache" * 40
    await warm(node)
    (name,) = (key for key in valkey.ask("KEYS", "nexarch:acme:things:*") if b"@" not in key)
    value = valkey.ask("GET", name)
    place = value.rindex(part) if verified else value.index(part) + len(part)
    valkey.ask("SETRANGE", name, str(place), b"changed!")

    assert (await node.ask())[1] == node.body
    assert (again, node.calls) == ([verified], 1 if verified else 2)
    fresh = make(signing_keys={"k": "s" * 32})
    assert (await fresh.ask())[1] == b"first" if verified else node.body


async def test_of_a_large_entry_little_is_read_again(make: Make, valkey: Valkey, again: list[bool]) -> None:
    node = make()
    node.body = b"x" * 100_000
    await warm(node)
    before = valkey.ask("INFO", "stats")["total_net_output_bytes"]

    assert (await node.ask())[1] == node.body

    assert again == [True]
    assert valkey.ask("INFO", "stats")["total_net_output_bytes"] - before < 20_000  # what INFO says is most of it


async def test_a_server_that_does_not_permit_short_reads_is_not_asked_again_and_again(
    make: Make, own_valkey: Valkey, again: list[bool]
) -> None:
    node = make(own_valkey.url)
    await warm(node)
    own_valkey.ask("ACL", "SETUSER", "default", "-getrange")

    for _ in range(3):
        assert (await node.ask())[1] == b"first"

    assert (again, node.calls) == ([False] * 3, 1)
    refused = [entry for entry in own_valkey.ask("ACL", "LOG") if b"getrange" in entry]
    assert [entry[entry.index(b"count") + 1] for entry in refused] == [1]


async def test_many_known_requests_of_one_turn_leave_together(
    make: Make, valkey: Valkey, again: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "_ALIKE", 60.0)  # however long this turn takes on a busy machine
    node = make()
    things = [f"t{number}" for number in range(100)]
    for thing in things:
        await warm(node, thing=thing)
    valkey.ask("CONFIG", "RESETSTAT")

    gone = asyncio.create_task(node.ask(thing="t7"))
    asking = [asyncio.create_task(node.ask(thing=thing)) for thing in things]
    await asyncio.sleep(0)
    gone.cancel()  # one that goes takes nobody along
    answers = await asyncio.gather(*asking)

    assert {status for status, _, _ in answers} == {200}
    assert (again.count(True), node.calls) == (99, 100)  # and t7's second asks the long way
    calls = valkey.calls()
    assert (calls["getrange"], calls["mget"]) == (100, 5)


async def test_what_was_asked_again_when_the_connection_was_lost_is_asked_once_more(
    make: Make, own_valkey: Valkey, again: list[bool]
) -> None:
    node = make(own_valkey.url)
    things = [f"t{number}" for number in range(40)]
    for thing in things:
        await warm(node, thing=thing)
    own_valkey.ask("CLIENT", "PAUSE", "200")
    asking = [asyncio.create_task(node.ask(thing=thing)) for thing in things]
    await asyncio.sleep(0.05)
    assert own_valkey.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") >= 1

    answers = await asyncio.gather(*asking)

    assert {body for _, body, _ in answers} == {b"first"}
    assert (again, node.calls) == ([True] * 40, 40)


async def test_a_server_with_another_history_is_not_believed_even_if_it_says_the_same(
    make: Make, again: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make()
    await warm(node)
    (known,) = node.cache.recent.known._known.values()
    known.before.epoch = b"of another history"

    await node.ask()

    assert again == [False]


async def test_what_this_node_invalidated_meanwhile_is_not_served(make: Make, again: list[bool]) -> None:
    node = make()
    await warm(node)
    asking = asyncio.create_task(node.ask())
    await asyncio.sleep(0)
    node.cache._parts.invalidations.failures += 1  # as an invalidation that the store did not take

    await asking

    assert again == [False]


async def test_a_store_that_is_away_fails_the_short_way_and_the_app_answers(
    make: Make, own_valkey: Valkey, again: list[bool]
) -> None:
    node = make(own_valkey.url, op_timeout_ms=100)
    await warm(node)
    own_valkey.pause()
    try:
        began = asyncio.get_running_loop().time()
        assert (await node.ask())[:2] == (200, b"first")
        took = asyncio.get_running_loop().time() - began
    finally:
        own_valkey.resume()

    assert (again, node.calls) == ([False], 2)
    assert took < 2  # one budget, not one for each way


async def test_many_at_once_for_one_known_request_share_what_they_ask(
    make: Make, valkey: Valkey, again: list[bool]
) -> None:
    node = make()
    await warm(node)
    valkey.ask("CONFIG", "RESETSTAT")

    answers = await asyncio.gather(*(node.ask() for _ in range(200)))

    assert {body for _, body, _ in answers} == {b"first"}
    assert again.count(True) == 1
    assert valkey.calls()["mget"] == 2  # the short way's, and the one that all others share


async def test_known_requests_are_the_tenants_own_and_forgotten_with_it(make: Make, again: list[bool]) -> None:
    node = make()
    await warm(node)
    node.body = b"globex's"
    await warm(node, tenant="globex")
    assert node.known == 2
    assert [(await node.ask(tenant=name))[1] for name in ("acme", "globex")] == [b"first", b"globex's"]

    await node.cache.forget("acme")

    assert node.known == 1
    assert (await node.ask())[1] == b"globex's"  # computed anew by the app, which now says this
    assert node.calls == 3


@pytest.mark.parametrize(
    "settings",
    [{"l1_enabled": True}, {"l1_enabled": False, "encryption_keys": {"k": "e" * 32}, "signing_keys": {"k": "s" * 32}}],
)
async def test_nothing_is_remembered_where_memory_holds_it_or_values_are_encrypted(
    make: Make, settings: dict[str, Any], again: list[bool]
) -> None:
    node = make(**settings)
    for _ in range(3):
        await node.ask()

    assert (node.known, again, node.calls) == (0, [], 1)


async def test_a_known_request_is_noted_as_recent_once_a_second(
    make: Make, again: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make()
    await warm(node)
    await node.ask()
    (known,) = node.cache.recent.known._known.values()
    known.noted_at -= 1.5
    noted: list[str] = []
    monkeypatch.setattr(node.cache.recent, "note", lambda tenant, operation, target: noted.append(target.path))

    await node.ask()
    await node.ask()

    assert (again, noted) == ([True, True, True], ["/things/a"])


def test_known_requests_are_bounded_in_number_and_bytes() -> None:
    known = KnownRequests()
    counts = OperationCounts()
    node = NexCache(Settings(redis_url=None, redis_host=None))
    for number in range(5_000):
        request = b"%d" % number
        known.keep((number,), Known(node.keys.key("acme", "op", request), counts, _TARGET, 0.0))
    assert len(known) == 4_096
    assert known.get((903,)) is None

    known.keep(("large",), _holding(node, 300_000))
    assert known.get(("large",)) is None  # one for itself
    for number in range(1_000):
        known.keep(("filled", number), _holding(node, 20_000))
    assert 0 < len(known) < 500
    known.forget("acme")
    assert (len(known), known._bytes) == (0, 0)


_TARGET = Target("GET", "/", None, b"", "", "http", (), b"")


def _holding(node: NexCache, size: int) -> Known:
    known = Known(node.keys.key("acme", "op", b"request"), OperationCounts(), _TARGET, 0.0)
    known.held = 2 * size
    return known


async def test_a_request_on_another_event_loop_is_answered_while_some_wait_on_this_one(
    make: Make, again: list[bool]
) -> None:
    node = make()
    await warm(node)
    waiting = asyncio.ensure_future(node.ask())
    await asyncio.sleep(0)  # it has asked, and nothing has left
    with ThreadPoolExecutor(1) as pool:  # this loop does not go on meanwhile
        status, body, _ = pool.submit(lambda: asyncio.run(node.ask())).result()

    assert (status, body) == (200, b"first")
    assert (await waiting)[:2] == (200, b"first")
    assert not all(again), "the second has gone the long way"
