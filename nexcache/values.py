"""Values under names of one's own, by tenant: kept until they are deleted or their expiry is over.

They are no entries: no invalidation reaches them, and nothing computes them again. So nothing guesses while the store
is away: calls raise StoreUnavailable, unless `when_away="memory"` was chosen. Then this process goes on with a memory
of its own, and hands what it holds to the store, name by name, once that is back.

An int is stored as the server's own number, so that `increment` is one atomic command; everything else is typed,
signed where there is a signing key, and encrypted on request.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeAlias, TypeVar

from nexcache.errors import ConfigurationError, InvalidName, StoreRefused, StoreUnavailable, ValueUnreadable
from nexcache.key import KeySpace
from nexcache.policy import Duration, seconds
from nexcache.stores.codec import Codec, Seal, Undecodable
from nexcache.tenants import is_valid_id
from nexcache.value_codec import NotDecodable, Types, ValueCodec

Answer = TypeVar("Answer")
_ABSENT: Final = object()
_LONGEST_NAME: Final = 1024
_TYPED: Final = b"\x00"
"""Begins every stored value that is not a number."""
_SMALLEST: Final = -(2**63)
_LARGEST: Final = 2**63 - 1
_SWEPT_EVERY: Final = 1024
_INCREMENT: Final = b"""
local number = redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return number
"""
_PERSIST: Final = b"redis.call('PERSIST', KEYS[1]) return redis.call('EXISTS', KEYS[1])"
_LONGER: Final = b"""
local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left < tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return left == -2 and 0 or 1
"""


# --- what can be asked of a backend ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Get:
    """Read a value; None where there is none."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Put:
    """Write a value; without `ttl_ms` it is kept. `absent`: only where there is none; `present`: where there is one."""

    name: bytes
    data: bytes
    ttl_ms: int | None
    absent: bool = False
    present: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a value; 1 if there was one, else 0."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Exists:
    """Look for a value; 1 if there is one, else 0."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Increment:
    """Add to a number; a value that is not there counts as 0, and only a number without expiry gets `ttl_ms`."""

    name: bytes
    by: int
    ttl_ms: int | None


@dataclass(frozen=True, slots=True)
class Expire:
    """Give a value so many milliseconds from now, or (None) keep it; 1 if there is one, else 0.

    `longer`: unless it has as long already.
    """

    name: bytes
    ttl_ms: int | None
    longer: bool = False


Operation: TypeAlias = Get | Put | Delete | Exists | Increment | Expire


class NotANumber(TypeError):  # noqa: N818 - reads as what it says
    """`increment` met a value that is no whole number, or one that would leave 64 bits."""


class Backend(Protocol):
    """Carries operations out, in order and in one round trip."""

    async def carry_out(self, operations: Sequence[Operation]) -> list[Any]:
        """Return the answers in order, a NotANumber as a value; raises StoreError."""


class Asks(Protocol):
    """A server that takes commands."""

    async def ask(
        self,
        operation: str,
        commands: Sequence[tuple[Any, ...]],
        *,
        repeatable: bool,
        numbers: Sequence[int],
        on_sent: Callable[[], None],
    ) -> list[Any]:
        """Send commands and return their answers; raises StoreError.

        `numbers` are the places of those that may be answered with an error because a value is no number. `on_sent`
        is called when the commands are about to leave.
        """


class Seals(Protocol):
    """Gives each tenant's seal."""

    async def of(self, tenant: str) -> Seal:
        """Return a tenant's seal; raises StoreError."""


class NotAsked(StoreUnavailable):
    """The store is away, and what it was to be asked has not left: it has done nothing."""


class RedisValues:
    """Values in the server."""

    def __init__(self, server: Asks) -> None:
        self._server = server

    async def carry_out(self, operations: Sequence[Operation]) -> list[Any]:
        """Send one command for each operation; after a doubtful failure repeat only what may be done twice."""
        if not operations:
            return []
        numbers = [place for place, each in enumerate(operations) if isinstance(each, Increment)]
        repeatable = not numbers and not any(isinstance(each, Put) and each.absent for each in operations)
        commands = [_command(each) for each in operations]
        sent = False

        def leaving() -> None:
            nonlocal sent
            sent = True

        try:
            answers = await self._server.ask(
                "values", commands, repeatable=repeatable, numbers=numbers, on_sent=leaving
            )
        except StoreUnavailable as error:
            if sent:
                raise
            raise NotAsked(error.kind, str(error)) from error
        return [_plain(operation, answer) for operation, answer in zip(operations, answers, strict=True)]


