"""Apps in processes of their own, clients in front of them, and what must hold in every row of the table."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.faults.app import Task, Versions
from tests.faults.rows import Place, Seen
from tests.faults.traffic import Traffic, control, until
from tests.servers import Valkey

_ROOT = Path(__file__).parents[2]
_START = 30.0


class App:
    """One process."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.port = 0
        self.process: asyncio.subprocess.Process | None = None
        self.errors = b""
        self.opened: dict[str, Any] = {}
        """What was open before anything went wrong."""
        self.killed = False
        self._reader: asyncio.Task[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        self.process = await asyncio.create_subprocess_exec(
            *self.task.words(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            start_new_session=True,  # stopped members of an orphaned process group are continued by the kernel
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._reader = asyncio.create_task(self.process.stderr.read())
        async with asyncio.timeout(_START):
            line = await self.process.stdout.readline()
        assert line, (await self._reader).decode()
        self.port = int(line)

    async def ask(self, target: str) -> dict[str, Any]:
        """Ask for what stands beside the cache."""
        return await control(self.port, target)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def stopped(self) -> bool:
        """Whether it has been stopped by SIGSTOP."""
        assert self.process is not None
        return is_stopped(self.process.pid)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, and keep what it has complained of."""
        if self.process is None or self._reader is None:
            return
        if self.process.returncode is None:
            self.send(signal.SIGCONT)
            self.send(number)
        try:
            async with asyncio.timeout(15):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            self.errors += b"it had to be killed"
        self.errors += await self._reader
        self.process = None


class Stand:
    """The apps of a row and their clients."""

    def __init__(self, apps: Sequence[App], traffic: Traffic) -> None:
        self.apps = apps
        self.traffic = traffic
        self.faulted_at = 0.0

    @property
    def app(self) -> App:
        """The first of them."""
        return self.apps[0]

    async def state(self, number: int = 0) -> dict[str, Any]:
        """Return what `GET /health` would answer to an operator."""
        return await self.apps[number].ask("/@state")

    async def report(self, number: int = 0) -> dict[str, Any]:
        """Return what a process has noticed."""
        return await self.apps[number].ask("/@report")

    async def until_state(self, *states: str, number: int = 0) -> float:
        """Wait for a state of the ladder; returns the seconds that it took."""

        async def holds() -> bool:
            return (await self.state(number))["state"] in states

        return await until(holds, f"the state did not become {' or '.join(states)}")

    async def reset(self) -> None:
        """Begin to measure anew."""
        for app in self.apps:
            await app.ask("/@reset")
        self.faulted_at = time.monotonic()

    async def used_again(self, *, healthy: bool = True) -> float:
        """Wait until answers come from the store again; returns the seconds since the call."""
        began = time.monotonic()

        async def holds() -> bool:
            return any(good and at > began for at, good in self.traffic.answered_at[-50:])

        await until(holds, "the store was not used again")
        took = time.monotonic() - began
        if healthy:
            for number in range(len(self.apps)):
                await self.until_state("ok", number=number)
        return took

    async def stock(self) -> None:
        """Note what is open while all is well."""
        for app in self.apps:
            app.opened = await app.ask("/@settle")

    async def run(self, seconds: float) -> None:
        """Let the clients go on for a while."""
        await asyncio.sleep(seconds)

    async def added(self, number: int = 0) -> tuple[list[tuple[float, float, bool]], list[float]]:
        """Return what was added to requests since the last reset: with a policy, and without."""
        report = await self.report(number)
        return [(at, took, shut) for at, took, shut in report["added"]], report["bare"]

    async def judge(self, seen: Seen, *, lines: bool = True, stalls: bool = True) -> None:
        """Assert what must hold in every row, and write the figures down."""
        await self.traffic.stop()
        stall = 0.0
        for app in self.apps:
            if app.process is None:
                continue
            report = await app.ask("/@report")
            stall = max(stall, report["stall"])
            assert report["raised"] == [], report["raised"][:3]
            assert set(report["statuses"]) <= {"200"}, report["statuses"]
            if lines:
                one_line_per_change(report["lines"], report["changes"])
            await self._nothing_left(app)
        assert self.traffic.wrong == [], self.traffic.wrong[:3]
        assert self.traffic.asked > 50, "there was no traffic"
        assert self.traffic.stale == 0, "answers were older than what was acknowledged"
        seen.figure("requests", self.traffic.asked)
        if stalls:
            seen.figure("loop held up", stall * 1000, "ms", most=50.0)

    async def _nothing_left(self, app: App) -> None:
        """Assert that no more is open than before the fault."""
        left: dict[str, Any] = {}

        async def settled() -> bool:
            left.update(await app.ask("/@settle"))
            return left["queued"] == left["running"] == 0 and all(
                left[name] <= app.opened[name] for name in ("tasks", "files", "connections")
            )

        try:
            await until(settled, "", patience=8.0)
        except AssertionError:
            raise AssertionError(f"something is left: {app.opened} → {left}") from None


def one_line_per_change(lines: Sequence[str], changes: Sequence[str]) -> None:
    """Assert that each change was told once, and that a change is one."""
    for about in ("backend", "backplane"):
        mine = [change.split(" ")[1] for change in changes if change.startswith(f"{about} ")]
        told = [line for line in lines if f"nexcache.{about}_changed" in line]
        assert len(told) == len(mine), f"{len(mine)} changes and {len(told)} lines: {told}"
        if about == "backplane":
            assert all(one != other for one, other in pairwise(mine)), mine
    others = [line for line in lines if line.startswith(("WARNING", "ERROR")) and "_changed" not in line]
    repeated = {line for line in others if others.count(line) > 1}
    assert not repeated, repeated


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, as the kernel sees it."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


@asynccontextmanager
async def standing(
    place: Place,
    *urls: str,
    rate: float = 250.0,
    changes: float = 15.0,
    warm: bool = True,
    least: float = 0.0,
    **settings: Any,
) -> AsyncIterator[Stand]:
    """Start a process for each URL of a store, and clients; afterwards nothing of them is left, and none complained."""
    file = place.directory / "versions"
    Versions.make(file)
    apps = [
        App(Task(url, str(file), place.http, number, place.seed, least=least, settings=settings))
        for number, url in enumerate(urls)
    ]
    traffic = Traffic(lambda: [app.port for app in apps], rate=rate, changes=changes, seed=place.seed)
    made = Stand(apps, traffic)
    try:
        await asyncio.gather(*(app.start() for app in apps))
        traffic.start()
        if warm:
            await made.used_again()
            await made.run(0.3)
        await made.stock()
        await made.reset()
        yield made
    finally:
        traffic._over = True
        for task in traffic._tasks:
            task.cancel()
        await asyncio.gather(*traffic._tasks, return_exceptions=True)
        await asyncio.gather(*(app.end() for app in apps))
    for app in apps:
        assert app.killed or app.errors == b"", app.errors.decode()


async def errors_of(server: Valkey, kind: str) -> int:
    """Count the errors of a kind that a server has answered since its last CONFIG RESETSTAT."""
    stats = await asyncio.to_thread(server.ask, "INFO", "errorstats")
    return int(stats.get(f"errorstat_{kind}", {}).get("count", 0))


def hung(server: Valkey) -> int:
    """Make a server silent; returns whether the kernel says that it is, as a number."""
    server.pause()
    assert server._process is not None
    end = time.monotonic() + 5
    while not is_stopped(server._process.pid) and time.monotonic() < end:
        time.sleep(0.001)
    return int(is_stopped(server._process.pid))


def share(values: Sequence[float], part: float) -> float:
    """Return a percentile, 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def latencies(
    seen: Seen,
    added: Sequence[tuple[float, float, bool]],
    bare: Sequence[float],
    name: str = "",
    *,
    p99: float,
    mean: float | None = None,
) -> None:
    """Write down what the cache added, in milliseconds, and what it may; less what was added without it."""
    times, without = [took * 1000 for _, took, _ in added], [took * 1000 for took in bare]
    assert times, f"nothing was measured{name}"
    assert without, "nothing was measured without the cache"
    seen.figure(f"added p99{name}", max(0.0, share(times, 0.99) - share(without, 0.99)), "ms", most=p99)
    if mean is not None:
        most = max(0.0, statistics.fmean(times) - statistics.fmean(without))
        seen.figure(f"added mean{name}", most, "ms", most=mean)
