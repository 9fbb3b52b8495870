"""`mode="rfc"` without a server: what happens at the same time, in the background, and between tenants.

What one exchange after another must give is in tests/conformance.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
from pydantic import SecretStr

from nexcache import CacheMiddleware, NexCache, Policy, Settings, principals, tenants
from nexcache.asgi import Receive, Scope, Send
from nexcache.errors import ConfigurationError, OriginFailed
from nexcache.http_cache import HttpCache
from nexcache.telemetry.events import Answered, NotStored
from nexcache.telemetry.names import Bypass, NotStoredReason, Result
from tests.wire.server import Answer, Exchange, serving, until

FRESH = [(b"cache-control", b"max-age=60")]


@dataclass(slots=True)
class Service:
    """An app that can be held up, and fail."""

    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: list(FRESH))
    status: int = 200
    error: Exception | None = None
    truncated: bool = False
    seen: list[Scope] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    late: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared: the final empty message is held back."""

    def __post_init__(self) -> None:
        self.gate.set()
        self.late.set()

    @property
    def calls(self) -> int:
        return len(self.seen)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        self.seen.append(scope)
        body = b"answer %d" % self.calls
        status, headers = self.status, [*self.headers, (b"content-length", b"%d" % len(body))]
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if status == 304:
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        if self.truncated:
            raise OriginFailed(502, "cut off")
        await send({"type": "http.response.body", "body": body[3:], "more_body": True})
        await self.late.wait()
        await send({"type": "http.response.body", "body": b""})


class Bench:
    """A cache in front of a service, and its clock."""

    def __init__(self, cache: NexCache, service: Service, **options: object) -> None:
        self.cache, self.service = cache, service
        settings = {"tenant": tenants.fixed("acme"), "mode": "rfc"} | options
        self.app = CacheMiddleware(service, cache=cache, **settings)  # type: ignore[arg-type]
        http = self.app._http
        assert isinstance(http, HttpCache)
        http._clock = lambda: self.now
        self.now = 1_700_000_000.0

    async def ask(
        self, path: str = "/", *, method: str = "GET", headers: Sequence[tuple[bytes, bytes]] = (), **options: object
    ) -> Answer:
        return (await Exchange(self.app, path, method=method, headers=headers, **options).run()).answer  # type: ignore[arg-type]


@pytest.fixture
async def cache() -> AsyncIterator[NexCache]:
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    yield cache
    await cache.aclose()


@pytest.fixture
def bench(cache: NexCache) -> Bench:
    return Bench(cache, Service())


# --- stale while revalidate --------------------------------------------------------------------------------------


async def test_a_stale_response_is_served_while_one_request_validates_it_in_the_background(bench: Bench) -> None:
    bench.service.headers = [(b"cache-control", b"max-age=60, stale-while-revalidate=60"), (b"etag", b'"one"')]
    await bench.ask()
    bench.now += 70
    bench.service.gate.clear()
    bench.service.status = 304
    stale = [await bench.ask() for _ in range(5)]
    assert [answer.body for answer in stale] == [b"answer 1"] * 5
    assert {answer.cache for answer in stale} == {"NexCache; hit; ttl=-10; detail=stale"}
    await until(lambda: bench.service.calls == 2)
    bench.service.gate.set()
    await until(lambda: bench.cache.refreshes.running == 0)
    assert dict(bench.service.seen[1]["headers"])[b"if-none-match"] == b'"one"'
    assert (await bench.ask()).cache == "NexCache; hit; ttl=60; detail=max-age"
    assert bench.service.calls == 2


async def test_beyond_its_window_a_stale_response_is_validated_first(bench: Bench) -> None:
    bench.service.headers = [(b"cache-control", b"max-age=60, stale-while-revalidate=10")]
    await bench.ask()
    bench.now += 71
    assert (await bench.ask()).body == b"answer 2"


