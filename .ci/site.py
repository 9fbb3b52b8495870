"""What the site has beside its pages: the order of the pages, tables made from the code, links out of `docs/`."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import typer.main

from nexcache.cli import app
from nexcache.ingest.windows import TimeWindow
from nexcache.middleware import CacheMiddleware
from nexcache.policy import Policy, Query, Shadow

ROOT: Final = Path(__file__).parent.parent
SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Begin": {
        "index.md": "What it is",
        "start.md": "Five minutes",
        "frameworks.md": "In your framework",
        "migration.md": "Coming from another cache",
    },
    "Understand": {
        "tenants.md": "Tenants and security",
        "security.md": "Security, threat by threat",
        "guarantee.md": "The guarantee",
        "ingest.md": "Ingest",
        "functions.md": "Functions and values",
        "sessions.md": "Sessions",
        "rate-limits.md": "Rate limits",
        "quotas.md": "Quotas",
        "http.md": "HTTP caching",
        "proxy.md": "As a proxy",
        "reliability.md": "Faults survived",
        "testing.md": "In your own tests",
    },
    "Run": {
        "operations.md": "Operations",
        "sizing.md": "Sizing and topologies",
        "performance.md": "Performance",
        "scaling.md": "Scaling",
        "dashboard.md": "The dashboard",
        "command-line.md": "The command line",
        "compose.md": "A whole system to try",
    },
    "Look up": {"options.md": "Every option", "reference.md": "API"},
}
"""Pages by section, in their order; those that are not there are left out, those not named here come last."""


def on_config(config: Any) -> Any:
    """Put the pages in order."""
    there = {path.name for path in Path(config["docs_dir"]).glob("*.md")}
    nav = [
        {section: [{title: name} for name, title in pages.items() if name in there]}
        for section, pages in SECTIONS.items()
    ]
    named = {name for pages in SECTIONS.values() for name in pages}
    config["nav"] = [*nav, *([{"More": others}] if (others := sorted(there - named)) else [])]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what is made from the code, and name files that are not part of the site instead of linking to them."""
    for name, table in TABLES.items():
        if (marker := f"<!-- {name} -->") in markdown:
            markdown = markdown.replace(marker, table())
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)", _outside, markdown)


def _outside(link: re.Match[str]) -> str:
    text, path = link[1], link[2]
    return text if text.strip("`") == path else f"{text} (`{path}`)"


def _table(columns: str, rows: Iterator[tuple[str, ...]]) -> str:
    names = columns.split("|")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def settings() -> str:
    """Make the table of the environment's names from `.env.example`, which a test holds equal to `Settings`."""
    return _table("Name|Example|What it is", _settings())


def _settings() -> Iterator[tuple[str, ...]]:
    words: list[str] = []
    for line in (ROOT / ".env.example").read_text(encoding="utf-8").splitlines():
        if line.startswith("# ---"):
            yield f"**{line.strip('#- ')}**", "", ""
            words = []
        elif line.startswith("# "):
            words.append(line.removeprefix("# "))
        elif match := re.fullmatch(r"#([A-Z0-9_]+)=(.*)", line):
            yield f"`{match[1]}`", f"`{match[2]}`", " ".join(words)
            words = []
        else:
            words = []


def fields(kind: type) -> str:
    """Make the table of what a dataclass takes."""

    def rows() -> Iterator[tuple[str, ...]]:
        for field in dataclasses.fields(kind):
            if field.init and not field.name.startswith("_"):
                required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
                yield f"`{field.name}`", "required" if required else f"`{field.default!r}`", f"`{field.type}`"

    return _table("Name|Default|Type", rows())


def parameters(of: Callable[..., Any]) -> str:
    """Make the table of what a callable takes."""

    def rows() -> Iterator[tuple[str, ...]]:
        for name, each in inspect.signature(of).parameters.items():
            if name != "self":
                default = "required" if each.default is each.empty else f"`{each.default!r}`"
                yield f"`{name}`", default, f"`{inspect.formatannotation(each.annotation).replace('nexcache.', '')}`"

    return _table("Name|Default|Type", rows())


def commands() -> str:
    """Make the table of the commands and their options."""

    def rows() -> Iterator[tuple[str, ...]]:
        group: Any = typer.main.get_command(app)
        for name, command in sorted(group.commands.items()):
            words = " ".join(
                parameter.opts[-1 if parameter.param_type_name == "argument" else 0] for parameter in command.params
            )
            yield f"`{name}`", (command.help or "").split("\n\n")[0].replace("\n", " "), f"`{words}`" if words else ""

    return _table("Command|What it does|Takes", rows())


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "settings": settings,
    "policy": lambda: fields(Policy),
    "query": lambda: fields(Query),
    "shadow": lambda: fields(Shadow),
    "window": lambda: parameters(TimeWindow),
    "middleware": lambda: parameters(CacheMiddleware),
    "commands": commands,
}
