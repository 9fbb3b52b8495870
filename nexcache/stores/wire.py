"""The socket of an open connection, taken over from the client that opened it.

Connecting, TLS and authentication are redis-py's; after that, its stream, its tasks and its parser's coroutine would
cost more than a whole read. What comes is given to the same hiredis parser at once, what is to be sent leaves in one
write.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - the client's
    ResponseError,
)

ANSWERS: Final = (ResponseError, AuthenticationError, AuthorizationError, BusyLoadingError)
"""Errors that are a server's answer to one command."""
_PLAIN: Final = frozenset((list, bytes, int, type(None)))
"""What answers are that are no errors."""
Take: TypeAlias = Callable[[list[Any], bool], None]
"""Takes the answers that have come, and whether errors are among them."""


class Wire(asyncio.Protocol):
    """Gives the answers to `take` as they come, and the reason why there are no more to `ended`."""

    def __init__(self, transport: asyncio.Transport, parser: Any, before: asyncio.BaseProtocol, take: Take) -> None:
        self._transport = transport
        self._feed = parser.feed
        self._gets = parser.gets
        self._before = before
        self._take = take
        self.ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.paused = False
        """The socket takes nothing more for now."""
        self.on_resume: Callable[[], None] = lambda: None

    @classmethod
    def over(cls, connection: AbstractConnection, take: Take) -> "Wire | None":
        """Take over the socket of a connection on which nothing is under way; None where it is not one of hiredis."""
        held: Any = connection
        parser: Any = getattr(getattr(held, "_parser", None), "_reader", None)
        reader: Any = getattr(held, "_reader", None)
        transport: Any = getattr(getattr(held, "_writer", None), "transport", None)
        if not hasattr(parser, "feed") or not hasattr(transport, "set_protocol") or getattr(reader, "_buffer", None):
            return None
        wire = cls(transport, parser, transport.get_protocol(), take)
        transport.set_protocol(wire)
        transport.resume_reading()
        return wire

    def write(self, packed: bytes) -> None:
        """Send; what the socket does not take at once is kept."""
        self._transport.write(packed)

    def fail(self, error: Exception) -> None:
        """Take nothing more, for this reason."""
        if not self.ended.done():
            self.ended.set_result(error)

    def data_received(self, data: bytes) -> None:
        """Take the answers out of what has come."""
        if self.ended.done():
            return
        answers: list[Any] = []
        gets, plain, take, errors = self._gets, _PLAIN, answers.append, False
        ending: Exception | None = None
        try:
            self._feed(data)
            while True:
                reply = gets(False)
                if type(reply) not in plain:
                    if not isinstance(reply, Exception):
                        break
                    errors = True
                    if isinstance(reply, ConnectionError) and not isinstance(reply, ANSWERS):
                        ending = reply  # as it would be to the client
                        break
                take(reply)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing on this socket can be relied on
            ending = error
        try:
            if answers:
                self._take(answers, errors)
        except Exception as error:  # noqa: BLE001 - as above
            ending = error
        if ending is not None:
            self.fail(ending)

    def pause_writing(self) -> None:
        """Note that the socket takes nothing more."""
        self.paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self.paused = False
        self.on_resume()

    def eof_received(self) -> None:
        """Note that the server has closed the connection."""
        self.fail(ConnectionError("the server closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is lost, and tell the client, which waits for that when it closes it."""
        self.fail(exc if exc is not None else ConnectionError("the connection was closed"))
        self._before.connection_lost(exc)
