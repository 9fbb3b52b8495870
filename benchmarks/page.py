"""Puts tables into a page of the documentation, between the comments that name them."""

import re
from collections.abc import Sequence
from pathlib import Path


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`; raises LookupError where they are missing."""
    found = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(found):
        raise LookupError(f"{page} has no {begin} … {end}")
    page.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", found), encoding="utf-8")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table down; all columns but the first are aligned to the right."""
    lines = [f"| {' | '.join(columns)} |", "|---|" + "--:|" * (len(columns) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
