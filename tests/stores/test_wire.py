"""The socket that a lane takes over: what comes is parsed at once, and whatever goes wrong ends it with a reason."""

import asyncio
from typing import Any

import hiredis
import pytest
from redis.exceptions import BusyLoadingError, ResponseError
from redis.exceptions import ConnectionError as Lost

from nexcache.stores.wire import Wire


class Transport:
    """A socket that takes everything."""

    def __init__(self) -> None:
        self.protocol: Any = Before()
        self.written: list[bytes] = []

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def resume_reading(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.written.append(data)


class Before:
    """The client's own protocol."""

    def __init__(self) -> None:
        self.lost: list[Exception | None] = []

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Connection:
    """An open connection of the client, as far as it is looked into."""

    def __init__(self, buffered: bytes = b"") -> None:
        self.transport = Transport()
        errors = {"ERR": ResponseError, "LOADING": BusyLoadingError, "CLOSED": Lost}

        def error(text: str) -> Exception:
            return errors[text.partition(" ")[0]](text)

        reader = hiredis.Reader(replyError=error, notEnoughData=object())
        self._parser = type("Parser", (), {"_reader": reader})()
        self._writer = type("Writer", (), {"transport": self.transport})()
        self._reader = type("Reader", (), {"_buffer": bytearray(buffered)})()


def wire_of(connection: Any, taken: list[Any]) -> Wire:
    wire = Wire.over(connection, lambda answers, _: taken.extend(answers))
    assert wire is not None
    return wire


async def test_answers_are_taken_in_order_however_they_are_cut() -> None:
    taken: list[Any] = []
    wire = wire_of(Connection(), taken)

    for part in (b"+OK\r\n:", b"7\r\n$3\r\na", b"bc\r\n*2\r\n$1\r\nx\r\n$-1\r\n$-1", b"\r\n*-1\r\n"):
        wire.data_received(part)

    assert taken == [b"OK", 7, b"abc", [b"x", None], None, None]
    assert not wire.ended.done()


async def test_an_error_that_answers_a_command_is_an_answer_and_one_of_the_connection_its_end() -> None:
    taken: list[Any] = []
    wire = wire_of(Connection(), taken)

    wire.data_received(b"-ERR no such command\r\n-LOADING the data\r\n+PONG\r\n-CLOSED by the server\r\n+LATE\r\n")

    assert [type(reply) for reply in taken] == [ResponseError, BusyLoadingError, bytes]
    assert isinstance(await wire.ended, Lost)
    wire.data_received(b"+LATER\r\n")
    assert len(taken) == 3


async def test_what_is_no_answer_at_all_ends_it() -> None:
    taken: list[Any] = []
    wire = wire_of(Connection(), taken)

    wire.data_received(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    assert isinstance(await wire.ended, hiredis.ProtocolError)
    assert taken == []


async def test_whoever_takes_an_answer_and_fails_ends_it() -> None:
    def refuse(_: Any, __: bool) -> None:
        raise Lost("nobody asked")

    wire = Wire.over(Connection(), refuse)  # type: ignore[arg-type]
    assert wire is not None
    wire.data_received(b"+OK\r\n")

    assert str(await wire.ended) == "nobody asked"


@pytest.mark.parametrize("error", [None, OSError("reset")])
async def test_a_lost_connection_is_told_to_the_client_too(error: Exception | None) -> None:
    connection = Connection()
    before = connection.transport.protocol
    wire = wire_of(connection, [])

    wire.connection_lost(error)

    assert before.lost == [error]
    ended = await wire.ended
    assert ended is error if error is not None else isinstance(ended, Lost)


async def test_it_says_when_the_socket_takes_more_again() -> None:
    connection, told = Connection(), asyncio.Event()
    wire = wire_of(connection, [])
    wire.on_resume = told.set

    wire.pause_writing()
    assert wire.paused
    wire.resume_writing()

    assert (wire.paused, told.is_set()) == (False, True)
    wire.write(b"PING")
    assert connection.transport.written == [b"PING"]


@pytest.mark.parametrize("connection", [object(), Connection(buffered=b"+OK\r\n")])
async def test_a_connection_of_another_kind_or_with_answers_waiting_is_left_to_the_client(connection: Any) -> None:
    assert Wire.over(connection, lambda _, __: None) is None
