"""One connection to the server that carries the commands of a loop turn together and is answered in order.

A pool hands each command a connection of its own and runs dry when many wait (redis-py's raises at 100). Here
everything that is asked for in one turn of the event loop leaves in one write, on one socket, whatever the
number of waiting requests; the server answers in order. Connecting, TLS, authentication and parsing are
redis-py's.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, NoReturn, Protocol, TypeAlias

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    BusyLoadingError,
    MasterDownError,
    ReadOnlyError,
    RedisError,
)

from nexcache.ending import end
from nexcache.errors import StoreError, StoreRefused, StoreUnavailable
from nexcache.stores.door import Door
from nexcache.stores.faults import classify
from nexcache.stores.wire import ANSWERS, Wire

Command: TypeAlias = tuple[Any, ...]

_PACE: Final = 0.5
"""By how much of the difference one answer moves the pace."""
_PACE_HOLDS: Final = 10.0
"""Seconds after which an answer says nothing of now."""
_ENOUGH: Final = 32
"""Reads that leave before the end of a turn, so that the server is at work while further ones are asked for."""
START: Final = 128
"""Bytes of a value that are read again: more than what comes before its payload, the MAC included."""
_REFUSED_FOR: Final = 60.0
"""Seconds for which a server is not asked again for what it does not permit."""
_ALIKE: Final = 0.002
"""Seconds by which the deadline of what is read with one command may be too early for some of it."""
_PUT_OFF: Final = 2
"""Turns of the event loop for which commands wait for further ones while answers are still to come."""
_MOST_WAITING: Final = 20_000
_ENDING: Final = 1.0
"""Seconds for which nothing is begun on a connection whose task somebody else has cancelled: the loop is ending."""
_MISPLACED: Final = (ReadOnlyError, MasterDownError, BusyLoadingError)
"""Answers of a server that is not, or not yet, the one to ask."""
_DROPS_APART: Final = 0.1
"""Seconds between two connections that are given up for such an answer: a storm of new ones helps nobody."""


class Epoch(Protocol):
    """How the history of a server is told apart from any other: which commands to send, and what answers mean."""

    commands: Sequence[Command]

    def of(self, replies: Sequence[Any]) -> bytes:
        """Return a digest of the answers; raises StoreRefused if they do not tell."""


class Asked:
    """A group of commands that was handed to a lane."""

    __slots__ = (
        "commands",
        "count",
        "deadline",
        "future",
        "history",
        "misplaced",
        "on_sent",
        "repeatable",
        "replies",
        "sent_at",
    )

    def __init__(
        self,
        commands: Sequence[Command],
        future: "asyncio.Future[tuple[list[Any], bytes]]",
        deadline: float,
        on_sent: Callable[[], None] | None = None,
        *,
        repeatable: bool = True,
    ) -> None:
        self.commands = commands
        self.count = len(commands)
        self.future: asyncio.Future[tuple[list[Any], bytes]] = future
        self.history = False
        """It asks for the server's history, for the lane itself."""
        self.deadline = deadline
        self.on_sent = on_sent
        self.repeatable = repeatable
        self.replies: list[Any] = []
        self.misplaced = False
        """One of the answers came from a server that is not the one to ask."""
        self.sent_at = math.inf

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.done()

    def packed(self) -> Sequence[bytes]:
        """Write the commands down as they are sent."""
        return [pack_command(command) for command in self.commands]

    def answer(self, epoch: bytes) -> None:
        """Give the answers to whoever waits."""
        if not self.future.done():
            self.future.set_result((self.replies, epoch))

    def fail(self, error: StoreError) -> None:
        """Tell whoever waits."""
        if not self.future.done() and not self.history:
            self.future.set_exception(error)


class Before:
    """What was read of an entry and its generations, and the commands that tell whether it still is.

    The entry is told by its beginning: that holds a MAC of the rest, which was verified, and need not come again.
    """

    __slots__ = ("entry", "epoch", "generations", "number", "start", "tokens")

    def __init__(self, keys: Sequence[bytes], values: Sequence[bytes | None], epoch: bytes) -> None:
        name, *generations = map(_argument, keys)
        value, *tokens = values
        self.entry = b"*4\r\n$8\r\nGETRANGE\r\n%b$1\r\n0\r\n%b" % (name, _argument(b"%d" % (START - 1)))
        self.generations = b"".join(generations)
        self.number = len(tokens)
        self.start = (value or b"")[:START]
        self.tokens = tokens
        self.epoch = epoch


