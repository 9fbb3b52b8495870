"""`nexcache forget`: remove everything that there is of a tenant."""

import sys
from typing import Annotated, Final

import typer

from nexcache.cli.options import DEFAULT_KEY_HEADER, AsJson, KeyFile, KeyHeader, Url, source
from nexcache.cli.output import console, mark, name, reporting, write_json
from nexcache.cli.source import Failed

_PATIENCE: Final = 600.0
"""Seconds for which a running app may take: all that a tenant has is looked for."""


def forget(
    tenant: Annotated[str, typer.Argument(help="The tenant's id.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    key_file: KeyFile = None,
    key_header: KeyHeader = DEFAULT_KEY_HEADER,
    json: AsJson = False,
) -> None:
    """Remove everything that there is of a tenant, its encryption key included, for good and on all nodes.

    With --url it takes an operator's key.
    """
    with reporting("forget"), source(url, key_file, key_header, None, timeout=_PATIENCE) as cache:
        if not yes:
            if not sys.stdin.isatty():
                raise Failed("what is forgotten does not come back: --yes says that it is meant")
            if not typer.confirm(f"Forget {tenant!a} for good, values and sessions included?", err=True):
                raise Failed("nothing was changed", 1)
        done = cache.forget(tenant)
        if json:
            write_json(done)
        else:
            console().print(mark(done["done"]), name(f"{tenant}: forgotten, {done['removed']:,} keys removed"))
