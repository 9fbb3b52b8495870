"""How commands write: tables for people, JSON for programs, and an exit status for both."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nexcache.cli.source import Failed

NOTHING: Final = "\N{EN DASH}"
"""What is written where there is no figure."""
_BARS: Final = "▁▂▃▄▅▆▇█"
_PIPED: Final = 160
"""Columns where no terminal says how many there are."""


def console() -> Console:
    """Make what tables are written to; no wider than a terminal, and not cut to 80 columns in a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=_PIPED, soft_wrap=True)


def write_json(document: object) -> None:
    """Write one document."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def reporting(command: str) -> Iterator[None]:
    """Say on standard error why a command failed, and end with its status."""
    try:
        yield
    except Failed as failed:
        sys.stderr.write(f"nexcache {command}: {failed}\n")
        raise typer.Exit(failed.status) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:  # whoever read has seen enough
        sys.stderr.close()
        raise typer.Exit(0) from None


def table(*columns: str, title: str | None = None) -> Table:
    """Make a table; columns that begin with `>` hold figures."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2))
    for column in columns:
        figures = column.startswith(">")
        made.add_column(column.removeprefix(">"), justify="right" if figures else "left", header_style="dim")
    return made


def name(text: str) -> Text:
    """Write a name from outside so that it can change nothing on the screen."""
    return Text("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text))


def percent(share: float | None) -> str:
    """Write a share down."""
    return NOTHING if share is None else f"{share * 100:.1f} %"


def milliseconds(value: float | None) -> str:
    """Write milliseconds down, with three digits that mean something."""
    if value is None:
        return NOTHING
    if value >= 100:  # noqa: PLR2004 - hundreds need no decimals
        return f"{value:,.0f} ms"
    return f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"  # noqa: PLR2004 - tens need one


def size(number: int | None) -> str:
    """Write bytes down."""
    if number is None:
        return NOTHING
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":  # noqa: PLR2004 - binary units
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def sparkline(values: list[float | None], *, width: int, most: float | None = None) -> str:
    """Draw the last values as bars from 0 to `most`, or to the largest of them; nothing for None."""
    shown = values[-width:]
    top = most if most is not None else max((value for value in shown if value is not None), default=0.0)
    if not top:
        return "".join(" " if value is None else _BARS[0] for value in shown)
    last = len(_BARS) - 1
    return "".join(" " if value is None else _BARS[max(0, min(last, round(value / top * last)))] for value in shown)


def mark(kept: bool | None) -> Text:
    """Write whether something is as it should be."""
    if kept is None:
        return Text("·", style="dim")
    return Text("✓", style="green") if kept else Text("✗", style="bold red")


def yes_or_no(document: dict[str, Any], key: str) -> str:
    """Write a flag down."""
    return "yes" if document.get(key) else "no"
