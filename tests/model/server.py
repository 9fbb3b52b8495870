"""A Redis in memory, as far as NexCache uses one: one thread, expiry by the given clock, and all that can befall it."""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from redis.exceptions import OutOfMemoryError, ResponseError

from nexcache.stores.tokens import softened

Value: TypeAlias = bytes | set[bytes] | dict[bytes, bytes]
Reply: TypeAlias = Any

_NEED_MEMORY: Final = frozenset(
    (b"SET", b"SADD", b"HSET", b"HINCRBY", b"HSETNX", b"EVAL", b"EVALSHA", b"SETRANGE", b"INCR", b"PFADD")
)
"""Commands flagged `denyoom`; UNLINK, PUBLISH, PEXPIRE and reads are not."""
_MOVED_COMPARE: Final = re.compile(rb"'(HGET|GET)', KEYS\[1\](?:, ARGV\[1\])?\) *== *ARGV\[(\d)\]")


class Server(Protocol):
    """What the world does to a server, be it the model or a real one."""

    on_message: Callable[[bytes, bytes], None]

    def execute(self, command: Sequence[Any]) -> Reply:
        """Carry a command out; an error is returned, not raised."""

    def keys(self) -> Sequence[bytes]:
        """List the keys in order."""

    def evict(self, key: bytes) -> None:
        """Drop a key as an eviction does."""

    def full(self, *, full: bool) -> None:
        """Refuse what needs memory, or no longer."""

    def snapshot(self) -> None:
        """Save the data; a later restart may begin with it."""

    def restart(self, *, empty: bool) -> None:
        """End and begin again, with nothing or with the snapshot."""

    def replicate(self) -> None:
        """Let the replica catch up; what is written later it does not have."""

    def failover(self) -> None:
        """Promote the replica as it is; the old primary becomes its replica."""

    def passed(self, seconds: float) -> None:
        """Note that time went by."""

    def replica(self, command: Sequence[Any]) -> Reply:
        """Ask the replica."""

    def close(self) -> None:
        """Give back what was used."""


@dataclass
class Data:
    """Keys, values, and until when they are kept."""

    values: dict[bytes, Value] = field(default_factory=dict)
    expires: dict[bytes, float] = field(default_factory=dict)


