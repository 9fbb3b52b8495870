"""`Policy(compress=True)`: compressed once, sent to whoever accepts it."""

import gzip
import json
from collections.abc import AsyncIterator

import pytest
from backports import zstd
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Scope
from nexcache.compression import CODINGS, compressed
from nexcache.message import StoredResponse
from nexcache.semantics.encoding import accepted, is_encodable, varying_by_encoding
from tests.wire.server import Answer, Exchange, Origin, serving

BODY = json.dumps([{"service": f"service-{number}"} for number in range(200)]).encode()
JSON = [(b"content-type", b"application/json")]


@pytest.fixture(params=["memory", "valkey"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[NexCache]:
    url = None if request.param == "memory" else SecretStr(request.getfixturevalue("redis_url"))
    cache = NexCache(Settings(redis_url=url, redis_host=None, op_timeout_ms=2000))
    yield cache
    await cache.aclose()


def cached(cache: NexCache, app: object, **options: object) -> CacheMiddleware:
    policy = Policy("/", op="home", ttl=60, compress=True, **options)  # type: ignore[arg-type]
    return CacheMiddleware(app, cache=cache, tenant=tenants.fixed("acme"), policies=[policy])  # type: ignore[arg-type]


async def ask(app: object, accept: str | None = None, *fields: tuple[bytes, bytes], method: str = "GET") -> Answer:
    headers = [*fields, *([(b"accept-encoding", accept.encode())] if accept is not None else [])]
    return (await Exchange(app, headers=headers, method=method).run()).answer  # type: ignore[arg-type]


def plain(answer: Answer) -> bytes:
    match answer.get("content-encoding"):
        case None:
            return answer.body
        case "gzip":
            return gzip.decompress(answer.body)
        case "zstd":
            return zstd.decompress(answer.body)
        case coding:
            raise AssertionError(coding)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP, deflate", "gzip"),
        ("zstd", "zstd"),
        ("gzip, zstd", "zstd"),
        ("gzip;q=1, zstd;q=0.5", "gzip"),
        ("gzip;q=0", None),
        ("*", "zstd"),
        ("*;q=0", None),
        ("gzip;q=0, *", "zstd"),
        ("identity;q=1, gzip;q=0.5", None),
        ("gzip;q=x", None),
        ("gzip;q=2", None),
        ("deflate", None),
        ("x" * 1000 + ", gzip", None),
    ],
)
async def test_a_client_is_sent_the_coding_that_it_accepts(
    cache: NexCache, accept: str | None, coding: str | None
) -> None:
    origin = Origin(headers=[*JSON], pieces=[BODY])
    app = cached(cache, origin)
    await ask(app)
    hit = await ask(app, accept)
    assert hit.hit
    assert hit.get("content-encoding") == coding
    assert plain(hit) == BODY
    assert hit.get("content-length") == str(len(hit.body))
    assert hit.get("vary") == "Accept-Encoding"
    assert origin.calls == 1


async def test_every_coding_has_a_strong_entity_tag_of_its_own(cache: NexCache) -> None:
    app = cached(cache, Origin(headers=[*JSON], pieces=[BODY]))
    await ask(app)
    tags = [(await ask(app, accept)).get("etag") or "" for accept in ("identity", "gzip", "zstd")]
    assert len(set(tags)) == 3
    assert all(tag.startswith('"') for tag in tags)
    for accept, tag in zip(("identity", "gzip", "zstd"), tags, strict=True):
        known = await ask(app, accept, (b"if-none-match", tag.encode()))
        assert (known.status, known.get("etag"), known.get("vary")) == (304, tag, "Accept-Encoding")
    assert (await ask(app, "identity", (b"if-none-match", tags[1].encode()))).status == 200


async def test_a_client_that_has_the_plain_body_is_not_sent_another_coding(cache: NexCache) -> None:
    app = cached(cache, Origin(headers=[*JSON], pieces=[BODY]))
    tag = (await ask(app)).get("etag") or ""
    assert (await ask(app, "gzip", (b"if-none-match", tag.encode()))).status == 304


async def test_a_head_tells_of_the_coding(cache: NexCache) -> None:
    app = cached(cache, Origin(headers=[*JSON], pieces=[BODY]))
    await ask(app)
    head, get = await ask(app, "gzip", method="HEAD"), await ask(app, "gzip")
    assert head.body == b""
    assert (head.get("content-encoding"), head.get("content-length")) == ("gzip", get.get("content-length"))


async def test_the_first_answer_is_not_held_up_and_says_what_it_depends_on(cache: NexCache) -> None:
    miss = await ask(cached(cache, Origin(headers=[*JSON], pieces=[BODY])), "gzip")
    assert (miss.body, miss.get("content-encoding"), miss.get("vary")) == (BODY, None, "Accept-Encoding")