class Again(Asked):
    """Several requests' question whether what was read before is still so: a short read of each, and one MGET."""

    __slots__ = ("asked_at", "lane", "loop", "number", "places", "started", "took", "until", "waiting")

    def __init__(
        self, lane: "Lane", loop: asyncio.AbstractEventLoop, *, started: float, now: float, until: float
    ) -> None:
        self.lane = lane
        self.loop = loop
        self.started = started
        self.until = until
        """Until when each of them waits, by the loop's clock."""
        self.asked_at = now
        self.took = 0.0
        """Seconds until it was answered."""
        self.waiting: list[tuple[asyncio.Future[bool], Before]] = []
        self.places: dict[bytes, slice] = {}
        """Where the tokens of generations stand among those that are read; many requests have the same."""
        self.number = 0
        """How many tokens are read."""
        self.count = 0
        self.history = self.misplaced = False
        self.deadline = min(until, now + lane.timeout)
        self.on_sent = None
        self.repeatable = True
        self.replies = []
        self.sent_at = math.inf

    def join(self, before: Before, started: float) -> "asyncio.Future[bool] | None":
        """Ask with the others whether what was read before is still so; None where it is too late for that.

        `started` is `time.perf_counter()` of now, or of a little ago. The future may raise StoreError; to whoever waits
        for it on another event loop it raises RuntimeError, so that nobody needs to ask which loop this is.
        """
        lane = self.lane
        if lane.joinable is not self or started - self.started > _ALIKE:
            return None
        future: asyncio.Future[bool] = self.loop.create_future()
        waiting, generations = self.waiting, before.generations
        waiting.append((future, before))
        if generations not in self.places:
            end = self.number + before.number
            self.places[generations] = slice(self.number, end)
            self.number = end
        if len(waiting) >= _ENOUGH and asyncio.get_running_loop() is self.loop:
            lane.leave()
        return future

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(future.done() for future, _ in self.waiting)

    def packed(self) -> Sequence[bytes]:
        """Write the commands down as they are sent: the entries first, so that the generations are those of later."""
        self.count = len(self.waiting) + 1
        mget = b"*%d\r\n$4\r\nMGET\r\n%b" % (self.number + 1, b"".join(self.places))
        return [*[before.entry for _, before in self.waiting], mget]

    def answer(self, epoch: bytes) -> None:
        """Tell each request whether nothing has changed; an error has, and the long way says what it is."""
        *starts, tokens = self.replies
        if not isinstance(tokens, list):
            tokens = []
        read = {generations: tokens[place] for generations, place in self.places.items()}
        hits = 0
        for (future, before), start in zip(self.waiting, starts, strict=True):
            if not future.done():
                same = start == before.start and read[before.generations] == before.tokens and before.epoch == epoch
                hits += same
                future.set_result(same)
        if hits:
            self.took = asyncio.get_running_loop().time() - self.asked_at
            self.lane.told(hits, self.took)
        if isinstance(starts[0], Exception) and not isinstance(starts[0], _MISPLACED):
            self.lane.refused_again()

    def fail(self, error: StoreError) -> None:
        """Tell all who wait."""
        for future, _ in self.waiting:
            if not future.done():
                future.set_exception(error)


