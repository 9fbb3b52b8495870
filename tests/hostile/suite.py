"""Runs the whole: every class against every server, one server at a time."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.frameworks.servers import SERVERS, Server, Setup
from tests.hostile.attacks import IN_PROCESS, Target, run, settings
from tests.hostile.inputs import Group, Input, read
from tests.hostile.listener import Listener
from tests.servers import Valkey

APP: Final = "tests.hostile.site:app"


@dataclass
class Table:
    """How many inputs of each class were refused by each server, and what leaked."""

    groups: Sequence[Group]
    tried: dict[tuple[str, str], int] = field(default_factory=dict)
    leaks: list[tuple[str, Input, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def leaked(self) -> int:
        """How many attempts were not refused."""
        return len(self.leaks)

    def add(self, server: str, group: Group, tried: int, leaks: Sequence[tuple[Input, str]]) -> None:
        """Note what came of one class on one server."""
        self.tried[group.name, server] = self.tried.get((group.name, server), 0) + tried
        self.leaks += [(server, given, leak) for given, leak in leaks]

    def __str__(self) -> str:
        """Write the table, then every leak, then the sum."""
        servers = (*SERVERS, "in process")
        lines = ["".join((f"{'class':22}", f"{'threat':15}", f"{'inputs':>7}", *(f"{name:>19}" for name in servers)))]
        for group in self.groups:
            cells = []
            for server in servers:
                tried = self.tried.get((group.name, server))
                leaked = sum(where == server and given.group is group for where, given, _ in self.leaks)
                cells.append(f"{'-' if tried is None else f'{tried - leaked} of {tried}':>19}")
            lines.append("".join((f"{group.name:22}", f"{group.threat:15}", f"{len(group.inputs):>7}", *cells)))
        lines += [f"LEAKED {where} {each.group.name} {each.name}: {leak}" for where, each, leak in self.leaks]
        inputs, tried = sum(len(group.inputs) for group in self.groups), sum(self.tried.values())
        lines.append(f"{inputs} inputs in {len(self.groups)} classes, {self.seconds:.0f} s")
        lines.append(f"{tried - self.leaked} of {tried} refused, {self.leaked} leaked")
        return "\n".join(lines)


@contextmanager
def serving(server: str, directory: Path, valkey: Valkey, listener: Listener) -> Iterator[Target]:
    """Start a server with an empty store; ends it again."""
    valkey.reset()
    log = directory / f"{server}-app.log"
    log.touch()
    process = Server(Setup("hostile", server), directory, app=APP, HOSTILE_REDIS_URL=valkey.url, HOSTILE_LOG=str(log))
    try:
        target = Target(int(process.wait().rpartition(":")[2]), valkey, log, listener)
        try:
            yield target
        finally:
            target.close()
    finally:
        process.terminate()
        process.end()


def attack(directory: Path, servers: Sequence[str] = SERVERS) -> Table:
    """Try everything; a server is started when the one before it has ended."""
    began = time.monotonic()
    table = Table(read())
    with Valkey(directory) as valkey, Listener() as listener:
        for server in servers:
            with serving(server, directory, valkey, listener) as target:
                for group in table.groups:
                    for tier in group.tiers:
                        if tier != "in process":
                            table.add(server, group, len(group.inputs), run(target, group.inputs, tier))
    for group in table.groups:
        if group.attack == IN_PROCESS:
            leaks = [(each, leak) for each in group.inputs if (leak := settings(each)) is not None]
            table.add("in process", group, len(group.inputs), leaks)
    table.seconds = time.monotonic() - began
    return table