async def test_a_failed_background_validation_is_not_repeated_by_every_request(bench: Bench) -> None:
    bench.service.headers = [(b"cache-control", b"max-age=60, stale-while-revalidate=600")]
    await bench.ask()
    bench.now += 70
    bench.service.error = OriginFailed(502, "away")
    for _ in range(5):
        assert (await bench.ask()).body == b"answer 1"
        await until(lambda: bench.cache.refreshes.running == 0)
    assert bench.service.calls == 2


async def test_what_was_invalidated_is_not_served_while_it_is_validated(bench: Bench) -> None:
    bench.service.headers = [(b"cache-control", b"max-age=60, stale-while-revalidate=600, stale-if-error=600")]
    await bench.ask()
    bench.now += 70
    await bench.cache.invalidate("acme", "http")
    assert (await bench.ask()).body == b"answer 2"


# --- one request to the origin -----------------------------------------------------------------------------------


async def test_requests_at_the_same_time_are_one_request_to_the_origin(bench: Bench) -> None:
    bench.service.gate.clear()
    asking = [asyncio.create_task(bench.ask()) for _ in range(20)]
    await until(lambda: bench.service.calls == 1)
    await asyncio.sleep(0)
    bench.service.gate.set()
    answers = await asyncio.gather(*asking)
    assert bench.service.calls == 1
    assert {answer.body for answer in answers} == {b"answer 1"}
    assert [answer.cache for answer in answers].count("NexCache; fwd=uri-miss; collapsed") == 19


async def test_a_stale_response_is_validated_once_for_all_who_wait(bench: Bench) -> None:
    bench.service.headers.append((b"etag", b'"one"'))
    await bench.ask()
    bench.now += 70
    bench.service.status = 304
    bench.service.gate.clear()
    asking = [asyncio.create_task(bench.ask()) for _ in range(5)]
    await until(lambda: bench.service.calls == 2)
    bench.service.gate.set()
    assert {answer.body for answer in await asyncio.gather(*asking)} == {b"answer 1"}
    assert bench.service.calls == 2


@pytest.mark.parametrize("error", [OriginFailed(502, "away"), None], ids=["away", "503"])
async def test_that_the_origin_fails_is_found_out_once_for_all_who_wait(
    bench: Bench, error: OriginFailed | None
) -> None:
    bench.service.headers = [(b"cache-control", b"max-age=60, stale-if-error=600")]
    await bench.ask()
    bench.now += 70
    bench.service.status, bench.service.error = 503, error
    bench.service.gate.clear()
    asking = [asyncio.create_task(bench.ask()) for _ in range(5)]
    strict = asyncio.create_task(bench.ask(headers=[(b"cache-control", b"max-age=10")]))
    await until(lambda: bench.service.calls == 2)
    bench.service.gate.set()
    answers = await asyncio.gather(*asking)
    await asyncio.gather(strict, return_exceptions=True)
    assert {answer.body for answer in answers} == {b"answer 1"}
    assert [answer.cache for answer in answers].count("NexCache; fwd=stale; collapsed; detail=stale") == 4
    assert bench.service.calls == 3  # who takes nothing stale asks for itself


async def test_a_leader_that_left_says_nothing_of_the_origin(bench: Bench) -> None:
    bench.service.headers = [(b"cache-control", b"max-age=60, stale-if-error=600")]
    await bench.ask()
    bench.now += 70
    http = bench.app._http
    assert isinstance(http, HttpCache)
    capturing, capture = asyncio.Event(), http._variants.capture

    async def slow(*args: object, **options: object) -> object:
        await capturing.wait()
        return await capture(*args, **options)  # type: ignore[arg-type]

    http._variants.capture = slow  # type: ignore[method-assign,assignment]
    leader = asyncio.create_task(bench.ask())
    await asyncio.sleep(0.01)
    follower = asyncio.create_task(bench.ask())
    await asyncio.sleep(0.01)
    leader.cancel()
    capturing.set()
    assert (await follower).body == b"answer 2"
    await asyncio.gather(leader, return_exceptions=True)


