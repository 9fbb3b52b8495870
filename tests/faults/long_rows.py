"""What goes on for a while: a server that comes and goes, and every fault in any order."""

import asyncio
import time

from tests.faults.chaos import storm
from tests.faults.rows import Place, Seen, row
from tests.faults.stand import latencies, standing


@row("F39", "the server comes and goes every 200 ms", "mean added ≤ 5 ms; two lines a second at most")
async def flapping(place: Place, seen: Seen) -> None:
    with place.server() as server:
        async with standing(place, server.url) as stand:
            end = time.monotonic() + (5.0 if place.brief else 60.0)
            began, stops = time.monotonic(), 0
            while time.monotonic() < end:
                server.pause()
                stops += 1
                await asyncio.sleep(0.2)
                server.resume()
                await asyncio.sleep(0.2)
            report = await stand.report()
            seen.fault("hung by SIGSTOP", stops)
            latencies(seen, *await stand.added(), p99=60.0, mean=5.0)
            seen.figure("lines a second", len(report["lines"]) / (time.monotonic() - began), most=2.0)
            await stand.used_again()
            await stand.judge(seen)


@row("F40", "random faults, one after the other", "all of the above; memory and descriptors do not grow")
async def chaos(place: Place, seen: Seen) -> None:
    await storm(place, seen, seconds=10.0 if place.brief else 60.0, every=1.0)
