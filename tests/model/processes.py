"""Several processes over one server, what is done to them meanwhile, and the judgement of all that they were told."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.model.history import Part, Stale, violations
from tests.model.worker import LEASE, Board, Task
from tests.servers import Valkey

CUT_EVERY: Final = 0.3
STOP_EVERY: Final = 3.0
STOPPED_FOR: Final = 1.3
"""Seconds: longer than any lease."""
_PATIENCE: Final = 60.0
_ROOT: Final = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Faults:
    """What is done to the processes while they work."""

    cut: bool = False
    """Every connection over which messages are heard is closed every 300 ms."""
    suspend: bool = False
    """Each process in turn is stopped for longer than its lease."""


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    parts: Sequence[Part]
    violations: Sequence[Stale]
    cuts: int
    suspensions: int
    seconds: float

    @property
    def checked(self) -> int:
        """How many answers were judged."""
        return sum(len(part.answers) for part in self.parts)

    @property
    def acknowledged(self) -> int:
        """How many keys were invalidated."""
        return sum(len(part.acknowledged) for part in self.parts)

    def total(self, name: str) -> int:
        """Add up a number over all processes."""
        return sum(int(getattr(part, name)) for part in self.parts)


def run(
    server: Valkey,
    *,
    workers: int = 2,
    requests: int,
    seconds: float = 600.0,
    faults: Faults = Faults(),
    seed: int = 0,
    every: int = 150,
    mutant: str | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Let processes work until they have made so many requests, or for so many seconds; then judge."""
    with tempfile.TemporaryDirectory() as directory:
        Board.make(Path(directory) / "board", workers)
        board = Board(Path(directory) / "board")
        server.ask("FLUSHALL")
        tasks = [
            Task(server.url, directory, node, workers, requests // workers, seed, every, mutant)
            for node in range(workers)
        ]
        started = time.monotonic()
        begun: float | None = None  # importing takes long on a busy machine
        cuts = suspensions = 0
        with _processes(tasks) as processes:
            next_cut = next_stop = started + CUT_EVERY
            stopped: tuple[subprocess.Popen[bytes], float] | None = None
            while any(process.poll() is None for process in processes):
                now = time.monotonic()
                if begun is None and all(board[board.progress(node)] > 0 for node in range(workers)):
                    begun = now
                if begun is not None and now - begun > seconds and not board.stopped:
                    board.stop()
                if now - started > seconds + _PATIENCE:
                    raise TimeoutError("the processes do not end")
                if faults.cut and now >= next_cut:
                    cuts += int(server.ask("CLIENT", "KILL", "TYPE", "pubsub"))
                    next_cut = now + CUT_EVERY
                if stopped is not None and now >= stopped[1]:
                    os.kill(stopped[0].pid, signal.SIGCONT)
                    stopped = None
                    next_stop = now + STOP_EVERY - STOPPED_FOR
                working = all(board[board.progress(node)] > 1_000 for node in range(workers))
                if faults.suspend and stopped is None and now >= next_stop and working:
                    process = processes[suspensions % workers]
                    if process.poll() is None:
                        os.kill(process.pid, signal.SIGSTOP)
                        stopped = process, now + STOPPED_FOR
                        suspensions += 1
                report(sum(board[board.progress(node)] for node in range(workers)))
                time.sleep(0.02)
        parts = [Part.load(Path(directory) / f"part-{node}") for node in range(workers)]
        return Outcome(parts, violations(parts, lease=LEASE), cuts, suspensions, time.monotonic() - started)


@contextmanager
def _processes(tasks: Sequence[Task]) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    processes = [subprocess.Popen(task.words(), cwd=_ROOT, stdout=subprocess.DEVNULL) for task in tasks]
    try:
        yield processes
        for process in processes:
            assert process.wait() == 0, f"a process ended with {process.returncode}"
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