class ModelServer:
    """The model: a primary and a replica that lags behind as long as nobody says otherwise."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._data = Data()
        self._saved = Data()
        self._replica = Data()
        self._ids = 0
        self._run_id, self._replica_run_id = self._new_id(), self._new_id()
        self._replid = self._new_id()
        self._full = False
        self.on_message: Callable[[bytes, bytes], None] = lambda _channel, _payload: None

    def _new_id(self) -> bytes:
        self._ids += 1
        return b"%040x" % self._ids

    # --- what befalls it --------------------------------------------------------------------------------------

    def keys(self) -> Sequence[bytes]:
        for key in list(self._data.values):
            self._get(key)
        return sorted(self._data.values)

    def evict(self, key: bytes) -> None:
        self._drop(key)

    def full(self, *, full: bool) -> None:
        self._full = full

    def snapshot(self) -> None:
        self._saved = deepcopy(self._data)

    def restart(self, *, empty: bool) -> None:
        self._data = Data() if empty else deepcopy(self._saved)
        self._run_id, self._replid = self._new_id(), self._new_id()
        self._full = False

    def replicate(self) -> None:
        self._replica = deepcopy(self._data)

    def failover(self) -> None:
        self._data, self._replica = deepcopy(self._replica), deepcopy(self._replica)
        self._run_id, self._replica_run_id = self._replica_run_id, self._run_id
        self._replid = self._new_id()
        self._full = False

    def passed(self, seconds: float) -> None:
        del seconds

    def close(self) -> None:
        pass

    # --- what it does -----------------------------------------------------------------------------------------

    def execute(self, command: Sequence[Any]) -> Reply:
        name, *words = [_bytes(word) for word in command]
        if self._full and name in _NEED_MEMORY:
            return OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
        method = getattr(self, "do_" + name.decode().lower(), None)
        if method is None:
            raise NotImplementedError(f"the model of the server knows no {name.decode()}")
        return method(*words)

    def replica(self, command: Sequence[Any]) -> Reply:
        here = self._data
        self._data = self._replica
        try:
            return self.execute(command)
        finally:
            self._data = here

    def _get(self, key: bytes) -> Value | None:
        until = self._data.expires.get(key)
        if until is not None and until <= self._clock():
            self._drop(key)
        return self._data.values.get(key)

    def _drop(self, key: bytes) -> bool:
        self._data.expires.pop(key, None)
        return self._data.values.pop(key, None) is not None

    def _text(self, key: bytes) -> bytes | None:
        value = self._get(key)
        return value if isinstance(value, bytes) else None

    def _set(self, key: bytes) -> set[bytes]:
        value = self._get(key)
        if not isinstance(value, set):
            value = self._data.values[key] = set()
        return value

    def _hash(self, key: bytes) -> dict[bytes, bytes]:
        value = self._get(key)
        if not isinstance(value, dict):
            value = self._data.values[key] = {}
        return value

    def do_ping(self) -> Reply:
        return b"PONG"

    def do_info(self, section: bytes) -> Reply:
        if section == b"server":
            return b"# Server\r\nrun_id:" + self._run_id + b"\r\n"
        return b"# Replication\r\nrole:master\r\nmaster_replid:" + self._replid + b"\r\n"

    def do_time(self) -> Reply:
        seconds = self._clock()
        return [b"%d" % seconds, b"%d" % (seconds % 1 * 1_000_000)]

    def do_get(self, key: bytes) -> Reply:
        return self._text(key)

    def do_mget(self, *keys: bytes) -> Reply:
        return [self._text(key) for key in keys]

    def do_getrange(self, key: bytes, start: bytes, end: bytes) -> Reply:
        return (self._text(key) or b"")[int(start) : int(end) + 1]

    def do_set(self, key: bytes, value: bytes, *options: bytes) -> Reply:
        words = [option.upper() for option in options]
        present = self._get(key) is not None
        if (b"NX" in words and present) or (b"XX" in words and not present):
            return None
        self._data.values[key] = value
        if b"KEEPTTL" not in words:
            self._data.expires.pop(key, None)
        if b"PX" in words:
            self._data.expires[key] = self._clock() + int(options[words.index(b"PX") + 1]) / 1000
        return b"OK"

    def do_incr(self, key: bytes) -> Reply:
        held = self._text(key) or b"0"
        if not held.isdigit():
            return ResponseError("value is not an integer or out of range")
        number = int(held) + 1
        self._data.values[key] = b"%d" % number
        return number

    def do_dbsize(self) -> Reply:
        return len(self.keys())

    def do_setrange(self, key: bytes, offset: bytes, value: bytes) -> Reply:
        start = int(offset)
        old = (self._text(key) or b"").ljust(start, b"\0")
        new = old[:start] + value + old[start + len(value) :]
        self._data.values[key] = new
        return len(new)

    def do_strlen(self, key: bytes) -> Reply:
        return len(self._text(key) or b"")

    def do_exists(self, *keys: bytes) -> Reply:
        return sum(self._get(key) is not None for key in keys)

    def do_unlink(self, *keys: bytes) -> Reply:
        return sum(self._get(key) is not None and self._drop(key) for key in keys)

    do_del = do_unlink

    def do_pttl(self, key: bytes) -> Reply:
        if self._get(key) is None:
            return -2
        until = self._data.expires.get(key)
        return -1 if until is None else max(1, int((until - self._clock()) * 1000))

    def do_pexpire(self, key: bytes, ms: bytes, *options: bytes) -> Reply:
        if self._get(key) is None:
            return 0
        until = self._clock() + int(ms) / 1000
        if b"GT" in options and self._data.expires.get(key, float("inf")) >= until:
            return 0
        self._data.expires[key] = until
        return 1

    def do_sadd(self, key: bytes, *members: bytes) -> Reply:
        found = self._set(key)
        before = len(found)
        found.update(members)
        return len(found) - before

    def do_srem(self, key: bytes, *members: bytes) -> Reply:
        value = self._get(key)
        if not isinstance(value, set):
            return 0
        gone = value & set(members)
        value -= gone
        if not value:
            self._drop(key)
        return len(gone)

    def do_scard(self, key: bytes) -> Reply:
        value = self._get(key)
        return len(value) if isinstance(value, set) else 0

    def do_smembers(self, key: bytes) -> Reply:
        value = self._get(key)
        return sorted(value) if isinstance(value, set) else []

    def do_smismember(self, key: bytes, *members: bytes) -> Reply:
        value = self._get(key)
        return [int(member in value) if isinstance(value, set) else 0 for member in members]

    def do_pfadd(self, key: bytes, *members: bytes) -> Reply:
        return int(self.do_sadd(key, *members) > 0)

    def do_pfcount(self, key: bytes) -> Reply:
        return self.do_scard(key)

    def do_hset(self, key: bytes, *pairs: bytes) -> Reply:
        self._hash(key).update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(pairs) // 2

    def do_hsetnx(self, key: bytes, name: bytes, value: bytes) -> Reply:
        return int(self._hash(key).setdefault(name, value) is value)

    def do_hincrby(self, key: bytes, name: bytes, amount: bytes) -> Reply:
        found = self._hash(key)
        found[name] = b"%d" % (int(found.get(name, b"0")) + int(amount))
        return int(found[name])

    def do_hget(self, key: bytes, name: bytes) -> Reply:
        value = self._get(key)
        return value.get(name) if isinstance(value, dict) else None

    def do_hgetall(self, key: bytes) -> Reply:
        value = self._get(key)
        return [word for pair in value.items() for word in pair] if isinstance(value, dict) else []

    def do_hdel(self, key: bytes, *names: bytes) -> Reply:
        value = self._get(key)
        if not isinstance(value, dict):
            return 0
        gone = sum(value.pop(name, None) is not None for name in names)
        if not value:
            self._drop(key)
        return gone

    def do_scan(self, cursor: bytes, *options: bytes) -> Reply:
        del cursor
        pattern = options[options.index(b"MATCH") + 1] if b"MATCH" in options else b"*"
        literal = re.escape(pattern.replace(b"\\", b"")).replace(rb"\*", b".*")
        return [b"0", [key for key in self.keys() if re.fullmatch(literal, key, re.DOTALL)]]

    def do_publish(self, channel: bytes, payload: bytes) -> Reply:
        self.on_message(channel, payload)
        return 1

    def do_eval(self, script: bytes, count: bytes, *words: bytes) -> Reply:
        """Compare a value, then do one thing with the same key; or invalidate softly: there are no other scripts."""
        keys, arguments = words[: int(count)], words[int(count) :]
        if b"'SETRANGE', key, 16" in script:
            for key in keys:
                token = self._text(key)
                if token is not None:
                    self._data.values[key] = softened(token, int(self._clock() * 1000))
            return None
        found = _MOVED_COMPARE.search(script)
        if found is None or len(keys) != 1:
            return ResponseError("the model of the server does not know this script")
        read, index = found[1], int(found[2]) - 1
        value = self.do_hget(keys[0], arguments[0]) if read == b"HGET" else self.do_get(keys[0])
        if value != arguments[index]:
            return 0
        if read == b"HGET":
            return self.do_hdel(keys[0], arguments[0])
        if re.search(rb"'P?EXPIRE'", script, re.IGNORECASE):
            return self.do_pexpire(keys[0], arguments[-1])
        return self.do_unlink(keys[0])


def _bytes(word: Any) -> bytes:
    if isinstance(word, bytes):
        return word
    return word.encode() if isinstance(word, str) else b"%d" % word
