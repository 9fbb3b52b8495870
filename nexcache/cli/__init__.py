"""The command line, `nexcache`."""

import secrets
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nexcache.cli import administer, bench, config, doctor, forget, monitor
from nexcache.cli.options import AsJson
from nexcache.cli.output import write_json
from nexcache.errors import ConfigurationError
from nexcache.tenants import ApiKey

app: typer.Typer = typer.Typer(
    help="NexCache, a multi-tenant cache for observability back ends.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; the entry point `nexcache`."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"nexcache {metadata.version('nexcache')}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """NexCache, a multi-tenant cache for observability back ends."""


@app.command()
def demo(
    *,
    duration: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help="End by itself, with exit status 1 if a promise was not kept."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Listen there on loopback. \\[default: 8080, or any if that is taken]"),
    ] = None,
    headless: Annotated[bool, typer.Option(help="Print plain lines instead of the live screen.")] = False,
    readers: Annotated[int, typer.Option(min=1, max=1000, help="Simulated readers, each about 5 reads/s.")] = 60,
    seed: Annotated[int | None, typer.Option(help="Imagine the same traffic in every run.")] = None,
    memory: Annotated[
        bool, typer.Option(help="Keep entries in this process, even where an embedded Valkey could be started.")
    ] = False,
) -> None:
    """Run an observability back end with two tenants, their services and readers, and check every answer."""
    try:
        from nexcache.demo.run import Options, run  # noqa: PLC0415 - the extra may be missing
        from nexcache.demo.serving import PortTaken  # noqa: PLC0415 - as above
    except ModuleNotFoundError as missing:
        if missing.name != "uvicorn":
            raise
        sys.stderr.write("nexcache demo needs its extra: pip install 'nexcache[demo]'\n")
        raise typer.Exit(2) from None
    try:
        status = run(Options(duration, port, headless, readers, seed, memory), Console())
    except PortTaken as reason:
        sys.stderr.write(f"nexcache demo: {reason}\n")
        raise typer.Exit(2) from None
    raise typer.Exit(status)


@app.command()
def serve(
    *,
    upstream: Annotated[str | None, typer.Option(metavar="URL", help="The service behind the proxy.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Everything else, as TOML (docs/proxy.md).")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Listen on this address. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="[default: 8081]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; they share a cache in Redis.")] = None,
    mode: Annotated[str | None, typer.Option(help="rfc: RFC 9111 decides; policy: policies do. [default: rfc]")] = None,
) -> None:
    """Cache any HTTP service: a reverse proxy for many tenants."""
    try:
        from nexcache.serve import ServeConfig, run  # noqa: PLC0415 - the extra may be missing
    except ModuleNotFoundError as missing:
        if missing.name not in ("uvicorn", "httpcore2"):
            raise
        sys.stderr.write("nexcache serve needs its extra: pip install 'nexcache[serve]'\n")
        raise typer.Exit(2) from None
    try:
        run(
            ServeConfig.load(
                config,
                upstream__url=upstream,
                listen__host=host,
                listen__port=port,
                listen__workers=workers,
                mode=mode,
            )
        )
    except ConfigurationError as reason:
        sys.stderr.write(f"{reason}\n")
        raise typer.Exit(2) from None


@app.command()
def key(tenant: Annotated[str, typer.Argument(help="Whose key it is.")], *, json: AsJson = False) -> None:
    """Make an API key for a tenant: the secret for its clients, and the entry for CACHE_API_KEYS."""
    secret = secrets.token_urlsafe(32)
    entry = ApiKey.of(tenant, secret)
    if json:
        write_json({"tenant": tenant, "key": secret, "entry": str(entry)})
        return
    sys.stdout.write(f"X-API-Key: {secret}\nCACHE_API_KEYS={entry}\n")


@app.command("explain-rules")
def explain_rules(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The rules: TOML with [[rules]], or JSON.")],
    *,
    json: AsJson = False,
) -> None:
    """Say what the rules in FILE make of the spans on standard input (OTLP/JSON); status 1 if the rules cannot work."""
    from nexcache.ingest.payload import MalformedOtlp, MediaType  # noqa: PLC0415 - only for this command
    from nexcache.ingest.rule_file import explained, explanation, read_rules  # noqa: PLC0415 - as above
    from nexcache.ingest.rules import RuleSet  # noqa: PLC0415 - as above
    from nexcache.ingest.spans import every_span_of, read_request  # noqa: PLC0415 - as above

    try:
        rules = RuleSet(read_rules(file))
        spans = every_span_of(read_request(MediaType.JSON, sys.stdin.buffer.read()))
    except (ConfigurationError, MalformedOtlp) as reason:
        sys.stderr.write(f"nexcache explain-rules: {reason}\n")
        raise typer.Exit(1) from None
    document = explanation(rules, spans)
    if json:
        write_json(document)
        return
    for line in explained(document):
        sys.stdout.write(f"{line}\n")


for _command in (
    monitor.monitor,
    administer.stats,
    administer.operations,
    administer.tenants,
    administer.explain,
    administer.invalidate,
    administer.warm,
    administer.disable,
    administer.enable,
    forget.forget,
    doctor.doctor,
    config.config,
    bench.bench,
):
    app.command()(_command)