async def test_who_waits_for_an_answer_that_varies_gets_none_that_does_not_fit(bench: Bench) -> None:
    bench.service.headers.append((b"vary", b"accept-language"))
    bench.service.gate.clear()
    english = asyncio.create_task(bench.ask(headers=[(b"accept-language", b"en")]))
    await until(lambda: bench.service.calls == 1)
    german = asyncio.create_task(bench.ask(headers=[(b"accept-language", b"de")]))
    await asyncio.sleep(0.01)
    bench.service.gate.set()
    assert ((await english).body, (await german).body) == (b"answer 1", b"answer 2")


async def test_requests_for_two_variants_do_not_wait_for_each_other_once_it_is_known_that_they_are(
    bench: Bench,
) -> None:
    bench.service.headers.append((b"vary", b"accept-language"))
    await bench.ask(headers=[(b"accept-language", b"en")])
    bench.service.gate.clear()
    asking = [
        asyncio.create_task(bench.ask(headers=[(b"accept-language", language)]))
        for language in (b"de", b"fr", b"de", b"fr")
    ]
    await until(lambda: bench.service.calls == 3)  # both are under way
    bench.service.gate.set()
    answers = await asyncio.gather(*asking)
    assert answers[0].body == answers[2].body != answers[1].body == answers[3].body
    assert bench.service.calls == 3
    assert answers[2].cache == "NexCache; fwd=vary-miss; collapsed"


async def test_of_what_nobody_knows_only_requests_that_are_alike_wait_for_each_other(bench: Bench) -> None:
    """None is ever held up for another variant, whatever the responses turn out to vary by."""
    bench.service.headers.append((b"vary", b"x-view"))
    bench.service.gate.clear()
    asking = [
        asyncio.create_task(bench.ask(headers=[(b"x-view", view), (b"traceparent", trace)]))
        for view, trace in ((b"map", b"1"), (b"list", b"2"), (b"map", b"3"))
    ]
    await until(lambda: bench.service.calls == 2)  # both are under way
    bench.service.gate.set()
    one, other, alike = await asyncio.gather(*asking)
    assert one.body == alike.body != other.body
    assert alike.cache == "NexCache; fwd=uri-miss; collapsed"
    assert bench.service.calls == 2


@pytest.mark.parametrize(("vary", "calls"), [(b"", 2), (b"x-view", 3)])
async def test_by_what_responses_vary_is_remembered_beyond_an_invalidation(
    bench: Bench, vary: bytes, calls: int
) -> None:
    bench.service.headers.append((b"vary", vary))
    await bench.ask()
    await bench.cache.invalidate("acme", "http")
    bench.service.gate.clear()
    asking = [
        asyncio.create_task(bench.ask(headers=[(b"x-view", view), (b"x-other", view)])) for view in (b"map", b"list")
    ]
    await until(lambda: bench.service.calls == calls)
    bench.service.gate.set()
    await asyncio.gather(*asking)
    assert bench.service.calls == calls


@pytest.mark.parametrize("value", [b"no-store", b"private", b"max-age=0"])
async def test_who_waits_for_what_cannot_be_shared_goes_on_alone(bench: Bench, value: bytes) -> None:
    bench.service.headers = [(b"cache-control", value)]
    bench.service.gate.clear()
    asking = [asyncio.create_task(bench.ask()) for _ in range(5)]
    await until(lambda: bench.service.calls == 1)
    bench.service.gate.set()
    assert len({answer.body for answer in await asyncio.gather(*asking)}) == 5
    assert bench.service.calls == 5


@pytest.mark.parametrize("quota", ["entries=0", "fills=1"])
async def test_over_quota_nobody_waits_for_one_computation_after_the_other(quota: str) -> None:
    bench = Bench(NexCache(Settings(redis_url=None, redis_host=None, quotas=f"acme {quota}")), Service())
    async with bench.cache:
        await bench.ask("/other")
        bench.service.gate.clear()
        asking = [asyncio.create_task(bench.ask()) for _ in range(5)]
        await until(lambda: bench.service.calls == 2)
        bench.service.gate.set()
        bench.service.gate = asyncio.Event()
        await until(lambda: bench.service.calls == 6)  # the others all at once
        bench.service.gate.set()
        assert len({answer.body for answer in await asyncio.gather(*asking)}) == 5


