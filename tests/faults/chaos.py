"""Random faults on two nodes, one after the other, for as long as is wanted: `make chaos`, half an hour.

    python -m tests.faults.chaos [--minutes 30] [--every 2] [--seed N] [--server valkey] [--http httptools]

The seed is printed: with the same one the same faults come in the same order. Every answer is judged meanwhile.
"""

import argparse
import asyncio
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from nexcache.testing import FaultProxy
from tests.faults.injectors import INJECTORS, Ground
from tests.faults.rows import PARSERS, SERVERS, Place, Seen
from tests.faults.stand import Stand, standing
from tests.faults.traffic import until

_STEADY = 5
"""Samples of memory before its growth is looked at: a process takes what it needs first."""
_SLOPE = 1.0
"""Megabytes in ten minutes."""


async def storm(
    place: Place, seen: Seen, *, seconds: float, every: float, tell: Callable[[str], None] = lambda _: None
) -> None:
    """Make a random fault `every` so many seconds; afterwards all that was promised must have been kept.

    The fallback is off: with two of them, two nodes that are cut off may differ, and are permitted to.
    """
    draw = random.Random(place.seed)
    done: Counter[str] = Counter()
    sizes: list[tuple[float, int]] = []
    with place.server() as server:
        async with FaultProxy(server.port, seed=place.seed) as one, FaultProxy(server.port, seed=place.seed) as two:
            urls = [f"redis://127.0.0.1:{proxy.port}" for proxy in (one, two)]
            async with standing(place, *urls, rate=120.0, fallback_ttl_seconds=0) as stand:
                ground = Ground(server, (one, two), stand, draw)
                began = time.monotonic()
                while (now := time.monotonic()) - began < seconds:
                    name = draw.choice(tuple(INJECTORS))
                    count = await INJECTORS[name](ground, every * draw.uniform(0.2, 0.7))
                    done[name] += count
                    sizes.append((now - began, max([(await stand.report(each))["rss"] for each in (0, 1)])))
                    await stand.reset()  # what was measured is not to look like what the cache holds
                    tell(f"{now - began:6.0f} s  {name}: {count}, {stand.traffic.asked} answers judged")
                    assert not stand.traffic.wrong, stand.traffic.wrong[:3]
                    await asyncio.sleep(max(0.0, now + every - time.monotonic()))
                for name, count in done.items():
                    if count:
                        seen.fault(name, count)
                await _recovered(stand)
                seen.figure("faults", sum(bool(count) for count in done.values()), least=1)
                seen.figure("growth", slope(sizes), "MB in 10 min", most=_SLOPE if len(sizes) > 200 else None)
                await stand.judge(seen, lines=False, stalls=False)  # nodes are suspended, too


async def _recovered(stand: Stand) -> None:
    """Wait until both nodes use the store again."""
    for number in range(2):

        async def well(number: int = number) -> bool:
            return bool((await stand.state(number))["state"] in ("ok", "slow"))

        await until(well, "a node did not recover")
    await stand.used_again()


def slope(sizes: list[tuple[float, int]]) -> float:
    """Return by how many megabytes in ten minutes memory grew, by least squares over the later half."""
    later = sizes[max(_STEADY, len(sizes) // 2) :]
    if len(later) < _STEADY:
        return 0.0
    times, bytes_ = [at for at, _ in later], [size for _, size in later]
    middle, mean = sum(times) / len(times), sum(bytes_) / len(bytes_)
    spread = sum((at - middle) ** 2 for at in times)
    return sum((at - middle) * (size - mean) for at, size in later) / spread * 600 / 1e6


def main() -> None:
    """Do it, and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--server", choices=SERVERS, default="valkey")
    parser.add_argument("--http", choices=PARSERS, default="httptools")
    asked = parser.parse_args()
    print(f"seed {asked.seed}: {asked.minutes:g} minutes on {asked.server} through {asked.http}", flush=True)
    seen = Seen()

    def tell(line: str) -> None:
        print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="nexcache-chaos-") as directory:
        place = Place(asked.server, asked.http, Path(directory), asked.seed, brief=False)
        try:
            asyncio.run(storm(place, seen, seconds=asked.minutes * 60, every=asked.every, tell=tell))
            seen.judge()
        except AssertionError as broken:
            print(f"broken, with seed {asked.seed}: {broken}")
            sys.exit(1)
    for name, count in sorted(seen.faults.items()):
        print(f"{count:8}  {name}")
    print(f"survived, with seed {asked.seed}: {', '.join(map(str, seen.figures))}")


if __name__ == "__main__":
    main()
