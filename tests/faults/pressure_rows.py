"""More than there is room or time for: invalidations by the ten thousand, and answers larger than the memory."""

import asyncio
import json
import time
from typing import Final

from nexcache import IngestHook, IngestRule, Policy
from nexcache.ingest.spans import Span
from tests.faults.rows import Place, Seen, row
from tests.faults.server_rows import Versions
from tests.faults.site import Raw, output_of, site

SPANS: Final = 50_000
BATCH: Final = 50
SERVICES: Final = 8
INTERVAL: Final = 0.2
DIRECT: Final = 2_000


def _span(number: int) -> Span:
    now = time.time_ns()
    return Span("GET /", {}, {"service.name": f"{number % SERVICES}"}, "shop", {}, 2, 0, now, now + 1_000_000)


@row("F33", "50,000 changes, each of which invalidates", "coalesced: few commands, and the last one is never lost")
async def storm(place: Place, seen: Seen) -> None:
    app = Versions(SERVICES)
    policies = [Policy("/{page}", op="page", ttl="1h", tags=["page:{page}"])]
    with place.server() as server, Raw(server) as raw:
        async with site(app, place, server, policies=policies) as at:
            hook = IngestHook(at.cache, [IngestRule(tags=["page:{service.name}"])], min_interval=INTERVAL)
            for page in range(SERVICES):
                await app.ask(at, page)
            await at.quiet()
            raw.ask("CONFIG", "RESETSTAT")
            started, longest = time.monotonic(), 0.0
            for first in range(0, SPANS, BATCH):
                for page in range(SERVICES):
                    app.now[page] += 1
                turn = time.monotonic()
                await hook.notify("acme", [_span(number) for number in range(first, first + BATCH)])
                longest = max(longest, time.monotonic() - turn)
                if first % (BATCH * 20) == 0:
                    await app.ask(at, first % SERVICES)
            took = time.monotonic() - started
            seen.fault("changes reported", SPANS)
            seen.figure("changes a second", SPANS / took)

            async def last() -> bool:
                found = [await at.client.get(f"/{page}") for page in range(SERVICES)]
                return all(int(answer.body.split()[1]) == app.now[page] for page, answer in enumerate(found))

            ended = time.monotonic()
            while not await last():
                assert time.monotonic() - ended < 10, "the last change was lost"
            seen.figure("the last change was seen after", time.monotonic() - ended, "s", most=INTERVAL + 0.1)
            calls = raw.ask("INFO", "commandstats")
            unlinks = int(calls["cmdstat_unlink"]["calls"])
            windows = (took + INTERVAL) / INTERVAL + 1
            seen.figure("UNLINK per interval", unlinks / windows, most=2)
            seen.figure("the longest report", longest * 1000, "ms", most=50)
            assert not (await app.ask(at, 0))[1]
            await hook.aclose()


@row("F33", "2,000 invalidations by hand at once", "each is acknowledged and holds; they leave together")
async def by_hand(place: Place, seen: Seen) -> None:
    app = Versions(SERVICES)
    policies = [Policy("/{page}", op="page", ttl="1h", tags=["page:{page}"])]
    with place.server() as server:
        async with site(app, place, server, policies=policies, op_timeout_ms=5000) as at:
            for page in range(SERVICES):
                await app.ask(at, page)
            await at.quiet()
            started = time.monotonic()
            done = await asyncio.gather(*(app.change(at, number % SERVICES) for number in range(DIRECT)))
            took = time.monotonic() - started
            seen.fault("invalidations at once", len(done))
            seen.figure("acknowledged", sum(done), least=DIRECT, most=DIRECT)
            seen.figure("invalidations a second", DIRECT / took)
            older = sum([(await app.ask(at, page))[1] for page in range(SERVICES)])
            seen.figure("older than an acknowledged invalidation", older, most=0)


BOUND: Final = 20 * 1024 * 1024


@row("F34", "three times as much is asked for as the memory may hold, huge answers among it", "the bound holds: ±10 %")
async def full(place: Place, seen: Seen) -> None:
    with place.server(maxmemory="256mb", **{"maxmemory-policy": "allkeys-lru"}) as server:
        out, _ = await output_of("tests.faults.hoard", server.url, str(BOUND))
        told = json.loads(out)
        seen.fault("bytes asked for, in memories", told["asked"] // BOUND)
        assert told["held"] <= BOUND
        assert told["hit"]
        seen.figure("held", told["held"] / BOUND, "of the bound", most=1, least=0.9)
        seen.figure("the process grew by", told["grown"] / BOUND, "of the bound", most=1.1)
        seen.figure("and at its peak by", told["peak"] / BOUND, "of the bound")
        assert told["grown"] <= BOUND * 1.2, "not a matter of how busy the machine is"
