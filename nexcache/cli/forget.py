"""`nexcache forget`: remove everything that there is of a tenant."""

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nexcache.cli.options import AsJson
from nexcache.cli.output import console, mark, name, reporting, write_json
from nexcache.cli.source import Failed
from nexcache.errors import NexCacheError

if TYPE_CHECKING:
    from nexcache.forgetting import Forgotten
    from nexcache.settings import Settings


def forget(
    tenant: Annotated[str, typer.Argument(help="The tenant's id.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: AsJson = False,
) -> None:
    """Remove everything that there is of a tenant, its encryption key included, for good and on all nodes.

    It works on the store of the settings here. A running app is asked with DELETE /tenants/TENANT by an operator.
    """
    from nexcache.cli.local import patient, quiet  # noqa: PLC0415 - what a command needs is loaded when it is called

    with reporting("forget"):
        settings = patient()
        if settings.get_redis_url() is None:
            raise Failed("the settings name no store: set REDIS_URL")
        if not yes:
            if not sys.stdin.isatty():
                raise Failed("what is forgotten does not come back: --yes says that it is meant")
            if not typer.confirm(f"Forget {tenant!a} for good, values and sessions included?", err=True):
                raise Failed("nothing was changed", 1)
        try:
            with quiet():
                done = asyncio.run(_forget(settings, tenant))
        except (NexCacheError, ValueError) as error:
            raise Failed(f"{error}; repeating it goes on", 1) from error
        if json:
            write_json({"tenant": done.tenant, "removed": done.removed, "done": done.done})
        else:
            console().print(mark(done.done), name(f"{tenant}: forgotten, {done.removed:,} keys removed"))


async def _forget(settings: "Settings", tenant: str) -> "Forgotten":
    from nexcache.cache import NexCache  # noqa: PLC0415 - as above

    async with NexCache(settings) as cache:
        return await cache.forget(tenant)
