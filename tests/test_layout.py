"""Who may import whom. A layer may import the layers before it, never those after it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = Path(__file__).parent.parent / "nexcache"

LAYERS: Final = {
    "values": """
        errors
        asgi
        message
        telemetry.events
        telemetry.names
        telemetry.counts
    """,
    "rules": """
        semantics
        semantics.headers
        semantics.cache_control
        semantics.cache_status
        semantics.storing
        semantics.groups
        semantics.reuse
        semantics.early_refresh
        semantics.validation
        semantics.dates
        semantics.targeted
        semantics.freshness
        semantics.vary
        semantics.asked
        semantics.stored
        semantics.keeping
        semantics.choosing
        semantics.freshening
        semantics.ranges
        semantics.partial
        semantics.encoding
        semantics.sending
        semantics.invalidating
        semantics.groups
        tenants
        principals
        policy
        key
        ingest.payload
        ingest.density
        ingest.otlp_json
        ingest.answers
        ingest.spans
        ingest.rules
        invalidation.targets
        stores.breaker
        stores.answers
        stores.codec
        stores.tokens
        ladder
        diagnosis
        shadow
        alerts
        ingest.windows
        ingest.changes
        ingest.coalescing
        ingest.checking
        savings
    """,
    "store protocol": """
        stores.base
        ending
    """,
    "I/O": """
        stores.memory
        stores.redis
        stores.inspection
        stores.lane
        stores.wire
        stores.faults
        invalidation.apply
        invalidation.generations
        invalidation.tags
        invalidation.backplane
        invalidation.coherence
        invalidation.view
        known
        entries
        fill
        variants
        http_cache
        compression
        collapse
        ledger
        trends
        switches
        known
        refresh
        rate_limit
        quota
        forgetting
        vault
        stores.sealing
        testing
        testing.clock
        testing.contract
        testing.plugin
        testing.proxy
        testing.store
        explain
        sample
        value_codec
        parameters
        values
        sessions
        health
        alerting
        fill_lease
        shadowing
        turns
        admission
        after_commit
        stores.door
        stores.epoch
        stores.target
        stores.cluster
        stores.entra_id
    """,
    "entry points": """
        functions
        middleware
        rate_limit_middleware
        session_middleware
        fastapi
        proxy
        ingest.hook
        ingest.otlp_endpoint
        admin.app
        admin.auth
        admin.answers
        admin.bearer
        admin.endpoints
        admin.live
        admin.openapi
        ingest.reading
        ingest.forward
        ingest.middleware
        ingest.exporter
        ingest.warming
        ingest.rule_file
        admin.page
    """,
    "listeners": """
        telemetry.otel
        telemetry.metrics
        telemetry.log
        telemetry.configure
        telemetry.prometheus
    """,
    "settings": """
        settings
    """,
    "wiring": """
        wiring
    """,
    "faces": """
        cache
        sync
        serve
        cli
        demo
    """,
}
ORDER: Final = tuple(LAYERS)
LAYER: Final = {module: layer for layer, modules in LAYERS.items() for module in modules.split()}
NAMESPACES: Final = frozenset(("", "admin", "ingest", "invalidation", "semantics", "stores", "telemetry"))
"""Packages whose `__init__` holds a docstring only; the root's names are lazy, which another test pins."""

WITHIN: Final = {"entry points": frozenset(("ingest", "admin"))}
"""Entry points do not know each other, except inside one of these packages."""
ALLOWED: Final = {
    ("fastapi", "middleware"): "it is the same middleware, called after a route's dependencies instead of before them",
}

OWNERS: Final = {
    "redis": frozenset(
        f"stores.{name}"
        for name in ("redis", "lane", "wire", "faults", "inspection", "door", "epoch", "target", "cluster", "entra_id")
    )
    | {"invalidation.backplane"},
    "django": frozenset(("after_commit",)),
    "sqlalchemy": frozenset(("after_commit",)),
    "redis_entraid": frozenset(("stores.entra_id",)),
    "structlog": frozenset(LAYERS["listeners"].split()),
    "opentelemetry": frozenset((*LAYERS["listeners"].split(), "ingest.exporter")),
    "httpx2": frozenset(("ingest.forward",)),
    "starlette": frozenset(("fastapi",)),
    "pydantic": frozenset(("settings", "cli.masked", "fastapi", "serve")),
    "pydantic_settings": frozenset(("settings",)),
    "fastapi": frozenset(("fastapi",)),
    "msgpack": frozenset(("stores.codec", "invalidation.backplane", "invalidation.tags", "fill_lease", "value_codec")),
    "http_sf": frozenset(("semantics.groups", "semantics.targeted")),
    "jwt": frozenset(("admin.bearer",)),
    "typer": frozenset(("cli",)),
    "rich": frozenset(("cli",)),
    "cryptography": frozenset(("stores.sealing",)),
    "httpcore2": frozenset(("proxy",)),
    "uvicorn": frozenset(("serve",)),
}
"""Who may import a distribution; the demo is an application of its own and may import any."""
DANGEROUS: Final = frozenset(("pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle"))
IMPURE: Final = frozenset(("time", "asyncio", "logging", "random", "socket", "threading", "secrets", "os", "datetime"))


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES: Final = dict(modules())