async def test_a_leader_that_leaves_takes_nobody_along(bench: Bench) -> None:
    bench.service.gate.clear()
    leader = asyncio.create_task(bench.ask())
    await until(lambda: bench.service.calls == 1)
    follower = asyncio.create_task(bench.ask())
    await asyncio.sleep(0.01)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    bench.service.gate.set()
    assert (await follower).body == b"answer 1"
    assert bench.service.calls == 1


# --- what is stored, and when ------------------------------------------------------------------------------------


async def test_an_answer_that_breaks_off_is_not_stored(bench: Bench) -> None:
    bench.service.truncated = True
    with pytest.raises(OriginFailed):
        await bench.ask()
    bench.service.truncated = False
    assert (await bench.ask()).body == b"answer 2"


async def test_who_has_all_bytes_may_ask_again_before_the_app_says_that_it_was_all(bench: Bench) -> None:
    bench.service.late.clear()
    first = Exchange(bench.app)
    running = asyncio.create_task(first.run())
    await first.sent(2)
    assert first.answer.body == b"answer 1"
    assert (await bench.ask()).hit
    bench.service.late.set()
    await running
    assert bench.service.calls == 1


@pytest.mark.parametrize("parser", ["h11", "httptools"])
@pytest.mark.parametrize("policies", [(), [Policy("/", op="home", ttl=60)]], ids=["by the rules", "by a policy"])
async def test_a_fast_client_finds_the_entry_through_a_server(
    cache: NexCache, parser: str, policies: Sequence[Policy]
) -> None:
    bench = Bench(cache, Service(), policies=policies)
    bench.service.late.clear()
    async with serving(bench.app, http=parser, lifespan="off") as client:
        connection = await client.connect()
        await connection.ask("/")
        assert (await connection.answer()).body == b"answer 1"  # the app has not said yet that this is all
        assert (await client.get("/")).hit
        bench.service.late.set()
    assert bench.service.calls == 1


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        pytest.param("GET", [], 200, id="GET"),
        pytest.param("HEAD", [], 200, id="HEAD"),
        pytest.param("GET", [(b"range", b"bytes=0-0")], 206, id="a range"),
        pytest.param("GET", [(b"cache-control", b"only-if-cached")], 200, id="only-if-cached"),
    ],
)
async def test_who_has_all_bytes_finds_the_entry_however_long_storing_takes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    http = bench.app._http
    assert isinstance(http, HttpCache)
    stored, keep = asyncio.Event(), http._variants.keep

    async def slow(*args: object, **options: object) -> bool | None:
        await stored.wait()
        return await keep(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(http._variants, "keep", slow)
    first = Exchange(bench.app)
    running = asyncio.create_task(first.run())
    await first.sent(2)
    assert first.answer.body == b"answer 1"
    again = asyncio.create_task(bench.ask(method=method, headers=headers))
    await asyncio.sleep(0.01)
    stored.set()
    assert (await again).status == status
    await running
    assert bench.service.calls == 1


async def test_an_answer_under_way_is_not_stored_when_its_uri_was_written_to(bench: Bench) -> None:
    bench.service.gate.clear()
    reading = asyncio.create_task(bench.ask())
    await until(lambda: bench.service.calls == 1)
    writing = asyncio.create_task(bench.ask(method="POST"))
    await until(lambda: bench.service.calls == 2)
    bench.service.gate.set()
    await writing
    await reading
    assert (await bench.ask()).body != b"answer 1"


async def test_an_app_that_raises_is_an_origin_that_failed(bench: Bench) -> None:
    await bench.ask()
    bench.now += 70
    bench.service.error = RuntimeError("a bug")
    assert (await bench.ask()).cache == "NexCache; fwd=stale; detail=stale"
    with pytest.raises(RuntimeError):
        await bench.ask("/other")


async def test_the_reason_for_not_storing_is_told(bench: Bench) -> None:
    told: list[NotStored] = []
    bench.cache.emitter.subscribe(told.append, NotStored)  # type: ignore[arg-type]
    bench.service.headers = []
    answer = await bench.ask()
    assert [event.reason for event in told] == [NotStoredReason.NOT_FRESH]
    assert answer.cache == "NexCache; fwd=uri-miss; fwd-status=200; detail=not-fresh"


async def test_every_answer_is_an_event(bench: Bench) -> None:
    told: list[Answered] = []
    bench.cache.emitter.subscribe(told.append, Answered)  # type: ignore[arg-type]
    bench.service.headers.append((b"etag", b'"one"'))
    await bench.ask()
    await bench.ask()
    bench.now += 70
    bench.service.status = 304
    await bench.ask()
    await bench.ask(method="POST")
    await bench.ask(headers=[(b"cache-control", b"no-store")])
    assert [event.result for event in told] == [
        Result.MISS,
        Result.HIT,
        Result.REVALIDATED,
        Result.BYPASS,
        Result.BYPASS,
    ]
    assert {event.operation for event in told} == {"http"}


# --- whose it is -------------------------------------------------------------------------------------------------


async def test_a_tenant_never_gets_anothers_answer(cache: NexCache) -> None:
    bench = Bench(cache, Service(), tenant=tenants.header("x-tenant", trusted=True))
    await bench.ask(headers=[(b"x-tenant", b"a")])
    assert (await bench.ask(headers=[(b"x-tenant", b"b")])).body == b"answer 2"
    assert (await bench.ask(headers=[(b"x-tenant", b"a")])).body == b"answer 1"


async def test_a_tenants_write_leaves_anothers_entries(cache: NexCache) -> None:
    bench = Bench(cache, Service(), tenant=tenants.header("x-tenant", trusted=True))
    await bench.ask(headers=[(b"x-tenant", b"a")])
    await bench.ask(headers=[(b"x-tenant", b"b")], method="PUT")
    assert (await bench.ask(headers=[(b"x-tenant", b"a")])).hit


async def test_without_a_tenant_nothing_is_cached(cache: NexCache) -> None:
    bench = Bench(cache, Service(), tenant=tenants.header("x-tenant", trusted=True))
    answers = [await bench.ask() for _ in range(2)]
    assert [answer.cache for answer in answers] == ["NexCache; fwd=bypass; detail=no-tenant"] * 2


async def test_a_principal_never_gets_anothers_answer(cache: NexCache) -> None:
    bench = Bench(cache, Service(), principal=principals.per_credential("x-user"))
    bench.service.headers = [(b"cache-control", b"public, max-age=60")]
    await bench.ask(headers=[(b"x-user", b"a")])
    assert (await bench.ask(headers=[(b"x-user", b"b")])).body == b"answer 2"
    assert (await bench.ask(headers=[(b"x-user", b"a")])).body == b"answer 1"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        pytest.param([(b"host", b"a"), (b"host", b"b")], Bypass.HOST, id="two hosts"),
        pytest.param([(b"x-original-url", b"/admin")], Bypass.OVERRIDE, id="another path"),
        pytest.param([(b"x_http_method_override", b"DELETE")], Bypass.OVERRIDE, id="another method"),
        pytest.param([(b"content-length", b"3")], Bypass.BODY, id="a body"),
        pytest.param([(b"transfer-encoding", b"chunked")], Bypass.BODY, id="a chunked body"),
        pytest.param([(b"x-long", b"x"), (b"host", b"h" * 20_000)], Bypass.KEY_TOO_LONG, id="too long"),
    ],
)
async def test_what_may_mean_something_else_goes_past_the_cache(
    bench: Bench, headers: list[tuple[bytes, bytes]], reason: Bypass
) -> None:
    answers = [await bench.ask(headers=headers) for _ in range(2)]
    assert [answer.cache for answer in answers] == [f"NexCache; fwd=bypass; detail={reason}"] * 2
    assert bench.service.calls == 2


