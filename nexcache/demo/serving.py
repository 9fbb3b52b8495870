"""Listening on loopback, and serving an app inside a running event loop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Final

import uvicorn

HOST: Final = "127.0.0.1"
PORT: Final = 8080
"""Where the demo listens if no port is asked for; any free one if that is taken."""


class PortTaken(Exception):  # noqa: N818 - reads as what it says
    """The port that was asked for cannot be listened on; the message is one sentence."""


def listen(port: int | None) -> socket.socket:
    """Listen on a port of loopback; raises PortTaken, with None only if there is no port at all."""
    for candidate in (PORT, 0) if port is None else (port,):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, candidate))
            listener.listen()
        except OSError as error:
            listener.close()
            if candidate in (port, 0):
                raise PortTaken(
                    f"cannot listen on {HOST}:{candidate}: {error.strerror}; choose another --port"
                ) from error
        else:
            return listener
    raise AssertionError


@contextlib.asynccontextmanager
async def serving(config: uvicorn.Config, listener: socket.socket) -> AsyncIterator[None]:
    """Serve until the end of the block, then answer what is under way and stop."""
    server = _Server(config)
    served = asyncio.create_task(server.serve([listener]))
    ready = asyncio.create_task(server.ready.wait())
    await asyncio.wait([served, ready], return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    try:
        if not served.done():
            yield
    finally:
        server.should_exit = True
        await served


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # the demo ends the readers first, then the server
        yield
