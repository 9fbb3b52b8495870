"""Every row of the table of faults, once: on Valkey, through httptools. `make faults` runs the whole matrix."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.rows import Place, Row, Seen
from tests.faults.table import rows


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
async def test_a_fault_is_survived(row: Row, tmp_path: Path, told: Callable[[str], None]) -> None:
    seen = Seen()
    await row.act(Place("valkey", "httptools", tmp_path), seen)
    seen.judge()
    told(f"{row.number} {row.fault}: {', '.join(map(str, seen.figures)) or 'survived'}")
