"""The reverse proxy: what passes, what stays on its connection, and what is answered when the upstream fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from nexcache.asgi import Message, Scope
from nexcache.errors import ConfigurationError, OriginFailed
from nexcache.proxy import Gateway, Upstream

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


class Origin:
    """A server that answers as it is told, and remembers what it was sent."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.answers: list[bytes | Handler] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = b""
                lines = head.lower().split(b"\r\n")
                length = [line for line in lines if line.startswith(b"content-length:")]
                if length:
                    body = await reader.readexactly(int(length[0].partition(b":")[2]))
                elif b"transfer-encoding: chunked" in lines:
                    body = await reader.readuntil(b"0\r\n\r\n")
                self.requests.append(head + body)
                answer = self.answers.pop(0)
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                else:
                    await answer(reader, writer, head)
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    made = Origin()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@pytest.fixture
async def upstream(origin: Origin) -> AsyncIterator[Upstream]:
    async with Upstream(f"http://127.0.0.1:{origin.port}/base", read_timeout=5, connect_timeout=5) as made:
        yield made


def scope(method: str = "GET", path: str = "/a", query: bytes = b"", **changes: Any) -> Scope:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"public.example")],
        "client": ("192.0.2.7", 1234),
        **changes,
    }


class Exchange:
    """One request at an ASGI app."""

    def __init__(self, *body: bytes, leaves: bool = False) -> None:
        self.sent: list[Message] = []
        pieces = list(body) or [b""]
        self._messages = [
            {"type": "http.request", "body": piece, "more_body": index + 1 < len(pieces) or leaves}
            for index, piece in enumerate(pieces)
        ]
        self.leaves = asyncio.Event()
        if leaves:
            self.leaves.set()

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def complete(self) -> bool:
        return self.sent[-1].get("more_body") is False


def fields(request: bytes) -> dict[bytes, bytes]:
    return dict(line.split(b": ", 1) for line in request.split(b"\r\n\r\n")[0].split(b"\r\n")[1:])


OK = b"HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 09:00:00 GMT\r\nContent-Length: 2\r\n\r\nok"


async def test_a_request_passes_with_its_path_as_it_was_written(origin: Origin, upstream: Upstream) -> None:
    origin.answers = [OK]
    exchange = Exchange()
    await upstream(scope(path="/a b", raw_path=b"/a%20b%2Fc", query=b"x=1&x=2&;="), exchange.receive, exchange.send)

    assert origin.requests[0].startswith(b"GET /base/a%20b%2Fc?x=1&x=2&;= HTTP/1.1\r\n")
    assert (exchange.status, exchange.body, exchange.complete) == (200, b"ok", True)


