"""Whatever a client sends, the proxy passes on that one request, or none: nothing in it becomes another."""

import asyncio
from typing import Any, Final, TypeAlias

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nexcache.asgi import Message
from nexcache.errors import OriginFailed
from nexcache.proxy import Upstream

Asked: TypeAlias = tuple[str, bytes, bytes, list[tuple[bytes, bytes]]]
TEXT: Final = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"a\r\nx-smuggled: 1", b"\r\n\r\nGET /smuggled HTTP/1.1\r\n", b"a b", b"a\0", b"a\n", b"chunked", b"5"]
    ),
)
NAMES: Final = st.one_of(
    st.sampled_from(
        [b"x-a", b"connection", b"te", b"expect", b"upgrade", b"via", b"x-forwarded-host", b"host", b"x a", b""]
    ),
    st.binary(max_size=6),
)
PATHS: Final = st.one_of(
    st.binary(max_size=12), st.sampled_from([b"a b", b"a\r\nx", b"//evil/", b"http://evil/", b"\xff"])
)
REQUESTS: Final = st.lists(
    st.tuples(
        st.sampled_from(["GET", "HEAD", "DELETE", "G T", "GET /smuggled HTTP/1.1\r\n", "OPTIONS"]),
        PATHS,
        TEXT,
        st.lists(st.tuples(NAMES, TEXT), max_size=4),
    ),
    min_size=1,
    max_size=6,
)


class Service:
    """An upstream that notes every request as it understands it."""

    def __init__(self) -> None:
        self.seen: list[h11.Request] = []
        self.misunderstood: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await reader.read(65_536))
                elif isinstance(event, h11.Request):
                    self.seen.append(event)
                elif isinstance(event, h11.EndOfMessage):
                    answer = connection.send(h11.Response(status_code=204, headers=[]))
                    writer.write((answer or b"") + (connection.send(h11.EndOfMessage()) or b""))
                    if connection.our_state is not h11.DONE:
                        break
                    connection.start_next_cycle()
                elif isinstance(event, h11.ConnectionClosed):
                    break
        except h11.RemoteProtocolError as error:
            self.misunderstood.append(str(error))
        except ConnectionError:
            pass
        finally:
            writer.close()


async def pass_on(requests: list[Asked]) -> tuple[Service, int]:
    """Send requests through the proxy; returns what came out of it, and how many it refused."""
    service, refused = Service(), 0
    server = await asyncio.start_server(service, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(_: Message) -> None:
        pass

    async with server, Upstream(f"http://127.0.0.1:{port}") as upstream, asyncio.timeout(20):
        for method, path, query, headers in requests:
            scope: dict[str, Any] = {
                "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": "/",
                "raw_path": b"/" + path, "query_string": query, "root_path": "", "client": ("1.2.3.4", 5),
                "headers": [(b"host", b"site.example"), *headers],
            }  # fmt: skip
            try:
                await upstream(scope, receive, send)
            except OriginFailed:
                refused += 1
    return service, refused


@settings(max_examples=60, deadline=None)
@example([("GET", b"a", b"", [(b"x-a", b"1")]), ("GET", b"a b", b"", []), ("GET", b"a", b"x\r\ny", [])])
@given(REQUESTS)
def test_whatever_a_client_sends_is_passed_on_as_one_request_or_not_at_all(requests: list[Asked]) -> None:
    service, refused = asyncio.run(pass_on(requests))

    assert service.misunderstood == []
    assert len(service.seen) + refused == len(requests)
    for seen in service.seen:
        assert b"smuggled" not in b" ".join(name for name, _ in seen.headers)
        assert seen.method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS")
        assert seen.target.startswith(b"/")
        assert [value for name, value in seen.headers if name == b"host"][1:] == []