def _command(operation: Operation) -> tuple[Any, ...]:
    match operation:
        case Get(name):
            return ("GET", name)
        case Put(name, data, ttl_ms, absent, present):
            expiry = () if ttl_ms is None else ("PX", ttl_ms)
            return ("SET", name, data, *expiry, *(("NX",) if absent else ("XX",) if present else ()))
        case Delete(name):
            return ("UNLINK", name)
        case Exists(name):
            return ("EXISTS", name)
        case Increment(name, by, None):
            return ("INCRBY", name, by)
        case Increment(name, by, ttl_ms):
            return ("EVAL", _INCREMENT, 1, name, by, ttl_ms)
        case Expire(name, None):
            return ("EVAL", _PERSIST, 1, name)
        case Expire(name, ttl_ms, longer=True):
            return ("EVAL", _LONGER, 1, name, ttl_ms)
        case Expire(name, ttl_ms):
            return ("PEXPIRE", name, ttl_ms)


def _plain(operation: Operation, answer: Any) -> Any:
    if isinstance(operation, Put):
        return answer is not None
    if isinstance(answer, Exception):
        return NotANumber("the value is no whole number of 64 bits, or would not be one any more")
    return answer


class MemoryValues:
    """Values in this process. Nothing is evicted: over `max_bytes` new ones are refused."""

    def __init__(self, *, max_bytes: int = 64 * 1024 * 1024, clock: Callable[[], float] = time.monotonic) -> None:
        self._values: dict[bytes, tuple[bytes, float]] = {}
        self._max_bytes = max_bytes
        self._clock = clock
        self._bytes = 0
        self._changes = 0

    def __len__(self) -> int:
        """How many values are held, expired ones that nobody asked for included."""
        return len(self._values)

    def forget(self, prefix: bytes) -> int:
        """Remove every value whose key begins with `prefix`; returns how many there were."""
        gone = [name for name in self._values if name.startswith(prefix)]
        for name in gone:
            self._remove(name)
        return len(gone)

    async def carry_out(self, operations: Sequence[Operation]) -> list[Any]:
        """Do all of it now."""
        return [self._one(each) for each in operations]

    def held(self, names: Iterable[bytes]) -> list[Put]:
        """Return what is held under these names, as what would write it elsewhere with the rest of its life."""
        puts = []
        for name in dict.fromkeys(names):
            found = self._get(name)
            if found is not None:
                data, expires_at = found
                left = None if expires_at == float("inf") else max(1, round((expires_at - self._clock()) * 1000))
                puts.append(Put(name, data, left, absent=True))
        return puts

    def names(self, prefix: bytes) -> list[bytes]:
        """Return the names that begin with `prefix`."""
        return [name for name in self._values if name.startswith(prefix)]

    def drop(self, name: bytes) -> bool:
        """Forget a value; whether there was one."""
        found = self._get(name)
        if found is not None:
            self._remove(name)
        return found is not None

    def _one(self, operation: Operation) -> Any:
        match operation:
            case Get(name):
                found = self._get(name)
                return None if found is None else found[0]
            case Put(name, data, ttl_ms, absent, present):
                if (absent or present) and (self._get(name) is None) == present:
                    return False
                self._put(name, data, self._until(ttl_ms))
                return True
            case Delete(name):
                return int(self.drop(name))
            case Exists(name):
                return int(self._get(name) is not None)
            case Increment(name, by, ttl_ms):
                data, expires_at = self._get(name) or (b"0", float("inf"))
                number = _number(data)
                if number is None or not _SMALLEST <= number + by <= _LARGEST:
                    return NotANumber("the value is no whole number of 64 bits, or would not be one any more")
                if expires_at == float("inf"):
                    expires_at = self._until(ttl_ms)
                self._put(name, b"%d" % (number + by), expires_at)
                return number + by
            case Expire(name, ttl_ms, longer):
                found = self._get(name)
                if found is not None:
                    until = self._until(ttl_ms)
                    self._values[name] = (found[0], max(found[1], until) if longer else until)
                return int(found is not None)

    def _until(self, ttl_ms: int | None) -> float:
        return float("inf") if ttl_ms is None else self._clock() + ttl_ms / 1000

    def _get(self, name: bytes) -> tuple[bytes, float] | None:
        found = self._values.get(name)
        if found is not None and found[1] <= self._clock():
            self._remove(name)
            return None
        return found

    def _put(self, name: bytes, data: bytes, expires_at: float) -> None:
        self._changes += 1
        before = self._values.get(name)
        grows = len(data) + (len(name) + 100 if before is None else -len(before[0]))
        if self._changes % _SWEPT_EVERY == 0 or self._bytes + grows > self._max_bytes:
            for each in list(self._values):
                self._get(each)
            before = self._values.get(name)
            grows = len(data) + (len(name) + 100 if before is None else -len(before[0]))
        if grows > 0 and self._bytes + grows > self._max_bytes:
            raise StoreRefused("out-of-memory", "the memory for values is full: nothing is evicted from it")
        self._bytes += grows
        self._values[name] = (data, expires_at)

    def _remove(self, name: bytes) -> None:
        data, _ = self._values.pop(name)
        self._bytes -= len(data) + len(name) + 100


