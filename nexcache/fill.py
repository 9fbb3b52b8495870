"""One call of the app whose answer goes to the client that caused it as it comes, and to the cache when it is complete.

The app runs in a task of its own: neither a slow client nor one that goes away holds up those who wait for
the same answer. As soon as it is clear that nothing will be stored, app and client are connected directly again:
back pressure, disconnects and endless streams work as if there were no cache.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, TypeAlias

from nexcache.asgi import ASGIApp, Headers, Message, Receive, Scope
from nexcache.semantics.storing import Storable
from nexcache.telemetry.names import NotStoredReason

_IN_FLIGHT: Final = 16
"""Messages that may wait for the client once nothing is stored."""
_DETACHED: Final = 30.0
"""Seconds that a computation may go on after its client has left."""
_HARMLESS: Final = frozenset(("http.response.debug", "http.response.early_hint", "http.response.push"))


@dataclass(frozen=True, slots=True)
class Complete:
    """The whole answer, as the app sent it."""

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Unstorable:
    """The answer cannot be shared; those who wait for it go on by themselves."""

    reason: NotStoredReason


@dataclass(frozen=True, slots=True)
class Failed:
    """The app raised, was cancelled, sent a server error or did not finish its answer."""

    reason: NotStoredReason


Outcome: TypeAlias = Complete | Unstorable | Failed
Decide: TypeAlias = Callable[[int, Headers, bool], Storable | NotStoredReason]


class Fill:
    """A running computation: its leader takes the messages, its followers wait for the outcome."""

    def __init__(
        self,
        *,
        app: ASGIApp,
        scope: Scope,
        receive: Receive,
        body: bytes,
        decide: Decide,
        max_body: int,
        keep: Callable[[Complete], Awaitable[None]],
        around: AbstractContextManager[None] | None = None,
    ) -> None:
        self._app = app
        self._scope = scope
        self._client = receive
        self._body = body
        self._decide = decide
        self._max_body = max_body
        self._keep = keep
        self._around = around if around is not None else nullcontext()
        loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Outcome] = loop.create_future()
        self.followers = 0
        self.error: BaseException | None = None
        self.not_stored: NotStoredReason | None = None
        self._messages: deque[Message] = deque()
        self._chunks: list[bytes] | None = []
        self._size = 0
        self._start: Message | None = None
        self._started = False
        self._finished = False
        self._asked = False
        self._detached = False
        self._direct = asyncio.Event()
        self._news: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._released: Callable[[], None] | None = None
        self.task = loop.create_task(self._run(), name="nexcache-fill")

    # --- the leader's side -------------------------------------------------------------------------------

    async def next(self) -> Message | None:
        """Return the app's next message, or None after the last; then `join` tells how the app ended."""
        while not self._messages:
            if self._finished or self.task.done():
                return None
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        message = self._messages.popleft()
        if self._drained is not None and not self._drained.done() and len(self._messages) < _IN_FLIGHT:
            self._drained.set_result(None)
        return message

    async def join(self) -> None:
        """Wait until the app has returned, background tasks included; raises what it raised."""
        await asyncio.wait((self.task,))
        if self.error is not None:
            raise self.error

    def detach(self) -> None:
        """The leader is gone: what may be stored is finished for the others, the rest is ended."""
        self._detached = True
        if self.task.done():
            return
        if self._chunks is None and not self._finished:
            self.task.cancel()
        else:
            asyncio.get_running_loop().call_later(_DETACHED, self.task.cancel)

    @property
    def complete(self) -> Complete | None:
        """The whole answer, if it has been computed already."""
        if self.outcome.done() and isinstance(outcome := self.outcome.result(), Complete):
            return outcome
        return None

    def on_release(self, callback: Callable[[], None]) -> None:
        """Call back once, as soon as the answer is stored, or it is clear that it will not be."""
        self._released = callback

    # --- the app's side ----------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            with self._around:
                await self._app(self._scope, self._receive, self._send)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the leader raises it again
            self.error = error
            self._settle(Failed(NotStoredReason.FAILED))
            if self._detached and not isinstance(error, asyncio.CancelledError):
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "the app failed after its client had left", "exception": error}
                )
        finally:
            self._settle(Failed(NotStoredReason.TRUNCATED))
            self._chunks = None
            self._direct.set()
            self._release()
            self._wake()

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        # while the answer may be stored its computation does not depend on the client that caused it
        await self._direct.wait()
        return await self._client()

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.body":
            message = self._copy(message)
        elif kind == "http.response.start":
            self._begin(message)
        elif kind not in _HARMLESS:  # trailers, pathsend, zerocopysend and whatever comes after them
            self._give_up(NotStoredReason.UNBUFFERED)
            self._finished = kind == "http.response.pathsend" or (
                kind == "http.response.trailers" and not message.get("more_trailers", False)
            )
        self._messages.append(message)
        complete = self._completed() if self._finished else None
        self._wake()
        if complete is not None:
            await self._keep(complete)
            self._release()
        elif self._chunks is None and not self._finished and len(self._messages) >= _IN_FLIGHT:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def _begin(self, message: Message) -> None:
        self._start = message
        headers = tuple((bytes(name), bytes(value)) for name, value in message.get("headers", ()))
        decision = self._decide(message["status"], headers, bool(message.get("trailers", False)))
        if isinstance(decision, NotStoredReason):
            self._give_up(decision)

    def _copy(self, message: Message) -> Message:
        body = message.get("body", b"")
        if not isinstance(body, bytes):  # a buffer that the app may use again
            body = bytes(body)
            message = {**message, "body": body}
        if self._chunks is not None:
            self._size += len(body)
            if self._size > self._max_body:
                self._give_up(NotStoredReason.TOO_LARGE)
            else:
                self._chunks.append(body)
        if not message.get("more_body", False) and not (self._start or {}).get("trailers", False):
            self._finished = True
        return message

    def _completed(self) -> Complete | None:
        """At the last message: the whole answer, unless it is not to be stored or not whole."""
        chunks, self._chunks = self._chunks, None
        self._direct.set()
        if chunks is None or self._start is None:
            return None
        headers = tuple((bytes(name), bytes(value)) for name, value in self._start.get("headers", ()))
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        announced = [value for name, value in headers if name.lower() == b"content-length"]
        if any(value.strip() != b"%d" % len(body) for value in announced):
            self._give_up(NotStoredReason.TRUNCATED)
            return None
        complete = Complete(self._start["status"], headers, body)
        self._settle(complete)
        return complete

    def _give_up(self, reason: NotStoredReason) -> None:
        self._chunks = None
        status = self._start["status"] if self._start is not None else 0
        failed = status >= 500 or reason is NotStoredReason.TRUNCATED  # noqa: PLR2004
        self._settle(Failed(reason) if failed else Unstorable(reason))
        self._direct.set()
        if self._detached:
            self.task.cancel()

    def _settle(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)
            if not isinstance(outcome, Complete):
                self.not_stored = outcome.reason
                self._release()

    def _release(self) -> None:
        released, self._released = self._released, None
        if released is not None:
            released()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
