"""Answers that do not come as they should: clients that leave, apps that fail, streams, and invalidations meanwhile."""

import asyncio
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence

from nexcache import Policy
from nexcache.asgi import ASGIApp, Receive, Scope, Send
from tests.faults.rows import Place, Seen, row
from tests.faults.site import Raw, Site, no_crossing, nothing_left, site
from tests.wire import broken
from tests.wire.server import Answer, until

LEAVING, FOLLOWERS = 10, 3


class Unfinished:
    """An app that says half of its answer, and the rest when it is let; then it may fail instead."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = defaultdict(int)
        self.go = asyncio.Event()
        self.fails = False
        self.inside = 0

    def body(self, path: str) -> bytes:
        """Return the whole answer of a path."""
        return b"first of %b, second of %b" % (path.encode(), path.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("knows no lifespan")
        path: str = scope["path"]
        self.calls[path] += 1
        self.inside += 1
        listening = asyncio.create_task(self._listen(receive))
        try:
            first, _, second = self.body(path).partition(b", ")
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            await self.go.wait()
            if self.fails:
                raise LookupError("as the row wants it")
            await send({"type": "http.response.body", "body": b", " + second})
        finally:
            self.inside -= 1
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


async def _leave(at: Site, paths: Sequence[str]) -> None:
    """Ask for each path, take half of the answer, and go."""
    before = at.disconnects
    for path in paths:
        connection = await at.client.connect()
        await connection.ask(path)
        assert (await connection.head()).status == 200
        assert (await connection.chunk()).startswith(b"first of")
        connection.close()
    await until(lambda: at.disconnects == before + len(paths), "the server tells of every client that left")


@row("F18", "clients leave in the middle of answers that others wait for", "finished for the others, stored whole")
async def clients_leave(place: Place, seen: Seen) -> None:
    app = Unfinished()
    paths = [f"/{number}" for number in range(LEAVING)]
    with place.server() as server, Raw(server) as raw:
        async with site(app, place, server) as at:
            leading = asyncio.create_task(_leave(at, paths))
            await until(lambda: len(app.calls) == LEAVING, "every path is computed")
            others = [asyncio.create_task(at.client.get(path)) for path in paths for _ in range(FOLLOWERS)]
            await leading
            seen.fault("clients told of as gone while half of the answer was out", at.disconnects)
            assert raw.entries() == []
            app.go.set()
            answers = await asyncio.gather(*others)
            await at.quiet()
            no_crossing(zip(answers, (app.body(path) for path in paths for _ in range(FOLLOWERS)), strict=True))
            again = [await at.client.get(path) for path in paths]
            no_crossing(zip(again, map(app.body, paths), strict=True))
            assert all(answer.hit for answer in again)
            seen.figure("handler calls per answer", sum(app.calls.values()) / LEAVING, most=1)
            seen.figure("others answered whole", len(answers), least=LEAVING * FOLLOWERS)
            await until(lambda: app.inside == 0, "the end of all handlers")


@row("F18", "clients leave, and then the handler fails", "dropped cleanly: nothing partial is stored, nobody waits")
async def clients_leave_and_handlers_fail(place: Place, seen: Seen) -> None:
    app = Unfinished()
    app.fails = True
    paths = [f"/{number}" for number in range(LEAVING)]
    with place.server() as server, Raw(server) as raw:
        async with site(app, place, server, raises=(LookupError,)) as at:
            await _leave(at, paths)
            seen.fault("clients told of as gone", at.disconnects)
            app.go.set()
            await at.quiet()
            seen.fault("handlers that failed after that, and were heard of", len(at.client.errors))
            assert len(at.client.errors) == LEAVING
            seen.figure("partial answers stored", len(raw.entries()), most=0)
            app.fails = False
            no_crossing([(await at.client.get(path), app.body(path)) for path in paths])


class Failing:
    """An app that waits until all are there, and fails as often as it is told to."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.failed = self.calls = 0
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("knows no lifespan")
        self.calls += 1
        await self.go.wait()
        if self.failed < self.failures:
            self.failed += 1
            raise LookupError("as the row wants it")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"right"})


CROWD = 100


async def _crowd(at: Site, app: Failing, path: str) -> list[Answer]:
    """Have a hundred clients wait for one answer."""
    asking = [asyncio.create_task(at.client.get(path))]
    await until(lambda: app.calls == 1, "the first is computed")
    asking += [asyncio.create_task(at.client.get(path)) for _ in range(CROWD - 1)]
    await until(lambda: _followers(at) == CROWD - 1, "all others wait for the first")
    app.go.set()
    return list(await asyncio.gather(*asking))


