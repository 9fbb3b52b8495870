"""Every row of the table on every server through every parser, with its figures: `make faults`.

python -m tests.faults [--rows F3,F17] [--server valkey] [--http h11] [--seed N] [--brief]
"""

import argparse
import asyncio
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.faults.rows import PARSERS, SERVERS, Place, Row, Seen
from tests.faults.table import rows
from tests.servers import NoServer


def survive(row: Row, kind: str, http: str, *, seed: int, brief: bool) -> bool:
    """Make one fault happen, and print what came of it."""
    seen, began, broken, trace = Seen(), time.monotonic(), "", ""
    with tempfile.TemporaryDirectory(prefix="nexcache-faults-") as directory:
        try:
            asyncio.run(_act(row, Place(kind, http, Path(directory), seed, brief=brief), seen))
            seen.judge()
        except NoServer:
            raise
        except Exception as error:  # noqa: BLE001 - the other rows are to be seen too
            broken = str(error).split("\n", 1)[0] or type(error).__name__
            trace = traceback.format_exc()
    took = time.monotonic() - began
    print(f"{row.number:4} {row.fault} ({kind}, {http}, {took:.0f} s)")
    print(f"     required: {row.required}")
    print(f"     seen:     {', '.join(f'{what}: {count}' for what, count in seen.faults.items()) or 'nothing'}")
    for figure in seen.figures:
        print(f"     {'ok ' if figure.kept else 'over'}  {figure}")
    print(f"     {'BROKEN: ' + broken if broken else 'survived'}", flush=True)
    if broken:
        print(trace, file=sys.stderr)
    return not broken


async def _act(row: Row, place: Place, seen: Seen) -> None:
    await row.act(place, seen)


def main() -> None:
    """Do all of it, and end with how many were survived."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", default="", help="numbers, with commas; all of them if not given")
    parser.add_argument("--server", choices=SERVERS)
    parser.add_argument("--http", choices=PARSERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--brief", action="store_true", help="what goes on for a while goes on for seconds, as in CI")
    asked = parser.parse_args()
    wanted = {each.strip().upper() for each in asked.rows.split(",") if each.strip()}
    chosen = [row for row in rows() if not wanted or row.number in wanted]
    if not chosen:
        parser.error(f"no such rows: {asked.rows}")
    places = [
        (kind, http)
        for kind in ([asked.server] if asked.server else SERVERS)
        for http in ([asked.http] if asked.http else PARSERS)
    ]
    total, survived = len(chosen) * len(places), 0
    print(f"{len(chosen)} rows on {len(places)} kinds of server and parser, seed {asked.seed}\n", flush=True)
    for row in chosen:
        for kind, http in places:
            survived += survive(row, kind, http, seed=asked.seed, brief=asked.brief)
    print(f"\n{survived} of {total}")
    sys.exit(survived < total)


if __name__ == "__main__":
    main()
