"""The hostile inputs: one file per class, one line per input."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent / "cases"


@dataclass(frozen=True, slots=True)
class Input:
    """One thing that an attacker sends."""

    group: "Group"
    number: int
    name: str
    sends: Mapping[str, Any]

    def token(self, tier: str) -> str:
        """Return what tells its paths from those of others."""
        return f"{self.group.name.replace('_', '-')}-{self.number}-{tier}"

    @property
    def canary(self) -> str:
        """Return what must never be seen by anybody else."""
        return f"canary{self.number:03d}{self.group.name.replace('_', '')[:9]}q"


@dataclass(frozen=True)
class Group:
    """A class of inputs: what is tried, how it is tried, and which safeguard refuses it."""

    name: str
    threat: str
    says: str
    attack: str
    weakened: str
    shares: Mapping[str, Any]
    inputs: tuple[Input, ...] = ()

    @property
    def tiers(self) -> tuple[str, ...]:
        """Where it is tried."""
        return tuple(self.shares.get("tiers", ("l1", "l2")))


def read() -> tuple[Group, ...]:
    """Read all classes; raises KeyError for a file that leaves something out."""
    groups = []
    for file in sorted(FOLDER.glob("*.toml")):
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        group = Group(
            file.stem, table["threat"], table["says"], table["attack"], table["weakened"], table.get("shares", {})
        )
        inputs = tuple(
            Input(group, number, sends.get("name", f"{number}"), {**group.shares, **sends})
            for number, sends in enumerate(table["inputs"], 1)
        )
        object.__setattr__(group, "inputs", inputs)
        groups.append(group)
    return tuple(groups)