class FallbackValues:
    """Values in the server, and in this process while the server is away.

    What was written here meanwhile is handed over when it is next asked for: where the server has a value under the
    same name, the server's counts. An increment whose fate is not known is raised, never made a second time.
    """

    def __init__(self, server: Backend, memory: MemoryValues) -> None:
        self._server = server
        self._memory = memory

    async def carry_out(self, operations: Sequence[Operation]) -> list[Any]:
        """Ask the server, or this process where the server does not answer."""
        held = self._memory.held(each.name for each in operations) if len(self._memory) else []
        try:
            if held:
                await self._server.carry_out(held)
                for put in held:
                    self._memory.drop(put.name)
            return await self._server.carry_out(operations)
        except StoreUnavailable as error:
            if not isinstance(error, NotAsked) and any(isinstance(each, Increment) for each in operations):
                raise
            return await self._memory.carry_out(operations)


# --- the face -------------------------------------------------------------------------------------------------------


class Pending(Generic[Answer]):
    """An answer of a pipeline, there once its block has ended."""

    def __init__(self) -> None:
        self._answer: list[Answer] = []

    @property
    def value(self) -> Answer:
        """The answer; raises RuntimeError before the end of the block."""
        if not self._answer:
            raise RuntimeError("a pipeline's answers are there once its `async with` block has ended")
        return self._answer[0]

    def answered(self, answer: Answer) -> None:
        """Take the answer."""
        self._answer.append(answer)


@dataclass(frozen=True, slots=True)
class _Call(Generic[Answer]):
    """One call: what to ask, and how to read the answer; both may need the tenant's seal."""

    operation: Callable[[Seal | None], Operation]
    read: Callable[[Any, Seal | None], Answer]


