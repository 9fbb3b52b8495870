"""A real uvicorn in the test's own event loop, and a client that sees the bytes as they come."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Self

import uvicorn

from nexcache import NexCache
from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send

PARSERS = ("h11", "httptools")
PATIENCE = 10.0
"""Seconds after which a test gives up; none waits that long for what it expects."""

Fields = Sequence[tuple[str, str]]


class StartupFailed(Exception):  # noqa: N818 - reads as what it says
    """The app's lifespan failed."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()

    async def run_until_ended(self, listener: socket.socket) -> None:
        try:
            await self.serve(sockets=[listener])
        except SystemExit:
            raise StartupFailed from None

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.ended.wait()  # uvicorn looks ten times a second

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are pytest's


@asynccontextmanager
async def serving(
    app: ASGIApp, *, http: str = "h11", lifespan: Literal["on", "off"] = "on", cache: NexCache | None = None
) -> AsyncIterator["Client"]:
    """Serve an app on a loopback port of its own; what the app raised is in `Client.errors`.

    With `cache`, the client's `ask` waits until nothing is being computed or stored any more.
    """
    errors: list[BaseException] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except BaseException as error:
            errors.append(error)
            raise

    config = uvicorn.Config(
        watched,
        http=http,
        ws="websockets-sansio",
        lifespan=lifespan,
        log_config=None,
        log_level="critical",
        timeout_graceful_shutdown=1,
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = _Server(config)
    task = asyncio.create_task(server.run_until_ended(listener))
    client = Client(listener.getsockname()[1], errors, cache)
    try:
        async with asyncio.timeout(PATIENCE):
            while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn tells nobody
                await asyncio.sleep(0.005)
        if server.started:
            yield client
    finally:
        for connection in client.connections:
            connection.close()
        server.ended.set()
        try:
            await task
        finally:
            listener.close()


@dataclass(slots=True)
class Head:
    """A response up to its header fields, in the order of the wire."""

    status: int
    fields: list[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        """Return every value of a field."""
        return [value for field, value in self.fields if field.lower() == name]

    def get(self, name: str) -> str | None:
        """Return the value of a field that is there at most once."""
        found = self.all(name)
        assert len(found) <= 1, f"{name} is repeated: {found}"
        return found[0] if found else None

    @property
    def cache(self) -> str:
        """What NexCache says it did."""
        return next((value for value in self.all("cache-status") if value.startswith("NexCache")), "")

    @property
    def hit(self) -> bool:
        """Whether a stored response was used."""
        return self.cache.startswith("NexCache; hit")


@dataclass(slots=True)
class Answer(Head):
    """A whole response."""

    body: bytes


class Connection:
    """One connection, driven by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Write raw bytes."""
        self._writer.write(data)
        await self._writer.drain()

    async def ask(
        self, target: str, *, method: str = "GET", fields: Fields = (), body: bytes | None = None, host: str = "test"
    ) -> None:
        """Write a request."""
        lines = [f"{method} {target} HTTP/1.1", f"host: {host}", *(f"{name}: {value}" for name, value in fields)]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    async def head(self) -> Head:
        """Read a response up to its header fields."""
        async with asyncio.timeout(PATIENCE):
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [line.split(":", 1) for line in lines[1:] if line]
        return Head(int(lines[0].split(" ")[1]), [(name, value.strip(" ")) for name, value in pairs])

    async def chunk(self) -> bytes:
        """Read the next chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(PATIENCE):
            size = int((await self._reader.readline()).strip(), 16)
            data = await self._reader.readexactly(size)
            assert await self._reader.readexactly(2) == b"\r\n"
        return data

    async def answer(self, *, method: str = "GET") -> Answer:
        """Read a whole response."""
        head = await self.head()
        body = b""
        if method != "HEAD" and head.status not in (204, 304):
            if head.get("transfer-encoding") == "chunked":
                while chunk := await self.chunk():
                    body += chunk
            else:
                async with asyncio.timeout(PATIENCE):
                    body = await self._reader.readexactly(int(head.get("content-length") or 0))
        return Answer(head.status, head.fields, body)

    async def read(self, size: int) -> bytes:
        """Read so many bytes."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readexactly(size)

    async def rest(self) -> bytes:
        """Read until the server closes."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.read()

    def close(self) -> None:
        """Close at once, whatever is under way."""
        self._writer.transport.abort()


@dataclass(slots=True)
class Client:
    """Speaks HTTP/1.1 to one server, one connection per request unless told otherwise."""

    port: int
    errors: list[BaseException]
    cache: NexCache | None
    connections: list[Connection] = field(default_factory=list)

    async def connect(self) -> Connection:
        """Open a connection."""
        async with asyncio.timeout(PATIENCE):
            connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port, limit=1024 * 1024))
        self.connections.append(connection)
        return connection

    async def ask(
        self, target: str, *, method: str = "GET", fields: Fields = (), body: bytes | None = None, host: str = "test"
    ) -> Answer:
        """Send a request and read the whole response."""
        connection = await self.connect()
        await connection.ask(target, method=method, fields=fields, body=body, host=host)
        answer = await connection.answer(method=method)
        connection.close()
        if (cache := self.cache) is not None:
            await until(lambda: cache.flights.running == 0)
        return answer

    async def get(self, target: str, **fields: str) -> Answer:
        """Send a GET with these header fields, underscores for dashes."""
        return await self.ask(target, fields=[(name.replace("_", "-"), value) for name, value in fields.items()])


@dataclass(slots=True)
class Origin:
    """An app that counts its calls and answers as it is told to, in raw ASGI."""

    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"content-type", b"text/plain")])
    pieces: list[bytes] | None = None
    calls: int = 0

    def body(self) -> bytes:
        """Return what the next call answers, unless `pieces` says otherwise."""
        return b"answer %d" % self.calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            raise RuntimeError("knows no lifespan")
        self.calls += 1
        pieces = self.pieces if self.pieces is not None else [self.body()]
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        for number, piece in enumerate(pieces, 1):
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(pieces)})


class Exchange:
    """One request to an app without a server: what it sends, in order and at once."""

    def __init__(
        self,
        app: ASGIApp,
        path: str = "/",
        *,
        method: str = "GET",
        query: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes | None = None,
        **scope: object,
    ) -> None:
        host = [] if any(name == b"host" for name, _ in headers) else [(b"host", b"test")]
        length = [(b"content-length", b"%d" % len(body))] if body is not None else []
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "root_path": "",
            "headers": [*host, *length, *headers],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 80),
            **scope,
        }
        self._app = app
        self._body: list[Message] = [{"type": "http.request", "body": body or b"", "more_body": False}]
        self.messages: list[Message] = []
        self.reading = asyncio.Event()
        """Cleared: the client takes nothing, and `send` waits."""
        self.reading.set()
        self.gone = asyncio.Event()
        """Set: the client has left."""
        self._sent = asyncio.Event()

    async def receive(self) -> Message:
        """Be the app's `receive`."""
        if self._body:
            return self._body.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Be the app's `send`."""
        await self.reading.wait()
        self.messages.append(message)
        self._sent.set()

    async def run(self) -> Self:
        """Send the request and wait for the app's return."""
        async with asyncio.timeout(PATIENCE):
            await self._app(self.scope, self.receive, self.send)
        return self

    async def sent(self, number: int) -> Message:
        """Wait for a message by its number, from 0."""
        async with asyncio.timeout(PATIENCE):
            while len(self.messages) <= number:
                self._sent.clear()
                await self._sent.wait()
        return self.messages[number]

    @property
    def answer(self) -> Answer:
        """What came."""
        start = next(message for message in self.messages if message["type"] == "http.response.start")
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
        return Answer(start["status"], fields, b"".join(message.get("body", b"") for message in self.messages))


async def ask(app: ASGIApp, path: str = "/", **options: object) -> Answer:
    """Send a request to an app without a server."""
    return (await Exchange(app, path, **options).run()).answer  # type: ignore[arg-type]


async def until(condition: Callable[[], object], what: str = "what was expected") -> None:
    """Poll until a condition holds."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 - what it waits for has no event
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what} did not happen") from None
