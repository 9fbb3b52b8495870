"""A cache between a client and an origin, all of them on real sockets, and a clock that is moved by hand.

The origin does what each case tells it to; the cache is `mode="rfc"` over the reverse proxy, as `nexcache serve` puts
them together. One pair of servers serves all cases, each at a URI of its own.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Final, TypeAlias, cast

import uvicorn

from nexcache import CacheMiddleware, NexCache, Settings, tenants
from nexcache.asgi import ASGIApp, Receive, Scope, Send
from nexcache.http_cache import HttpCache
from nexcache.proxy import Gateway, Upstream

PATIENCE: Final = 10.0

Value: TypeAlias = "str | Date"
Fields: TypeAlias = Sequence[tuple[str, Value]]


@dataclass(frozen=True, slots=True)
class Date:
    """A date relative to the clock, in seconds."""

    offset: float = 0.0


class Clock:
    """Seconds since the epoch; stands still until it is moved."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Reply:
    """What the origin answers. `closes`: nothing, it closes the connection."""

    status: int = 200
    fields: Fields = ()
    body: bytes | None = None
    closes: bool = False
    date: bool = True
    """It sends a Date of its own, unless `fields` has one."""
    raw: bytes | None = None
    """Sent instead, byte for byte, before the connection is closed."""
    takes: float = 0.0
    """Seconds that pass between the request and its answer."""


@dataclass(slots=True)
class Received:
    """A request that reached the origin."""

    method: str
    fields: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        """Return a field's value, repeated ones joined."""
        found = [value for field, value in self.fields if field == name]
        return ", ".join(found) if found else None


@dataclass(slots=True)
class Answer:
    """What the client got."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        """Return a field's value, repeated ones joined."""
        found = [value for field, value in self.fields if field == name]
        return ", ".join(found) if found else None


@dataclass(slots=True)
class _Script:
    reply: Reply = field(default_factory=Reply)
    received: list[Received] = field(default_factory=list)


class _Server(uvicorn.Server):
    listener: socket.socket

    def install_signal_handlers(self) -> None:
        pass


class Stand:
    """The servers, in a thread of their own."""

    def __init__(self, *, http: str = "httptools", redis_url: str | None = None) -> None:
        self.clock = Clock()
        self._http = http
        self._redis_url = redis_url
        self._scripts: dict[str, _Script] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._servers: list[tuple[_Server, Future[None]]] = []
        self.port = 0
        self.origin_port = 0

    def start(self) -> None:
        """Open both servers."""
        self._thread.start()
        self.origin_port = self._serve(self._origin, "httptools")  # which sends whatever it is told to
        self._cache = self._call(self._cached())
        self.port = self._serve(self._app, self._http)

    def stop(self) -> None:
        """Close both servers."""
        for server, ended in reversed(self._servers):
            server.should_exit = True
            ended.result(PATIENCE)
            server.listener.close()
        self._call(self._cache.aclose())
        self._call(self._upstream.aclose())
        self._call(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    async def _cached(self) -> NexCache:
        from pydantic import SecretStr  # noqa: PLC0415 - not where no server is used

        url = SecretStr(self._redis_url) if self._redis_url else None
        cache = NexCache(Settings(redis_url=url, redis_host=None, op_timeout_ms=2000))
        self._upstream = upstream = Upstream(
            f"http://127.0.0.1:{self.origin_port}", read_timeout=PATIENCE, clock=self.clock
        )
        middleware = CacheMiddleware(upstream, cache=cache, tenant=tenants.fixed("acme"), mode="rfc")
        http = middleware._http
        assert isinstance(http, HttpCache)
        http._clock = self.clock
        self._app: ASGIApp = Gateway(middleware)
        return cache

    def _call(self, work: object) -> NexCache:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)  # type: ignore[arg-type]

    def _serve(self, app: ASGIApp, http: str) -> int:
        # asyncio turns Nagle's algorithm off only where the socket says that it is TCP
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app,
            http=http,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_level="critical",
            date_header=False,
            server_header=False,
        )
        config.load()
        server = _Server(config)
        server.listener = listener
        server.lifespan = config.lifespan_class(config)
        ended = asyncio.run_coroutine_threadsafe(server.serve(sockets=[listener]), self._loop)
        until = time.monotonic() + PATIENCE
        while not server.started:
            assert time.monotonic() < until
            time.sleep(0.005)
        self._servers.append((server, ended))
        return int(listener.getsockname()[1])

    # --- the origin ----------------------------------------------------------------------------------------

    async def _origin(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        script = self._scripts.setdefault(scope["path"], _Script())
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        script.received.append(Received(scope["method"], fields))
        reply = script.reply
        self.clock.now += reply.takes
        if reply.closes:
            cast("Any", receive).__self__.transport.abort()  # uvicorn would send a 500
            return
        if reply.raw is not None:
            transport = cast("Any", receive).__self__.transport
            transport.write(reply.raw)
            transport.close()
            await receive()  # that it is closed
            return
        content = reply.body if reply.body is not None else b"answer %d" % len(script.received)
        headers = [(name.encode("latin-1"), self.text(value).encode("latin-1")) for name, value in reply.fields]
        names = {name.lower() for name, _ in headers}
        if reply.date and b"date" not in names:
            headers.append((b"date", self.text(Date()).encode()))
        if reply.status not in (204, 304) and b"content-length" not in names:
            headers.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        empty = scope["method"] == "HEAD" or reply.status in (204, 304)
        await send({"type": "http.response.body", "body": b"" if empty else content})

    def text(self, value: Value) -> str:
        """Write a field's value out."""
        return formatdate(self.clock.now + value.offset, usegmt=True) if isinstance(value, Date) else value

    # --- the client ----------------------------------------------------------------------------------------

    def tell(self, path: str, reply: Reply) -> None:
        """Tell the origin what to answer from now on."""
        self._scripts.setdefault(path, _Script()).reply = reply

    def received(self, path: str) -> list[Received]:
        """Return what reached the origin."""
        return self._scripts.setdefault(path, _Script()).received

    def ask(self, path: str, *, method: str = "GET", fields: Fields = (), query: str = "", body: bytes = b"") -> Answer:
        """Send a request and read the whole answer."""
        lines = [f"{method} {path}{query} HTTP/1.1", "host: cache.test", "connection: close"]
        lines += [f"{name}: {self.text(value)}" for name, value in fields]
        if body:
            lines.append(f"content-length: {len(body)}")
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            data = b""
            while piece := connection.recv(65536):
                data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *others = head.decode("latin-1").split("\r\n")
        pairs = [line.split(":", 1) for line in others]
        answer = Answer(int(first.split(" ")[1]), [(name.lower(), value.strip()) for name, value in pairs], rest)
        if answer.get("transfer-encoding") == "chunked":
            answer.body = _unchunked(rest)
        return answer

    @property
    def refreshing(self) -> int:
        """How many validations are under way in the background."""
        return self._cache.refreshes.running

    def settle(self, condition: Callable[[], object]) -> None:
        """Wait until something has happened in the background."""
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, "what was expected did not happen"
            time.sleep(0.005)


def _unchunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        number = int(size, 16)
        body, data = body + data[:number], data[number + 2 :]
    return body
