"""Programs: what happens in a world, drawn at random, shortened when one breaks the guarantee, and kept as text."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.model.world import Step, Violation, World, replay, stage

CORPUS: Final = Path(__file__).with_name("corpus.json")
LENGTHS: Final = (12, 25, 50)
LARGEST: Final = 63


@dataclass(frozen=True)
class Rule:
    """One kind of step: how many numbers it takes, and how often it is drawn."""

    arguments: int
    weight: int


RULES: Final[dict[str, Rule]] = {
    "ask": Rule(3, 12),
    "begin": Rule(2, 5),
    "end_fill": Rule(1, 6),
    "warm": Rule(3, 1),
    "get_ready": Rule(2, 3),
    "invalidate": Rule(5, 6),
    "soften": Rule(5, 3),
    "decay": Rule(3, 2),
    "ingest": Rule(3, 2),
    "change": Rule(3, 3),
    "race": Rule(4, 3),
    "name": Rule(3, 2),
    "late_reply": Rule(4, 3),
    "late_warming": Rule(3, 1),
    "tick": Rule(1, 8),
    "hold": Rule(3, 2),
    "release": Rule(1, 3),
    "messages": Rule(1, 3),
    "deliver": Rule(1, 3),
    "cut_backplane": Rule(1, 2),
    "partition": Rule(1, 1),
    "heal": Rule(1, 2),
    "queued": Rule(3, 1),
    "suspend": Rule(1, 1),
    "resume": Rule(1, 2),
    "sleep": Rule(3, 2),
    "restart_node": Rule(1, 1),
    "skew": Rule(2, 1),
    "snapshot": Rule(0, 1),
    "restart": Rule(1, 1),
    "replicate": Rule(0, 1),
    "failover": Rule(0, 1),
    "lag": Rule(2, 1),
    "relapse": Rule(3, 1),
    "evict": Rule(1, 3),
    "lose_token": Rule(3, 1),
    "lose_registry": Rule(1, 1),
    "lose_register": Rule(3, 1),
    "partial_loss": Rule(3, 1),
    "rebuilt": Rule(3, 1),
    "full": Rule(1, 2),
    "refuse": Rule(4, 1),
}
"""What can happen, by the name of the world's method."""


def drawn(draw: random.Random, length: int) -> list[Step]:
    """Draw a program."""
    names = draw.choices(list(RULES), [rule.weight for rule in RULES.values()], k=length)
    return [Step(name, tuple(draw.randint(0, LARGEST) for _ in range(RULES[name].arguments))) for name in names]


def program_of(seed: int) -> tuple[list[Step], int]:
    """Return the program of a seed, and for how many nodes it is."""
    draw = random.Random(seed)
    return drawn(draw, draw.choice(LENGTHS)), draw.choice((2, 2, 3))


def run(program: Sequence[Step], *, nodes: int, seed: int = 0) -> World:
    """Let a program happen on the model of the server; raises what it breaks."""
    with stage(seed) as clock:
        return replay(clock, program, nodes=nodes)


def breaks(program: Sequence[Step], *, nodes: int, seed: int = 0) -> str | None:
    """Return how a program breaks the guarantee; None if it does not."""
    try:
        run(program, nodes=nodes, seed=seed)
    except Violation as violation:
        return str(violation)
    return None


def shortened(program: Sequence[Step], fails: Callable[[Sequence[Step]], object]) -> list[Step]:
    """Leave out whatever is not needed for a program to fail."""
    steps, size = list(program), max(1, len(program) // 2)
    while True:
        at, before = 0, len(steps)
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if fails(fewer):
                steps = fewer
            else:
                at += size
        if size == 1 and len(steps) == before:
            return steps
        size = max(1, size // 2)


@dataclass(frozen=True)
class Kept:
    """A program that is kept, because it once broke the guarantee or does so where a safeguard is missing."""

    name: str
    """The mutant that it kills, or the race that it was found as."""
    nodes: int
    steps: tuple[Step, ...]


def corpus() -> list[Kept]:
    """Read the programs that are kept."""
    found: list[dict[str, Any]] = json.loads(CORPUS.read_text(encoding="utf-8"))
    return [
        Kept(each["name"], each["nodes"], tuple(Step(name, tuple(numbers)) for name, *numbers in each["steps"]))
        for each in found
    ]


def keep(programs: Sequence[Kept]) -> None:
    """Write the programs that are kept, one a line."""
    lines = [
        json.dumps(
            {"name": each.name, "nodes": each.nodes, "steps": [[step.name, *step.arguments] for step in each.steps]}
        )
        for each in programs
    ]
    CORPUS.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
