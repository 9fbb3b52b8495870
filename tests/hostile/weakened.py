"""Builds without one safeguard each, to see that the attacks are attacks: every class must leak against its own."""

import asyncio
import gzip
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import pytest
import uvicorn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache import NexCache, RateLimitMiddleware, principals, tenants
from nexcache.admin.app import AdminApp
from nexcache.admin.auth import Caller
from nexcache.asgi import Receive, Scope, Send
from nexcache.fill import Fill
from nexcache.ingest.payload import MalformedOtlp, Undecoded
from nexcache.ingest.spans import read_request
from nexcache.invalidation.targets import Targets
from nexcache.key import CacheKey, HeaderRules, Keyed, KeySpace
from nexcache.message import Entry
from nexcache.middleware import CacheMiddleware
from nexcache.semantics.storing import Storable
from nexcache.stores.codec import Codec
from nexcache.telemetry.events import Event
from nexcache.telemetry.names import NotStoredReason
from nexcache.tenants import Resolver
from tests.hostile import site
from tests.hostile.attacks import Target
from tests.hostile.listener import Listener
from tests.servers import Valkey

Patch = pytest.MonkeyPatch


def headers(patch: Patch) -> None:
    """Key no header field, and be sent past the cache by none."""
    patch.setattr(HeaderRules, "read", lambda *_: Keyed((), None, conditional=False))
    patch.setattr(HeaderRules, "watched", lambda *_: frozenset())