class Lane:
    """Sends groups of commands over one connection, which it opens when it is needed.

    `timeout` in seconds bounds the wait for any answer; a server that has not answered for that long is cut off,
    and all that waited for it fails. After a lost connection a group that may be repeated is sent once more.
    `opening` in seconds bounds how long a connection may take to come about, with TLS and authentication: that goes
    on behind the requests, each of which waits for its own limit only. `told` is how many of those that
    asked `together` were told that it is the same, and how many seconds that took.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractConnection],
        *,
        timeout: float,
        epoch: Epoch,
        renewal: float,
        door: Door | None = None,
        opening: float = 0.0,
        told: Callable[[int, float], None] = lambda _number, _seconds: None,
    ) -> None:
        self._connect = connect
        self.told: Callable[[int, float], None] = told
        self.timeout = timeout
        self._opening = max(timeout, opening)
        self._door = door if door is not None else Door()
        self._epoch_reader = epoch
        self._renewal = renewal
        self._waiting: deque[Asked] = deque()
        self._refused_again_until = -math.inf
        self.joinable: Again | None = None
        """The last of what waits, where more can be read with it."""
        self._sent: deque[Asked] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._wire: Wire | None = None
        self._wire_sends = False
        """What waits leaves at the end of this turn of the event loop."""
        self._send: Callable[[], None] = lambda: None
        self._flush: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None
        self._epoch = b""
        self._epoch_read_at = -math.inf
        self._dropped_at = -math.inf
        self._pace = 0.0
        self._paced_at = -math.inf
        self._cancelled_at = -math.inf
        self.commands: int = 0
        self.connections: int = 0

    def execute(
        self,
        commands: Sequence[Command],
        *,
        deadline: float | None = None,
        on_sent: Callable[[], None] | None = None,
        repeatable: bool = True,
    ) -> Awaitable[tuple[list[Any], bytes]]:
        """Send a group of commands; to be awaited are their answers in order, and the server's epoch.

        An answer that is an error is returned as the exception, not raised. Raises StoreUnavailable, at once or when
        awaited, or StoreRefused where the server refuses the connection as such: that is not tried again for a second.
        """
        loop = asyncio.get_running_loop()
        latest = loop.time() + self.timeout
        future: asyncio.Future[tuple[list[Any], bytes]] = loop.create_future()
        least = latest if deadline is None else min(deadline, latest)
        self._wait_for(loop, Asked(commands, future, least, on_sent, repeatable=repeatable))
        return future

    def together(self, loop: asyncio.AbstractEventLoop, started: float, budget: float) -> "Again | None":
        """Begin to ask for several requests at once whether what was read before is still so.

        What joins it in one turn of the event loop leaves together. `loop` is the running one. None where the server
        has refused to say that. Raises as `execute` does.
        """
        now = loop.time()
        if now < self._refused_again_until:
            return None
        again = Again(self, loop, started=started, now=now, until=now + budget)
        self._wait_for(loop, again)
        self.joinable = again
        return again

    def leave(self) -> None:
        """Send what waits now."""
        self.joinable = None
        self._flush()

    def refused_again(self) -> None:
        """Note that the server does not permit what `together` sends: everything is read whole, for a while."""
        self._refused_again_until = asyncio.get_running_loop().time() + _REFUSED_FOR

    def _wait_for(self, loop: asyncio.AbstractEventLoop, request: Asked) -> None:
        runner = self._runner
        running = runner is not None and not runner.done()
        if loop.time() - self._cancelled_at < _ENDING or (running and runner is not None and runner.cancelling()):
            # a task that is begun now would be destroyed with the loop
            raise StoreUnavailable("connection", "the event loop is ending")
        if not running and (refusal := self._door.refusal) is not None:
            raise refusal
        if len(self._waiting) >= _MOST_WAITING:
            raise StoreUnavailable("busy", "too many commands wait for the store")
        self.joinable = None
        self._waiting.append(request)
        if self._timer is None or self._timer.when() > request.deadline:
            self._watch(loop, request.deadline)
        if not running:
            self._runner = loop.create_task(self._run_until_ended(), name="nexcache-lane")
        elif self._wire is not None:
            if not self._wire_sends:
                self._wire_sends = True
                loop.call_soon(self._send)
        elif self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def pace(self, now: float) -> float:
        """Return about how many seconds an answer takes lately, by the loop's clock; 0 where nobody has asked.

        Measured where the epoch is asked for, not at every answer; one that did not come counts as the limit.
        """
        return self._pace if now - self._paced_at < _PACE_HOLDS else 0.0

    def _took(self, seconds: float, now: float) -> None:
        self._pace += _PACE * (seconds - self._pace)
        self._paced_at = now

    async def aclose(self) -> None:
        """Close the connection; what waits fails, and the next command opens it again."""
        runner, self._runner = self._runner, None
        await end(runner)
        self._fail_all(StoreUnavailable("connection", "the connection was closed"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def drop(self, error: StoreError | None = None) -> None:
        """Give the connection up at once; what waits fails, and the next command opens another one."""
        self._fail_all(error if error is not None else StoreUnavailable("connection", "the connection was given up"))
        self._wire = None  # nothing more leaves on it, even before its task has ended
        if self._runner is not None:
            self._runner.cancel()
            self._runner = None

    async def _run_until_ended(self) -> None:
        try:
            await self._run()
        except asyncio.CancelledError:
            if self._runner is asyncio.current_task():  # neither closed nor given up by this lane
                self._cancelled_at = asyncio.get_running_loop().time()
            raise

    async def _run(self) -> None:
        """Open a connection and serve it until it is lost; start over as long as something waits."""
        while True:
            connection = self._connect()
            try:
                await self._open(connection)
            except StoreError as error:
                await _close(connection)
                self._fail_all(error)
                return
            except BaseException:
                await _close(connection)
                raise
            if self._runner is not asyncio.current_task():  # ended meanwhile, and `wait_for` of 3.11 may forget that
                await _close(connection)
                return
            self.connections += 1
            sent: deque[Asked] = deque()
            self._sent = sent
            try:
                lost = await self._serve(connection, sent)
            except BaseException:
                for request in sent:  # whoever ended this may have forgotten these: nobody waits for ever
                    request.fail(StoreUnavailable("connection", "the connection was closed"))
                raise
            finally:
                self.connections -= 1
                await _close(connection)
            self._requeue(sent, lost)
            if not self._waiting:
                return

    async def _open(self, connection: AbstractConnection) -> None:
        try:
            async with asyncio.timeout(self._opening):
                await self._door.enter(connection)
                for command in self._epoch_reader.commands:
                    await connection.send_command(*command, check_health=False)
                self._epoch = self._epoch_reader.of([await _answer(connection) for _ in self._epoch_reader.commands])
                self._epoch_read_at = asyncio.get_running_loop().time()
                self._door.opened()
        except StoreRefused as refusal:
            if self._door.refusal is None:  # it let us in, and refuses what we need to know
                self._door.refused(refusal)
            raise
        except (RedisError, OSError, TimeoutError) as error:
            raise classify(error) from error

    async def _serve(self, connection: AbstractConnection, sent: deque[Asked]) -> StoreError:
        """Write and read until either ends; returns why it ended."""
        wire = Wire.over(connection, partial(self._take, sent))
        if wire is not None:
            return await self._serve_over(wire)
        writer = asyncio.create_task(self._write(connection, sent), name="nexcache-lane-writer")
        reader = asyncio.create_task(self._read(connection, sent), name="nexcache-lane-reader")
        try:
            done, _ = await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
            errors = [error for task in done if (error := task.exception()) is not None]
            return classify(errors[0])
        finally:
            await end(writer, reader)

    async def _serve_over(self, wire: Wire) -> StoreError:
        """Write and read without a task for either."""
        loop = asyncio.get_running_loop()

        put_off = 0

        def send() -> None:
            nonlocal put_off
            if self._sent and put_off < _PUT_OFF:  # those that are answered soon ask again: they leave together
                put_off += 1
                loop.call_soon(send)
                return
            put_off = 0
            self._wire_sends = False
            flush()

        def flush() -> None:
            if self._wire is wire and self._waiting and not wire.paused:
                try:
                    if packed := self._batch(self._sent, loop.time()):
                        wire.write(packed)
                except Exception as error:  # noqa: BLE001 - what is under way cannot be told apart any more
                    wire.fail(error)

        self._wire, self._wire_sends, self._send, self._flush = wire, False, send, flush
        wire.on_resume = send
        send()
        try:
            return classify(await wire.ended)
        finally:
            if self._wire is wire:
                self._wire = None

    async def _write(self, connection: AbstractConnection, sent: deque[Asked]) -> NoReturn:
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                self._wake = loop.create_future()
                await self._wake
                continue
            if packed := self._batch(sent, loop.time()):
                await connection.send_packed_command(packed, check_health=False)

    def _batch(self, sent: deque[Asked], now: float) -> bytes:
        """Write down all that waits, in its order; from here on it is sent."""
        batch: list[bytes] = []
        if self._epoch_reader.commands and now - self._epoch_read_at >= self._renewal:
            self._epoch_read_at = now
            future = asyncio.get_running_loop().create_future()
            question = Asked(self._epoch_reader.commands, future, math.inf, repeatable=False)
            question.history = True
            question.sent_at = now  # it may be the first that a silent server does not answer
            sent.append(question)
            batch += map(pack_command, self._epoch_reader.commands)
        waiting, self.joinable = self._waiting, None
        while waiting:
            request = waiting.popleft()
            if request.is_over:
                continue
            if request.on_sent is not None:
                request.on_sent()
            request.sent_at = now
            sent.append(request)
            batch += request.packed()
        self.commands += len(batch)
        return b"".join(batch)

    async def _read(self, connection: AbstractConnection, sent: deque[Asked]) -> NoReturn:
        while True:
            answer = await _answer(connection)
            self._take(sent, [answer], isinstance(answer, Exception))

    def _take(self, sent: deque[Asked], answers: list[Any], errors: bool) -> None:
        """Give answers, of which some may be `errors`, to whoever asked first of those that have none."""
        place, number = 0, len(answers)
        while place < number:
            if not sent:
                raise StoreUnavailable("connection", "the server sent an answer that nobody asked for")
            request = sent[0]
            end = place + request.count - len(request.replies)
            some = answers if place == 0 and end == number else answers[place:end]
            place = end
            if request.replies:
                request.replies += some
            else:
                request.replies = some
            if errors and any(isinstance(answer, _MISPLACED) for answer in some):
                request.misplaced = True
            if end <= number:
                sent.popleft()
                self._answered(request)

    def _answered(self, request: Asked) -> None:
        if request.history:
            self._epoch = self._epoch_reader.of(request.replies)
            now = asyncio.get_running_loop().time()
            self._took(now - request.sent_at, now)
        else:
            request.answer(self._epoch)
        if request.misplaced:
            now = asyncio.get_running_loop().time()
            if now - self._dropped_at > _DROPS_APART:
                # this server became a replica, or is not ready: ask for the right one on a new connection, where
                # what has been sent on this one is repeated
                self._dropped_at = now
                raise StoreUnavailable("connection", "the server is not the primary, or is loading its data")

    def _requeue(self, sent: deque[Asked], error: StoreError) -> None:
        """After a lost connection: what may be repeated waits again, once; the rest fails."""
        for request in reversed(sent):
            if request.repeatable and isinstance(error, StoreUnavailable) and error.kind == "connection":
                request.repeatable = False
                request.replies, request.misplaced = [], False
                self._waiting.appendleft(request)
            else:
                request.fail(error)
        sent.clear()

    def _fail_all(self, error: StoreError) -> None:
        self.joinable = None
        for queue in (self._waiting, self._sent):
            while queue:
                queue.popleft().fail(error)

    def _watch(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        """Keep one timer for all that waits: deadlines come in about the order of the requests."""
        if self._timer is None or self._timer.when() > deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(deadline, self._due)

    def _due(self) -> None:
        # where the loop was held up, answers that came in time are read in its next turn
        self._timer = None
        asyncio.get_running_loop().call_soon(self._expire)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        error = StoreUnavailable("timeout", "the store did not answer in time")
        self.joinable = None  # its time may be over: who joined it now would not be watched
        next_deadline = math.inf
        for request in (*self._sent, *self._waiting):
            if request.history or request.is_over:
                continue
            if request.deadline <= now:
                self._took(self.timeout, now)
                request.fail(error)
            else:
                next_deadline = min(next_deadline, request.deadline)
        if self._sent and self._runner is not None:
            silent_at = self._sent[0].sent_at + self.timeout * 0.99
            if now >= silent_at:
                # silent for as long as any answer may take: the socket is of no more use, nor is what waits for it
                self.drop(error)
                return
            next_deadline = min(next_deadline, silent_at)
        if next_deadline < math.inf:
            self._watch(loop, next_deadline)


def _argument(text: bytes) -> bytes:
    """Write an argument of a command down as it is sent."""
    return b"$%d\r\n%b\r\n" % (len(text), text)


async def _answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response(timeout=math.inf, disconnect_on_error=False)
    except ANSWERS as error:
        return error


async def _close(connection: AbstractConnection) -> None:
    try:
        await connection.disconnect()
    except (RedisError, OSError, TimeoutError):
        pass
