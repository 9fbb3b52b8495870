"""A server that forgets: by a failover, by a command, or for want of memory."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator

from nexcache import Policy
from nexcache.asgi import Receive, Scope, Send
from tests.faults.rows import Place, Seen, row
from tests.faults.site import Raw, Site, site
from tests.topologies.failover import has, lagging, pair_of, promote
from tests.wire.server import until

PAGES = 8


class Versions:
    """An app whose pages have versions, and a note of which of them were acknowledged as invalidated."""

    def __init__(self, pages: int = PAGES, *, padding: int = 0) -> None:
        self.now = [0] * pages
        self.acknowledged = [0] * pages
        self.calls = 0
        self._padding = b" " + b"x" * padding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("knows no lifespan")
        self.calls += 1
        page = int(scope["path"].removeprefix("/"))
        body = b"%d %d%b" % (page, self.now[page], self._padding)
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body})

    async def ask(self, at: Site, page: int) -> tuple[bool, bool]:
        """Ask for a page; returns whether it was a hit, and whether it was older than it may be."""
        least = self.acknowledged[page]
        answer = await at.client.get(f"/{page}")
        assert answer.status == 200
        of, version = map(int, answer.body.split()[:2])
        assert of == page, "an answer to another request"
        return answer.hit, version < least

    async def change(self, at: Site, page: int) -> bool:
        """Change a page and invalidate it; returns whether that was acknowledged."""
        self.now[page] += 1
        version = self.now[page]
        done = await at.cache.invalidate("acme", tags=[f"page:{page}"])
        if done.acknowledged:
            self.acknowledged[page] = max(self.acknowledged[page], version)
        return done.acknowledged


POLICIES = [Policy("/{page}", op="page", ttl="1h", tags=["page:{page}"])]


@row("F27", "a failover to a replica that has not heard of acknowledged invalidations", "nothing older is served again")
async def failover(place: Place, seen: Seen) -> None:
    app = Versions()
    async with pair_of(place.program, place.directory) as pair:
        one, two, replication, front = pair
        with Raw(one) as raw:
            url = f"redis://127.0.0.1:{front.port}"
            async with site(app, place, url, policies=POLICIES, fallback_ttl_seconds=0) as at:
                for page in range(PAGES):
                    await app.ask(at, page)
                await at.quiet()
                keys = [*raw.entries(), *(name for name in raw.generations() if b"@tag:page" in name)]
                assert len(keys) == 2 * PAGES

                async def invalidate() -> bool:
                    return all([await app.change(at, page) for page in range(0, PAGES, 2)])

                await lagging(pair, keys, invalidate)
                seen.fault("bytes of replication that were swallowed", replication.seen["swallowed"])
                seen.fault(
                    "invalidated generations that the replica still has", await has(two, keys) - await has(one, keys)
                )
                one.kill()
                await promote(two, front)
                promoted = time.monotonic()
                older = hits = 0
                again = 0.0
                while not again or hits < 3 * PAGES:
                    for page in range(PAGES):
                        hit, old = await app.ask(at, page)
                        hits += hit
                        older += old
                        again = again or (time.monotonic() - promoted if hit else 0.0)
                    assert time.monotonic() - promoted < 20
                seen.figure("older than an acknowledged invalidation", older, most=0)
                seen.figure("hits again after", again, "s", most=2)


@row("F28", "FLUSHALL, eviction and expiry of generations and entries, meanwhile", "misses only")
async def forgotten(place: Place, seen: Seen) -> None:
    app = Versions()
    with place.server() as server, Raw(server) as raw:
        async with site(app, place, server, policies=POLICIES) as at:
            for what, forget in _ways(raw):
                for page in range(PAGES):
                    await _until_hit(app, at, page)
                seen.fault(what, forget())
                for page in range(PAGES):
                    assert not (await app.ask(at, page))[1]
                    await _until_hit(app, at, page)

            draw, over = random.Random(place.seed), asyncio.Event()
            counts = {"checked": 0, "older": 0, "hits": 0}

            async def read() -> None:
                while not over.is_set():
                    hit, old = await app.ask(at, draw.randrange(PAGES))
                    counts["checked"] += 1
                    counts["older"] += old
                    counts["hits"] += hit

            reading = [asyncio.create_task(read()) for _ in range(6)]
            ways = list(_ways(raw))
            for turn in range(80):
                what, forget = draw.choice(ways)
                seen.fault(what, forget())
                if turn % 2:
                    assert await app.change(at, draw.randrange(PAGES))
                await asyncio.sleep(draw.random() * 0.02)
            over.set()
            await asyncio.gather(*reading)
            assert counts["hits"] > 0
            seen.figure("older than an acknowledged invalidation", counts["older"], f"of {counts['checked']}", most=0)
            assert at.changes == [], "a server that forgets is there all the same"


def _ways(raw: Raw) -> Iterator[tuple[str, Callable[[], int]]]:
    """Give ways to make a server forget, each of which says how many keys it forgot."""

    def flush() -> int:
        before = int(raw.ask("DBSIZE"))
        raw.ask("FLUSHALL")
        return before

    def expire() -> int:
        found = raw.ask("KEYS", "nexarch:*")
        return sum(int(raw.ask("PEXPIRE", key, 1)) for key in found[::2])

    yield "keys gone by FLUSHALL", flush
    yield "generations gone", lambda: int(raw.ask("UNLINK", *(raw.generations() or [b"none"])))
    yield "entries gone", lambda: int(raw.ask("UNLINK", *(raw.entries() or [b"none"])))
    yield "keys expired", expire
    yield "registries gone", lambda: int(raw.ask("UNLINK", "nexarch:acme:@ops"))


async def _until_hit(app: Versions, at: Site, page: int) -> None:
    for _ in range(50):
        hit, old = await app.ask(at, page)
        assert not old
        if hit:
            return
        await at.quiet()
    raise AssertionError("the cache is not used again")


EVICTED_PAGES = 400


@row("F28", "the server is full, and evicts at random: entries, generations, registries", "misses only")
async def evicted(place: Place, seen: Seen) -> None:
    app, draw = Versions(EVICTED_PAGES, padding=8_000), random.Random(place.seed)
    with place.server() as server, Raw(server) as raw:
        raw.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
        async with site(app, place, server, policies=POLICIES, l1_enabled=False, tenant_new_keys_per_minute=0) as at:
            used = int(raw.ask("INFO", "memory")["used_memory"])
            raw.ask("CONFIG", "SET", "maxmemory", used + 1_500_000)
            older = 0
            for turn in range(800):
                page = draw.randrange(EVICTED_PAGES)
                if turn % 20 == 0:
                    await app.change(at, page)
                older += (await app.ask(at, page))[1]
            seen.fault("keys evicted", int(raw.ask("INFO", "stats")["evicted_keys"]))
            seen.figure("older than an acknowledged invalidation", older, "of 800", most=0)
            raw.ask("CONFIG", "SET", "maxmemory", 0)
            await until(lambda: not at.cache.flights.running)
            await _until_hit(app, at, 0)
