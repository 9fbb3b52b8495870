"""The proxy makes each fault, counts it, and is a plain way again afterwards."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from nexcache.testing import FaultProxy


class Echo:
    """A server that repeats what it hears."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.heard = b""


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    made = Echo(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                made.heard += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    for client in Client.all:
        client.writer.transport.abort()
    await asyncio.sleep(0)
    Client.all.clear()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(echo.port) as made:
        yield made


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        Client.all.append(self)

    all: ClassVar[list["Client"]] = []

    @classmethod
    async def to(cls, proxy: FaultProxy) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def say(self, words: bytes) -> bytes:
        self.writer.write(words)
        async with asyncio.timeout(10):
            return await self.reader.readexactly(len(words))

    async def silent(self, words: bytes) -> None:
        self.writer.write(words)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await self.reader.read(1)

    async def ended(self) -> type[Exception] | None:
        """How the connection ends: None in order."""
        try:
            async with asyncio.timeout(10):
                while await self.reader.read(100):
                    pass
        except OSError as error:
            return type(error)
        return None


async def works(proxy: FaultProxy) -> None:
    client = await Client.to(proxy)
    assert await client.say(b"again") == b"again"
    client.writer.close()


async def test_without_a_fault_it_is_a_plain_way_that_ends_when_both_sides_have(proxy: FaultProxy) -> None:
    client = await Client.to(proxy)
    long = bytes(range(256)) * 4096
    assert await client.say(long) == long
    client.writer.write_eof()
    assert await client.ended() is None
    while proxy.open:
        await asyncio.sleep(0)
    assert proxy.seen == {"accepted": 1}


async def test_answers_are_late_and_in_order_and_not_one_after_the_other(proxy: FaultProxy) -> None:
    proxy.delay(0.05, jitter=0.02)
    client = await Client.to(proxy)
    began = time.monotonic()
    for number in range(20):
        client.writer.write(b"%02d" % number)
        await asyncio.sleep(0.001)
    assert await client.say(b"") == b""
    assert await client.reader.readexactly(40) == b"".join(b"%02d" % number for number in range(20))
    assert time.monotonic() - began >= 0.05
    assert 1 <= proxy.seen["delayed"] <= 20


async def test_a_throttled_way_passes_so_many_bytes_a_second(proxy: FaultProxy) -> None:
    proxy.down.rate = 20_000
    client = await Client.to(proxy)
    began = time.monotonic()
    assert len(await client.say(bytes(4_000))) == 4_000
    assert time.monotonic() - began >= 0.1
    assert proxy.seen["throttled"] >= 3


@pytest.mark.parametrize("way", ["up", "down"])
async def test_one_direction_is_a_black_hole(proxy: FaultProxy, echo: Echo, way: str) -> None:
    client = await Client.to(proxy)
    getattr(proxy, way).swallow = True
    await client.silent(b"lost")
    assert echo.heard == (b"lost" if way == "down" else b"")
    assert proxy.seen["swallowed"] == 4
    proxy.heal()
    assert await client.say(b"heard") == b"heard"  # what was swallowed stays so


async def test_one_bit_is_turned_in_as_many_pieces_as_were_asked_for(proxy: FaultProxy) -> None:
    proxy.down.flips = 1
    client = await Client.to(proxy)
    words = bytes(1000)
    assert sum(byte.bit_count() for byte in await client.say(words)) == 1
    assert await client.say(words) == words
    assert proxy.seen["flipped"] == 1


async def test_faults_may_concern_only_those_who_have_said_a_word(proxy: FaultProxy) -> None:
    proxy.only = b"SUBSCRIBE"
    listener, other = await Client.to(proxy), await Client.to(proxy)
    assert await listener.say(b"SUBSCRIBE x") == b"SUBSCRIBE x"
    proxy.down.swallow = True
    await listener.silent(b"y")
    assert await other.say(b"y") == b"y"
    assert proxy.seen["swallowed"] == 1


async def test_connections_are_reset(proxy: FaultProxy) -> None:
    clients = [await Client.to(proxy) for _ in range(3)]
    for client in clients:
        await client.say(b"x")
    proxy.reset()
    assert {await client.ended() for client in clients} == {ConnectionResetError}
    assert proxy.seen["reset"] == 3
    await works(proxy)


async def test_connections_are_closed_in_order(proxy: FaultProxy) -> None:
    client = await Client.to(proxy)
    await client.say(b"x")
    proxy.close()
    assert await client.ended() is None
    assert proxy.seen["closed"] == 1
    await works(proxy)


async def test_a_connection_is_closed_in_one_direction(proxy: FaultProxy, echo: Echo) -> None:
    client = await Client.to(proxy)
    await client.say(b"x")
    proxy.half_close()
    assert await client.ended() is None
    client.writer.write(b"y")
    while echo.heard != b"xy":
        await asyncio.sleep(0.001)
    assert proxy.seen["half-closed"] == 1


async def test_nobody_is_let_in_until_it_heals(proxy: FaultProxy) -> None:
    client = await Client.to(proxy)
    await client.say(b"x")
    proxy.refuse()
    assert await client.ended() is ConnectionResetError
    late = await Client.to(proxy)
    assert await late.ended() is ConnectionResetError
    assert proxy.seen["refused"] == 1
    proxy.heal()
    await works(proxy)


async def test_it_leads_elsewhere(proxy: FaultProxy, echo: Echo) -> None:
    client = await Client.to(proxy)
    await client.say(b"x")
    proxy.lead_to(1)
    assert await client.ended() is ConnectionResetError
    assert await (await Client.to(proxy)).ended() is ConnectionResetError
    assert proxy.seen["unreachable"] == 1
    proxy.lead_to(echo.port)
    await works(proxy)


async def test_the_port_stays_the_same_over_a_stop_in_which_the_kernel_refuses(proxy: FaultProxy) -> None:
    await works(proxy)
    await proxy.aclose()
    with pytest.raises(ConnectionRefusedError):
        await Client.to(proxy)
    await proxy.start()
    await works(proxy)


async def test_nothing_is_left_when_it_is_closed(proxy: FaultProxy) -> None:
    client = await Client.to(proxy)
    await client.say(b"x")
    before = asyncio.all_tasks()
    await proxy.aclose()
    await proxy.aclose()
    assert len(asyncio.all_tasks()) < len(before)
    assert (proxy.open, await client.ended()) == (0, ConnectionResetError)