def _without(patch: Patch, forgotten: Callable[[bytes, str], bool]) -> None:
    init = HeaderRules.__init__

    def forgetful(self: HeaderRules, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        self._roles = {name: role for name, role in self._roles.items() if not forgotten(name, role)}

    patch.setattr(HeaderRules, "__init__", forgetful)


def bodies(patch: Patch) -> None:
    """Take no notice of a GET's body."""
    _without(patch, lambda _, role: role in ("length", "body"))


def overrides(patch: Patch) -> None:
    """Take no notice of fields that name another method or target."""
    _without(patch, lambda _, role: role == "override")


def credentials(patch: Patch) -> None:
    """Take no notice of credentials."""
    _without(patch, lambda _, role: role == "credential")


def queries(patch: Patch) -> None:
    """Key no query."""
    canonical = KeySpace.canonical
    patch.setattr(KeySpace, "canonical", lambda *given, **named: canonical(*given, **{**named, "query": b""}))


def _identified(patch: Patch, tenant: Callable[[str], str], principal: Callable[[str | None], str | None]) -> None:
    identify = CacheMiddleware._identify

    async def identified(self: CacheMiddleware, request: Any, *given: Any) -> Any:
        await identify(self, request, *given)
        request.tenant, request.principal = tenant(request.tenant), principal(request.principal)

    patch.setattr(CacheMiddleware, "_identify", identified)


def tenants_(patch: Patch) -> None:
    """Let all tenants share."""
    _identified(patch, lambda _: "all", lambda _: None)


def folding(patch: Patch) -> None:
    """Be helpful with the spelling of tenants."""
    _identified(patch, lambda name: "".join(each for each in name.casefold() if each.isalnum() and each.isascii()), str)


def roles(patch: Patch) -> None:
    """Let all principals of a tenant share."""
    _identified(patch, str, lambda _: None)


def trust(patch: Patch) -> None:
    """Take the tenant from whoever names one, before any claim."""

    def header(name: str, **_: object) -> Resolver:
        def resolve(scope: Scope) -> str | None:
            given = {field.replace(b"_", b"-"): value.decode("latin-1") for field, value in scope["headers"]}
            return given.get(name.encode())

        return resolve

    first_of = tenants.first_of
    patch.setattr(tenants, "header", header)
    patch.setattr(tenants, "first_of", lambda *resolvers: first_of(*reversed(resolvers)))
    patch.setattr(principals, "scope", lambda _: lambda _: "somebody")


def storing(patch: Patch) -> None:
    """Store every answer."""
    patch.setattr("nexcache.middleware.may_store", lambda *_, **__: Storable(None))


def _sized(patch: Patch, most: int) -> None:
    init = Fill.__init__

    def decided(*_: object) -> Storable | NotStoredReason:
        return Storable(None)

    def large(self: Fill, **named: Any) -> None:
        init(self, **{**named, "max_body": most, "decide": decided})

    patch.setattr(Fill, "__init__", large)
    patch.setattr("nexcache.fill._MOST_PIECES", 10**9)


def sizes(patch: Patch) -> None:
    """Store answers of any size."""
    _sized(patch, 2**40)


def holding(patch: Patch) -> None:
    """Hold up to 160 MiB of an answer, whether its client is there or not."""
    _sized(patch, 160 * 1024 * 1024)


def comparing(patch: Patch) -> None:
    """Believe the hash."""
    cut = site._cut

    def believed(cache: NexCache) -> None:
        cut(cache)
        short = cache.keys.key

        def key(*given: Any) -> CacheKey:
            made = short(*given)
            return CacheKey(made.tenant, made.operation, made.name, made.name, made.generations)

        cache.keys.key = key  # type: ignore[method-assign,assignment]

    patch.setattr(site, "_cut", believed)


def signing(patch: Patch) -> None:
    """Compare no MAC."""
    patch.setattr("nexcache.stores.codec.compare_digest", lambda *_: True)


class _Anything(bytes):
    """Equal to whatever it is compared with."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def binding(patch: Patch) -> None:
    """Sign values, and neither their key nor their request."""
    mac, decode = Codec._mac, Codec.decode
    patch.setattr(Codec, "_mac", lambda self, kid, key, payload: mac(self, kid, b"", payload))

    def unbound(self: Codec, *given: Any) -> Any:
        entry = decode(self, *given)
        return replace(entry, request=_Anything(entry.request)) if isinstance(entry, Entry) else entry

    patch.setattr(Codec, "decode", unbound)


def authentication(patch: Patch) -> None:
    """Take everybody for an operator."""

    async def anybody(*_: object) -> Caller:
        await asyncio.sleep(0)
        return Caller("acme", operator=True)

    patch.setattr("nexcache.admin.app.authenticate", anybody)


def globs(patch: Patch) -> None:
    """Match a pattern against every tenant's keys."""
    apply = NexCache.invalidate_targets

    async def everywhere(self: NexCache, tenant: str, targets: Targets, **named: Any) -> Any:
        done = [await apply(self, name, targets, **named) for name in dict.fromkeys((tenant, *site.NAMES))]
        return done[0]

    patch.setattr(NexCache, "invalidate_targets", everywhere)


def fetching(patch: Patch) -> None:
    """Warm whatever URL is asked for."""
    warm = AdminApp._warm

    async def fetch(self: AdminApp, call: Any) -> Any:
        place = urlsplit(unquote(call.place["operation"]))
        if place.hostname and place.hostname.startswith("127."):
            _, writer = await asyncio.open_connection(place.hostname, place.port or 80)
            writer.close()
        return await warm(self, call)

    patch.setattr(AdminApp, "_warm", fetch)


def sites(patch: Patch) -> None:
    """Take no notice of where a page is from."""
    patch.setattr("nexcache.admin.app._is_foreign", lambda *_, **__: False)


def shares(patch: Patch) -> None:
    """Let the last one drive out the others."""
    patch.setattr("nexcache.entries.tenant_of", lambda _: b"")
    patch.setattr("nexcache.admission.Admission.admits", lambda *_: True)


def inflating(patch: Patch) -> None:
    """Decompress without a bound."""

    def inflate(coding: str, body: bytes, _: int) -> bytes | Undecoded:
        if "gzip" not in coding.lower():
            return body
        try:
            return gzip.decompress(body)
        except (OSError, EOFError):
            return Undecoded.CORRUPT

    patch.setattr("nexcache.ingest.reading.decompress", inflate)


def tolerance(patch: Patch) -> None:
    """Take what cannot be read for a batch of something."""

    def tolerant(*given: Any, **named: Any) -> ExportTraceServiceRequest:
        try:
            return read_request(*given, **named)
        except MalformedOtlp:
            request = ExportTraceServiceRequest()
            request.resource_spans.add().scope_spans.add().spans.add().name = "something"
            return request

    patch.setattr("nexcache.ingest.reading.read_request", tolerant)


def logging_(patch: Patch) -> None:
    """Write what comes as it comes."""

    def write(_: object, event: Event) -> None:
        logging.getLogger("nexcache").info("%s", " ".join(str(getattr(event, name)) for name in event.__slots__))

    patch.setattr("nexcache.telemetry.log.LogListener.write", write)


def chatter(patch: Patch) -> None:
    """Log requests whole."""
    call = CacheMiddleware.__call__

    async def told(self: CacheMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        logging.getLogger("nexcache").info("%r", scope)
        await call(self, scope, receive, send)

    patch.setattr(CacheMiddleware, "__call__", told)


def quoting(patch: Patch) -> None:
    """Parse the URL with the standard library's parser, which quotes what it does not understand."""

    def parse(url: str) -> Mapping[str, Any]:
        parts = urlsplit(url)
        return {"host": parts.hostname, "port": int(parts.netloc.rpartition(":")[2]), "password": parts.password}

    patch.setattr("nexcache.settings.parse_redis_url", parse)


def counting(patch: Patch) -> None:
    """Count whatever looks different as another."""
    init = RateLimitMiddleware.__init__

    def by_looks(self: RateLimitMiddleware, *given: Any, **named: Any) -> None:
        def by(scope: Scope) -> str:
            return f"{scope['method']} {scope['raw_path']!r} {scope['query_string']!r} {scope['headers']!r}"

        init(self, *given, **{**named, "by": by})

    patch.setattr(RateLimitMiddleware, "__init__", by_looks)


BUILDS: Final[Mapping[str, Callable[[Patch], None]]] = {
    build.__name__.rstrip("_"): build
    for build in (
        headers, bodies, overrides, credentials, queries, tenants_, folding, roles, trust, storing, sizes, holding,
        comparing, signing, binding, authentication, globs, fetching, sites, shares, inflating, tolerance, logging_,
        chatter, quoting, counting,
    )
}  # fmt: skip


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are pytest's


@contextmanager
def serving(directory: Path, valkey: Valkey, listener: Listener) -> Iterator[Target]:
    """Serve the app as it is now patched, by a uvicorn in this process."""
    valkey.reset()
    log = directory / "weakened.log"
    log.write_bytes(b"")
    made = site.Site({"HOSTILE_REDIS_URL": valkey.url, "HOSTILE_LOG": str(log)})
    handlers: Iterable[logging.Handler] = [each for each in logging.getLogger().handlers if _writes(each, log)]
    bound = socket.create_server(("127.0.0.1", 0), backlog=128)
    config = uvicorn.Config(made, http="httptools", log_config=None, log_level="critical", lifespan="on")
    server = _Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)
        target = Target(bound.getsockname()[1], valkey, log, listener)
        try:
            yield target
        finally:
            target.close()
    finally:
        server.should_exit = True
        thread.join(15)
        for handler in handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()


def _writes(handler: logging.Handler, log: Path) -> bool:
    return isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == log