class Values:
    """A tenant's values; every call is one round trip.

    Raises StoreUnavailable while the store is away, unless `when_away="memory"`; StoreRefused where it refuses;
    InvalidName for a name that is empty or longer than 1,024 bytes; ValueUnreadable for a stored value that is
    corrupt, forged, or of a class that is not known here.
    """

    def __init__(
        self, *, tenant: str, backend: Backend, keys: KeySpace, codec: Codec, types: Types, seals: Seals | None = None
    ) -> None:
        if not is_valid_id(tenant):
            raise InvalidName(f"not a tenant's id: {tenant!a}")
        self._tenant = tenant
        self._keys = keys
        self._backend = backend
        self._codec = codec
        self._values = ValueCodec(types)
        self._seals = seals

    async def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or `default` where there is none."""
        return await self._do(self._get(name, default))

    async def set(self, name: str, value: Any, expiry: Duration | None = None) -> None:
        """Write a value, for `expiry` seconds (or text such as `"2h"`); without it the value is kept.

        Raises NotEncodable, a TypeError, for a value that would not come back as it was.
        """
        await self._do(self._set(name, value, expiry))

    async def add(self, name: str, value: Any, expiry: Duration | None = None) -> bool:
        """Write a value only where there is none, atomically; whether it was written."""
        return await self._do(self._set(name, value, expiry, absent=True))

    async def delete(self, *names: str) -> int:
        """Remove values; returns how many there were."""
        return sum(await self._all([self._delete(name) for name in names]))

    async def exists(self, name: str) -> bool:
        """Whether there is a value."""
        return await self._do(self._exists(name))

    async def increment(self, name: str, by: int = 1, expiry: Duration | None = None) -> int:
        """Add to a number atomically and return the sum; a value that is not there counts as 0.

        `expiry` is for a number that has none yet. Raises NotANumber for another value, and StoreUnavailable where it
        is not known whether the store has counted: it is not asked twice. Numbers are never encrypted.
        """
        return await self._do(self._increment(name, by, expiry))

    async def expire(self, name: str, expiry: Duration | None) -> bool:
        """Let a value end in `expiry` seconds, or (None) keep it; whether there is one."""
        return await self._do(self._expire(name, expiry))

    async def get_many(self, names: Iterable[str]) -> dict[str, Any]:
        """Return those values that are there, by name."""
        wanted = list(dict.fromkeys(names))
        found = await self._all([self._get(name, _ABSENT) for name in wanted])
        return {name: value for name, value in zip(wanted, found, strict=True) if value is not _ABSENT}

    async def set_many(self, values: Mapping[str, Any], expiry: Duration | None = None) -> None:
        """Write several values in one round trip; each for itself, not all or none."""
        await self._all([self._set(name, value, expiry) for name, value in values.items()])

    def pipeline(self) -> "Pipeline":
        """Collect calls in an `async with` block, and send them at its end in one round trip."""
        return Pipeline(self)

    # --- what the calls are made of ------------------------------------------------------------------------------

    def _get(self, name: str, default: Any) -> _Call[Any]:
        key = self._name(name)
        return _Call(lambda _: Get(key), lambda data, seal: self._decode(name, data, default, seal))

    def _set(self, name: str, value: Any, expiry: Duration | None, *, absent: bool = False) -> _Call[bool]:
        key, ttl_ms = self._name(name), _ms(expiry)
        if type(value) is int and _SMALLEST <= value <= _LARGEST:
            return _Call(lambda _: Put(key, b"%d" % value, ttl_ms, absent), lambda answer, _: bool(answer))
        payload = self._values.encode(value)
        return _Call(
            lambda seal: Put(key, self._written(key, payload, seal), ttl_ms, absent), lambda answer, _: bool(answer)
        )

    def _delete(self, name: str) -> _Call[int]:
        key = self._name(name)
        return _Call(lambda _: Delete(key), lambda answer, _: int(answer))

    def _exists(self, name: str) -> _Call[bool]:
        key = self._name(name)
        return _Call(lambda _: Exists(key), lambda answer, _: bool(answer))

    def _increment(self, name: str, by: int, expiry: Duration | None) -> _Call[int]:
        if type(by) is not int or not _SMALLEST <= by <= _LARGEST:
            raise TypeError(f"increment adds whole numbers of 64 bits, not {by!a}")
        key, ttl_ms = self._name(name), _ms(expiry)
        return _Call(lambda _: Increment(key, by, ttl_ms), lambda answer, _: _raised(answer))

    def _expire(self, name: str, expiry: Duration | None) -> _Call[bool]:
        key, ttl_ms = self._name(name), _ms(expiry)
        return _Call(lambda _: Expire(key, ttl_ms), lambda answer, _: bool(answer))

    async def _do(self, call: _Call[Answer]) -> Answer:
        [answer] = await self._all((call,))
        return answer

    async def _all(self, calls: Sequence[_Call[Answer]]) -> list[Answer]:
        seal = await self._seals.of(self._tenant) if self._seals is not None else None
        answers = await self._backend.carry_out([call.operation(seal) for call in calls])
        return [call.read(answer, seal) for call, answer in zip(calls, answers, strict=True)]

    def _name(self, name: str) -> bytes:
        if not name or len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
            raise InvalidName(f"a value's name is text of 1 to {_LONGEST_NAME} bytes")
        return self._keys.value(self._tenant, name)

    def _written(self, key: bytes, payload: bytes, seal: Seal | None) -> bytes:
        return _TYPED + self._codec.sign(key, payload if seal is None else seal.seal(key, payload))

    def _decode(self, name: str, data: bytes | None, default: Any, seal: Seal | None) -> Any:
        if data is None:
            return default
        if not data.startswith(_TYPED):
            number = _number(data)
            if number is None:
                raise ValueUnreadable(f"the value {name!a} was not written by NexCache")
            return number
        key = self._name(name)
        payload: bytes | Undecodable | None = self._codec.verify(key, data[1:])
        if isinstance(payload, bytes) and seal is not None:
            payload = seal.open(key, payload)
            if payload is None:
                raise ValueUnreadable(f"the value {name!a} cannot be decrypted with the keys that are set")
        if not isinstance(payload, bytes):
            raise ValueUnreadable(f"the value {name!a} is {payload.reason if payload is not None else 'sealed'}")
        try:
            return self._values.decode(payload)
        except NotDecodable as error:
            raise ValueUnreadable(f"the value {name!a}: {error}") from error


class Pipeline:
    """Calls that are sent together when the block ends; in order, and not as a transaction.

    If the block raises, nothing is sent. An increment of what is no number raises at the end, after the rest was done.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._calls: list[tuple[_Call[Any], Pending[Any]]] = []

    def get(self, name: str, default: Any = None) -> Pending[Any]:
        """As `Values.get`."""
        return self._add(self._values._get(name, default))  # noqa: SLF001 - its other half

    def set(self, name: str, value: Any, expiry: Duration | None = None) -> Pending[bool]:
        """As `Values.set`."""
        return self._add(self._values._set(name, value, expiry))  # noqa: SLF001 - its other half

    def delete(self, name: str) -> Pending[int]:
        """As `Values.delete`."""
        return self._add(self._values._delete(name))  # noqa: SLF001 - its other half

    def exists(self, name: str) -> Pending[bool]:
        """As `Values.exists`."""
        return self._add(self._values._exists(name))  # noqa: SLF001 - its other half

    def increment(self, name: str, by: int = 1, expiry: Duration | None = None) -> Pending[int]:
        """As `Values.increment`."""
        return self._add(self._values._increment(name, by, expiry))  # noqa: SLF001 - its other half

    def expire(self, name: str, expiry: Duration | None) -> Pending[bool]:
        """As `Values.expire`."""
        return self._add(self._values._expire(name, expiry))  # noqa: SLF001 - its other half

    async def __aenter__(self) -> Self:
        """Begin to collect."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send what was collected, unless the block raised."""
        if kind is None:
            await self.send()

    async def send(self) -> None:
        """Send what was collected, and begin anew."""
        calls, self._calls = self._calls, []
        if not calls:
            return
        failed: list[Exception] = []

        def guarded(call: _Call[Any], pending: Pending[Any]) -> _Call[None]:
            def read(answer: Any, seal: Seal | None) -> None:
                try:
                    pending.answered(call.read(answer, seal))
                except (NotANumber, ValueUnreadable) as error:
                    failed.append(error)

            return _Call(call.operation, read)

        await self._values._all([guarded(call, pending) for call, pending in calls])  # noqa: SLF001 - its other half
        if failed:
            raise failed[0]

    def _add(self, call: _Call[Answer]) -> Pending[Answer]:
        pending: Pending[Answer] = Pending()
        self._calls.append((call, pending))
        return pending


def _raised(answer: Any) -> int:
    if isinstance(answer, NotANumber):
        raise answer
    return int(answer)


def _number(data: bytes) -> int | None:
    """Read a number as the server writes it; None for anything else."""
    try:
        number = int(data)
    except ValueError:
        return None
    return number if b"%d" % number == data else None


def _ms(expiry: Duration | None) -> int | None:
    if expiry is None:
        return None
    duration = seconds(expiry, "expiry")
    if duration == 0:
        raise ConfigurationError("expiry must be more than 0 seconds; None keeps a value")
    return max(1, round(duration * 1000))
