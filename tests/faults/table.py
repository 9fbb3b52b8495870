"""All rows, in the order of their numbers."""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from tests.faults.rows import ROWS, Row


def rows() -> Sequence[Row]:
    """Import every module of rows, and return what they have entered."""
    for path in sorted(Path(__file__).parent.glob("*_rows.py")):
        importlib.import_module(f"tests.faults.{path.stem}")
    return sorted(ROWS, key=lambda row: int(re.sub(r"\D", "", row.number)))
