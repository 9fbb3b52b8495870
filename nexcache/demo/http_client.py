"""The least HTTP/1.1 client that a simulated reader needs: GET over one loopback connection kept alive."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_LIMIT: Final = 8 * 1024 * 1024
_TIMEOUT_SECONDS: Final = 30.0


class BadAnswer(Exception):  # noqa: N818 - reads as what it says
    """What came back is not an HTTP answer that this client understands, or it broke off."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. Names of header fields are in lower case; of repeated fields the last one is kept."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """One connection at a time to one host; opened when first used, and again when the server closed it.

    Not for concurrent use: one request after the other.
    """

    def __init__(self, host: str, port: int, headers: Mapping[str, str]) -> None:
        self._address = (host, port)
        fields = {"Host": f"{host}:{port}", "Accept": "application/json", **headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def get(self, target: str) -> Answer:
        """Get a path with its query; raises BadAnswer or OSError (TimeoutError after 30 s)."""
        request = f"GET {target} HTTP/1.1\r\n{self._head}".encode("ascii")
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                if self._writer is not None and self._reader is not None and not self._reader.at_eof():
                    try:
                        return await self._exchange(self._reader, self._writer, request)
                    except (ConnectionError, asyncio.IncompleteReadError):
                        # the server may close an idle connection just when we write; GET may be sent again
                        self.close()
                reader, writer = await self._open()
                return await self._exchange(reader, writer, request)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            self.close()
            raise BadAnswer(f"GET {target}: {type(error).__name__}") from error
        except BaseException:
            # half an answer may be left in the connection
            self.close()
            raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.close()
        self._reader, self._writer = await asyncio.open_connection(*self._address, limit=_LIMIT)
        return self._reader, self._writer

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Answer:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.split("\r\n")
        version, status, *_ = status_line.split(" ")
        if version not in ("HTTP/1.1", "HTTP/1.0"):
            raise ValueError(version)
        headers = {
            name.strip().lower(): value.strip()
            for name, separator, value in (line.partition(":") for line in lines)
            if separator
        }
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = await _chunks(reader)
        else:
            body = await reader.readexactly(int(headers.get("content-length", "missing")))
        if headers.get("connection", "").lower() == "close" or version == "HTTP/1.0":
            self.close()
        return Answer(int(status), headers, body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readuntil(b"\r\n")
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return bytes(body)
