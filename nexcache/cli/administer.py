"""The commands that ask and change a cache: stats, operations, tenants, explain, invalidate, warm, disable, enable."""

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeAlias

import typer
from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from nexcache.cli.options import DEFAULT_KEY_HEADER, AsJson, KeyFile, KeyHeader, Tenant, Url, source
from nexcache.cli.output import NOTHING, console, mark, milliseconds, name, percent, reporting, size, table, write_json
from nexcache.cli.source import Document, Failed
from nexcache.cli.verdict import Figures


def stats(
    *,
    url: Url = None,
    key_file: KeyFile = None,
    key_header: KeyHeader = DEFAULT_KEY_HEADER,
    tenant: Tenant = None,
    json: AsJson = False,
) -> None:
    """Show a tenant's statistics, of all processes."""
    with reporting("stats"), source(url, key_file, key_header, tenant) as cache:
        document = cache.stats()
        if json:
            return write_json(document)
        screen = console()
        screen.print(_totals(document, cache.name))
        if document["operations"]:
            screen.print()
            screen.print(by_operation(document["operations"]))
        return None


def _totals(document: Document, where: str) -> Group:
    figures = Figures.of(document)
    facts = table("", "")
    facts.show_header = False
    facts.add_row("tenant", name(document["tenant"]))
    facts.add_row("cache", where)
    facts.add_row(
        "requests",
        f"{figures.requests:,}: {figures.hits:,} hits, {figures.misses:,} misses, {figures.stale:,} stale, "
        f"{figures.bypasses:,} bypasses, {figures.errors:,} errors",
    )
    facts.add_row("hit rate", percent(figures.hit_rate))
    for kind in ("hit", "miss"):
        latency = document["latency"][kind]
        facts.add_row(
            kind,
            f"{milliseconds(latency['mean'])} on average, p50 {milliseconds(latency['p50'])}, "
            f"p95 {milliseconds(latency['p95'])}, p99 {milliseconds(latency['p99'])}",
        )
    about = "about " if document.get("estimated") else ""
    entries = NOTHING if document["entries"] is None else f"{document['entries']:,}"
    facts.add_row("stored", f"{about}{entries} entries, {size(document['bytes'])}")
    if document.get("quota") is not None:
        facts.add_row("quota", _quota(document["quota"]))
    facts.add_row("invalidations", f"{document['invalidations']:,}")
    facts.add_row("since", f"{document['since']}{'' if document.get('merged', True) else ', of one process'}")
    return Group(facts)


def _quota(quota: Document) -> str:
    """Say how much of a quota is used, and what was not kept for want of it."""
    entries, parts = quota["entries"], []
    if quota["limit"] is not None:
        parts.append(f"{size(quota['used'])} of {size(quota['limit'])}")
    if entries["limit"] is not None:
        used = NOTHING if entries["used"] is None else f"{entries['used']:,}"
        parts.append(f"{used} of {entries['limit']:,} entries")
    if quota["fills_per_second"] is not None:
        parts.append(f"{quota['fills_per_second']:,} answers kept a second")
    return f"{', '.join(parts)}; {quota['refused']:,} not kept"


def by_operation(operations: Mapping[str, Document]) -> Any:
    """Draw what happened to each operation, the most asked for first."""
    rows = table("operation", ">requests", ">hit rate", ">hit", ">miss", ">errors", ">bypasses", ">invalidations")
    for each, document in sorted(operations.items(), key=lambda item: (-item[1]["requests"], item[0])):
        figures = Figures.of(document)
        rows.add_row(
            name(each),
            f"{figures.requests:,}",
            percent(figures.hit_rate),
            milliseconds(figures.mean_hit_ms),
            milliseconds(figures.mean_miss_ms),
            Text(f"{figures.errors:,}", style="red" if figures.errors else ""),
            f"{figures.bypasses:,}",
            f"{document['invalidations']:,}",
        )
    return rows


def operations(
    *,
    url: Url = None,
    key_file: KeyFile = None,
    key_header: KeyHeader = DEFAULT_KEY_HEADER,
    tenant: Tenant = None,
    json: AsJson = False,
) -> None:
    """List a tenant's operations."""
    with reporting("operations"), source(url, key_file, key_header, tenant) as cache:
        found = cache.operations()
        if json:
            return write_json({"operations": found})
        rows = table("operation", ">requests", ">hits", "")
        for each in found:
            off = "switched off" if each.get("disabled") else ""
            rows.add_row(name(each["name"]), f"{each['requests']:,}", f"{each['hits']:,}", Text(off, style="yellow"))
        return console().print(rows)