async def test_a_forwarded_host_makes_another_key(bench: Bench) -> None:
    await bench.ask(headers=[(b"x-forwarded-host", b"a")])
    assert (await bench.ask(headers=[(b"x-forwarded-host", b"evil")])).body == b"answer 2"


async def test_a_key_that_the_operator_calls_a_credential_counts_as_authorization(bench: Bench) -> None:
    answers = [await bench.ask(headers=[(b"x-api-key", b"k")]) for _ in range(2)]
    assert [answer.body for answer in answers] == [b"answer 1", b"answer 2"]


# --- with policies -----------------------------------------------------------------------------------------------


async def test_where_there_is_a_policy_it_decides(cache: NexCache) -> None:
    bench = Bench(cache, Service(), policies=[Policy("/page", op="page", ttl=60, jitter=0)])
    bench.service.headers = []
    assert (await bench.ask("/page")).cache == "NexCache; fwd=uri-miss"
    assert (await bench.ask("/page")).cache == "NexCache; hit; ttl=60; detail=memory"
    assert (await bench.ask("/other")).cache == "NexCache; fwd=uri-miss; fwd-status=200; detail=not-fresh"


async def test_an_invalidation_by_hand_reaches_what_the_rules_have_stored(bench: Bench) -> None:
    bench.service.headers.append((b"cache-tag", b"users"))
    await bench.ask()
    assert (await bench.ask()).hit
    await bench.cache.invalidate("acme", tags=["users"])
    assert not (await bench.ask()).hit
    await bench.cache.invalidate("acme", "*")
    assert not (await bench.ask()).hit


