"""Nobody is ever answered with what another may see: tenants, principals, credentials, hosts and reflected headers."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from nexcache import CacheMiddleware, NexCache, Policy, principals, tenants
from nexcache.asgi import Receive, Scope, Send
from nexcache.tenants import Resolver
from tests.wire.server import Answer, Origin, ask, serving


async def echo_tenant(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise RuntimeError("knows no lifespan")
    who = dict(scope["headers"]).get(b"x-tenant", b"nobody")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"data of " + who})


def by_header(cache: NexCache) -> CacheMiddleware:
    tenant = tenants.header("x-tenant", trusted=True)
    return CacheMiddleware(echo_tenant, cache=cache, tenant=tenant, policies=[Policy("/{rest:path}", op="data")])


HOSTILE = [
    b"*",
    b"a:b",
    b"a",
    b"b",
    b"a:",
    b"..",
    b"../x",
    b"x/../acme",
    b"acme",
    b"Acme",
    b"ACME",
    b"acme.",
    b"acme*",
    b"ac?e",
    b"[a-z]*",
    b"{acme}",
    b"%61cme",
    b"acme%00",
    b"@tenant",
    b"@any",
    b"@ops",
    b"nexarch",
    b"-",
    "é".encode(),
    "e\u0301".encode(),
    "\uff45".encode(),  # FULLWIDTH LATIN SMALL LETTER E
    b"K",  # KELVIN SIGN
    b"K",
    b"k",
    "a\u200bcme".encode(),
    b"x" * 150,
    b"x" * 149,
]


async def test_hostile_ids_are_tenants_like_any_other_and_never_cross(cache: NexCache) -> None:
    app = by_header(cache)
    for _ in range(3):
        for name in HOSTILE:
            answer = await ask(app, headers=[(b"x-tenant", name)])
            assert (answer.status, answer.body) == (200, b"data of " + name)
    hits = [(await ask(app, headers=[(b"x-tenant", name)])).hit for name in HOSTILE]
    assert sum(hits) >= len(HOSTILE) - 1  # the zero-width space is no printable character: a bypass


async def test_an_invalidation_of_a_hostile_id_reaches_that_tenant_only(cache: NexCache) -> None:
    app = by_header(cache)
    names = ["*", "a:b", "a", "b", "acme*", "acme", "[a-z]*", "../x", "é"]
    for name in names:
        for other in names:
            await ask(app, headers=[(b"x-tenant", other.encode())])
        await cache.invalidate(name, "*")
        hits = {other for other in names if (await ask(app, headers=[(b"x-tenant", other.encode())])).hit}
        assert hits == set(names) - {name}


@pytest.mark.parametrize(
    "name", [b"", b"x" * 151, b"x" * 200, "é".encode() * 76, b"a\tb", b"a\x7fb", b"\xff\xfe", "\u2028".encode()]
)
async def test_an_impossible_id_is_a_bypass(cache: NexCache, stored: Callable[[], int], name: bytes) -> None:
    app = by_header(cache)
    for _ in range(2):
        answer = await ask(app, headers=[(b"x-tenant", name)])
        assert (answer.status, answer.cache) == (200, "NexCache; fwd=bypass; detail=no-tenant")
        assert answer.body == b"data of " + name
    assert stored() == 0


async def _async_acme(scope: Scope) -> str:
    await asyncio.sleep(0)
    return "acme"


async def _async_trouble(scope: Scope) -> str:
    raise KeyError("secret")


async def _async_none(scope: Scope) -> None:
    return None


def _trouble(scope: Scope) -> str:
    raise LookupError("secret")


@pytest.mark.parametrize(
    "resolver",
    [
        pytest.param(lambda scope: None, id="none"),
        pytest.param(lambda scope: "", id="empty"),
        pytest.param(lambda scope: "a\nb", id="newline"),
        pytest.param(lambda scope: "a\0b", id="nul"),
        pytest.param(lambda scope: b"acme", id="bytes"),
        pytest.param(lambda scope: 42, id="number"),
        pytest.param(lambda scope: ["acme"], id="list"),
        pytest.param(lambda scope: True, id="bool"),
        pytest.param(lambda scope: "\ud800", id="lone surrogate"),
        pytest.param(_trouble, id="raises"),
        pytest.param(_async_trouble, id="raises later"),
        pytest.param(_async_none, id="none later"),
    ],
)
async def test_whoever_cannot_be_named_is_answered_by_the_app_every_time(
    cache: NexCache, stored: Callable[[], int], resolver: Resolver
) -> None:
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache, tenant=resolver, policies=[Policy("/", op="home")])
    named = CacheMiddleware(
        Origin(pieces=[b"x"]), cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op="home")]
    )
    await ask(named)
    for number in (1, 2):
        answer = await ask(app)
        assert (answer.status, answer.body) == (200, b"answer %d" % number)
        assert answer.cache == "NexCache; fwd=bypass; detail=no-tenant"
    assert stored() == 1


async def test_a_tenant_may_be_resolved_by_a_coroutine(cache: NexCache) -> None:
    app = CacheMiddleware(Origin(), cache=cache, tenant=_async_acme, policies=[Policy("/", op="home")])
    assert [(await ask(app)).hit for _ in range(2)] == [False, True]


async def test_no_principal_where_one_is_configured_is_a_bypass(cache: NexCache) -> None:
    for principal in (lambda scope: None, _trouble, _async_trouble, lambda scope: 7):
        origin = Origin()
        app = CacheMiddleware(
            origin,
            cache=cache,
            tenant=tenants.fixed("acme"),
            principal=principal,  # type: ignore[arg-type]
            policies=[Policy("/", op="home")],
        )
        for _ in range(2):
            assert (await ask(app)).cache == "NexCache; fwd=bypass; detail=no-principal"
        assert origin.calls == 2


async def test_principals_of_one_tenant_are_kept_apart(cache: NexCache) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        role = dict(scope["headers"])[b"x-role"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"for " + role})

    site = CacheMiddleware(
        app,
        cache=cache,
        tenant=tenants.fixed("acme"),
        principal=tenants.header("x-role", trusted=True),
        policies=[Policy("/", op="home")],
    )
    for hit in (False, True):
        for role in (b"admin", b"viewer", b"-", b"=admin"):
            answer = await ask(site, headers=[(b"x-role", role)])
            assert (answer.body, answer.hit) == (b"for " + role, hit)


@pytest.mark.parametrize("name", [b"authorization", b"cookie", b"x-api-key"])
async def test_a_credential_without_a_principal_is_a_bypass(
    cache: NexCache, stored: Callable[[], int], name: bytes
) -> None:
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op="home")])
    for _ in range(2):
        answer = await ask(app, headers=[(name, b"secret")])
        assert answer.cache == "NexCache; fwd=bypass; detail=authorization"
    assert (origin.calls, stored()) == (2, 0)


async def test_a_policy_may_say_that_credentials_make_no_difference(cache: NexCache) -> None:
    app = CacheMiddleware(
        Origin(), cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op="home", share_authenticated=True)]
    )
    answers = [await ask(app, headers=[(b"authorization", token)]) for token in (b"a", b"b")]
    assert [each.hit for each in answers] == [False, True]


async def test_own_names_of_credentials_count(cache: NexCache) -> None:
    app = CacheMiddleware(
        Origin(),
        cache=cache,
        tenant=tenants.fixed("acme"),
        credentials=["X-Token"],
        policies=[Policy("/", op="home")],
    )
    assert "authorization" in (await ask(app, headers=[(b"x-token", b"1")])).cache


async def protected(request: Request) -> Response:
    if request.headers.get("x-api-key") not in ("k-acme", "k-globex"):
        return PlainTextResponse("who are you?", 401)
    return PlainTextResponse(f"for {request.headers['x-api-key']}")


KEYS = {"acme": "k-acme", "globex": "k-globex"}


@pytest.mark.parametrize(
    ("tenant", "principal"),
    [
        pytest.param(tenants.api_key(keys=KEYS), None, id="key names the tenant"),
        pytest.param(tenants.api_key(keys=KEYS), tenants.api_key(keys=KEYS), id="key names both"),
        pytest.param(tenants.fixed("acme"), None, id="one tenant"),
        pytest.param(tenants.fixed("acme"), principals.per_credential(), id="one tenant, principal by credential"),
        pytest.param(tenants.fixed("acme"), tenants.api_key(keys=KEYS), id="one tenant, principal by key"),
    ],
)
async def test_authentication_inside_the_app_is_never_passed_by(
    cache: NexCache, http: str, tenant: Resolver, principal: Resolver | None
) -> None:
    app = CacheMiddleware(
        Starlette(routes=[Route("/report", protected)]),
        cache=cache,
        tenant=tenant,
        principal=principal,
        policies=[Policy("/report", op="report")],
    )

    async def check(answer: Answer, key: str | None) -> None:
        if key in ("k-acme", "k-globex"):
            assert (answer.status, answer.body) == (200, f"for {key}".encode())
        else:
            assert (answer.status, answer.body) == (401, b"who are you?")

    async with serving(app, http=http, cache=cache) as client:
        for key in (None, "k-acme", None, "wrong", "k-acme", None, "k-globex", "wrong", "", "k-acme", None):
            fields = [] if key is None else [("x-api-key", key)]
            await check(await client.ask("/report", fields=fields), key)
        mixed = [None, "k-acme", "wrong", "k-globex"] * 5
        answers = await asyncio.gather(
            *(client.ask("/report", fields=[("x-api-key", key)] if key else []) for key in mixed)
        )
        for key, answer in zip(mixed, answers, strict=True):
            await check(answer, key)


async def test_two_tenants_at_one_address_get_their_own_through_a_server(cache: NexCache, http: str) -> None:
    async with serving(by_header(cache), http=http) as client:
        for _ in range(2):
            names = ["acme", "globex", "a:b", "*"] * 8
            answers = await asyncio.gather(*(client.get("/d", x_tenant=name) for name in names))
            assert [each.body for each in answers] == [f"data of {name}".encode() for name in names]


async def test_a_tenants_header_sent_twice_names_nobody(cache: NexCache, http: str) -> None:
    async with serving(by_header(cache), http=http) as client:
        await client.get("/", x_tenant="victim")
        for second in ("x-tenant", "x_tenant"):
            answer = await client.ask("/", fields=[("x-tenant", "victim"), (second, "attacker")])
            assert not answer.hit
            assert "no-tenant" in answer.cache or answer.status == 400


REFLECTED = """
    host forwarded x-forwarded-host x-forwarded-port x-forwarded-proto x-forwarded-prefix x-forwarded-scheme
    x-forwarded-server x-forwarded-ssl x-forwarded-uri x-host x-scheme x-script-name x-proxy-host front-end-https
    x-original-url x-rewrite-url x-http-method-override x-original-host
