"""The page of faults has a line for every row, as the rows say it, and every fault of the specification has a row."""

import re
from pathlib import Path
from typing import Final

from nexcache.ladder import Rung
from tests.faults.table import rows

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "reliability.md"
TEXT: Final = PAGE.read_text(encoding="utf-8")
FAULTS: Final = 40
LINES: Final = re.findall(
    r"^\| (F\d+) \| (.+?) \| (.+?) \| \[`(\w+)\.py`\]\((\S+)\): `(\w+)` \| (.+) \|$", TEXT, re.MULTILINE
)


def test_every_fault_has_a_row() -> None:
    assert {row.number for row in rows()} == {f"F{number}" for number in range(1, FAULTS + 1)}


def test_every_row_has_its_line_in_its_own_words() -> None:
    assert [(number, fault, required, module, act) for number, fault, required, module, _, act, _ in LINES] == [
        (row.number, row.fault, row.required, row.act.__module__.rpartition(".")[2], row.act.__name__) for row in rows()
    ]


def test_every_line_names_a_test_that_is_there_and_what_came_of_it() -> None:
    assert [link for *_, link, _, _ in LINES if not (PAGE.parent / link).is_file()] == []
    assert all(measured.strip() for *_, measured in LINES)


def test_the_ladder_is_there_whole() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \|", TEXT, re.MULTILINE)[: len(Rung)] == [rung.value for rung in Rung]