def tenants(
    *,
    url: Url = None,
    key_file: KeyFile = None,
    key_header: KeyHeader = DEFAULT_KEY_HEADER,
    json: AsJson = False,
) -> None:
    """List the tenants that are known; with --url it takes an operator's key."""
    with reporting("tenants"), source(url, key_file, key_header, None) as cache:
        found, complete = cache.tenants()
        if json:
            return write_json({"tenants": found, "complete": complete})
        screen = console()
        for each in found:
            screen.print(name(each))
        if not complete:
            screen.print("and perhaps more: the look at the store is bounded", style="dim")
        return None


def explain(
    path: Annotated[str, typer.Argument(help="The request, such as '/api/v1/dashboard?range=1h'.")],
    *,
    method: Annotated[str, typer.Option(metavar="METHOD", help="Its method.")] = "GET",
    principal: Annotated[str | None, typer.Option(help="Whom it acts for; for operators.")] = None,
    header: Annotated[list[str] | None, typer.Option(metavar="NAME:VALUE", help="A field that it carries.")] = None,
    url: Url = None,
    key_file: KeyFile = None,
    key_header: KeyHeader = DEFAULT_KEY_HEADER,
    tenant: Tenant = None,
    json: AsJson = False,
) -> None:
    """Say why a request is, or is not, answered from the cache, and what would invalidate its answer."""
    with reporting("explain"), source(url, key_file, key_header, tenant) as cache:
        fields = [(field.strip(), value.strip()) for field, _, value in (each.partition(":") for each in header or ())]
        document = cache.explain(path, method=method.upper(), principal=principal, headers=fields)
        if json:
            return write_json(document)
        return console().print(_explained(document))


def _explained(document: Document) -> Group:
    request = document["request"]
    query = f"?{request['query']}" if request["query"] else ""
    facts = table("", "")
    facts.show_header = False
    facts.add_row("request", name(f"{request['method']} {request['path']}{query}"))
    facts.add_row("tenant", name(document["tenant"]))
    facts.add_row("verdict", Text(document["verdict"], style="bold"))
    if document["policy"] is not None:
        policy = document["policy"]
        facts.add_row("policy", name(f"{policy['path']}, operation {policy['operation']}, ttl {policy['ttl']:g} s"))
    else:
        facts.add_row("policy", "none: it always goes to the app")
    if document["bypass"] is not None:
        facts.add_row("bypass", Text(document["bypass"], style="yellow"))
    if document["key"] is not None:
        facts.add_row("key", name(document["key"]["name"]))
    for copy in document["copies"]:
        if copy["age"] is None:
            facts.add_row(copy["tier"], f"no copy: {copy['why_not']}")
            continue
        state = "usable" if copy["usable"] else f"not usable: {copy['why_not']}"
        facts.add_row(
            copy["tier"],
            f"{state}; status {copy['status']}, {size(copy['bytes'])}, age {copy['age']} s, {copy['ttl']:g} s left",
        )
    if document["not_stored"] is not None:
        why = document["not_stored"]
        facts.add_row("not stored", f"{why['reason']}, {why['seconds_ago']:g} s ago")
    reached = document["invalidated_by"]
    ends = [*reached["operations"], *(f"tag:{tag}" for tag in reached["tags"])]
    facts.add_row("invalidated by", name(", ".join(ends) or NOTHING))
    missing = [each["of"] for each in document["generations"] if not each["present"]]
    if missing:
        facts.add_row("generations", name(f"missing: {', '.join(missing)}"))
    return Group(facts)


