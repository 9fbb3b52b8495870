"""Options that commands share: which cache, whose, and how the answer is written."""

import os
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from nexcache.cli.source import Failed, Source, opened

Url: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="NEXCACHE_URL",
        metavar="URL",
        help="Ask a running app: where its admin endpoints are. \\[default: the store of the settings here]",
    ),
]
KeyFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        envvar="NEXCACHE_KEY_FILE",
        metavar="FILE",
        help="The key for --url; NEXCACHE_KEY may hold it instead.",
    ),
]
KeyHeader: TypeAlias = Annotated[
    str, typer.Option("--key-header", envvar="NEXCACHE_KEY_HEADER", metavar="NAME", help="The field that carries it.")
]
Tenant: TypeAlias = Annotated[
    str | None,
    typer.Option("--tenant", "-t", envvar="NEXCACHE_TENANT", metavar="ID", help="Whose cache; a key has its own."),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON.")]

DEFAULT_KEY_HEADER = "X-API-Key"


def key_of(file: Path | None) -> str | None:
    """Return the key for a remote cache; raises Failed."""
    if file is None:
        return os.environ.get("NEXCACHE_KEY") or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        key = ""
    if not key:
        raise Failed("--key-file must name a file that holds a key")
    return key


def source(
    url: str | None, key_file: Path | None, key_header: str, tenant: str | None, *, timeout: float = 10.0
) -> Source:
    """Return the cache that the options name; `timeout` is for a running app, in seconds."""
    key = key_of(key_file) if url is not None else None
    return opened(url, tenant, key=key, key_header=key_header, timeout=timeout)