"""


@pytest.mark.parametrize("name", REFLECTED.split())
async def test_a_reflected_header_of_one_client_never_reaches_another(cache: NexCache, name: str) -> None:
    async def reflect(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": repr(scope["headers"]).encode()})

    app = CacheMiddleware(reflect, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op="home")])
    value = b"host=canary" if name == "forwarded" else b"canary"
    spoiled = [(name.encode(), value)] + ([(b"host", b"test")] if name != "host" else [])
    for _ in range(2):
        assert b"canary" in (await ask(app, headers=spoiled)).body
        assert b"canary" not in (await ask(app)).body


async def test_two_host_fields_are_a_bypass_or_refused(cache: NexCache, http: str) -> None:
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op="home")])
    async with serving(app, http=http) as client:
        for _ in range(2):
            answer = await client.ask("/", fields=[("host", "evil")])
            assert answer.status == 400 or answer.cache == "NexCache; fwd=bypass; detail=host"


async def test_raw_spellings_of_a_path_are_entries_of_their_own(cache: NexCache, http: str) -> None:
    async def reflect(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("knows no lifespan")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["raw_path"]})

    app = CacheMiddleware(
        reflect, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/{rest:path}", op="any")]
    )
    targets = [
        "/a/b",
        "/a%2Fb",
        "/a%2fb",
        "/%61/b",
        "/a//b",
        "/a/./b",
        "/a/x/../b",
        "/a/b/",
        "/a/b%00",
        "/a;x/b",
        "/a/b%3F",
    ]
    async with serving(app, http=http, cache=cache) as client:
        for hit in (False, True):
            for target in targets:
                answer = await client.get(target)
                assert (answer.body, answer.hit) == (target.encode(), hit)


@pytest.mark.parametrize("path", ["/me", "/me/", "/me/x.css", "/me;x.css", "/me.css", "/me%2fx.css", "/ME", "//me"])
async def test_only_the_whole_path_of_a_policy_is_cached(cache: NexCache, stored: Callable[[], int], path: str) -> None:
    app = CacheMiddleware(Origin(), cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/me", op="me")])
    await ask(app, path)
    assert stored() == (path == "/me")


async def test_two_middlewares_of_one_cache_keep_their_policies_apart(cache: NexCache) -> None:
    """Found by their raw requests, entries of one must not answer for the other."""
    sites: list[Callable[[], Awaitable[Answer]]] = []
    for op in ("one", "two"):
        origin = Origin(pieces=[op.encode()])
        site = CacheMiddleware(origin, cache=cache, tenant=tenants.fixed("acme"), policies=[Policy("/", op=op)])
        sites.append(lambda site=site: ask(site))  # type: ignore[misc]
    for _ in range(3):
        assert [(await site()).body for site in sites] == [b"one", b"two"]
