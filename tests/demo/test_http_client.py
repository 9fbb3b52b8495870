import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from nexcache.demo.http_client import Answer, BadAnswer, Connection

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[Connection]:
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    connection = Connection("127.0.0.1", listening.sockets[0].getsockname()[1], {"X-API-Key": "secret"})
    try:
        yield connection
    finally:
        connection.close()
        listening.close()
        await asyncio.gather(*tasks, return_exceptions=True)


def always(*answers: bytes) -> Handler:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for each in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(each)
            await writer.drain()

    return answer


async def test_an_answer_with_a_content_length_is_read_to_its_end() -> None:
    async with server(
        always(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nCache-Status: NexCache; hit\r\n\r\nhello")
    ) as connection:
        assert await connection.get("/x") == Answer(
            200, {"content-length": "5", "cache-status": "NexCache; hit"}, b"hello"
        )


async def test_a_chunked_answer_is_put_together() -> None:
    body = b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: 1\r\n\r\n"
    async with server(always(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)) as connection:
        assert (await connection.get("/x")).body == b"hello"


async def test_one_connection_serves_many_requests() -> None:
    one, two = (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + body for body in (b"1", b"2"))
    async with server(always(one, two)) as connection:
        assert [(await connection.get("/x")).body for _ in range(2)] == [b"1", b"2"]


async def test_a_connection_that_the_server_closed_is_opened_again() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"
    async with server(always(answer)) as connection:
        assert [(await connection.get("/x")).body for _ in range(3)] == [b"1", b"1", b"1"]


async def test_the_key_and_the_host_are_sent() -> None:
    received: list[bytes] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    async with server(keep) as connection:
        assert (await connection.get("/x?y=1")).status == 404
    assert received[0].startswith(b"GET /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"X-API-Key: secret\r\n" in received[0]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", id="half a head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", id="half a body"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="no length"),
        pytest.param(b"SSH-2.0 x y\r\n\r\n", id="no http"),
        pytest.param(b"HTTP/1.1 x\r\n\r\n", id="no status"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="no chunk"),
    ],
)
async def test_what_is_no_complete_answer_is_an_error(answer: bytes) -> None:
    async with server(always(answer)) as connection:
        with pytest.raises(BadAnswer):
            await connection.get("/x")


async def test_a_server_that_is_not_there_is_an_os_error() -> None:
    async with server(always()) as connection:
        pass
    with pytest.raises(OSError, match="Connect"):
        await connection.get("/x")