async def test_the_handler_is_asked_for_the_plain_body(cache: NexCache) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: object, send: object) -> None:
        seen.append(scope)
        await Origin(headers=[*JSON], pieces=[BODY])(scope, receive, send)  # type: ignore[arg-type]

    inner = GZipMiddleware(app, minimum_size=100)
    middleware = cached(cache, inner)
    await ask(middleware, "gzip")
    assert plain(await ask(middleware, "zstd")) == BODY
    assert not any(name == b"accept-encoding" for scope in seen for name, _ in scope["headers"])
    assert len(seen) == 1


async def test_what_the_app_has_encoded_stays_as_it_is(cache: NexCache) -> None:
    packed = gzip.compress(BODY)
    origin = Origin(headers=[*JSON, (b"content-encoding", b"gzip")], pieces=[packed])
    app = cached(cache, origin)
    await ask(app, "gzip")
    hit = await ask(app, "gzip, zstd")
    assert (hit.body, hit.get("content-encoding"), hit.get("vary")) == (packed, "gzip", None)


async def test_an_outer_middleware_that_compresses_leaves_a_coding_alone(cache: NexCache) -> None:
    app = GZipMiddleware(cached(cache, Origin(headers=[*JSON], pieces=[BODY])), minimum_size=100)
    await ask(app)
    hit = await ask(app, "gzip")
    assert hit.all("content-encoding") == ["gzip"]
    assert plain(hit) == BODY


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(b"content-type", b"image/png")], id="what is compressed already"),
        pytest.param([*JSON, (b"cache-control", b"no-transform, max-age=60")], id="what nobody may transform"),
        pytest.param([], id="what has no type"),
    ],
)
async def test_what_gains_nothing_is_sent_as_it_is(cache: NexCache, headers: list[tuple[bytes, bytes]]) -> None:
    app = cached(cache, Origin(headers=headers, pieces=[BODY]))
    await ask(app)
    hit = await ask(app, "gzip, zstd")
    assert (hit.body, hit.get("content-encoding"), hit.get("vary")) == (BODY, None, None)


async def test_a_small_body_is_sent_as_it_is(cache: NexCache) -> None:
    app = cached(cache, Origin(headers=[*JSON], pieces=[b"{}"]))
    await ask(app)
    assert (await ask(app, "gzip")).get("content-encoding") is None


async def test_through_a_server_and_a_framework(cache: NexCache, redis_url: str) -> None:
    app = Starlette()
    app.mount("/", Origin(headers=[*JSON], pieces=[BODY]))
    async with serving(cached(cache, app), http="httptools", lifespan="off", cache=cache) as client:
        await client.get("/")
        hit = await client.get("/", accept_encoding="gzip")
        assert plain(hit) == BODY
        assert hit.get("content-encoding") == "gzip"


async def test_a_large_body_is_compressed_beside_the_event_loop() -> None:
    response = StoredResponse(200, ((b"content-type", b"text/plain"),), BODY * 20, b'"x"', 0.0, 60.0)
    packed = await compressed(response)
    assert [coding for coding, _ in packed.encoded] == list(CODINGS)
    assert gzip.decompress(dict(packed.encoded)[b"gzip"]) == BODY * 20


async def test_what_does_not_get_smaller_is_not_kept_twice() -> None:
    random = bytes((number * 7919 + number // 256 * 104729) % 256 for number in range(600))
    body = b"".join(bytes((byte ^ (index * index % 251),)) for index, byte in enumerate(random))
    response = StoredResponse(200, ((b"content-type", b"text/plain"),), body, b'"x"', 0.0, 60.0)
    assert (await compressed(response)).encoded == ()


def test_more_than_one_vary_becomes_one() -> None:
    headers = ((b"vary", b"a"), (b"x", b"1"), (b"vary", b"b"))
    assert varying_by_encoding(headers) == ((b"x", b"1"), (b"vary", b"a, b, Accept-Encoding"))
    assert varying_by_encoding(((b"vary", b"ACCEPT-encoding"),)) == ((b"vary", b"ACCEPT-encoding"),)


def test_a_part_is_never_encoded() -> None:
    assert not is_encodable(206, JSON)
    assert not is_encodable(200, [*JSON, (b"content-range", b"bytes 0-1/2")])


def test_equal_weights_leave_the_choice_to_the_server() -> None:
    assert accepted([(b"accept-encoding", b"gzip;q=0.5, br;q=0.5")], (b"br", b"gzip")) == (b"br", b"gzip", b"identity")