def _followers(at: Site) -> int:
    return sum(fill.followers for fill in at.cache.flights._running)


@row("F19", "the computation that a hundred wait for raises", "one takes over; the error is nobody else's, nor stored")
async def leader_raises(place: Place, seen: Seen) -> None:
    app = Failing(1)
    with place.server() as server, Raw(server) as raw:
        async with site(app, place, server, raises=(LookupError,)) as at:
            answers = await _crowd(at, app, "/one")
            await at.quiet()
            seen.fault("computations that raised with 99 waiting", app.failed)
            wrong = [answer for answer in answers if answer.status != 200]
            assert {answer.body for answer in answers if answer.status == 200} == {b"right"}
            assert len(raw.entries()) == 1
            assert (await at.client.get("/one")).hit
            seen.figure("failures answered", len(wrong), most=app.failed)
            seen.figure("further handler calls", app.calls - app.failed, most=1)


@row("F19", "the computation that a hundred wait for is cancelled", "one takes over; all others are answered")
async def leader_cancelled(place: Place, seen: Seen) -> None:
    app = Failing(0)
    with place.server() as server:
        async with site(app, place, server, raises=(asyncio.CancelledError,)) as at:

            def cancel() -> bool:
                """Cancel the first computation once all wait for it."""
                if _followers(at) < CROWD - 1:
                    return False
                (fill,) = at.cache.flights._running
                seen.fault("computations cancelled with 99 waiting", int(fill.task.cancel()))
                return True

            asking = [asyncio.create_task(at.client.get("/one"))]
            await until(lambda: app.calls == 1, "the first is computed")
            asking += [asyncio.create_task(at.client.get("/one")) for _ in range(CROWD - 1)]
            await until(cancel, "all others wait for the first")
            await until(lambda: app.calls == 2, "one takes over")
            app.go.set()
            answers = await asyncio.gather(*asking, return_exceptions=True)
            right = [each for each in answers if isinstance(each, Answer) and each.status == 200]
            assert {answer.body for answer in right} == {b"right"}
            seen.figure("answered all the same", len(right), least=CROWD - 1)
            seen.figure("further handler calls", app.calls - 1, most=1)


async def _endless(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(3):
        await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _plain(status: int, pieces: Sequence[bytes], *headers: tuple[bytes, bytes]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        for number, piece in enumerate(pieces, 1):
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(pieces)})

    return app


STREAMS: dict[str, tuple[ASGIApp, bytes]] = {
    "/unknown-length": (_plain(200, [b"x" * 1000] * 50), b"x" * 50_000),
    "/too-large": (_plain(200, [b"y" * 65_536] * 40), b"y" * 65_536 * 40),
    "/too-large-announced": (
        _plain(200, [b"y" * 65_536] * 40, (b"content-length", b"%d" % (65_536 * 40))),
        b"y" * 65_536 * 40,
    ),
    "/events": (_endless, b"data: 0\n\ndata: 1\n\ndata: 2\n\n"),
    "/partial": (_plain(206, [b"part"], (b"content-range", b"bytes 0-3/9")), b"part"),
    "/not-modified": (_plain(304, [b""], (b"etag", b'"x"')), b""),
    "/trailers": (broken.trailers, b"half"),
}


