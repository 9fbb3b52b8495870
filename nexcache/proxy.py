"""An HTTP service as an ASGI app: what `nexcache serve` puts behind the cache.

Requests and answers pass as they are, streamed in both directions; what belongs to one connection only (RFC 9110
§7.6.1) stays on it, and `Via` says that they passed (§7.6.3). Connections are httpcore's.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from email.utils import formatdate
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import httpcore2

from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send
from nexcache.ending import end
from nexcache.errors import ConfigurationError, OriginFailed
from nexcache.semantics.headers import end_to_end

_VIA: Final = b"nexcache"
_HTTP_VERSIONS: Final = {"1.0": b"1.0", "1.1": b"1.1", "2": b"2", "3": b"3"}
_PORTS: Final = {"http": 80, "https": 443}
_NOT_FORWARDED: Final = frozenset(
    (b"host", b"expect", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto")
)
"""Request fields that are answered by the server in front (RFC 9110 §10.1.1) or written anew."""
_SENT_AGAIN: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
"""Safe methods: sent once more where a kept connection turns out to be closed (RFC 9110 §9.2.2, RFC 9112 §9.3.1)."""
_COUNTED: Final = frozenset(("OPTIONS", "TRACE"))
"""Methods whose `Max-Forwards` is heeded (RFC 9110 §7.6.2)."""
_LOST: Final = (httpcore2.RemoteProtocolError, httpcore2.ReadError, httpcore2.WriteError)


class Upstream:
    """Sends every request to one HTTP service, and its answer back.

    `url` is `http://host[:port][/prefix]` or `https://…`. Timeouts are seconds: to connect, between two pieces of an
    answer, and for a free connection of `connections`. `preserve_host` keeps the client's `Host`; otherwise it is the
    upstream's, and the client's goes into `X-Forwarded-Host`. Raises OriginFailed where the service could not be
    reached or did not finish its answer, and ConfigurationError for what is no URL.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float = 5.0,
        read_timeout: float = 60.0,
        connections: int = 200,
        preserve_host: bool = False,
        ca_certs: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ConfigurationError("the upstream is written http://host[:port][/prefix] or https://…")
        try:
            port = parts.port
        except ValueError:
            raise ConfigurationError("the upstream's port is a number from 1 to 65535") from None
        self.url: str = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self._scheme, self._host = parts.scheme.encode(), parts.hostname.encode("idna")
        self._port = port
        self._prefix = parts.path.rstrip("/").encode()
        self._authority = self._host if b":" not in self._host else b"[" + self._host + b"]"
        if port is not None and port != _PORTS[parts.scheme]:
            self._authority += b":%d" % port
        self._origin = f"{parts.scheme}://{self._authority.decode()}"
        self._preserve_host = preserve_host
        self._timeouts = {
            "connect": connect_timeout,
            "read": read_timeout,
            "write": read_timeout,
            "pool": connect_timeout,
        }
        self._connections = connections
        self._ca_certs = ca_certs
        self._clock = clock
        self._pool: httpcore2.AsyncConnectionPool | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the proxy passes HTTP on, not {scope['type']}")
        scope["nexcache.origin"] = self._origin  # how the service may call itself in Location
        headers = self._request_headers(scope)
        if scope["method"] in _COUNTED and not _counts_down(headers):
            await _end_here(scope["method"], send, now=self._clock())
            return
        sends_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        body = _Body(receive) if sends_body else None
        answer = await self._ask(scope, headers, body)
        try:
            await _pass_on(answer, scope, receive if body is None or body.ended else None, send, now=self._clock())
        finally:
            await answer.aclose()

    async def aclose(self) -> None:
        """Close the connections; the next request opens them again."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()

    async def __aenter__(self) -> Self:
        """Nothing is opened before the first request."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.aclose()

    async def _ask(self, scope: Scope, headers: list[tuple[bytes, bytes]], body: "_Body | None") -> httpcore2.Response:
        target = self._prefix + (scope.get("raw_path") or scope["path"].encode())
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        request = httpcore2.Request(
            scope["method"].encode(),
            httpcore2.URL(scheme=self._scheme, host=self._host, port=self._port, target=target),
            headers=headers,
            content=body,
            extensions={"timeout": self._timeouts},
        )
        pool = self._opened()
        again = body is None and scope["method"] in _SENT_AGAIN
        while True:
            try:
                return await pool.handle_async_request(request)
            except httpcore2.TimeoutException as error:
                raise OriginFailed(504, f"{self.url} did not answer in time") from error
            except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
                if isinstance(error, httpcore2.LocalProtocolError):
                    raise OriginFailed(400, "the request cannot be sent on over HTTP/1.1") from error
                if not again or not isinstance(error, _LOST):
                    raise OriginFailed(502, f"{self.url} could not be reached") from error
                again = False  # a connection that was kept, and that the upstream has closed meanwhile

    def _opened(self) -> httpcore2.AsyncConnectionPool:
        if self._pool is None:
            context: ssl.SSLContext | None = None
            if self._scheme == b"https":
                context = ssl.create_default_context(cafile=self._ca_certs)
            self._pool = httpcore2.AsyncConnectionPool(
                ssl_context=context, max_connections=self._connections, keepalive_expiry=30.0, retries=1
            )
        return self._pool

    def _request_headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        given: Sequence[tuple[bytes, bytes]] = scope["headers"]
        hosts = [value for name, value in given if name == b"host"]
        before = {name: [value for field, value in given if field == name] for name in _NOT_FORWARDED}
        # RFC 9110 §5.5: white space around a value is none of it, and some servers hand it on
        kept = [(name, value.strip(b" \t")) for name, value in end_to_end(given) if name not in _NOT_FORWARDED]
        if any(name == b"transfer-encoding" for name, _ in given):
            kept.append((b"transfer-encoding", b"chunked"))
        client = scope.get("client")
        addresses = [*before[b"x-forwarded-for"], *([client[0].encode()] if client else [])]
        host = hosts[0] if self._preserve_host and len(hosts) == 1 else self._authority
        version = _HTTP_VERSIONS.get(scope.get("http_version", "1.1"), b"1.1")
        return [
            (b"host", host),
            *kept,
            *([(b"x-forwarded-for", b", ".join(addresses))] if addresses else ()),
            *((b"x-forwarded-host", value) for value in before[b"x-forwarded-host"] or hosts[:1]),
            *(
                (b"x-forwarded-proto", value)
                for value in before[b"x-forwarded-proto"] or [scope.get("scheme", "http").encode()]
            ),
            (b"via", b", ".join([*before[b"via"], version + b" " + _VIA])),
        ]

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})