def invalidate(
    operation: Annotated[
        str | None, typer.Argument(help="An operation's name, or a glob such as 'dashboard_*'.")
    ] = None,
    *,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may be repeated.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="The whole tenant.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be reached, and change nothing.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Wait until no node answers from its memory any more.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before --all.")] = False,
    url: Url = None,
    key_file: KeyFile = None,
    key_header: KeyHeader = DEFAULT_KEY_HEADER,
    tenant: Tenant = None,
    json: AsJson = False,
) -> None:
    """Make everything that depends on an operation or a tag a miss, for all processes."""
    with reporting("invalidate"), source(url, key_file, key_header, tenant) as cache:
        if everything and (operation is not None or tag):
            raise Failed("--all is everything: leave out the operation and the tags")
        target = "*" if everything else operation
        if target is None and not tag:
            raise Failed("what? Name an operation, a --tag, or --all")
        tags = tuple(tag or ())
        if target == "*" and not (dry_run or yes) and sys.stdin.isatty():
            reach = cache.invalidate(target, tags, dry_run=True, strict=False)
            if not typer.confirm(f"Invalidate the whole tenant: {_reach(reach)}?", err=True):
                raise Failed("nothing was changed", 1)
        document = cache.invalidate(target, tags, dry_run=dry_run, strict=strict)
        if json:
            write_json(document)
        elif dry_run:
            _print_reach(document)
        else:
            done = ", ".join(document["targets"])
            state = "queued until the store is back" if document["queued"] else "invalidated"
            console().print(mark(not document["queued"]), name(f"{done}: {state}, {document['waited_ms']:.1f} ms"))
        if not dry_run and not document["acknowledged"]:
            raise typer.Exit(1)


def _reach(document: Document) -> str:
    about = "about " if document["estimated"] else ""
    entries, operations = document["entries"], len(document["operations"])
    return (
        f"{about}{entries:,} {'entry' if entries == 1 else 'entries'} of "
        f"{operations} {'operation' if operations == 1 else 'operations'}"
    )


def _print_reach(document: Document) -> None:
    screen = console()
    screen.print(name(f"{', '.join(document['targets'])} would reach {_reach(document)}; nothing was changed"))
    rows = table("", ">entries")
    for each, number in document["operations"].items():
        rows.add_row(name(each), f"{number:,}")
    for each, number in document["tags"].items():
        rows.add_row(name(f"tag:{each}"), f"{number:,}")
    if rows.row_count:
        screen.print(rows)


def warm(
    operation: Annotated[str, typer.Argument(help="The operation whose recent requests are computed again.")],
    *,
    url: Url = None,
    key_file: KeyFile = None,
    key_header: KeyHeader = DEFAULT_KEY_HEADER,
    json: AsJson = False,
) -> None:
    """Compute an operation's recent requests again, in a running app, with the permissions of the key."""
    with reporting("warm"), source(url, key_file, key_header, None) as cache:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console(), disable=json or not sys.stdout.isatty(), transient=True) as bar:
            task = bar.add_task(operation, total=None)

            def advance(state: Mapping[str, Any]) -> None:
                bar.update(task, total=state["requested"], completed=state["refreshed"] + state["failed"])

            document = cache.warm(operation, advance)
        if json:
            write_json(document)
        else:
            console().print(
                mark(not document["failed"]),
                name(
                    f"{operation}: {document['refreshed']:,} of {document['requested']:,} requests computed, "
                    f"{document['failed']:,} failed, {document['ms']:,.0f} ms"
                ),
            )
        if document["failed"]:
            raise typer.Exit(1)


Everybody: TypeAlias = Annotated[bool, typer.Option("--all-tenants", help="For everybody; takes an operator's key.")]


def _switching(command: str, promise: str, *, off: bool) -> Callable[..., None]:
    """Make the command that sends an operation's requests to the app, or the one that undoes it."""

    def switch(
        operation: Annotated[str, typer.Argument(help="The operation.")],
        *,
        everybody: Everybody = False,
        url: Url = None,
        key_file: KeyFile = None,
        key_header: KeyHeader = DEFAULT_KEY_HEADER,
        tenant: Tenant = None,
        json: AsJson = False,
    ) -> None:
        with reporting(command), source(url, key_file, key_header, tenant) as cache:
            _switched(cache.switch(operation, off=off, everybody=everybody), json=json)

    switch.__name__, switch.__doc__ = command, promise
    return switch


disable: Final = _switching(
    "disable", "Send an operation's requests to the app, on all nodes, until it is enabled again.", off=True
)
enable: Final = _switching("enable", "Undo `disable`.", off=False)


def _switched(document: Document, *, json: bool) -> None:
    if json:
        return write_json(document)
    whose = "everybody" if document["tenant"] is None else document["tenant"]
    where = "on all nodes" if document["scope"] == "all-nodes" else "in that process"
    state = "goes to the app" if document["disabled"] else "is answered from the cache"
    return console().print(name(f"{document['operation']} of {whose} {state}, {where}"))
