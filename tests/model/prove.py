"""The proof at length: `make prove`, or `python -m tests.model.prove --help`.

1. Mutants: NexCache with one safeguard taken out, each of which must be noticed from each of the seeds. Only then do
   the next two say anything.
2. The model: programs drawn at random, everything that can happen to nodes and server, on virtual time.
3. Processes: a real Valkey, real time, real concurrency; undisturbed, with the backplane cut every 300 ms, with
   processes suspended for longer than their lease, and with both.

Ends with a table; the exit code is 1 if the guarantee was broken or a mutant lived.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.model import mutants, processes
from tests.model.processes import Faults, Outcome
from tests.model.programs import CORPUS, Kept, corpus, keep, program_of, run, shortened
from tests.model.world import Violation
from tests.servers import NoServer, Valkey

SEEDS: Final = 5
_SHARE: Final = 25
"""Programs that are handed to a process at once."""
_SAID_EVERY: Final = 30.0
_IN_PROCESSES: Final = {
    "undisturbed": Faults(),
    "backplane cut every 300 ms": Faults(cut=True),
    "processes suspended beyond their lease": Faults(suspend=True),
    "both": Faults(cut=True, suspend=True),
}
_ROUNDS: Final = 10
_BY_CONCURRENCY: Final = ("captured_after_the_computation", "generations_not_compared", "joined_across_an_invalidation")
"""Mutants that real concurrency is shown to notice too, as the checker of processes must be able to fail."""


@dataclass(frozen=True)
class Share:
    """What came of some programs."""

    checked: int
    hits: int
    covered: int
    violations: Sequence[str]


def try_programs(first: int, count: int) -> Share:
    """Let the programs of some seeds happen."""
    checked = hits = covered = 0
    found = []
    for seed in range(first, first + count):
        program, nodes = program_of(seed)
        try:
            world = run(program, nodes=nodes)
        except Violation as violation:
            found.append(f"seed {seed}, {nodes} nodes: {violation}")
            continue
        checked, hits, covered = checked + world.checked, hits + world.hits, covered + world.covered
    return Share(checked, hits, covered, found)


def hunt(name: str, seed: int) -> int | None:
    """Return how many programs of a seed it took to notice a mutant; None if it lived."""
    kill = mutants.hunt(mutants.ALL[name], seed)
    return None if kill is None else kill.programs


class Proof:
    """One run, and what has come of it so far."""

    def __init__(self, console: Console, *, workers: int) -> None:
        self.console = console
        self.workers = workers
        self.failed = False
        self.checked = self.covered = 0
        self.violations: list[str] = []

    @contextmanager
    def line(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Give a progress line; where the output is no terminal, one is written every 30 seconds."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        terminal, said = sys.stdout.isatty(), time.monotonic()
        with Progress(*columns, console=self.console, disable=not terminal) as progress:
            task = progress.add_task(name, total=total)

            def come_to(done: int) -> None:
                nonlocal said
                progress.update(task, completed=min(done, total))
                if not terminal and time.monotonic() - said > _SAID_EVERY:
                    said = time.monotonic()
                    self.console.print(f"{name}: {done:,} of {total:,}")

            yield come_to

    def kill_mutants(self, pool: ProcessPoolExecutor, *, seeds: int) -> None:
        """Hunt every mutant from every seed."""
        kills: dict[str, list[int | None]] = {name: [None] * seeds for name in mutants.ALL}
        with self.line("mutants", len(mutants.ALL) * seeds) as come_to:
            futures = {pool.submit(hunt, name, seed): (name, seed) for name in mutants.ALL for seed in range(seeds)}
            for done, future in enumerate(as_completed(futures), 1):
                name, seed = futures[future]
                kills[name][seed] = future.result()
                come_to(done)
        table = Table("mutant", "what it does wrong", "programs until noticed, by seed")
        for name, numbers in kills.items():
            told = " ".join("lived" if number is None else str(number) for number in numbers)
            table.add_row(name, mutants.ALL[name].wrong, told)
        self.console.print(table)
        dead = sum(None not in numbers for numbers in kills.values())
        self.console.print(f"mutants killed in each of {seeds} seeds: {dead} of {len(kills)}")
        self.failed |= dead < len(kills)

    def search(self, pool: ProcessPoolExecutor, *, requests: int, first: int) -> None:
        """Draw programs until so many answers have been checked."""
        started, hits, checked, programs = time.monotonic(), 0, 0, 0
        with self.line("model", requests) as come_to:
            waiting: set[Future[Share]] = set()
            while checked < requests or waiting:
                while checked < requests and len(waiting) < 2 * self.workers:
                    waiting.add(pool.submit(try_programs, first, _SHARE))
                    first, programs = first + _SHARE, programs + _SHARE
                done = next(as_completed(waiting))
                waiting.remove(done)
                share = done.result()
                checked, hits = checked + share.checked, hits + share.hits
                self.covered += share.covered
                self.violations += share.violations
                come_to(checked)
        self.checked += checked
        self.console.print(
            f"model: {checked:,} answers checked in {programs:,} programs, {hits / max(1, checked):.0%} of them hits, "
            f"{time.monotonic() - started:.0f} s"
        )

    def run_processes(self, server: Valkey, *, requests: int, seed: int) -> None:
        """Let processes work, disturbed in every way."""
        table = Table("processes", "checked", "from memory", "shared", "keys invalidated", "faults seen", "violations")
        for name, faults in _IN_PROCESSES.items():
            with self.line(name, requests) as come_to:
                outcome = processes.run(
                    server,
                    workers=self.workers,
                    requests=requests,
                    seconds=36_000.0,
                    faults=faults,
                    seed=seed,
                    report=come_to,
                )
            self._judge(name, faults, outcome, table)
        self.console.print(table)

    def _judge(self, name: str, faults: Faults, outcome: Outcome, table: Table) -> None:
        self.checked += outcome.checked
        self.violations += [f"{name}: {stale}" for stale in outcome.violations]
        self.violations += [f"{name}: another's data"] * outcome.total("foreign")
        self.failed |= outcome.total("failed") > 0
        seen = []
        if faults.cut:
            seen.append(f"{outcome.total('deaf')} cuts")
            self.failed |= not outcome.total("deaf")
        if faults.suspend:
            seen.append(f"{outcome.total('suspended')} suspensions")
            self.failed |= not outcome.total("suspended")
        shares = [f"{outcome.total(each) / max(1, outcome.checked):.0%}" for each in ("memory", "collapsed")]
        numbers = [f"{outcome.checked:,}", *shares, f"{outcome.acknowledged:,}", ", ".join(seen) or "none"]
        table.add_row(name, *numbers, str(len(outcome.violations) + outcome.total("foreign")))

    def doubt_processes(self, server: Valkey, *, requests: int) -> None:
        """Show that the checker of processes can fail."""
        for name in _BY_CONCURRENCY:
            found = checked = 0
            for seed in range(_ROUNDS):
                outcome = processes.run(server, workers=self.workers, requests=requests, seed=seed, mutant=name)
                found, checked = len(outcome.violations), checked + outcome.checked
                if found:
                    break
            self.console.print(f"processes with {name}: {found:,} violations found within {checked:,} answers")
            self.failed |= not found


def complete_corpus(console: Console) -> None:
    """Find a short program for each mutant that has none, and keep it."""
    kept = [each for each in corpus() if each.name in mutants.ALL] if CORPUS.exists() else []
    kept = [each for each in kept if mutants.breaks(mutants.ALL[each.name], each.steps, nodes=each.nodes)]
    for name in mutants.ALL.keys() - {each.name for each in kept}:
        each = mutants.ALL[name]
        kill = mutants.hunt(each, 0)
        if kill is None:
            raise SystemExit(f"{name} lived")
        nodes = kill.nodes
        steps = shortened(
            kill.program,
            lambda steps, each=each, nodes=nodes: mutants.breaks(each, steps, nodes=nodes),  # type: ignore[misc]
        )
        kept.append(Kept(name, nodes, tuple(steps)))
        console.print(f"{name}: {len(steps)} steps")
        keep(kept)


def _commit() -> str:
    told = subprocess.run(
        ("git", "describe", "--always", "--dirty"),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return told.stdout.strip() or "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prove, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.model.prove", description="The proof of the guarantee.")
    parser.add_argument(
        "--requests", type=int, default=1_000_000, help="answers to check in all (default: %(default)s)"
    )
    parser.add_argument(
        "--model", type=float, default=0.05, help="the part of them on the model (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds per mutant (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="where the programs' seeds begin (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument(
        "--complete-corpus", action="store_true", help="look for programs that kill mutants without one, and do no more"
    )
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if options.complete_corpus:
        complete_corpus(console)
        return 0
    proof = Proof(console, workers=options.workers)
    started = time.monotonic()
    console.print(
        f"NexCache {_commit()} · Python {platform.python_version()} · {platform.machine()} · seed {options.seed}"
    )
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        if options.seeds:
            proof.kill_mutants(pool, seeds=options.seeds)
        proof.search(pool, requests=int(options.requests * options.model), first=options.seed)
    try:
        with tempfile.TemporaryDirectory() as directory, Valkey(Path(directory)) as server:
            console.print(f"Valkey {server.ask('INFO', 'server')['redis_version']} and {options.workers} processes")
            left = max(1, int(options.requests * (1 - options.model)))
            proof.run_processes(server, requests=-(-left // len(_IN_PROCESSES)), seed=options.seed)
            proof.doubt_processes(server, requests=min(20_000, left))
    except NoServer as reason:
        console.print(f"{reason}: nothing was proven with processes")
        proof.failed = True
    for violation in proof.violations[:5]:
        console.print(violation, style="red")
    seconds = time.monotonic() - started
    console.print(f"{len(proof.violations)} violations in {proof.checked:,} checked answers, {seconds:.0f} s")
    proof.failed |= bool(proof.violations) or proof.checked < options.requests
    console.print("NOT PROVEN" if proof.failed else "proven", style="red" if proof.failed else "green")
    return int(proof.failed)


if __name__ == "__main__":
    sys.exit(main())
