"""What an admin endpoint answers: a document, text, or lines as they come."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from nexcache.asgi import Headers, Receive, Scope, Send

_TITLES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    429: "Too Many Requests",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer."""

    status: int
    body: bytes
    kind: bytes = b"application/json"
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer whose pieces come one by one; the generator is closed when the client has gone."""

    pieces: AsyncGenerator[bytes, None]
    kind: bytes


def document(status: int, value: Mapping[str, Any]) -> Answer:
    """Answer JSON."""
    return Answer(status, json.dumps(value, ensure_ascii=True).encode())


def problem(status: int, detail: str, *, headers: Headers = ()) -> Answer:
    """Answer an error as RFC 9457 has it."""
    value = {"type": "about:blank", "title": _TITLES[status], "status": status, "detail": detail}
    return Answer(status, json.dumps(value, ensure_ascii=True).encode(), b"application/problem+json", headers)


async def send_answer(answer: Answer | Streamed, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer; a stream ends with its generator or with its client."""
    kept = isinstance(answer, Answer) and any(name == b"etag" for name, _ in answer.headers)
    headers = [
        (b"cache-control", b"no-cache" if kept else b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"content-type", answer.kind),
    ]
    if isinstance(answer, Answer):
        headers += [(b"content-length", b"%d" % len(answer.body)), *answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body, "more_body": False})
        return
    headers.append((b"x-accel-buffering", b"no"))  # a proxy must not collect what is to come at once
    async with aclosing(answer.pieces) as pieces:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] != "HEAD":
            await _stream(pieces, receive, send)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _stream(pieces: AsyncGenerator[bytes, None], receive: Receive, send: Send) -> None:
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        while True:
            piece = asyncio.ensure_future(anext(pieces, None))
            try:
                await asyncio.wait((piece, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not piece.done():
                    piece.cancel()
                    await asyncio.gather(piece, return_exceptions=True)
            if piece.cancelled() or gone.done() or (body := piece.result()) is None:
                return
            await send({"type": "http.response.body", "body": body, "more_body": True})
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
