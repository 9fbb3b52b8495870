"""One call of the app whose answer goes to the client that caused it as it comes, and to the cache when it is complete.

The app runs in a task of its own: neither a slow client nor one that goes away holds up those who wait for
the same answer. As soon as it is clear that nothing will be stored, app and client are connected directly again:
back pressure, disconnects and endless streams work as if there were no cache.

    app ── _send ──▶ messages ── next ──▶ the leader's client
                └──▶ copy, up to `max_body` ──▶ outcome ──▶ followers
                                          └──▶ keep
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from nexcache.asgi import ASGIApp, Headers, Message, Receive, Scope
from nexcache.message import StoredResponse
from nexcache.semantics.headers import lasting, lowered
from nexcache.semantics.storing import Storable
from nexcache.semantics.validation import entity_tag
from nexcache.telemetry.names import NotStoredReason

_IN_FLIGHT: Final = 16
"""Messages that may wait for the client once nothing is stored."""
_MOST_PIECES: Final = 8192
"""Messages that a stored body may have come in: smaller pieces cost more memory than they hold."""
_ANEW: Final = frozenset((b"content-length", b"age"))
"""Fields that are stored as they turn out, not as they were sent."""
_HARMLESS: Final = frozenset(("http.response.debug", "http.response.early_hint", "http.response.push"))


class Complete(NamedTuple):
    """The whole answer, as it may be stored and sent to others."""

    response: StoredResponse


@dataclass(frozen=True, slots=True)
class Unstorable:
    """The answer cannot be shared; those who wait for it go on by themselves."""

    reason: NotStoredReason


@dataclass(frozen=True, slots=True)
class Failed:
    """The app raised, was cancelled, sent a server error or did not finish its answer."""

    reason: NotStoredReason


@dataclass(frozen=True, slots=True)
class Overdue:
    """It takes longer than others wait; one of them calls the app itself."""


@dataclass(frozen=True, slots=True)
class Over:
    """A computation has ended: what it stored, if anything, can be looked up."""

    failed: bool = False


Outcome: TypeAlias = Complete | Unstorable | Failed | Overdue | Over
Decide: TypeAlias = Callable[[int, Headers, bool], Storable | NotStoredReason]
Keep: TypeAlias = Callable[[StoredResponse], Awaitable[NotStoredReason | None]]
Build: TypeAlias = Callable[[int, Headers, bytes, float], StoredResponse]
"""Makes what is stored of status, header fields, body, and the seconds that it took."""


class Fill:
    """A running computation: its leader takes the messages, its followers wait for the outcome.

    `body` is the request's, None if it has none and nobody has looked. `decide` says whether the answer may be
    stored, once its header fields are known; `keep` stores it, and returns why it did not; `shareable` says whether
    those who wait may have it before that. `gave_up` is told, once, that nothing will be stored. `around` is entered
    while the app runs. Where `build` is given, what is stored is built before the answer's last piece goes out: whoever
    gave it may send that instead. After `soft_limit` seconds others wait no longer; after `hard_limit` a computation
    whose client has left is ended.
    """

    followers: int = 0
    error: BaseException | None = None
    """What the app raised."""
    complete: StoredResponse | None = None
    """The whole answer, once it is there."""
    not_stored: NotStoredReason | None = None
    """Why nothing is, or was, stored; None as long as that is open."""
    refused: NotStoredReason | None = None
    """Why it is known from the start that it will not be stored; others may have it all the same."""
    finished: bool = False
    """The last message of the answer was sent; the app may have more to do in the background."""
    # of what every miss has, as much as possible is only made where somebody needs it
    _outcome: "asyncio.Future[Outcome] | None" = None
    _result: Outcome | None = None
    _overdue: asyncio.TimerHandle | None = None
    _headers: Headers | None = None
    _status = 0
    _announced: int | None = None
    _trailers = False
    _size = 0
    _given = False
    """The leader has its first message."""
    _news: "asyncio.Future[None] | None" = None
    _room: asyncio.Event | None = None
    _asked = False
    _direct = False
    """App and client are connected directly."""
    _on_direct: asyncio.Event | None = None
    _detached = False
    _released: Callable[[], None] | None = None
    _settled: Callable[[Outcome], None] | None = None
    _leave: asyncio.TimerHandle | None = None

    def __init__(
        self,
        *,
        app: ASGIApp,
        scope: Scope,
        receive: Receive,
        body: bytes | None,
        ttl: float,
        kept_on: float = 0.0,
        max_body: int,
        soft_limit: float,
        hard_limit: float,
        decide: Decide,
        keep: Keep,
        shareable: Callable[[StoredResponse], bool] | None = None,
        gave_up: Callable[[Unstorable | Failed], None],
        around: AbstractContextManager[None] | None = None,
        build: Build | None = None,
    ) -> None:
        self._app = app
        self._scope = scope
        self._client = receive
        self._body = body
        self._max_body = max_body
        self._decide = decide
        self._keep = keep
        self._shareable = shareable
        self._gave_up = gave_up
        self._around = around
        self._build = build if build is not None else partial(_stored, ttl=ttl, kept_on=kept_on)
        self._built_first = build is not None
        self._loop = loop = asyncio.get_running_loop()
        self._began = loop.time()
        self._soft_limit = soft_limit
        self._hard_limit = hard_limit
        self._copied: list[bytes] | None = []
        self._messages: deque[Message] = deque()
        self._unread = body is None
        self.task: asyncio.Task[None] = loop.create_task(self._run(), name="nexcache-fill")

    @property
    def started(self) -> bool:
        """Whether the answer has begun."""
        return self._headers is not None

    # --- the followers' side -----------------------------------------------------------------------------

    @property
    def outcome(self) -> "asyncio.Future[Outcome]":
        """What followers wait for. It comes before the end of the app where that takes too long."""
        if self._outcome is None:
            self._outcome = self._loop.create_future()
            if self._result is not None:
                self._outcome.set_result(self._result)
            else:
                self._overdue = self._loop.call_at(self._began + self._soft_limit, self._release, Overdue())
        return self._outcome

    def may_be_followed(self) -> bool:
        """Whether others may wait for it; once it takes longer than they do, nobody else begins to."""
        if self._loop.time() < self._began + self._soft_limit:
            return True
        self._release(Overdue())
        return False

    def _tell(self, outcome: Outcome) -> None:
        if self._result is None:
            self._result = outcome
            if self._outcome is not None and not self._outcome.done():
                self._outcome.set_result(outcome)

    # --- the leader's side -------------------------------------------------------------------------------

    async def next(self) -> Message | None:
        """Return the app's next message, or None after the last; then `join` tells how the app ended."""
        while not self._messages:
            if self.finished or self.task.done():
                return None
            self._news = self._loop.create_future()
            await self._news
            self._news = None
        message = self._messages.popleft()
        self._given = True
        if self._room is not None and len(self._messages) < _IN_FLIGHT:
            self._room.set()
        return message

    async def join(self) -> None:
        """Wait until the app has returned, background tasks included; raises what it raised."""
        await asyncio.wait((self.task,))
        if self.error is not None:
            raise self.error

    def detach(self) -> None:
        """Go on without the leader: what may be stored is finished for the others, the rest is ended."""
        self._detached = True
        self._messages.clear()
        if self.task.done():
            return
        if self._copied is None and not self.finished:
            self.task.cancel()
        else:
            self._end_later()

    def on_release(self, callback: Callable[[], None]) -> None:
        """Call back once, as soon as nobody else should follow: the answer is stored, or will not be, or takes long."""
        self._released = callback

    def on_settled(self, callback: Callable[[Outcome], None]) -> None:
        """Call back once, when it is clear what became of the answer and, if it was to be stored, it was tried."""
        self._settled = callback

    # --- the app's side ----------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            if self._around is None:
                await self._app(self._scope, self._receive, self._send)
            else:
                with self._around:
                    await self._app(self._scope, self._receive, self._send)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the leader raises it again
            self.error = error
            if self._detached and not isinstance(error, asyncio.CancelledError):
                self._report("the app failed after its client had left", error)
        finally:
            if not self.finished:
                self._give_up(NotStoredReason.TRUNCATED if self.error is None else NotStoredReason.FAILED)
            self._release(Failed(NotStoredReason.TRUNCATED))
            self._settle(Failed(NotStoredReason.TRUNCATED))
            self._connect()
            if self._leave is not None:
                self._leave.cancel()
            self._wake()

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body or b"", "more_body": False}
        message = await self._client()
        while self._unread and message["type"] == "http.request":  # the end of the body, which the app has had above
            self._unread = message.get("more_body", False)
            message = await self._client()
        if message["type"] == "http.disconnect" and not self._direct:
            # others may wait for this answer, or soon ask for it: its client alone does not end it
            self._end_later()
            if self._on_direct is None:
                self._on_direct = asyncio.Event()
            await self._on_direct.wait()
        return message

    async def _send(self, message: Message) -> None:
        match message["type"]:
            case "http.response.body":
                message = self._copy(message)
            case "http.response.start":
                message = self._begin(message)
            case kind if kind not in _HARMLESS:  # trailers, pathsend, zerocopysend and whatever comes after them
                self._give_up(NotStoredReason.UNBUFFERED)
                self.finished = kind == "http.response.pathsend" or (
                    kind == "http.response.trailers" and not message.get("more_trailers", False)
                )
        if not self._detached:
            self._messages.append(message)
        if self.finished or (self._copied is not None and 0 < self._size == self._announced and not self._trailers):
            # whoever has got all that was announced may ask again before the app says that it was all
            if self._given and self._copied is not None and not self._built_first:  # it goes out before it is built
                self._wake()
                await asyncio.sleep(0)
                response = self._completed()
            else:  # who has nothing yet is told whether it is stored
                response = self._completed()
                self._wake()
            if response is not None:
                await self._store(response)
        elif self._copied is not None:
            self._wake()
            if self._news is not None and message.get("more_body", False) and self._size != self._announced:
                # an app that never waits between two pieces would keep the first from its client; one that has sent
                # all that it announced, and only not said so yet (Quart), is about to
                await asyncio.sleep(0)
        elif self._detached:
            self.task.cancel()
            await asyncio.sleep(0)  # for an app that waits for nothing else
        else:
            self._wake()
            if len(self._messages) >= _IN_FLIGHT and self._room is None:
                self._room = asyncio.Event()
            while self._room is not None and len(self._messages) >= _IN_FLIGHT:
                self._room.clear()
                await self._room.wait()

    def _begin(self, message: Message) -> Message:
        if self._headers is not None:  # a second start: the server will refuse it
            self._give_up(NotStoredReason.FAILED)
            return message
        # a copy: the list stays the app's, and what is decided on is what is stored
        given = tuple(message.get("headers", ()))
        headers = self._headers = tuple([lowered(pair) for pair in given])
        self._status, self._trailers = message["status"], bool(message.get("trailers", False))
        decision = self._decide(self._status, self._headers, self._trailers)
        if isinstance(decision, NotStoredReason):
            self._give_up(decision)
        else:
            self._announced = decision.length
        sent = list(headers) if headers == given else [(bytes(name), bytes(value)) for name, value in given]
        return {**message, "headers": sent}

    def _copy(self, message: Message) -> Message:
        body = message.get("body", b"")
        if not isinstance(body, bytes):  # a buffer that the app may use again
            body = bytes(body)
            message = {**message, "body": body}
        if self._copied is not None and not self.finished:
            self._size += len(body)
            self._copied.append(body)
            if self._size > self._max_body or len(self._copied) > _MOST_PIECES:
                self._give_up(NotStoredReason.TOO_LARGE)
        if not message.get("more_body", False) and not self._trailers:
            self.finished = True
        return message

    def _completed(self) -> StoredResponse | None:
        """At the last message: the whole answer, unless it is not to be stored or not whole."""
        copied, self._copied = self._copied, None
        if copied is None:
            return None
        if self._headers is None:  # a body without a start: the server will refuse it
            self._give_up(NotStoredReason.FAILED)
            return None
        body = copied[0] if len(copied) == 1 else b"".join(copied)
        length = b"%d" % len(body)
        for name, value in self._headers:
            if value != length and name == b"content-length" and value.strip() != length:
                self._give_up(NotStoredReason.TRUNCATED)
                return None
        self.complete = self._build(self._status, self._headers, body, self._loop.time() - self._began)
        # asked for in any case: whoever keeps it learns from that, too
        if self._shareable is None or self._shareable(self.complete):
            self._tell(Complete(self.complete))
        return self.complete

    async def _store(self, response: StoredResponse) -> None:
        try:
            self.not_stored = await self._keep(response)
        except Exception as error:  # noqa: BLE001 - the app has answered; that nothing was kept is not its failure
            self.not_stored = NotStoredReason.BACKEND
            self._report("an answer could not be stored", error)
        finally:
            if self._result is None:
                self._tell(self._verdict(response))
            self._release()
            self._settle(Complete(response))
            # not before: an app that hears that its client has gone stops sending, and storing with it
            self._connect()

    def _verdict(self, response: StoredResponse) -> Outcome:
        """Say what those who waited for the attempt to store may do; they may have begun after an invalidation."""
        match self.not_stored:
            case None:
                return Complete(response)
            case NotStoredReason.TAGS:
                return Unstorable(NotStoredReason.TAGS)
            case _:
                return Over()

    # --- the end -------------------------------------------------------------------------------------------

    def _give_up(self, reason: NotStoredReason) -> None:
        """Store nothing: followers go on, and app and client are connected directly."""
        self._copied = None
        self._connect()
        if self.not_stored is None and self.complete is None:
            self.not_stored = reason
            failed = self._status >= 500 or reason in (NotStoredReason.TRUNCATED, NotStoredReason.FAILED)  # noqa: PLR2004
            outcome = Failed(reason) if failed else Unstorable(reason)
            self._gave_up(outcome)
            self._release(outcome)
            self._settle(outcome)

    def _release(self, outcome: Unstorable | Failed | Overdue | None = None) -> None:
        """Let the followers go, and nobody else begin to follow."""
        if self._overdue is not None:
            self._overdue.cancel()
        if outcome is not None:
            self._tell(outcome)
        released, self._released = self._released, None
        if released is not None:
            released()

    def _connect(self) -> None:
        """Connect app and client directly."""
        self._direct = True
        if self._on_direct is not None:
            self._on_direct.set()

    def _settle(self, outcome: Outcome) -> None:
        settled, self._settled = self._settled, None
        if settled is not None:
            settled(outcome)

    def _end_later(self) -> None:
        if self._leave is None:
            since = self._loop.time() if self.finished else self._began  # what follows the answer is not part of it
            self._leave = self._loop.call_at(since + self._hard_limit, self._end)

    def _end(self) -> None:
        """Tell the app that its client has gone, long ago; end it if its leader is gone too."""
        if not self.finished:
            self._give_up(NotStoredReason.TRUNCATED)
        if self._detached:
            self.task.cancel()

    def _report(self, what: str, error: Exception) -> None:
        self._loop.call_exception_handler({"message": what, "exception": error, "task": self.task})

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


def _stored(status: int, headers: Headers, body: bytes, cost: float, *, ttl: float, kept_on: float) -> StoredResponse:
    headers = lasting(headers)
    fields = dict(headers[::-1])  # of each the first
    kept = [pair for pair in headers if pair[0] not in _ANEW]
    etag = fields.get(b"etag")
    if etag is None:
        etag = entity_tag(body, fields.get(b"content-type"))
        kept.append((b"etag", etag))
    if status != 204:  # RFC 9110 §8.6  # noqa: PLR2004
        kept.append((b"content-length", b"%d" % len(body)))
    age = fields.get(b"age") or b""
    initial = int(age) if age.isdigit() and len(age) < 10 else 0  # noqa: PLR2004
    return StoredResponse(status, tuple(kept), body, etag, time.time(), ttl, initial, cost, kept_on)
