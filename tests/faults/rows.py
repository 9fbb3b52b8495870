"""The rows of the table of faults: what is done, what is required meanwhile, and what was seen.

A row is a coroutine that makes one fault happen to one kind of server behind one kind of HTTP server, asserts what
must hold meanwhile, and writes down what it has seen:

    @row("F3", "the server hangs: it accepts and says nothing", "added p99 ≤ 60 ms; used again within 2 s")
    async def hung(place: Place, seen: Seen) -> None:
        with place.server() as server:
            ...
            seen.fault("hung by SIGSTOP", 1)
            seen.figure("added p99", 41.0, "ms", most=60.0)

A row whose injector has counted nothing has failed, as has one whose figure is over five times its limit.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.servers import Valkey, binary, redis_binary

SLACK: Final = 5.0
"""How many times its limit a figure may be: machines are busy, and a fault that is not survived is far beyond it."""

SERVERS: Final = ("valkey", "redis")
PARSERS: Final = ("httptools", "h11")


@dataclass(frozen=True)
class Place:
    """Where a row happens."""

    kind: str
    """One of SERVERS."""
    http: str
    """One of PARSERS."""
    directory: Path
    seed: int = 0
    brief: bool = True
    """Whether what goes on for a while is to be short, as in CI."""

    @property
    def program(self) -> Path:
        """The server's program; raises NoServer."""
        return binary() if self.kind == "valkey" else redis_binary()

    def server(self, name: str = "one", **options: str) -> Valkey:
        """Start a server of this row's own, to be closed by `with`."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        return Valkey(directory, program=self.program, **options)


@dataclass(frozen=True)
class Figure:
    """A number that was measured, and what is promised."""

    name: str
    value: float
    unit: str
    most: float | None
    least: float | None

    @property
    def kept(self) -> bool:
        """Whether the promise was kept to the letter."""
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    @property
    def bearable(self) -> bool:
        """Whether it was kept but for the slack of a busy machine."""
        return (self.most is None or self.value <= self.most * SLACK) and (
            self.least is None or self.value >= self.least / SLACK
        )

    def __str__(self) -> str:
        promised = f" (≤ {self.most:g})" if self.most is not None else ""
        promised += f" (≥ {self.least:g})" if self.least is not None else ""
        return f"{self.name} {self.value:.3g} {self.unit}".rstrip() + promised


@dataclass
class Seen:
    """What a row has seen."""

    faults: dict[str, int] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)

    def fault(self, what: str, count: int = 1) -> None:
        """Write down how often the injector has counted a fault."""
        self.faults[what] = self.faults.get(what, 0) + count

    def figure(
        self, name: str, value: float, unit: str = "", *, most: float | None = None, least: float | None = None
    ) -> None:
        """Write down a number, with what is promised."""
        self.figures.append(Figure(name, value, unit, most, least))

    def judge(self) -> None:
        """Raise AssertionError unless every fault happened and every figure is bearable."""
        assert self.faults, "no fault was made"
        for what, count in self.faults.items():
            assert count > 0, f"the fault was not seen to happen: {what}"
        for figure in self.figures:
            assert figure.bearable, f"{figure}, with a slack of {SLACK:g}"


Act = Callable[[Place, Seen], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    """One fault, and how it is survived."""

    number: str
    fault: str
    required: str
    act: Act

    @property
    def name(self) -> str:
        """What to ask for it by: its number and the act's name."""
        return f"{self.number}-{self.act.__name__}"


ROWS: Final[list[Row]] = []


def row(number: str, fault: str, required: str) -> Callable[[Act], Act]:
    """Enter a coroutine into the table. A number may be there several times: a row of the table in parts."""

    def enter(act: Act) -> Act:
        ROWS.append(Row(number, fault, required, act))
        return act

    return enter
