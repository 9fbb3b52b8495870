"""A client that sends whatever bytes it is told to, and reads what comes back as it is."""

import socket
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Final

Fields = Sequence[Sequence[str]]
PATIENCE: Final = 10.0
_SILENCE: Final = 0.5
"""Seconds after which a server that has been sent half a request is not waited for."""
_OF_THE_MOMENT: Final = frozenset(
    (
        "age",
        "cache-control",
        "cache-status",
        "connection",
        "content-length",
        "date",
        "etag",
        "server",
        "transfer-encoding",
    )
)


@dataclass(slots=True)
class Reply:
    """A response, or what came instead of one (status 0)."""

    status: int
    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    @property
    def cache(self) -> str:
        """What NexCache says that it did."""
        return next((value for name, value in self.fields if name == "cache-status" and "NexCache" in value), "")

    @property
    def hit(self) -> bool:
        """Whether a stored response was used."""
        return self.cache.startswith("NexCache; hit")

    @property
    def seen(self) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the app decides about: without the fields that every answer has anew."""
        return self.status, sorted(pair for pair in self.fields if pair[0] not in _OF_THE_MOMENT), self.body

    def holds(self, text: str) -> bool:
        """Whether a text is anywhere in it."""
        return text in self.body.decode("latin-1") or any(text in name + value for name, value in self.fields)


def write(
    method: str, target: str, fields: Fields, body: bytes | None = None, *, host: str | None = "site.example"
) -> bytes:
    """Write a request down."""
    lines = [
        f"{method} {target} HTTP/1.1",
        *([f"host: {host}"] if host else []),
        *(f"{name}: {value}" for name, value in fields),
    ]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class Wire:
    """One server. Well-formed requests share a connection as long as it lives."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._kept: _Connection | None = None

    def ask(
        self,
        method: str,
        target: str,
        fields: Fields = (),
        body: bytes | None = None,
        *,
        host: str | None = "site.example",
    ) -> Reply:
        """Send a request and read its response."""
        request = write(method, target, fields, body, host=host)
        for _ in range(2):
            connection = self._kept or _Connection(self.port)
            fresh, self._kept = self._kept is None, None
            try:
                connection.send(request)
                reply = connection.reply(method)
            except (OSError, EOFError):
                connection.close()
                if fresh:
                    return Reply(0)
                continue
            if reply.status and ("connection", "close") not in reply.fields:
                self._kept = connection
            else:
                connection.close()
            return reply
        return Reply(0)

    def many(self, requests: Sequence[bytes]) -> list[Reply]:
        """Send requests one behind the other, and read all their responses."""
        with closing(_Connection(self.port)) as connection:
            connection.send(b"".join(requests))
            return [connection.reply("GET") for _ in requests]

    def raw(self, data: bytes, method: str = "GET") -> list[Reply]:
        """Send bytes on a connection of their own, and read every response until the server closes or says no more."""
        replies: list[Reply] = []
        with closing(_Connection(self.port, patience=_SILENCE)) as connection, suppress(OSError, EOFError):
            connection.send(data)
            while not replies or replies[-1].status:
                replies.append(connection.reply(method))
        return replies

    def leave_after(self, request: bytes, size: int) -> int:
        """Send a request, read so many bytes of its response, and leave."""
        with closing(_Connection(self.port)) as connection:
            connection.send(request)
            return connection.some(size)

    def close(self) -> None:
        """Close what is open."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None


class _Connection:
    def __init__(self, port: int, *, patience: float = PATIENCE) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=patience)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        """Write bytes."""
        self._socket.sendall(data)

    def close(self) -> None:
        """Close it."""
        self._file.close()
        self._socket.close()

    def some(self, size: int) -> int:
        """Read up to so many bytes; returns how many there were."""
        return len(self._file.read(size))

    def reply(self, method: str) -> Reply:
        """Read one response; whatever cannot be read as one is a reply without a status."""
        line = self._line()
        words = line.split(b" ", 2)
        if not line.startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
            return Reply(0, body=line + self._file.read(65_536))
        fields = []
        while line := self._line():
            name, _, value = line.partition(b":")
            fields.append((name.decode("latin-1").lower(), value.strip(b" \t").decode("latin-1")))
        status = int(words[1])
        if status < 200:
            return self.reply(method)
        return Reply(status, fields, self._body(method, status, fields))

    def _body(self, method: str, status: int, fields: list[tuple[str, str]]) -> bytes:
        known = dict(fields)
        if method == "HEAD" or status in (204, 304):
            return b""
        if known.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._line() or b"0", 16):
                body += self._file.read(size)
                self._line()
            self._line()
            return body
        if "content-length" in known:
            return self._file.read(int(known["content-length"]))
        return self._file.read()

    def _line(self) -> bytes:
        line = self._file.readline(1024 * 1024)
        if not line:
            raise EOFError
        return line.rstrip(b"\r\n")