async def test_switched_off_it_passes_everything(bench: Bench) -> None:
    bench.cache.disable("http")
    answers = [await bench.ask() for _ in range(2)]
    assert [answer.cache for answer in answers] == ["NexCache; fwd=bypass; detail=disabled"] * 2


def test_another_mode_is_refused(cache: NexCache) -> None:
    with pytest.raises(ConfigurationError, match="mode"):
        CacheMiddleware(Service(), cache=cache, tenant=tenants.fixed("a"), mode="http")  # type: ignore[arg-type]


# --- several nodes -----------------------------------------------------------------------------------------------


@pytest.fixture
async def nodes(redis_url: str) -> AsyncIterator[tuple[Bench, Bench]]:
    """Two caches of one store, in front of one service."""
    caches = [NexCache(Settings(redis_url=SecretStr(redis_url), op_timeout_ms=2000)) for _ in range(2)]
    service = Service()
    yield Bench(caches[0], service), Bench(caches[1], service)
    for cache in caches:
        await cache.aclose()


async def test_what_one_node_has_stored_another_serves(nodes: tuple[Bench, Bench]) -> None:
    one, two = nodes
    one.service.headers.append((b"vary", b"accept-language"))
    await one.ask(headers=[(b"accept-language", b"en")])
    await one.ask(headers=[(b"accept-language", b"de")])
    assert (await two.ask(headers=[(b"accept-language", b"EN")])).body == b"answer 1"
    assert (await two.ask(headers=[(b"accept-language", b"de")])).body == b"answer 2"
    assert one.service.calls == 2


async def test_a_write_to_one_node_ends_what_the_other_has(nodes: tuple[Bench, Bench]) -> None:
    one, two = nodes
    await one.ask()
    assert (await two.ask()).hit
    await one.ask(method="DELETE")
    two.service.headers = [(b"cache-control", b"no-store")]
    async with asyncio.timeout(5):  # a lease at most
        while (await two.ask()).hit:  # noqa: ASYNC110 - the other node's memory can only be asked
            await asyncio.sleep(0.01)


