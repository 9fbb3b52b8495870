"""The table of threats names tests that are there, and every class of inputs is in it."""

import re
from pathlib import Path
from typing import Final

from tests.hostile.inputs import read

ROOT: Final = Path(__file__).parents[2]
TEXT: Final = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS: Final = re.findall(r"^\| (T\d+) \|.*\| ([^|]+) \|$", TEXT, re.MULTILINE)


def test_every_row_names_tests_that_are_there() -> None:
    assert len(ROWS) >= 30
    for threat, tests in ROWS:
        named = re.findall(r"`([^`]+)`", tests)
        assert named, threat
        assert [name for name in named if not (ROOT / name).is_file()] == [], threat


def test_every_class_stands_beside_the_threats_that_it_tries() -> None:
    beside = dict(ROWS)
    for group in read():
        for threat in group.threat.split(", "):
            assert any(f"cases/{group.name}.toml" in tests for tests in beside.values()), group.name
            assert threat in beside, group.name


def test_the_numbers_are_those_of_the_inputs() -> None:
    groups = read()
    number = sum(len(group.inputs) for group in groups)
    assert f"{number:,} hostile inputs in {len(groups)} classes" in TEXT
    assert f"{number:,} hostile inputs in {len(groups)} classes" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
