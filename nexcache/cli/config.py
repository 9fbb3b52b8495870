"""`nexcache config`: every setting, its value with secrets masked, and where it comes from."""

from rich.text import Text

from nexcache.cli.options import AsJson
from nexcache.cli.output import console, name, reporting, table, write_json
from nexcache.cli.source import Failed
from nexcache.errors import NexCacheError


def config(*, json: AsJson = False) -> None:
    """Show every setting, its value and where it comes from. Secrets are masked."""
    with reporting("config"):
        from nexcache.cli.masked import rows  # noqa: PLC0415 - only for this command
        from nexcache.settings import Settings  # noqa: PLC0415 - as above
        from nexcache.wiring import redis_target  # noqa: PLC0415 - as above

        try:
            settings = Settings()
            target = redis_target(settings)
        except NexCacheError as error:
            raise Failed(str(error)) from error
        found = list(rows(settings))
        where = "in memory" if target is None else str(target)
        if json:
            document = {each.name: {"value": each.value, "from": each.origin} for each in found}
            return write_json({"store": where, "settings": document})
        screen = console()
        screen.print(Text.assemble(("store  ", "dim"), where))
        screen.print()
        drawn = table("setting", "value", "from")
        for each in found:
            dim = each.origin == "default"
            drawn.add_row(
                Text(each.name, style="dim" if dim else "bold"),
                name(each.value) if not dim else Text(each.value, style="dim"),
                Text(each.origin, style="dim"),
            )
        return screen.print(drawn)