def imports(name: str) -> Iterator[tuple[str, int]]:
    """Give every module that a module imports, those inside functions and under TYPE_CHECKING included."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["nexcache", *filter(None, package.split("."))]
                base = ".".join([*here[: len(here) - node.level + 1], *filter(None, (node.module,))])
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                is_module = inside.removeprefix("nexcache.") in MODULES and base.partition(".")[0] == "nexcache"
                yield (inside if is_module else base), node.lineno


def own(imported: str) -> str | None:
    """Return the name of one of our modules inside the package, or None."""
    if imported == "nexcache":
        return ""
    return imported.removeprefix("nexcache.") if imported.startswith("nexcache.") else None


def layer_of(module: str) -> str | None:
    return LAYER.get(module) or ("faces" if module.partition(".")[0] in ("demo", "cli") else None)


def fault(module: str, imported: str) -> str | None:
    """Say why one of our modules must not import another, or None if it may."""
    here, there = layer_of(module), layer_of(imported)
    if imported == "":
        return None if here == "faces" else "the root imports lazily and is for users only; import from the module"
    if imported in NAMESPACES or module == imported:
        return None
    assert here is not None
    assert there is not None
    if (module, imported) in ALLOWED:
        return None
    if ORDER.index(there) > ORDER.index(here):
        return f"{here} may not import {there}"
    if here == there == "entry points" and not (
        module.partition(".")[0] == imported.partition(".")[0] and module.partition(".")[0] in WITHIN[here]
    ):
        return "entry points do not know each other"
    if here == "settings" and there in ("entry points", "listeners"):
        return "settings know neither entry points nor listeners"
    if there == "entry points" and here == "listeners":
        return "a listener is told what happened, it does not look for it"
    return None


@pytest.mark.parametrize("module", [name for name in MODULES if name not in NAMESPACES])
def test_every_module_has_a_layer(module: str) -> None:
    assert layer_of(module) is not None, (
        f"nexcache.{module} is in no layer: add it to LAYERS in tests/test_layout.py, in the lowest layer whose rules "
        "it keeps (values and rules do no I/O and read no clock)"
    )


def test_every_layer_names_only_modules_that_exist() -> None:
    assert not {module for module in LAYER if module not in MODULES}


@pytest.mark.parametrize("module", [name for name in MODULES if name and layer_of(name)])
def test_imports_point_inwards(module: str) -> None:
    faults = [
        f"nexcache/{module}:{line} imports {imported}: {why}"
        for imported, line in imports(module)
        if (name := own(imported)) is not None and (why := fault(module, name)) is not None
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("module", sorted(name for name in NAMESPACES if name))
def test_a_packages_init_holds_its_docstring_only(module: str) -> None:
    body = ast.parse(MODULES[module].read_text(encoding="utf-8")).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


@pytest.mark.parametrize("module", [name for name in MODULES if name.partition(".")[0] != "demo"])
def test_a_distribution_is_imported_where_it_belongs(module: str) -> None:
    strays = []
    for imported, line in imports(module):
        top = imported.partition(".")[0]
        if imported.startswith("opentelemetry.proto.") and module.startswith("ingest."):
            continue  # the wire format, not the SDK
        if top in OWNERS and not {module, module.partition(".")[0]} & OWNERS[top]:
            strays.append(f"nexcache/{module}:{line} imports {imported}")
    assert not strays


@pytest.mark.parametrize("module", MODULES)
def test_nothing_can_run_what_it_reads(module: str) -> None:
    assert not {imported.partition(".")[0] for imported, _ in imports(module)} & DANGEROUS
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("module", LAYERS["rules"].split())
def test_a_rule_reads_no_clock_and_does_no_io(module: str) -> None:
    clock = {"time", "datetime"} if module == "tenants" else set()  # API keys expire, by a clock that is an argument
    assert not {imported.partition(".")[0] for imported, _ in imports(module)} & (IMPURE - clock)
    awaits = [
        node
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Await) and module != "tenants"  # `first_of` awaits the resolvers that it was given
    ]
    assert not awaits