@row("F20", "streams, large bodies, events, 206, 304, trailers", "pass unbuffered; stored only if complete and small")
async def streams(place: Place, seen: Seen) -> None:
    first_piece = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("knows no lifespan")
        if scope["path"].startswith("/waits"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            await first_piece.wait()
            await send({"type": "http.response.body", "body": b"last"})
            return
        await STREAMS[scope["path"].partition("?")[0].removeprefix("/bare")][0](scope, receive, send)

    with place.server() as server, Raw(server) as raw:
        # what a server cannot send, it refuses with an error of its own
        async with site(app, place, server, raises=(RuntimeError,)) as at:
            for path, (_, body) in STREAMS.items():
                for _ in range(2):
                    answer = await at.client.get(path)
                    assert answer.status in (200, 206, 304)
                    assert answer.body == body, path
                    seen.fault("answers that are no plain small body", int(path != "/unknown-length"))
                await at.quiet()
            stored = raw.entries()
            seen.figure("stored of 7 kinds", len(stored), most=1, least=1)

            async def first_byte(path: str) -> float:
                connection = await at.client.connect()
                started = time.perf_counter()
                await connection.ask(path)
                await connection.head()
                assert await connection.chunk() == b"first"
                took = time.perf_counter() - started
                first_piece.set()
                assert await connection.chunk() == b"last"
                connection.close()
                first_piece.clear()
                return took

            with_cache, without = [], []
            for number in range(15):  # the app says its last piece only when the first has arrived
                with_cache.append(await first_byte(f"/waits-{number}"))
                without.append(await first_byte(f"/waits/without/a/policy/{number}"))
            added = (statistics.median(with_cache) - statistics.median(without)) * 1000
            seen.figure("added to the first byte, median", added, "ms", most=5)


@row("F21", "answers that are cut short, contradict themselves or never end", "never stored; the client sees what came")
async def truncated(place: Place, seen: Seen) -> None:
    calls: dict[str, int] = defaultdict(int)
    apps = {f"/{app.__name__}": app for app in broken.ALL}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("knows no lifespan")
        calls[scope["path"]] += 1
        await apps[scope["path"].removeprefix("/bare")](scope, receive, send)

    async def bytes_of(at: Site, path: str) -> bytes:
        connection = await at.client.connect()
        await connection.ask(path, fields=[("connection", "close")])
        body = (await connection.rest()).partition(b"\r\n\r\n")[2]
        connection.close()
        return body

    with place.server() as server, Raw(server) as raw:
        async with site(app, place, server, raises=(Exception,)) as at:
            for path in apps:
                bare = await bytes_of(at, f"/bare{path}")
                for asked in (1, 2, 3):
                    assert await bytes_of(at, path) == bare, "the client sees what it would see without the cache"
                    assert calls[path] == asked, f"{path} was answered from a store"
                    await at.quiet()
            asked_for = sum(calls[path] for path in apps)
            seen.fault("incomplete answers", asked_for)
            seen.figure("stored", len(raw.entries()), f"of {asked_for}", most=0)


PAGES, READERS, ROUNDS = 6, 8, 25


@row("F22", "invalidations race fills", "the old fill is never served; a request after the ack does not join it")
async def invalidations_race_fills(place: Place, seen: Seen) -> None:
    draw = random.Random(place.seed)
    versions = [0] * PAGES
    gate: dict[str, asyncio.Event] = {}
    inside = [0] * PAGES

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("knows no lifespan")
        page = int(scope["path"].removeprefix("/"))
        version = versions[page]
        inside[page] += 1
        try:
            if "held" in gate:
                await gate["held"].wait()
            else:
                await asyncio.sleep(0.01 + draw.random() * 0.01)
        finally:
            inside[page] -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % version})

    policies = [Policy("/{page}", op="page", ttl="1h", tags=["page:{page}"])]
    with place.server() as server:
        async with (
            nothing_left(),
            site(app, place, server, policies=policies, alone=False) as one,
            site(app, place, server, policies=policies, alone=False) as two,
        ):
            gate["held"] = asyncio.Event()
            before = asyncio.create_task(one.client.get("/0"))
            await until(lambda: inside[0] == 1, "a fill is under way")
            versions[0] += 1
            assert (await one.cache.invalidate("acme", tags=["page:0"])).acknowledged
            after = [asyncio.create_task(at.client.get("/0")) for at in (one, two)]
            await until(lambda: inside[0] >= 2, "a request after the acknowledgement is computed by itself")
            gate.pop("held").set()
            assert (await before).body == b"0"
            assert [answer.body for answer in await asyncio.gather(*after)] == [b"1", b"1"]
            assert (await one.client.get("/0")).body == b"1"

            overtaken = stale = checked = 0
            acknowledged = list(versions)

            async def read(at: Site) -> None:
                nonlocal stale, checked
                while not over.is_set():
                    page = draw.randrange(PAGES)
                    least = acknowledged[page]
                    answer = await at.client.get(f"/{page}")
                    assert answer.status == 200
                    stale += int(answer.body) < least
                    checked += 1

            over = asyncio.Event()
            reading = [asyncio.create_task(read(at)) for at in (one, two) for _ in range(READERS // 2)]
            for turn in range(ROUNDS):
                page, at = draw.randrange(PAGES), (one, two)[turn % 2]
                await at.cache.invalidate("acme", tags=[f"page:{page}"])
                asking = asyncio.create_task(at.client.get(f"/{page}"))
                await until(lambda page=page: inside[page], "a fill is under way")  # type: ignore[misc]
                overtaken += inside[page]
                versions[page] += 1
                version = versions[page]
                assert (await at.cache.invalidate("acme", tags=[f"page:{page}"], wait="strict")).acknowledged
                acknowledged[page] = version
                await asking
            over.set()
            await asyncio.gather(*reading)
            seen.fault("fills overtaken by an invalidation", overtaken + 1)
            seen.figure("answers checked", checked, least=100)
            seen.figure("stale after the acknowledgement", stale, most=0)
