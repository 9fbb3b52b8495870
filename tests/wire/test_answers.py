"""What a client sees of a cache: hits, misses, validation, and what tells one request from another."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from nexcache import CacheMiddleware, NexCache, Policy, Query, tenants
from nexcache.asgi import ASGIApp, Receive, Scope, Send
from nexcache.entries import Entries, Found, Missing
from nexcache.key import CacheKey
from tests.servers import Valkey
from tests.wire.server import Exchange, Origin, ask, serving, until


def cached(app: ASGIApp, cache: NexCache, *policies: Policy) -> CacheMiddleware:
    return CacheMiddleware(
        app, cache=cache, tenant=tenants.fixed("acme"), policies=policies or [Policy("/", op="home")]
    )


# --- through a server ------------------------------------------------------------------------------------------


async def test_the_second_request_is_a_hit_with_the_same_body(cache: NexCache, http: str) -> None:
    origin = Origin()
    async with serving(
        cached(origin, cache, Policy("/", op="home", ttl=60, jitter=0)), http=http, cache=cache
    ) as client:
        miss, hit = await client.get("/"), await client.get("/")
    assert miss.cache == "NexCache; fwd=uri-miss; stored"
    tiers = ("memory",) if cache.entries.in_process else ("redis", "memory")
    assert hit.cache in [f"NexCache; hit; ttl=60; detail={tier}" for tier in tiers]
    assert (miss.status, miss.body) == (hit.status, hit.body) == (200, b"answer 1")
    assert origin.calls == 1


async def test_a_hit_tells_its_age_and_a_miss_tells_none(cache: NexCache, http: str) -> None:
    async with serving(cached(Origin(), cache), http=http, cache=cache) as client:
        miss, hit = await client.get("/"), await client.get("/")
    assert miss.get("age") is None
    assert hit.get("age") == "0"


async def test_hit_and_miss_carry_the_same_strong_entity_tag(cache: NexCache, http: str) -> None:
    async with serving(cached(Origin(), cache), http=http, cache=cache) as client:
        miss, hit = await client.get("/"), await client.get("/")
    assert miss.get("etag") == hit.get("etag")
    assert (miss.get("etag") or "").startswith('"')


async def test_the_apps_own_entity_tag_is_kept(cache: NexCache, http: str) -> None:
    origin = Origin(headers=[(b"etag", b'W/"mine"')])
    async with serving(cached(origin, cache), http=http, cache=cache) as client:
        miss, hit = await client.get("/"), await client.get("/")
        not_modified = await client.get("/", if_none_match='"mine"')
    assert miss.get("etag") == hit.get("etag") == 'W/"mine"'
    assert not_modified.status == 304


async def test_a_known_entity_tag_is_answered_304_without_a_body(cache: NexCache, http: str) -> None:
    origin = Origin()
    async with serving(cached(origin, cache), http=http, cache=cache) as client:
        etag = (await client.get("/")).get("etag") or ""
        connection = await client.connect()
        await connection.ask("/", fields=[("if-none-match", f'"other", {etag}')])
        head = await connection.head()
        await connection.ask("/")  # nothing of a body is left in between
        after = await connection.answer()
    assert (head.status, head.hit, head.get("etag")) == (304, True, etag)
    assert head.get("content-type") is None
    assert after.body == b"answer 1"
    assert origin.calls == 1


async def test_a_miss_too_is_answered_304_and_stored_whole(cache: NexCache, http: str) -> None:
    origin = Origin(pieces=[b"the same every time"])
    async with serving(cached(origin, cache), http=http, cache=cache) as client:
        etag = (await client.get("/")).get("etag") or ""
        await cache.invalidate("acme", "home")
        miss = await client.get("/", if_none_match=etag)
        hit = await client.get("/")
    assert (miss.status, miss.cache, miss.get("etag")) == (304, "NexCache; fwd=uri-miss; stored", etag)
    assert (hit.hit, hit.body) == (True, b"the same every time")
    assert origin.calls == 2


async def test_a_changed_entity_tag_brings_the_body(cache: NexCache, http: str) -> None:
    async with serving(cached(Origin(), cache), http=http, cache=cache) as client:
        await client.get("/")
        answer = await client.get("/", if_none_match='"old"')
    assert (answer.status, answer.hit, answer.body) == (200, True, b"answer 1")


async def test_browsers_are_told_to_revalidate_unless_the_app_speaks_for_itself(cache: NexCache, http: str) -> None:
    silent, outspoken = Origin(), Origin(headers=[(b"cache-control", b"public, max-age=7")])
    async with serving(cached(silent, cache), http=http, cache=cache) as client:
        answers = [await client.get("/"), await client.get("/")]
    assert [answer.get("cache-control") for answer in answers] == ["private, no-cache"] * 2
    async with serving(cached(outspoken, cache, Policy("/", op="other")), http=http, cache=cache) as client:
        answers = [await client.get("/"), await client.get("/")]
    assert [answer.get("cache-control") for answer in answers] == ["public, max-age=7"] * 2


async def test_repeated_header_fields_stay_repeated_and_in_order(cache: NexCache, http: str) -> None:
    fields = [(b"link", b"</a>"), (b"warning", b"199 - x"), (b"link", b"</b>"), (b"x-n", b"1"), (b"link", b"</a>")]
    async with serving(cached(Origin(headers=fields), cache), http=http, cache=cache) as client:
        miss, hit = await client.get("/"), await client.get("/")
    for answer in (miss, hit):
        assert answer.all("link") == ["</a>", "</b>", "</a>"]
        names = [name.lower() for name, _ in answer.fields if name.lower() in ("link", "warning", "x-n")]
        assert names == ["link", "warning", "link", "x-n", "link"]
    assert hit.hit


async def test_head_is_answered_from_what_a_get_stored(cache: NexCache, http: str) -> None:
    origin = Origin()
    async with serving(cached(origin, cache), http=http, cache=cache) as client:
        get = await client.get("/")
        connection = await client.connect()
        await connection.ask("/", method="HEAD")
        head = await connection.head()
        await connection.ask("/")
        assert (await connection.answer()).body == b"answer 1"
    assert (head.status, head.hit, head.get("content-length")) == (200, True, "8")
    assert head.get("etag") == get.get("etag")
    assert origin.calls == 1


async def test_a_head_never_fills(cache: NexCache, http: str, stored: Callable[[], int]) -> None:
    origin = Origin(headers=[(b"content-length", b"8")], pieces=[b""])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        origin.pieces = [b""] if scope["method"] == "HEAD" else [b"answer 2"]
        await origin(scope, receive, send)

    async with serving(cached(app, cache), http=http, cache=cache) as client:
        head = await client.ask("/", method="HEAD")
        assert (head.cache, stored()) == ("NexCache; fwd=uri-miss; detail=method", 0)
        get = await client.get("/")
    assert (get.hit, get.body, origin.calls) == (False, b"answer 2", 2)


async def test_other_methods_reach_the_app_and_say_so(cache: NexCache, http: str) -> None:
    origin = Origin()
    async with serving(cached(origin, cache), http=http, cache=cache) as client:
        await client.get("/")
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            answer = await client.ask("/", method=method, body=b"x")
            assert answer.cache == "NexCache; fwd=method"
    assert origin.calls == 6


async def test_a_path_without_a_policy_passes_untouched(cache: NexCache, http: str) -> None:
    origin = Origin()
    async with serving(cached(origin, cache), http=http, cache=cache) as client:
        answers = [await client.get("/elsewhere"), await client.get("/elsewhere")]
    assert [answer.body for answer in answers] == [b"answer 1", b"answer 2"]
    assert not any(answer.all("cache-status") or answer.all("etag") for answer in answers)


async def test_a_post_is_keyed_by_its_body(cache: NexCache, http: str) -> None:
    calls = itertools.count(1)

    async def query(request: Request) -> Response:
        return JSONResponse({"call": next(calls), "asked": (await request.body()).decode()})

    app = cached(
        Starlette(routes=[Route("/q", query, methods=["POST"])]), cache, Policy("/q", op="q", methods=["POST"])
    )
    async with serving(app, http=http, cache=cache) as client:
        asked = [
            json.loads((await client.ask("/q", method="POST", body=body)).body)
            for body in (b"a", b"b", b"a", b"", b"b", b"")
        ]
        get = await client.get("/q")
    assert [(each["call"], each["asked"]) for each in asked] == [
        (1, "a"),
        (2, "b"),
        (1, "a"),
        (3, ""),
        (2, "b"),
        (3, ""),
    ]
    assert (get.status, get.cache) == (405, "NexCache; fwd=method")


async def test_a_body_that_is_too_long_for_a_key_reaches_the_app_whole(cache: NexCache, http: str) -> None:
    body = bytes(range(256)) * 1024

    async def query(request: Request) -> Response:
        return PlainTextResponse("right" if await request.body() == body else "wrong")

    app = cached(
        Starlette(routes=[Route("/q", query, methods=["POST"])]), cache, Policy("/q", op="q", methods=["POST"])
    )
    async with serving(app, http=http, cache=cache) as client:
        answers = [await client.ask("/q", method="POST", body=body) for _ in range(2)]
    assert [answer.body for answer in answers] == [b"right"] * 2
    assert [answer.cache for answer in answers] == ["NexCache; fwd=bypass; detail=body"] * 2


async def test_a_body_that_was_read_for_the_key_is_read_by_the_app_once(cache: NexCache, http: str) -> None:
    read: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("knows no lifespan")
        read.append((await receive())["type"])
        await Origin()(scope, receive, send)
        read.append((await receive())["type"])

    site = cached(app, cache, Policy("/", op="q", methods=["POST"]))
    async with serving(site, http=http) as client:
        assert (await client.ask("/", method="POST", body=b"query")).status == 200
        await until(lambda: len(read) == 2)
    assert read == ["http.request", "http.disconnect"]


async def test_a_chunked_post_is_keyed_by_what_its_chunks_make(cache: NexCache, http: str) -> None:
    origin = Origin()
    app = cached(origin, cache, Policy("/", op="q", methods=["POST"]))
    async with serving(app, http=http, cache=cache) as client:
        for hit, chunks in ((False, b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"), (True, b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")):
            connection = await client.connect()
            await connection.send(b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n" + chunks)
            assert (await connection.answer()).hit is hit
            await until(lambda: cache.flights.running == 0)
    assert origin.calls == 1


# --- what tells requests apart -----------------------------------------------------------------------------------


async def test_time_ends_an_entry(memory_cache: NexCache) -> None:
    origin, clock = Origin(), [100.0]
    app = cached(origin, memory_cache, Policy("/", op="home", ttl="2m", jitter=0))
    move_clock(memory_cache, lambda: clock[0])
    for now, calls in ((100, 1), (219.9, 1), (220, 2), (339, 2), (341, 3)):
        clock[0] = now
        assert (await ask(app)).body == b"answer %d" % calls


def move_clock(cache: NexCache, clock: Callable[[], float]) -> None:
    memory, store = cache.entries._local.memory, cache.entries._local._store
    memory._clock = memory._entries._clock = store._clock = store._values._clock = clock


async def test_age_and_ttl_follow_the_clock(memory_cache: NexCache, monkeypatch: pytest.MonkeyPatch) -> None:
    app = cached(Origin(), memory_cache, Policy("/", op="home", ttl=100, jitter=0))
    now = time.time() + 0.5
    await ask(app)
    monkeypatch.setattr("nexcache.middleware.time.time", lambda: now + 30.25)
    hit = await ask(app)
    assert hit.get("age") == "30"
    assert hit.cache.startswith("NexCache; hit; ttl=69;")


async def test_resolvers_that_wait_do_not_send_a_hit_the_long_way(
    memory_cache: NexCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[CacheKey] = []
    look = Entries.lookup_here

    def lookup_here(self: Entries, key: CacheKey, stale_for: float = 0.0) -> Found | Missing | None:
        looked.append(key)
        return look(self, key, stale_for)

    async def principal(_: Scope) -> str:
        await asyncio.sleep(0)
        return "ann"

    app = CacheMiddleware(
        Origin(),
        cache=memory_cache,
        tenant=tenants.fixed("acme"),
        principal=principal,
        policies=[Policy("/", op="home")],
    )
    monkeypatch.setattr(Entries, "lookup_here", lookup_here)
    for _ in range(3):
        await ask(app)

    assert len(looked) == 2  # to compute it, and to learn that the first hit is asked for like this


async def test_a_redis_entry_expires_in_redis(redis_cache: NexCache, redis_server: Valkey) -> None:
    await ask(cached(Origin(), redis_cache, Policy("/", op="home", ttl=90, jitter=0)))
    (key,) = redis_server.entries()
    assert 85_000 < int(redis_server.ask("PTTL", key)) <= 90_000


async def test_the_age_that_the_app_sends_counts(cache: NexCache) -> None:
    app = cached(Origin(headers=[(b"age", b"40")]), cache)
    await ask(app)
    assert (await ask(app)).get("age") == "40"


async def test_a_template_matches_whole_segments_only(cache: NexCache) -> None:
    origin = Origin()
    app = cached(origin, cache, Policy("/services/{service}", op="service"))
    for path in ("/services/a", "/services/b", "/services/a"):
        await ask(app, path)
    assert origin.calls == 2
    for path in ("/services/", "/services/a/b", "/services", "/x/services/a", "/services/a/"):
        assert (await ask(app, path)).cache == ""


async def test_a_template_is_matched_below_the_root_path(cache: NexCache) -> None:
    origin = Origin()
    app = Starlette(routes=[Mount("/api", cached(origin, cache, Policy("/dashboard", op="dashboard")))])
    answers = [await ask(app, "/api/dashboard") for _ in range(2)]
    assert [answer.hit for answer in answers] == [False, True]


async def test_tags_come_from_the_template_and_the_query(cache: NexCache) -> None:
    origin = Origin()
    app = cached(origin, cache, Policy("/services/{service}", op="service", tags=["service:{service}", "env:{env}"]))

    async def hits() -> list[bool]:
        return [
            (await ask(app, "/services/cart", query=b"env=prod")).hit,
            (await ask(app, "/services/cart", query=b"env=test")).hit,
            (await ask(app, "/services/pay", query=b"env=prod")).hit,
        ]

    assert await hits() == [False] * 3
    assert await hits() == [True] * 3
    await cache.invalidate("acme", tags=["service:cart"])
    assert await hits() == [False, False, True]
    await cache.invalidate("acme", tags=["env:prod"])
    assert await hits() == [False, True, False]
    await cache.invalidate("acme", "service")
    assert await hits() == [False] * 3
    await cache.invalidate("other", "*")
    assert await hits() == [True] * 3


async def test_only_listed_statuses_are_stored(cache: NexCache, stored: Callable[[], int]) -> None:
    origin = Origin(status=404)
    app = cached(origin, cache, Policy("/", op="a"), Policy("/404", op="b", statuses=[200, 404]))
    for _ in range(2):
        assert ((await ask(app)).cache, stored()) == ("NexCache; fwd=uri-miss; detail=status", 0)
    for hit in (False, True):
        answer = await ask(app, "/404")
        assert (answer.status, answer.hit) == (404, hit)
    assert origin.calls == 3


async def test_a_stored_404_is_never_answered_304(cache: NexCache) -> None:
    app = cached(Origin(status=404, pieces=[b"none"]), cache, Policy("/", op="a", statuses=[404]))
    etag = ((await ask(app)).get("etag") or "").encode()
    await cache.invalidate("acme", "*")
    for _ in range(2):
        assert (await ask(app, headers=[(b"if-none-match", etag)])).status == 404


async def test_a_stored_204_has_no_length(cache: NexCache, http: str) -> None:
    origin = Origin(status=204, headers=[], pieces=[b""])
    async with serving(cached(origin, cache, Policy("/", op="a", statuses=[204])), http=http, cache=cache) as client:
        answers = [await client.get("/") for _ in range(2)]
    assert [(answer.status, answer.get("content-length")) for answer in answers] == [(204, None)] * 2
    assert answers[1].hit


async def test_a_varied_header_is_part_of_the_key(cache: NexCache) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        language = dict(scope["headers"]).get(b"accept-language", b"-")
        headers = [(b"vary", b"Accept-Language")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": language})

    site = cached(app, cache, Policy("/", op="a", vary=["Accept-Language"]))
    for language, hit in ((b"de", False), (b"en", False), (b"de", True), (b"en", True)):
        answer = await ask(site, headers=[(b"accept-language", language)])
        assert (answer.body, answer.hit) == (language, hit)
    assert (await ask(site)).body == b"-"


@pytest.mark.parametrize(
    ("query", "same", "other"),
    [
        pytest.param(Query(allow=["range"]), b"utm_source=x&range=1h", b"range=2h", id="allow"),
        pytest.param(Query(ignore=["utm_*"]), b"utm_source=x&range=1h", b"range=1h&x=1", id="ignore"),
        pytest.param(Query(ignore=["_"]), b"range=1h&%5F=12", b"range=1h&__=12", id="decoded name"),
    ],
)
async def test_a_query_rule_says_what_is_keyed(cache: NexCache, query: Query, same: bytes, other: bytes) -> None:
    app = cached(Origin(), cache, Policy("/", op="a", query=query))
    await ask(app, query=b"range=1h")
    assert (await ask(app, query=same)).hit
    assert (await ask(app, query=same)).hit
    assert not (await ask(app, query=other)).hit


@pytest.mark.parametrize("other", [b"a=2&b=1", b"b=1&a=2&", b"b=1;a=2", b"b=1", b"", b"%62=1&a=2", b"b=1&a=2&a=2"])
async def test_without_a_query_rule_every_byte_of_the_query_is_keyed(cache: NexCache, other: bytes) -> None:
    app = cached(Origin(), cache)
    await ask(app, query=b"b=1&a=2")
    assert not (await ask(app, query=other)).hit


async def test_a_request_that_is_too_long_for_a_key_is_a_bypass(cache: NexCache) -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"got %d" % len(message["body"])})

    app = cached(echo, cache, Policy("/", op="a", methods=["GET", "POST"]))
    for method, body in (("GET", None), ("POST", b""), ("POST", b"abc")):
        answer = await ask(app, method=method, body=body, query=b"x" * 20_000)
        assert answer.cache == "NexCache; fwd=bypass; detail=key-too-long"
        assert answer.body == b"got %d" % len(body or b"")


async def test_conditions_of_one_client_never_reach_the_app(cache: NexCache) -> None:
    seen: list[set[bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append({name for name, _ in scope["headers"]})
        await Origin()(scope, receive, send)

    headers = [
        (b"if-none-match", b'"x"'),
        (b"if-modified-since", b"Thu, 01 Jan 2026 00:00:00 GMT"),
        (b"accept", b"a/b"),
    ]
    exchange = await Exchange(cached(app, cache), headers=headers).run()
    assert exchange.answer.status == 200
    assert seen == [{b"host", b"accept"}]
    assert [name for name, _ in exchange.scope["headers"]] == [
        b"host",
        b"if-none-match",
        b"if-modified-since",
        b"accept",
    ]


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ((b"range", b"bytes=0-1"), "range"),
        ((b"if-match", b'"x"'), "precondition"),
        ((b"if-unmodified-since", b"Thu, 01 Jan 2026 00:00:00 GMT"), "precondition"),
        ((b"cache-control", b"No-Store"), "no-store"),
        ((b"x-http-method-override", b"DELETE"), "override"),
        ((b"x-original-url", b"/admin"), "override"),
        ((b"x-rewrite-url", b"/admin"), "override"),
    ],
)
async def test_such_a_request_goes_to_the_app(cache: NexCache, field: tuple[bytes, bytes], reason: str) -> None:
    origin = Origin()
    app = cached(origin, cache)
    await ask(app)
    answer = await ask(app, headers=[field])
    assert (answer.cache, answer.body) == (f"NexCache; fwd=bypass; detail={reason}", b"answer 2")
    assert (await ask(app)).body == b"answer 1"


async def test_switching_an_operation_off_and_on(cache: NexCache) -> None:
    origin = Origin()
    app = cached(origin, cache)
    await ask(app)
    cache.disable("home")
    assert (await ask(app)).cache == "NexCache; fwd=bypass; detail=disabled"
    cache.enable("home")
    assert (await ask(app)).hit


async def test_a_cache_that_is_switched_off_does_nothing_but_say_so(cache: NexCache) -> None:
    origin = Origin()
    app = cached(origin, cache)
    cache.enabled = False
    answers = [await ask(app) for _ in range(2)]
    assert [answer.body for answer in answers] == [b"answer 1", b"answer 2"]
    assert {answer.cache for answer in answers} == {"NexCache; fwd=bypass; detail=disabled"}


async def test_what_outer_layers_do_to_the_header_list_stays_with_their_answer(cache: NexCache) -> None:
    inner = cached(Origin(headers=[(b"x-app", b"1")]), cache)

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        async def spoil(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                assert isinstance(message["headers"], list)
                message["headers"].append((b"x-outer", b"1"))
                message["headers"].reverse()
            await send(message)

        await inner(scope, receive, spoil)  # type: ignore[arg-type]

    for _ in range(4):
        answer = await ask(outer)
        assert answer.all("x-outer") == ["1"]
        assert answer.all("x-app") == ["1"]


async def test_what_the_app_does_to_its_header_list_after_sending_changes_nothing(cache: NexCache) -> None:
    headers = [(b"x-app", b"1")]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        headers.append((b"set-cookie", b"session=secret"))
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        headers.append((b"set-cookie", b"session=secret"))
        await send({"type": "http.response.body", "body": b"y"})

    site = cached(app, cache)
    for hit in (False, True):
        answer = await ask(site)
        assert (answer.body, answer.all("set-cookie"), answer.hit) == (b"xy", [], hit)
    assert len(headers) == 3  # and the list stayed the app's


async def test_buffers_that_the_app_uses_again_are_copied(cache: NexCache) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        buffer = bytearray(b"first ")
        await send({"type": "http.response.start", "status": 200, "headers": iter([(b"x-a", b"1")])})
        await send({"type": "http.response.body", "body": memoryview(buffer), "more_body": True})
        buffer[:] = b"second"
        await send({"type": "http.response.body", "body": buffer})
        buffer[:] = b"third!"

    site = cached(app, cache)
    for hit in (False, True):
        answer = await ask(site)
        assert (answer.body, answer.all("x-a"), answer.hit) == (b"first second", ["1"], hit)


async def test_a_miss_that_is_invalidated_meanwhile_answers_and_is_not_stored(
    cache: NexCache, stored: Callable[[], int]
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()
    origin = Origin()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await go_on.wait()
        await origin(scope, receive, send)

    exchange = Exchange(cached(app, cache))
    running = asyncio.create_task(exchange.run())
    await asked.wait()
    await cache.invalidate("acme", "home")
    go_on.set()
    await running
    assert (exchange.answer.body, stored()) == (b"answer 1", 0)
    assert not (await ask(cached(app, cache))).hit