async def test_repeated_fields_stay_repeated_in_order(origin: Origin, upstream: Upstream) -> None:
    origin.answers = [b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX: 1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n"]
    exchange = Exchange()
    request = scope(headers=[(b"host", b"h"), (b"accept", b"a"), (b"x-y", b"1"), (b"accept", b"b")])
    await upstream(request, exchange.receive, exchange.send)

    lines = origin.requests[0].split(b"\r\n")
    assert [line for line in lines if line.startswith((b"accept", b"x-y"))] == [b"accept: a", b"x-y: 1", b"accept: b"]
    assert exchange.headers[:3] == [(b"set-cookie", b"a=1"), (b"x", b"1"), (b"set-cookie", b"b=2")]


async def test_what_belongs_to_one_connection_stays_on_it(origin: Origin, upstream: Upstream) -> None:
    origin.answers = [
        b"HTTP/1.1 200 OK\r\nConnection: x-mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n"
    ]
    exchange = Exchange()
    headers = [
        *((b"connection", b"x-hop, close"), (b"x-hop", b"1"), (b"te", b"trailers"), (b"upgrade", b"h2c")),
        *((b"proxy-authorization", b"secret"), (b"expect", b"100-continue"), (b"x-end", b"1"), (b"host", b"h")),
    ]
    await upstream(scope(headers=headers), exchange.receive, exchange.send)

    assert set(fields(origin.requests[0])) == {
        *(b"host", b"x-end", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"via"),
    }
    assert {name for name, _ in exchange.headers} == {b"content-length", b"date", b"via"}


@pytest.mark.parametrize(
    ("preserve", "given", "expected"),
    [
        pytest.param(
            False,
            [(b"host", b"public.example")],
            {b"x-forwarded-for": b"192.0.2.7", b"x-forwarded-host": b"public.example", b"via": b"1.1 nexcache"},
            id="the client's host is handed on",
        ),
        pytest.param(
            True,
            [(b"host", b"public.example"), (b"x-forwarded-for", b"203.0.113.1"), (b"via", b"1.0 edge")],
            {
                b"host": b"public.example",
                b"x-forwarded-for": b"203.0.113.1, 192.0.2.7",
                b"via": b"1.0 edge, 1.1 nexcache",
            },
            id="what proxies before said is added to",
        ),
        pytest.param(
            False,
            [(b"host", b"h"), (b"x-forwarded-host", b"outer"), (b"x-forwarded-proto", b"https")],
            {b"x-forwarded-host": b"outer", b"x-forwarded-proto": b"https"},
            id="the outermost proxy knows best",
        ),
    ],
)
async def test_the_upstream_is_told_who_asked(
    origin: Origin, preserve: bool, given: list[tuple[bytes, bytes]], expected: dict[bytes, bytes]
) -> None:
    origin.answers = [OK]
    exchange = Exchange()
    async with Upstream(f"http://127.0.0.1:{origin.port}", preserve_host=preserve) as upstream:
        await upstream(scope(headers=given), exchange.receive, exchange.send)
    received = fields(origin.requests[0])
    assert {name: received[name] for name in expected} == expected
    assert preserve or received[b"host"] == b"127.0.0.1:%d" % origin.port


async def test_bodies_are_streamed_in_both_directions(origin: Origin, upstream: Upstream) -> None:
    """The answer's first piece is sent on before its last one exists."""
    go_on = asyncio.Event()

    async def slowly(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await writer.drain()
        await go_on.wait()
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")

    origin.answers = [slowly]
    exchange = Exchange(b"one,", b"two")
    request = scope("POST", headers=[(b"host", b"h"), (b"transfer-encoding", b"chunked")])
    passing = asyncio.create_task(upstream(request, exchange.receive, exchange.send))
    async with asyncio.timeout(10):
        while len(exchange.sent) < 2:  # noqa: ASYNC110 - a list tells nobody
            await asyncio.sleep(0.001)
    assert exchange.body == b"first"
    assert not exchange.complete
    go_on.set()
    await passing

    assert exchange.body == b"firstlast"
    assert exchange.complete
    assert origin.requests[0].endswith(b"4\r\none,\r\n3\r\ntwo\r\n0\r\n\r\n")


async def test_a_body_of_known_length_keeps_it(origin: Origin, upstream: Upstream) -> None:
    origin.answers = [OK]
    exchange = Exchange(b"abc", b"def")
    await upstream(scope("PUT", headers=[(b"host", b"h"), (b"content-length", b"6")]), exchange.receive, exchange.send)
    assert fields(origin.requests[0])[b"content-length"] == b"6"
    assert origin.requests[0].endswith(b"\r\n\r\nabcdef")


@pytest.mark.parametrize(
    ("method", "answer", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n", b"77"),
        ("GET", b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nContent-Length: 77\r\n\r\n', None),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", None),
    ],
)
async def test_answers_without_a_body(
    origin: Origin, upstream: Upstream, method: str, answer: bytes, length: bytes | None
) -> None:
    origin.answers = [answer]
    exchange = Exchange()
    await upstream(scope(method), exchange.receive, exchange.send)
    assert dict(exchange.headers).get(b"content-length") == length
    assert exchange.body == b""


async def test_an_answer_without_a_date_gets_one_and_others_keep_theirs(origin: Origin, upstream: Upstream) -> None:
    origin.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", OK]
    first, second = Exchange(), Exchange()
    for exchange in (first, second):
        await upstream(scope(), exchange.receive, exchange.send)
    assert dict(first.headers)[b"date"].endswith(b" GMT")
    assert dict(second.headers)[b"date"] == b"Sat, 21 Nov 2026 09:00:00 GMT"


# --- connections ---------------------------------------------------------------------------------------------------


async def test_connections_are_used_again(origin: Origin, upstream: Upstream) -> None:
    origin.answers = [OK] * 20
    for _ in range(20):
        exchange = Exchange()
        await upstream(scope(), exchange.receive, exchange.send)
    assert origin.connections == 1


async def _closes(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    writer.close()


async def test_a_kept_connection_that_was_closed_meanwhile_costs_nothing(origin: Origin, upstream: Upstream) -> None:
    """The upstream closes it when the second request has already been written."""
    origin.answers = [OK, _closes, OK]
    for _ in range(2):
        exchange = Exchange()
        await upstream(scope(), exchange.receive, exchange.send)
        assert exchange.status == 200
    assert origin.connections == 2
    assert len(origin.requests) == 3


async def test_what_may_not_be_repeated_is_not(origin: Origin, upstream: Upstream) -> None:
    origin.answers = [_closes, OK]
    exchange = Exchange(b"x")
    with pytest.raises(OriginFailed):
        await upstream(
            scope("POST", headers=[(b"host", b"h"), (b"content-length", b"1")]), exchange.receive, exchange.send
        )
    assert len(origin.requests) == 1


# --- failures ------------------------------------------------------------------------------------------------------


async def asked(app: Any, request: Scope | None = None) -> Exchange:
    exchange = Exchange()
    await Gateway(app)(request or scope(), exchange.receive, exchange.send)
    return exchange


async def test_an_upstream_that_is_not_there_is_a_502() -> None:
    async with Upstream("http://127.0.0.1:9") as upstream:
        exchange = await asked(upstream)
    assert exchange.status == 502
    assert dict(exchange.headers)[b"cache-control"] == b"no-store"
    assert b"127.0.0.1" not in exchange.body, "where the upstream is concerns nobody outside"


async def _is_silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter, __: bytes) -> None:
    await reader.read()


async def test_an_upstream_that_does_not_answer_is_a_504(origin: Origin) -> None:
    origin.answers = [_is_silent]
    async with Upstream(f"http://127.0.0.1:{origin.port}", read_timeout=0.1) as upstream:
        assert (await asked(upstream)).status == 504


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
    ],
)
async def test_an_answer_that_breaks_off_is_cut_off_for_the_client_too(
    origin: Origin, upstream: Upstream, answer: bytes
) -> None:
    async def breaks_off(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(answer)
        await writer.drain()

    origin.answers = [breaks_off]
    exchange = await asked(upstream)
    assert exchange.status == 200
    assert exchange.body == b"half"
    assert not exchange.complete


@pytest.mark.parametrize(
    "answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"]
)
async def test_what_is_no_http_is_a_502(origin: Origin, upstream: Upstream, answer: bytes) -> None:
    origin.answers = [answer]
    assert (await asked(upstream)).status == 502


async def test_a_client_that_leaves_ends_its_request(origin: Origin, upstream: Upstream) -> None:
    gone = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await reader.read()
        gone.set()

    origin.answers = [endless]
    exchange = Exchange()
    passing = asyncio.create_task(upstream(scope(), exchange.receive, exchange.send))
    async with asyncio.timeout(10):
        while not exchange.sent:  # noqa: ASYNC110 - a list tells nobody
            await asyncio.sleep(0.001)
        exchange.leaves.set()
        await passing
        await gone.wait()
    assert not exchange.complete


async def test_a_client_that_leaves_before_its_request_is_whole_gets_nothing(
    origin: Origin, upstream: Upstream
) -> None:
    exchange = Exchange(b"begin", leaves=True)
    with pytest.raises(OriginFailed) as caught:
        await upstream(
            scope("POST", headers=[(b"host", b"h"), (b"content-length", b"100")]), exchange.receive, exchange.send
        )
    assert caught.value.status == 400
    assert exchange.sent == []


async def test_no_task_is_left_behind(origin: Origin, upstream: Upstream) -> None:
    origin.answers = [OK]
    before = asyncio.all_tasks()
    await asked(upstream)
    await upstream.aclose()
    left = {task for task in asyncio.all_tasks() - before if "Origin.serve" not in str(task.get_coro())}
    assert left == set()


# --- beside requests -----------------------------------------------------------------------------------------------


async def test_paths_of_its_own_are_answered_by_their_apps() -> None:
    seen: list[tuple[str, str]] = []

    def app(name: str) -> Any:
        async def answer(scope: Scope, _receive: Any, _send: Any) -> None:
            seen.append((name, scope.get("root_path", "")))

        return answer

    gateway = Gateway(app("cached"), paths={"/.nexcache/alive": app("alive"), "/.nexcache": app("admin")})
    exchange = Exchange()
    for path in ("/.nexcache/alive", "/.nexcache/stats", "/.nexcache", "/.nexcachex", "/"):
        await gateway(scope(path=path), exchange.receive, exchange.send)
    assert seen == [
        ("alive", "/.nexcache/alive"), ("admin", "/.nexcache"), ("admin", "/.nexcache"), ("cached", ""), ("cached", ""),
    ]  # fmt: skip


async def test_a_websocket_is_refused_with_a_reason() -> None:
    exchange = Exchange()
    await Gateway(Upstream("http://127.0.0.1:9"))({"type": "websocket"}, exchange.receive, exchange.send)
    assert exchange.sent[0]["type"] == "websocket.close"
    assert "HTTP" in exchange.sent[0]["reason"]


@pytest.mark.parametrize(
    "url", ["", "tempo:3200", "ftp://tempo", "http://", "http://user:pw@tempo", "http://tempo:x", "http://t?x=1"]
)
def test_what_is_no_url_of_a_service_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Upstream(url)
    assert "pw" not in str(caught.value)
