"""What happens to processes of ours: forked, ended while they compute, stalled, suspended."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.faults.rows import Place, Seen, row
from tests.faults.site import ROOT, output_of
from tests.invalidation.nodes import Node
from tests.servers import Valkey
from tests.topologies.servers import free_port
from tests.wire.server import Answer, Client, until

PATIENCE: Final = 30.0
COMPLAINTS: Final = ("Task was destroyed", "never awaited", "never retrieved", "ResourceWarning", "Exception ignored")


class Worker:
    """A uvicorn process that serves pages, any warning in which is an error."""

    def __init__(self, place: Place, server: Valkey, **settings: str) -> None:
        self.port = free_port()
        self.pages = place.directory / "pages"
        self.pages.mkdir(exist_ok=True)
        self.client = Client(self.port, [], None)
        self._said = (place.directory / f"stderr-{self.port}").open("wb")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CACHE_", "REDIS_"))},
            "PYTHONPATH": str(ROOT),
            "PYTHONDEVMODE": "1",
            "REDIS_URL": server.url,
            "CACHE_OP_TIMEOUT_MS": "1000",
            "PAGES": str(self.pages),
            **settings,
        }
        words = ("-W", "error", "-m", "uvicorn", "tests.faults.paged:app", "--port", str(self.port))
        self.process = subprocess.Popen(
            [sys.executable, *words, "--http", place.http, "--ws", "none", "--log-level", "warning"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,
        )

    def write(self, page: str, version: int) -> None:
        """Give a page's data a version."""
        (self.pages / page).write_text(str(version), encoding="utf-8")

    async def ask(self, target: str) -> Answer:
        """Ask for a page."""
        return await self.client.ask(target)

    async def started(self) -> None:
        """Wait until it answers."""
        self.write("pstart", 0)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                assert (await self.ask("/pstart")).status == 200
            except OSError:
                assert self.process.poll() is None, self.said
                assert time.monotonic() < end, "uvicorn does not start"
                await asyncio.sleep(0.05)
            else:
                return

    async def computes(self, page: str) -> None:
        """Wait until a page is being computed."""
        mark = self.pages / f"{page}.computed"
        await until(mark.exists, f"{page} is computed")
        mark.unlink()

    async def ended(self) -> float:
        """Wait for its end; returns the seconds that it took."""
        started = time.monotonic()
        await asyncio.to_thread(self.process.wait, PATIENCE)
        return time.monotonic() - started

    @property
    def said(self) -> str:
        """What it has written to stderr."""
        return Path(self._said.name).read_text(encoding="utf-8", errors="replace")

    def complaints(self) -> list[str]:
        """Return the lines that must never be there."""
        return [line for line in self.said.splitlines() if any(each in line for each in COMPLAINTS)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self.client.connections:
            connection.close()
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        self._said.close()


def _connections(server: Valkey, pid: int) -> int:
    return sum(client["name"].startswith(f"nexcache-{pid}") for client in server.clients())


# --- F29 ---------------------------------------------------------------------------------------------------------


@row("F29", "used in two event loops and a thread before it forks, and by all processes at once", "no reply crossed")
async def forked(place: Place, seen: Seen) -> None:
    with place.server() as server:
        out, complaints = await output_of("tests.faults.preloaded", server.url)
        told = [json.loads(line) for line in out.splitlines()]
        seen.fault("children of a process that had sockets open", sum(each["who"] == "child" for each in told))
        assert [error for each in told for error in each["raised"]] == []
        assert all(each["hits"] for each in told)
        seen.figure("answers", sum(each["asked"] for each in told), least=len(told) * 600)
        seen.figure("crossed", sum(each["crossed"] for each in told), most=0)
        await until(lambda: not server.clients(), "every connection is closed")
        assert not any(word in complaints for word in COMPLAINTS), complaints


# --- F30 ---------------------------------------------------------------------------------------------------------

TAKES: Final = 0.6
CLIENTS: Final = 5


@row("F30", "SIGTERM while answers are computed", "they are finished; ended within the grace; nothing left open")
async def terminated(place: Place, seen: Seen) -> None:
    with place.server() as server, Worker(place, server) as worker:
        await worker.started()
        for number in range(2):
            worker.write(f"p{number}", 7)
        asking = [asyncio.create_task(worker.ask(f"/p{number % 2}?{TAKES}")) for number in range(CLIENTS)]
        for number in range(2):
            await worker.computes(f"p{number}")
        assert _connections(server, worker.process.pid) > 0
        os.kill(worker.process.pid, signal.SIGTERM)
        seen.fault("processes told to end while two answers were computed", 1)
        took = await worker.ended()
        answers = await asyncio.gather(*asking)
        for number, answer in enumerate(answers):
            assert (answer.status, answer.body) == (200, b"p%d 7" % (number % 2))
        assert worker.process.returncode in (0, -signal.SIGTERM)
        assert worker.complaints() == []
        seen.figure("ended after", took, "s", most=TAKES + 1)
        await until(lambda: not server.clients(), "every connection is closed")
        assert len([key for key in server.ask("KEYS", "nexarch:acme:page:*") if key.count(b":") == 3]) == 3


@row("F30", "SIGINT, and SIGINT again, while an answer is computed that takes a minute", "ended at once, quietly")
async def interrupted_twice(place: Place, seen: Seen) -> None:
    with place.server() as server, Worker(place, server) as worker:
        await worker.started()
        worker.write("pslow", 7)
        asking = asyncio.create_task(worker.ask("/pslow?60"))
        await worker.computes("pslow")
        os.kill(worker.process.pid, signal.SIGINT)
        await asyncio.sleep(0.3)
        assert worker.process.poll() is None, "it waits for the answer that is computed"
        os.kill(worker.process.pid, signal.SIGINT)
        seen.fault("processes interrupted twice while an answer was computed", 1)
        took = await worker.ended()
        (cut,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(cut, OSError | EOFError) or cut.status >= 500, cut  # type: ignore[union-attr]
        assert worker.complaints() == []
        seen.figure("ended after", took, "s", most=2)
        await until(lambda: not server.clients(), "every connection is closed")
        await until(lambda: not [key for key in server.ask("KEYS", "nexarch:*") if b":l:" in key], "its lease lapses")


# --- F31 ---------------------------------------------------------------------------------------------------------

LEASE_MS: Final = 250
STILL: Final = 0.9
"""Seconds: several leases."""
ROUNDS: Final = 2


@asynccontextmanager
async def _trusting(place: Place) -> AsyncIterator[tuple[Valkey, Worker, Node]]:
    """A worker that answers from its memory, and another node, which invalidates."""
    with place.server() as server, Worker(place, server, CACHE_L1_LEASE_MS=str(LEASE_MS)) as worker:
        await worker.started()
        node = Node(server.url)
        try:
            yield server, worker, node
        finally:
            await node.cache.aclose()
        assert worker.complaints() == []


async def _from_memory(worker: Worker, page: str, body: bytes) -> None:
    end = time.monotonic() + PATIENCE
    while not (answer := await worker.ask(f"/{page}")).cache.endswith("detail=memory"):
        assert answer.body == body
        assert time.monotonic() < end, "its memory is not used"
    assert answer.body == body


async def _changed(worker: Worker, node: Node, pages: Sequence[str], version: int) -> float:
    """Change pages and invalidate them; returns how long that took."""
    for page in pages:
        worker.write(page, version)
    started = time.monotonic()
    assert (await node.cache.invalidate("acme", "page", wait="strict")).acknowledged
    return time.monotonic() - started


async def _older(worker: Worker, pages: Sequence[str], version: int) -> int:
    """Count the answers that are older than they may be, of many asked for at once."""
    answers = await asyncio.gather(*(worker.ask(f"/{page}") for page in pages for _ in range(5)))
    assert {answer.status for answer in answers} == {200}
    return sum(int(answer.body.split()[1]) < version for answer in answers)


PAGES: Final = ("p0", "p1", "p2")


@row("F31", "SIGSTOP of a worker beyond its lease, while others invalidate", "nothing from before is served afterwards")
async def suspended(place: Place, seen: Seen) -> None:
    older, waited = 0, []
    async with _trusting(place) as (_, worker, node):
        for version in range(ROUNDS):
            for page in PAGES:
                worker.write(page, version)
            assert (await node.cache.invalidate("acme", "page", wait="strict")).acknowledged
            for page in PAGES:
                await _from_memory(worker, page, b"%b %d" % (page.encode(), version))
            os.kill(worker.process.pid, signal.SIGSTOP)
            await until(lambda: _state(worker.process.pid) == "T", "it is stopped")
            seen.fault("workers stopped for longer than their lease")
            waited.append(await _changed(worker, node, PAGES, version + 1))
            asking = asyncio.create_task(_older(worker, PAGES, version + 1))  # they wait in the stopped worker's socket
            await asyncio.sleep(STILL - min(STILL, waited[-1]))
            os.kill(worker.process.pid, signal.SIGCONT)
            older += await asking
            older += await _older(worker, PAGES, version + 1)
        seen.figure("older than what was acknowledged meanwhile", older, f"of {ROUNDS * 30}", most=0)
        seen.figure("strict acknowledgement without its answer", max(waited), "s", most=1.2)


@row(
    "F31",
    "a handler holds up the event loop, with all that the lease needs",
    "nothing from before is served afterwards",
)
async def stalled(place: Place, seen: Seen) -> None:
    older = 0
    async with _trusting(place) as (_, worker, node):
        for version in range(ROUNDS):
            for page in PAGES:
                worker.write(page, version)
            assert (await node.cache.invalidate("acme", "page", wait="strict")).acknowledged
            for page in PAGES:
                await _from_memory(worker, page, b"%b %d" % (page.encode(), version))
            mark = worker.pages / "stalled"
            stalling = asyncio.create_task(worker.ask(f"/stall?{STILL}"))
            await until(mark.exists, "it is stalled")
            mark.unlink()
            seen.fault("stalls of the event loop for longer than the lease")
            await _changed(worker, node, PAGES, version + 1)
            older += await _older(worker, PAGES, version + 1)
            assert (await stalling).body == b"stalled"
            older += await _older(worker, PAGES, version + 1)
        seen.figure("older than what was acknowledged meanwhile", older, f"of {ROUNDS * 30}", most=0)


def _state(pid: int) -> str:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return stat.rpartition(")")[2].split()[0]
