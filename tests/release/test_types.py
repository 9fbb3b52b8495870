"""The types that a user's type checker sees: every public symbol says its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nexcache

ROOT = Path(__file__).parents[2]


def test_no_public_symbol_leaves_its_type_to_be_inferred() -> None:
    """Checkers infer differently, so what is not written down is another type in another editor.

    What other packages leave unknown is mypy's to judge: it runs with them installed.
    """
    run = subprocess.run(
        [Path(sys.executable).parent / "basedpyright", "--verifytypes", "nexcache", "--ignoreexternal", "--outputjson"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # it does not find what is installed editable
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(run.stdout)["typeCompleteness"]
    homes = {module if module.endswith(f".{name}") else f"{module}.{name}" for name, module in nexcache._HOME.items()}
    exported = [
        symbol
        for symbol in report["symbols"]
        if symbol["isExported"] and any(f"{symbol['name']}.".startswith(f"{home}.") for home in homes)
    ]
    assert len(exported) > 300
    guessed = [
        symbol["name"]
        for symbol in exported
        for diagnostic in symbol["diagnostics"]
        if "missing type annotation" in diagnostic["message"] or "Type annotation is missing" in diagnostic["message"]
    ]
    assert guessed == []
