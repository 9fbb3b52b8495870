"""What is more than a cache, while its store is away: rate limits, quotas and sessions."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import quantiles
from typing import Final, Literal

from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from nexcache import NexCache, Policy, RateLimitMiddleware, SessionMiddleware, Settings, tenants
from nexcache.asgi import ASGIApp, Receive, Scope, Send
from tests.faults.rows import Place, Seen, row
from tests.faults.site import Site, no_crossing, site
from tests.servers import Valkey
from tests.wire.server import Answer, until

LIMIT: Final = 30
INSTANCES: Final = 3
AWAY: Final = ("hung", "dead")
WhenAway = Literal["local", "open", "closed"]


@contextmanager
def _away(server: Valkey, how: str) -> Iterator[Callable[[], None]]:
    """Take a server away, until the block ends or what is given is called."""
    gone = True

    def back() -> None:
        nonlocal gone
        if gone:
            gone = False
            server.resume() if how == "hung" else server.start()

    server.pause() if how == "hung" else server.kill()
    try:
        yield back
    finally:
        back()


async def _hello(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise RuntimeError("knows no lifespan")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def _asked(at: Site, times: int, took: list[float] | None = None) -> list[Answer]:
    """Ask several times, one after the other, and note how long each answer took."""
    answers = []
    for _ in range(times):
        started = time.perf_counter()
        answers.append(await at.client.get("/"))
        if took is not None:
            took.append((time.perf_counter() - started) * 1000)
    return answers


@row("F37", "the store of rate limits hangs or dies", "each limit does as declared: its share, everything, or nothing")
async def rate_limits(place: Place, seen: Seen) -> None:
    took: list[float] = []
    with place.server() as server:
        for when_away in ("local", "open", "closed"):
            for how in AWAY:
                await _limited(place, seen, server, (when_away, how), took)
    seen.figure("answered in, mean", sum(took) / len(took), "ms", most=5)
    seen.figure("answered in, p99", quantiles(took, n=100)[98], "ms", most=60)


async def _limited(place: Place, seen: Seen, server: Valkey, kind: tuple[WhenAway, str], took: list[float]) -> None:
    when_away, how = kind
    cache = NexCache(Settings(redis_url=SecretStr(server.url), redis_host=None))
    limit = cache.rate_limit(f"{LIMIT}/hour", name=f"{when_away}-{how}", when_away=when_away, instances=INSTANCES)
    app = RateLimitMiddleware(_hello, cache=cache, limit=limit, tenant=tenants.fixed("acme"))
    async with site(app, place, server, cache=cache, policies=()) as at:
        while [answer.status for answer in await _asked(at, 1)] != [200]:
            await asyncio.sleep(0.05)  # a machine that is busy: the limit of 50 ms is part of what is measured
        before = len(at.failures)
        with _away(server, how) as back:
            answers = await _asked(at, 100, took)
            passed = sum(answer.status == 200 for answer in answers)
            assert {answer.status for answer in answers} <= {200, 429}
            assert {answer.body for answer in answers if answer.status == 200} <= {b"hello"}
            expected = {"local": LIMIT // INSTANCES, "open": 100, "closed": 0}[when_away]
            seen.figure(f"{how}, {when_away}: passed of 100", passed, most=expected, least=expected)
            assert passed <= expected
            seen.fault(f"calls that the {how} server did not answer", len(at.failures) - before)
            back()
        await until(lambda: at.changes[-1].available, "the store is used again")
        while (decision := await limit.check("", tenant="acme", cost=0)).counted_by != "store":
            await asyncio.sleep(0.05)
        # what was sent to a hung server and given up may be carried out when it goes on: once, and nothing else is
        sent = sum(each.kind == "timeout" for each in at.failures)
        assert decision.count <= (3 + sent if how == "hung" else 0), "something was counted twice"


@row("F37", "the store of quotas dies", "the fallback keeps the quota; every answer is the handler's")
async def quotas(place: Place, seen: Seen) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("knows no lifespan")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    policies = [Policy("/{page}", op="page", ttl="1h")]
    with place.server() as server:
        async with site(app, place, server, policies=policies, quota_entries=3, l1_enabled=False) as at:
            paths = [f"/{number}" for number in range(20)]
            no_crossing([(await at.client.get(path), path.encode()) for path in paths[:2]])
            with _away(server, "dead"):
                for _ in range(2):
                    no_crossing([(await at.client.get(path), path.encode()) for path in paths])
                    await at.quiet()
                    held = at.cache.entries.memory.size[0]
                    seen.figure("held of 20 while the store is away", held, most=3, least=1)
                    assert held <= 3
                seen.fault("calls that the store did not answer", len(at.failures))


USERS: Final = 12


def _site(cache: NexCache, when_away: Literal["refuse", "anonymous"]) -> ASGIApp:
    async def who(request: Request) -> Response:
        return JSONResponse({"user": request.session.user, "data": dict(request.session)})  # type: ignore[attr-defined]

    async def login(request: Request) -> Response:
        request.session.login(request.query_params["user"])  # type: ignore[attr-defined]
        request.session["secret"] = f"of {request.query_params['user']}"
        return PlainTextResponse("welcome")

    app = Starlette(routes=[Route("/who", who), Route("/login", login, methods=["POST"])])
    return SessionMiddleware(app, sessions=cache.sessions(), when_away=when_away)


@row("F38", "the store of sessions hangs or dies", "nobody, or 503, as declared; never somebody else")
async def sessions(place: Place, seen: Seen) -> None:
    with place.server() as server:
        for when_away in ("refuse", "anonymous"):
            for how in AWAY:
                await _sessions(place, seen, server, when_away, how)


async def _sessions(
    place: Place, seen: Seen, server: Valkey, when_away: Literal["refuse", "anonymous"], how: str
) -> None:
    cache = NexCache(Settings(redis_url=SecretStr(server.url), redis_host=None, op_timeout_ms=200))
    async with site(_site(cache, when_away), place, server, cache=cache, policies=()) as at:
        cookies = {}
        for number in range(USERS):
            answer = await at.client.ask(f"/login?user=u{number}", method="POST", body=b"")
            assert answer.status == 200
            cookies[f"u{number}"] = (answer.get("set-cookie") or "").partition(";")[0]
        assert len(set(cookies.values())) == USERS

        others = away = known = 0

        async def ask(user: str) -> int:
            nonlocal others, away, known
            answer = await at.client.get("/who", cookie=cookies[user])
            if answer.status == 503:
                assert answer.get("retry-after") == "1"
                assert answer.get("cache-control") == "no-store"
                away += 1
                return 503
            found = json.loads(answer.body)
            assert answer.status == 200
            assert found["data"] in ({}, {"secret": f"of {user}"})
            others += found["user"] not in (None, user)
            known += found["user"] == user
            away += found["user"] is None
            return 200

        before = [await ask(user) for user in cookies]
        assert (known, before) == (USERS, [200] * USERS)
        asking = [asyncio.create_task(ask(user)) for user in cookies for _ in range(4)]
        with _away(server, how) as back:
            under_way = await asyncio.gather(*asking)
            statuses = [await ask(user) for user in cookies for _ in range(3)]
            expected = 503 if when_away == "refuse" else 200
            assert set(statuses) == {expected}
            assert set(under_way) <= {200, expected}
            refused = await at.client.ask("/login?user=mallory", method="POST", body=b"")
            assert refused.status == 503, "what cannot be kept is not promised"
            seen.fault(f"calls that the {how} server did not answer", len(at.failures))
            back()
        await until(lambda: at.changes[-1].available, "the store is used again")
        known = 0
        assert {await ask(user) for user in cookies} == {200}
        seen.figure(f"{how}, {when_away}: somebody else's session", others, f"of {USERS * 9}", most=0)
        if how == "hung":
            seen.figure("sessions there again", known, least=USERS)
