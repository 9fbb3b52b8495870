"""Where a monitor's samples are kept: a file of JSON lines, or of CSV."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TextIO

from nexcache.cli.source import Failed

COLUMNS: Final = (
    "time",
    "tenant",
    "state",
    "response_time_ms",
    "requests",
    "hits",
    "stale",
    "misses",
    "bypasses",
    "errors",
    "hit_rate",
    "mean_ms",
    "error_rate",
    "requests_per_second",
    "entries",
    "bytes",
)
"""The fields of a sample, in CSV's order; JSON lines have the operations as well."""


class Saved:
    """Adds samples to a file, a line each, complete as soon as it is written. Raises Failed for a file of others."""

    def __init__(self, path: Path) -> None:
        kind = path.suffix.lower()
        if kind not in (".csv", ".jsonl", ".ndjson"):
            raise Failed("--save takes a file that ends in .jsonl or .csv")
        self._path = path
        try:
            begun = path.exists() and path.stat().st_size > 0
            if begun and kind == ".csv":
                with path.open(encoding="utf-8", newline="") as file:
                    if next(csv.reader(file), None) != list(COLUMNS):
                        raise Failed(f"{path} is a CSV file with other columns: save to another one")
            self._file: TextIO = path.open("a", encoding="utf-8", newline="")
        except (OSError, UnicodeError, csv.Error) as error:
            raise Failed(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
        self._csv = csv.DictWriter(self._file, COLUMNS, extrasaction="ignore") if kind == ".csv" else None
        if self._csv is not None and not begun:
            self._csv.writeheader()

    def add(self, sample: Mapping[str, Any]) -> None:
        """Write one sample down; raises Failed where the disk does not take it."""
        try:
            if self._csv is not None:
                self._csv.writerow(sample)
            else:
                self._file.write(json.dumps(sample, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise Failed(f"{self._path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()
