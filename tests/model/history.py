"""What many processes did at once, and whether any answer in it breaks the guarantee. O(n log n).

All instants are seconds of one clock for all processes of the machine. A source of data has one version per key, which
only grows, and is read by a handler when it begins. Whoever changes it invalidates afterwards, and notes when that was
acknowledged; whoever asks notes when. An answer is a violation if it is older than what had been acknowledged for its
key when it was asked for.
"""

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import msgpack


class Answers:
    """Answers that one node gave: when each was asked for, of which key, which version, and whether from memory."""

    def __init__(self) -> None:
        self.started = array("d")
        self.keys = array("h")
        self.versions = array("q")
        self.memory = array("b")

    def __len__(self) -> int:
        return len(self.started)

    def add(self, started: float, key: int, version: int, *, memory: bool) -> None:
        """Note an answer; `memory`: its generations were not read for it."""
        self.started.append(started)
        self.keys.append(key)
        self.versions.append(version)
        self.memory.append(memory)


class Acknowledged(NamedTuple):
    """One key of an invalidation: from when on nobody may be answered with less than this version."""

    key: int
    version: int
    at: float
    node: int
    strict: bool


@dataclass
class Part:
    """What one process did and saw."""

    node: int
    answers: Answers = field(default_factory=Answers)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    foreign: int = 0
    """Answers that were another key's."""
    failed: int = 0
    """Answers that were none."""
    suspended: int = 0
    """How often the process found that it had been stopped for longer than its lease."""
    deaf: int = 0
    """How often it lost the connection over which it hears messages."""
    memory: int = 0
    collapsed: int = 0
    computed: int = 0

    def save(self, path: Path) -> None:
        """Write it down for another process."""
        columns = [each.tobytes() for each in self._columns()]
        numbers = (self.node, self.foreign, self.failed, self.suspended, self.deaf, self.memory, self.collapsed)
        path.write_bytes(msgpack.packb((numbers, self.computed, self.acknowledged, columns)))

    @classmethod
    def load(cls, path: Path) -> "Part":
        """Read what was written down."""
        numbers, computed, acknowledged, columns = msgpack.unpackb(path.read_bytes())
        node, foreign, failed, suspended, deaf, memory, collapsed = numbers
        part = cls(node, Answers(), [Acknowledged(*each) for each in acknowledged], foreign, failed, suspended, deaf)
        part.memory, part.collapsed, part.computed = memory, collapsed, computed
        for column, found in zip(part._columns(), columns, strict=True):
            column.frombytes(found)
        return part

    def _columns(self) -> Sequence["array[float] | array[int]"]:
        answers = self.answers
        return answers.started, answers.keys, answers.versions, answers.memory


class Stale(NamedTuple):
    """An answer that breaks the guarantee."""

    node: int
    key: int
    started: float
    version: int
    promised: int
    memory: bool


def violations(parts: Iterable[Part], *, lease: float) -> list[Stale]:
    """Return the answers that are older than what was acknowledged when they were asked for.

    Another node's memory may lag behind an invalidation that was not strict, by its lease of so many seconds.
    """
    parts = tuple(parts)
    by_key: dict[int, list[Acknowledged]] = defaultdict(list)
    for part in parts:
        for each in part.acknowledged:
            by_key[each.key].append(each)
    found: list[Stale] = []
    for part in parts:
        promises = {
            (key, memory): _promises(acknowledged, part.node, lease if memory else 0.0)
            for key, acknowledged in by_key.items()
            for memory in (0, 1)
        }
        answers = part.answers
        for started, key, version, memory in zip(
            answers.started, answers.keys, answers.versions, answers.memory, strict=True
        ):
            if (key, memory) not in promises:
                continue
            instants, versions = promises[key, memory]
            before = bisect_right(instants, started)
            if before and version < versions[before - 1]:
                found.append(Stale(part.node, key, started, version, versions[before - 1], bool(memory)))
    return found


def _promises(acknowledged: Iterable[Acknowledged], node: int, lag: float) -> tuple[list[float], list[int]]:
    """Return from when on which version is the oldest that this node may answer with."""
    pairs = sorted(
        (each.at if each.strict or each.node == node else each.at + lag, each.version) for each in acknowledged
    )
    return [at for at, _ in pairs], list(accumulate((version for _, version in pairs), max))