def _counts_down(headers: list[tuple[bytes, bytes]]) -> bool:
    """Count Max-Forwards down where it is there; False: the request goes no further (RFC 9110 §7.6.2)."""
    for place, (name, value) in enumerate(headers):
        if name == b"max-forwards" and value.isdigit():
            if not int(value[:9]):
                return False
            headers[place] = (name, b"%d" % (int(value[:9]) - 1))
    return True


async def _end_here(method: str, send: Send, *, now: float) -> None:
    """Answer what goes no further: this proxy has no options of its own, and reflects nothing."""
    date = (b"date", formatdate(now, usegmt=True).encode())
    headers = [(b"allow", b"GET, HEAD, OPTIONS"), (b"content-length", b"0"), date]
    await send({"type": "http.response.start", "status": 200 if method == "OPTIONS" else 405, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Body:
    """The client's body as it comes. A client that leaves before its end ends the request."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self.ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise OriginFailed(400, "the client left before the end of its request")
            if body := message.get("body", b""):
                yield body
            self.ended = not message.get("more_body", False)

    async def aclose(self) -> None:
        """Nothing is held."""


async def _pass_on(
    answer: httpcore2.Response, scope: Scope, receive: Receive | None, send: Send, *, now: float
) -> None:
    """Send an answer to the client piece by piece; give it up when the client leaves."""
    status = answer.status
    headers = [(name, value) for name, value in end_to_end(answer.headers) if name != b"via"]
    if status == 304:  # httptools-based servers refuse a length without a body  # noqa: PLR2004
        headers = [pair for pair in headers if pair[0] != b"content-length"]
    if not any(name == b"date" for name, _ in headers):  # RFC 9110 §6.6.1
        headers.append((b"date", formatdate(now, usegmt=True).encode()))
    passed = [value for name, value in answer.headers if name.lower() == b"via"]
    version = bytes(answer.extensions.get("http_version", b"HTTP/1.1")).removeprefix(b"HTTP/")
    headers.append((b"via", b", ".join([*passed, version + b" " + _VIA])))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    pieces = asyncio.ensure_future(_send_body(answer, send))
    watching = asyncio.ensure_future(_left(receive)) if receive is not None and scope["method"] != "HEAD" else None
    try:
        await asyncio.wait([task for task in (pieces, watching) if task], return_when=asyncio.FIRST_COMPLETED)
        if pieces.done():
            pieces.result()
    finally:
        await end(pieces, watching)


async def _send_body(answer: httpcore2.Response, send: Send) -> None:
    try:
        async for piece in answer.aiter_stream():
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise OriginFailed(502, "the upstream did not finish its answer") from error
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Gateway:
    """Answers for an upstream that failed: 502 or 504, where nothing has been sent yet.

    An answer that has begun is cut off: its client must see that it is not whole.
    """

    def __init__(self, app: ASGIApp, *, paths: Mapping[str, ASGIApp] | None = None) -> None:
        self._app = app
        self._paths = dict(paths or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and say what happened where that fails."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003, "reason": "this proxy passes HTTP on"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        for prefix, app in self._paths.items():
            if scope["path"] == prefix or scope["path"].startswith(prefix + "/"):
                root = scope.get("root_path", "") + prefix
                await app({**scope, "root_path": root}, receive, send)
                return
        begun = False

        async def tell(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except OriginFailed as error:
            if begun:
                return  # without the end of its answer the server closes the client's connection
            await _answer_for(scope, send, error)


async def _answer_for(scope: Scope, send: Send, error: OriginFailed) -> None:
    title = {400: "Bad Request", 502: "Bad Gateway", 504: "Gateway Timeout"}[error.status]
    body = b'{"type": "about:blank", "title": "%b", "status": %d}' % (title.encode(), error.status)
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [
                (b"content-type", b"application/problem+json"),
                (b"content-length", b"%d" % len(body)),
                (b"cache-control", b"no-store"),
                (b"date", formatdate(time.time(), usegmt=True).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body, "more_body": False})
