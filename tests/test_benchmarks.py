"""The benchmark runs, checks what it times, and prints what the README says it prints. Nothing here is timed."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_cost_of_a_hit_is_printed_beside_the_bare_app_of_the_same_run() -> None:
    printed = subprocess.run(
        [sys.executable, str(BENCHMARKS / "hit.py"), "--rounds", "1", "--no-server", "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    rows = json.loads(printed.stdout)["in process"]
    assert [row["contender"] for row in rows] == ["bare app", "bare app (A/A)", "NexCache, hit in memory"]
    assert rows[0]["ratio"] == 1
    assert all(row["ratio"] > 0 for row in rows)