async def test_requests_to_several_nodes_are_one_request_to_the_origin(nodes: tuple[Bench, Bench]) -> None:
    one, two = nodes
    one.service.gate.clear()
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.service.calls == 1)
    waiting = [asyncio.create_task(two.ask()) for _ in range(5)]
    leases = two.cache.leases
    assert leases is not None
    await until(lambda: leases._waiting)
    one.service.gate.set()
    assert {answer.body for answer in await asyncio.gather(leading, *waiting)} == {b"answer 1"}
    assert {answer.result().cache for answer in waiting} == {"NexCache; fwd=uri-miss; collapsed"}
    assert one.service.calls == 1


async def test_no_node_waits_for_what_another_cannot_share(nodes: tuple[Bench, Bench]) -> None:
    one, two = nodes
    one.service.headers = [(b"cache-control", b"no-store")]
    one.service.gate.clear()
    leading = asyncio.create_task(one.ask())
    await until(lambda: one.service.calls == 1)
    waiting = [asyncio.create_task(two.ask()) for _ in range(3)]
    await asyncio.sleep(0.02)
    one.service.gate.set()
    assert len({answer.body for answer in await asyncio.gather(leading, *waiting)}) == 4


async def test_what_one_node_has_validated_no_other_validates_again(nodes: tuple[Bench, Bench]) -> None:
    one, two = nodes
    one.now = two.now = time.time()  # what is older than a day is held in no node's memory
    one.service.headers.append((b"etag", b'"one"'))
    await one.ask()
    held = two.cache.counts.of("acme", "http")
    async with asyncio.timeout(5):
        while not held.memory_hits:
            assert (await two.ask()).hit
    one.now += 70
    two.now += 70
    one.service.status = 304
    assert (await one.ask()).cache == "NexCache; fwd=stale; fwd-status=304"
    assert (await two.ask()).cache == "NexCache; hit; ttl=60; detail=max-age"
    assert one.service.calls == 2


async def test_a_stale_response_is_refreshed_once_for_all_nodes(nodes: tuple[Bench, Bench]) -> None:
    one, two = nodes
    one.service.headers = [(b"cache-control", b"max-age=60, stale-while-revalidate=600"), (b"etag", b'"one"')]
    await one.ask()
    assert (await two.ask()).hit
    one.now += 70
    two.now += 70
    one.service.gate.clear()
    for node in (one, two, one, two):
        assert (await node.ask()).body == b"answer 1"
    await until(lambda: one.service.calls == 2)
    await until(lambda: one.cache.refreshes.running + two.cache.refreshes.running == 1)  # whichever came first
    one.service.gate.set()
    await until(lambda: one.cache.refreshes.running + two.cache.refreshes.running == 0)
    assert one.service.calls == 2
    async with asyncio.timeout(5):
        for node in nodes:
            while (await node.ask()).body == b"answer 1":  # its own; whoever is sent it has the store looked at
                await until(lambda: one.cache.refreshes.running + two.cache.refreshes.running == 0)
    assert one.service.calls == 2


async def test_closing_ends_what_is_being_asked_of_the_origin(nodes: tuple[Bench, Bench]) -> None:
    one, two = nodes
    one.service.headers = [(b"cache-control", b"max-age=60, stale-while-revalidate=600")]
    await one.ask()
    one.now += 70
    one.service.gate.clear()
    assert (await one.ask()).hit
    await until(lambda: one.service.calls == 2)
    asked = one.cache.flights.running
    closing = asyncio.create_task(one.cache.aclose())
    await until(lambda: one.cache.refreshes.running == 0)
    one.service.gate.set()
    await closing
    assert (asked, one.cache.flights.running) == (1, 0)
    two.now += 70
    assert (await two.ask()).body == b"answer 2"  # and what came in time is stored


async def test_a_304_of_the_app_that_tells_a_length_passes_without_it(bench: Bench) -> None:
    bench.service.status = 304
    answer = await bench.ask(headers=[(b"if-none-match", b'"mine"')])
    assert (answer.status, answer.get("content-length")) == (304, None)
