"""`nexcache doctor`: what is wrong with the store, the settings or a running app, each fault with its remedy."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from nexcache.cli.options import DEFAULT_KEY_HEADER, AsJson, KeyFile, KeyHeader, Url, key_of
from nexcache.cli.output import console, reporting, table, write_json
from nexcache.cli.source import Failed
from nexcache.diagnosis import Severity

if TYPE_CHECKING:
    from nexcache.cli.examination import Report

_MARKS: Final = {
    Severity.PROBLEM: ("✗", "bold red"),
    Severity.WARNING: ("!", "yellow"),
    Severity.NOTE: ("·", "cyan"),
}


def doctor(
    *,
    fix: Annotated[
        bool, typer.Option("--fix", help="Put right what can be: eviction policy, keys that never expire.")
    ] = False,
    url: Url = None,
    key_file: KeyFile = None,
    key_header: KeyHeader = DEFAULT_KEY_HEADER,
    json: AsJson = False,
) -> None:
    """Look for faults and name the remedy of each; status 1 if a problem is left.

    It looks at the store of the settings here, uses it for two tenants that nobody has, and removes them; with --url
    it asks a running app how it is. Without --fix nothing else is changed.
    """
    with reporting("doctor"):
        if url is not None and fix:
            raise Failed("--fix needs the store itself: leave out --url")
        from nexcache.cli import examination  # noqa: PLC0415 - only for this command

        if url is not None:
            report = examination.of_app(url, key_of(key_file), key_header)
        else:
            report = asyncio.run(examination.of_store(fix=fix))
        if json:
            write_json(report.as_dict())
        else:
            console().print(_screen(report))
        if not report.well:
            raise typer.Exit(1)


def _screen(report: "Report") -> RenderableType:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    parts: list[RenderableType] = [
        Text.assemble(("NexCache doctor  ", "bold"), report.subject),
        Text(versions, style="dim"),
        Text(),
    ]
    several = len({each.where for each in report.findings if each.where}) > 1
    for area in report.areas:
        findings = [each for each in report.findings if each.area is area]
        if not findings:
            parts.append(Text.assemble(("✓ ", "green"), area.value))
            continue
        open_ = [each.severity for each in findings if not each.fixed]
        mark, style = _MARKS[min(open_, key=list(Severity).index)] if open_ else ("✓", "green")
        parts.append(Text.assemble((f"{mark} ", style), area.value))
        rows = table("", "")
        rows.show_header = False
        for each in findings:
            mark, style = ("✓", "green") if each.fixed else _MARKS[each.severity]
            where = f" [{each.where}]" if several and each.where else ""
            remedy = "fixed" if each.fixed else f"→ {each.remedy}"
            text = Text.assemble(
                (each.code, style), f": {each.what}{where}", "\n", (remedy, "green" if each.fixed else "dim")
            )
            rows.add_row(Text(mark, style=style), text)
        parts.append(Padding(rows, (0, 0, 0, 2)))
    left = [each for each in report.findings if not each.fixed]
    numbers = {severity: sum(each.severity is severity for each in left) for severity in Severity}
    said = ", ".join(f"{number} {severity}{'' if number == 1 else 's'}" for severity, number in numbers.items())
    fixable = any(each.fix is not None for each in left)
    parts += [Text(), Text(said, style="bold")]
    if fixable:
        parts.append(Text("nexcache doctor --fix puts right what it can", style="dim"))
    return Group(*parts)
