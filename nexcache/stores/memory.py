"""This process's memory as a store: bounded by bytes and by entries; what nobody has used lately goes first."""

import heapq
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Generic, Protocol, TypeVar

from nexcache.stores.base import Capture, LeaseOffer, Names, Reading, StoreHealth, Usage, add_up, new_token
from nexcache.stores.tokens import CLOCK, softened, stale_since
from nexcache.telemetry.names import Tier

Value = TypeVar("Value")
Held_co = TypeVar("Held_co", covariant=True)
_OVERHEAD = 150
"""Bytes that one item costs beside its key and its value: table slots, and the item."""
_PARTS = 64
"""Into so many parts a lifetime is divided: what nobody asks for leaves at most one of them after its end."""

_SHORTEST = 0.001
"""Seconds; shorter lifetimes are divided as this one."""


class Item(Protocol[Held_co]):
    """What is held: a value with the instant at which it is gone, and what it counts against the bound."""

    expires_at: float
    size: int
    used: bool
    """Since room was last looked for, by any thread."""

    @property
    def value(self) -> Held_co:
        """What was to be kept."""


class Boxed(Generic[Value]):
    """Any value as an item."""

    __slots__ = ("expires_at", "size", "used", "value")

    def __init__(self, value: Value) -> None:
        self.value: Value = value
        self.expires_at: float = 0.0
        self.size: int = 0
        self.used: bool = False


class Expiries:
    """Which keys are over when: told of each at most a 64th of its lifetime late, for about ten bytes a key."""

    def __init__(self) -> None:
        self._keys: dict[float, list[bytes]] = {}
        self._instants: list[float] = []
        self._count = 0

    def __len__(self) -> int:
        """How many keys are noted, those that are gone or were noted again included."""
        return self._count

    def add(self, key: bytes, expires_at: float, lifetime: float) -> None:
        """Note a key."""
        if expires_at == math.inf:
            return
        # a power of two, so that nothing is rounded
        width = math.ldexp(1, math.frexp(max(lifetime, _SHORTEST) / _PARTS)[1] - 1)
        instant = math.ceil(expires_at / width) * width
        keys = self._keys.get(instant)
        if keys is None:
            keys = self._keys[instant] = []
            heapq.heappush(self._instants, instant)
        keys.append(key)
        self._count += 1

    def due(self, now: float) -> list[bytes]:
        """Take out the keys whose time is over; some of them may have been noted again since, with more time."""
        due: list[bytes] = []
        while self._instants and self._instants[0] <= now:
            due += self._keys.pop(heapq.heappop(self._instants))
        self._count -= len(due)
        return due


_NOTHING: Final[Mapping[bytes, Any]] = MappingProxyType({})


class _Share(Generic[Value]):
    """What one owner holds: what was held, or was given a second chance, longest ago is first."""

    __slots__ = ("bytes", "items")

    def __init__(self) -> None:
        self.items: OrderedDict[bytes, Item[Value]] = OrderedDict()
        self.bytes: int = 0


def tenant_of(key: bytes) -> bytes:
    """Return the segment of a key that names its tenant."""
    return key.partition(b":")[2].partition(b":")[0]


def _nobody(_key: bytes) -> bytes:
    return b""


class Bounded(Generic[Value]):
    """A mapping that never holds more than its bounds. Not a store: no tasks, no awaiting, one thread.

    `max_bytes` and `max_entries` hold after every call. Where room is needed, the oldest item of the owner that holds
    most leaves, unless it was used since room was last looked for: then it stays once more (a second chance, Corbató
    1968). Nobody can drive out those who hold less. `left` is told how many items left for
    want of room (`capacity`) or because their time was over (`expired`), and which.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_entries: int,
        clock: Callable[[], float] = time.monotonic,
        left: Callable[[str, Value], None] | None = None,
        owner: Callable[[bytes], bytes] = _nobody,
    ) -> None:
        self._shares: dict[bytes, _Share[Value]] = {}
        self._heaviest: list[tuple[int, bytes]] = []
        """A heap of owners by their bytes, negated; what is out of date is put right when it comes up."""
        self._expiries = Expiries()
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._clock = clock
        self._left = left
        self._owner = owner
        self.count: int = 0
        """How many items are held, expired ones that nobody asked for included."""
        self.bytes: int = 0

    def __len__(self) -> int:
        """How many items are held, expired ones that nobody asked for included."""
        return self.count

    def __contains__(self, key: bytes) -> bool:
        """Whether an item is held that has not expired."""
        item = self._item(key)
        return item is not None and item.expires_at > self._clock()

    def beside(self, key: bytes) -> Mapping[bytes, Item[Value]]:
        """Return all that the owner of this key holds, what has expired included, until one more is held."""
        share = self._shares.get(self._owner(key))
        return share.items if share is not None else _NOTHING

    def get(self, key: bytes) -> Value | None:
        """Return a value that has not expired, and note that it was used."""
        item = self._item(key)
        if item is None:
            return None
        if item.expires_at <= self._clock():
            self._remove(key, "expired")
            return None
        item.used = True
        return item.value

    def peek(self, key: bytes) -> Value | None:
        """Return a value that has not expired, without noting anything."""
        share = self._shares.get(self._owner(key))
        item = share.items.get(key) if share is not None else None
        return item.value if item is not None and item.expires_at > self._clock() else None

    def put(self, key: bytes, value: Value, *, size: int, lifetime: float) -> bool:
        """Keep a value for `lifetime` seconds; False if it alone is over the bound, and nothing is kept."""
        return self.hold(key, Boxed(value), size=size, lifetime=lifetime)

    def hold(self, key: bytes, item: Item[Value], *, size: int, lifetime: float) -> bool:
        """Do what `put` does, for a value that is an item itself."""
        size = self.cost(key, size)
        self.pop(key)
        if size > self._max_bytes or self._max_entries < 1:
            return False
        now, owner = self._clock(), self._owner(key)
        share = self._shares.get(owner)
        if share is None:
            share = self._shares[owner] = _Share()
        item.size, item.expires_at = size, now + lifetime
        share.items[key] = item
        self.count += 1
        self._weigh(owner, share, size)
        self._expiries.add(key, item.expires_at, lifetime)
        if len(self._expiries) > 2 * self.count + 64:
            self._expiries = Expiries()
            for each in self._shares.values():
                for name, held in each.items.items():
                    self._expiries.add(name, held.expires_at, held.expires_at - now)
        self._expire(now)
        self._make_room()
        return True

    def grow(self, key: bytes, *, by: int) -> None:
        """Count more bytes for an item that is held; it may itself have to leave."""
        owner = self._owner(key)
        share = self._shares.get(owner)
        item = share.items.get(key) if share is not None else None
        if share is not None and item is not None:
            item.size += by
            self._weigh(owner, share, by)
            self._make_room()

    def pop(self, key: bytes) -> Value | None:
        """Remove an item on purpose."""
        owner = self._owner(key)
        share = self._shares.get(owner)
        item = share.items.pop(key, None) if share is not None else None
        if share is None or item is None:
            return None
        self.count -= 1
        self.bytes -= item.size
        share.bytes -= item.size
        if not share.items:
            del self._shares[owner]
        return item.value

    def size_of(self, key: bytes) -> int:
        """Return what an item counts against the bound; 0 where there is none."""
        item = self._item(key)
        return item.size if item is not None else 0

    def held_by(self, key: bytes) -> int:
        """Return how many items the owner of this key holds."""
        share = self._shares.get(self._owner(key))
        return len(share.items) if share is not None else 0

    def share_of(self, key: bytes) -> tuple[int, int]:
        """Return how many items the owner of this key holds that have not expired, and what they count."""
        self._expire(self._clock())
        share = self._shares.get(self._owner(key))
        return (len(share.items), share.bytes) if share is not None else (0, 0)

    @staticmethod
    def cost(key: bytes, size: int) -> int:
        """Return what an item of this size counts against the bound."""
        return size + len(key) + _OVERHEAD

    def remaining(self, key: bytes) -> float:
        """Return the seconds for which an item will still be held; 0 where there is none."""
        item = self._item(key)
        return max(0.0, item.expires_at - self._clock()) if item is not None else 0.0

    def clear(self) -> None:
        """Forget everything."""
        self._shares.clear()
        self._heaviest.clear()
        self._expiries = Expiries()
        self.count = self.bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        """Give the keys, owner by owner; of one owner those first that would leave first."""
        return iter([key for share in self._shares.values() for key in share.items])

    def _item(self, key: bytes) -> Item[Value] | None:
        share = self._shares.get(self._owner(key))
        return share.items.get(key) if share is not None else None

    def _weigh(self, owner: bytes, share: _Share[Value], by: int) -> None:
        share.bytes += by
        self.bytes += by
        heapq.heappush(self._heaviest, (-share.bytes, owner))
        if len(self._heaviest) > 2 * len(self._shares) + 64:
            self._heaviest = [(-each.bytes, name) for name, each in self._shares.items()]
            heapq.heapify(self._heaviest)

    def _make_room(self) -> None:
        while self.bytes > self._max_bytes or self.count > self._max_entries:
            weight, owner = heapq.heappop(self._heaviest)
            share = self._shares.get(owner)
            if share is None or -weight < share.bytes:
                continue  # it is gone, or has grown since and stands in the heap once more
            if -weight == share.bytes:
                key, item = next(iter(share.items.items()))
                if item.used:
                    item.used = False
                    share.items.move_to_end(key)
                else:
                    self._remove(key, "capacity")
            if owner in self._shares:
                heapq.heappush(self._heaviest, (-share.bytes, owner))

    def _expire(self, now: float) -> None:
        for key in self._expiries.due(now):
            item = self._item(key)
            if item is not None and item.expires_at <= now:
                self._remove(key, "expired")

    def _remove(self, key: bytes, reason: str) -> None:
        value = self.pop(key)
        if self._left is not None and value is not None:
            self._left(reason, value)


class MemoryStore:
    """The Store protocol in this process. Nothing survives it, and no other process sees it."""

    tier = Tier.MEMORY

    def __init__(
        self,
        *,
        max_bytes: int = 64 * 1024 * 1024,
        max_entries: int = 200_000,
        max_registries: int = 20_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._values: Bounded[bytes] = Bounded(
            max_bytes=max_bytes, max_entries=max_entries, clock=clock, owner=tenant_of
        )
        self._clock = clock
        self._registries: OrderedDict[bytes, set[bytes]] = OrderedDict()
        self._complete: set[bytes] = set()
        self._max_registries = max_registries
        self._commands = 0
        self.changes: int = 0
        """Rises with every change after which generations that were current may no longer be."""
        self.peek: Callable[[bytes], bytes | None] = self._values.peek

    async def read(
        self,
        keys: Sequence[bytes],
        *,
        deadline: float | None = None,
        on_sent: Callable[[], None] | None = None,
        timed: bool = False,
        expiring: bool = False,
    ) -> Reading:
        """Read several keys at one moment, and the clock."""
        del deadline, timed
        self._commands += 1
        if on_sent is not None:
            on_sent()
        left = self._values.remaining(keys[0]) if expiring else 0.0
        return Reading([self._values.get(key) for key in keys], b"", now=self.now, left=left or None)

    def forget(self, prefix: bytes) -> None:
        """Forget every value and registry whose key begins with `prefix`."""
        self.unlink_now([key for key in self._values if key.startswith(prefix)])
        for registry in [key for key in self._registries if key.startswith(prefix)]:
            del self._registries[registry]
            self._complete.discard(registry)

    @property
    def now(self) -> int:
        """This store's clock: milliseconds, below `CLOCK`."""
        return int(self._clock() * 1000) % CLOCK

    async def capture(
        self,
        keys: Sequence[bytes],
        *,
        registry: bytes,
        operation: bytes,
        ttl_ms: int,
        deadline: float | None = None,
        on_sent: Callable[[], None] | None = None,
        lease: LeaseOffer | None = None,
    ) -> Capture:
        """Register an operation, create missing tokens and read all of them; a lease is for several processes."""
        del deadline, lease
        if on_sent is not None:
            on_sent()
        return self.capture_now(keys, registry=registry, operation=operation, ttl_ms=ttl_ms)

    def capture_now(self, keys: Sequence[bytes], *, registry: bytes, operation: bytes, ttl_ms: int) -> Capture:
        """Do what `capture` does, for callers in this process that need not wait."""
        self._commands += 1
        self._registry(registry).add(operation)
        tokens: list[bytes | None] = []
        lifetime, now = ttl_ms / 1000, self._clock()
        late = now + lifetime * 7 / 8  # as it is with a server
        items = self._values.beside(keys[0])
        for key in keys:
            item = items.get(key)
            if item is not None and item.expires_at >= late:
                item.used = True
                tokens.append(item.value)
                continue
            token = item.value if item is not None and item.expires_at > now else new_token()
            self._values.put(key, token, size=len(token), lifetime=lifetime)
            items = self._values.beside(keys[0])
            tokens.append(token)
        return Capture(tokens, b"", complete=registry in self._complete, registered=True, now=self.now)

    def current(self, generations: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether all of these generations, of one tenant, are there and equal: here they are, not copies of them."""
        items, now = self._values.beside(generations[0][0]), self._clock()
        for key, token in generations:
            item = items.get(key)
            if item is None or item.value != token or item.expires_at <= now:
                return False
        return True

    def good_until(self, generations: Sequence[tuple[bytes, bytes]]) -> float:
        """Return the instant until which these generations may be relied on, as long as `changes` stays; 0 if none."""
        return float("inf") if self.current(generations) else 0.0

    async def acquire(self, name: bytes, token: bytes, *, ttl_ms: int, deadline: float | None = None) -> bool:
        """Keep a token under a name, unless there is one."""
        del deadline
        self._commands += 1
        return name not in self._values and self._values.put(name, token, size=len(token), lifetime=ttl_ms / 1000)

    async def write(self, key: bytes, value: bytes, *, ttl_ms: int, deadline: float | None = None) -> None:
        """Keep a value for `ttl_ms` milliseconds, unless it alone is over the bound."""
        del deadline
        self._commands += 1
        self._values.put(key, value, size=len(value), lifetime=ttl_ms / 1000)

    async def unlink(
        self, keys: Sequence[bytes], *, message: bytes | None = None, deadline: float | None = None
    ) -> int:
        """Remove keys; returns how many existed. There is no other node to tell."""
        del message, deadline
        return self.unlink_now(keys)

    def unlink_now(self, keys: Sequence[bytes]) -> int:
        """Do what `unlink` does, for callers in this process that need not wait."""
        self._commands += 1
        self.changes += 1
        return sum(self._values.pop(key) is not None for key in keys)

    async def soften(
        self, keys: Sequence[bytes], *, message: bytes | None = None, deadline: float | None = None
    ) -> None:
        """Invalidate tokens softly."""
        del message, deadline
        self.soften_now(keys)

    def soften_now(self, keys: Sequence[bytes]) -> None:
        """Do what `soften` does, for callers in this process that need not wait."""
        self._commands += 1
        self.changes += 1
        for key in keys:
            token = self._values.peek(key)
            if token is not None:
                lifetime = self._values.remaining(key)
                self._values.put(key, softened(token, self.now), size=len(token), lifetime=lifetime)

    def stale_since(self, generations: Iterable[tuple[bytes, bytes]], captured: int) -> int | None:
        """Say since when what was captured under these generations is stale; None: it was invalidated for good."""
        earliest = self.now
        for key, token in generations:
            current = self.peek(key)
            if current is None:
                return None
            if current != token:
                since = stale_since(token, current, captured)
                if since is None:
                    return None
                earliest = min(earliest, since, key=lambda at: (at - captured) % CLOCK)
        return earliest

    async def members(self, registry: bytes, *, deadline: float | None = None) -> frozenset[bytes] | None:
        """Read a registry; None where it may be incomplete."""
        del deadline
        self._commands += 1
        return frozenset(self._registry(registry)) if registry in self._complete else None

    async def restore_sentinel(
        self, registry: bytes, token: bytes, *, ttl_ms: int, deadline: float | None = None
    ) -> None:
        """Remove the tenant's token, then mark the registry as complete from here on."""
        del ttl_ms, deadline
        self.restore_sentinel_now(registry, token)

    def restore_sentinel_now(self, registry: bytes, token: bytes) -> None:
        """Do what `restore_sentinel` does, for callers in this process that need not wait."""
        self._commands += 1
        self._values.pop(token)
        self._registry(registry)
        self._complete.add(registry)

    async def add(self, key: bytes, amounts: Mapping[bytes, int], *, once: Mapping[bytes, int], ttl_ms: int) -> None:
        """Do nothing: the numbers of the only process are in its own counts."""

    async def drop(self, key: bytes, names: Sequence[bytes]) -> None:
        """Do nothing: as above."""

    async def numbers(self, key: bytes) -> Mapping[bytes, int]:
        """Return nothing: the numbers of the only process are in its own counts."""
        del key
        return {}

    async def usage(self, prefix: bytes, *, most: int) -> Usage:
        """Count the values whose keys begin with `prefix`."""
        del most
        return add_up((key, len(self._values.peek(key) or b"")) for key in self._values if key.startswith(prefix))

    async def names(self, prefix: bytes, *, most: int) -> Names:
        """List the keys that begin with `prefix`."""
        del most
        return Names(tuple(key for key in self._values if key.startswith(prefix)), 1.0, complete=True)

    async def peek_many(self, keys: Sequence[bytes], *, longest: int) -> Sequence[bytes | None]:
        """Read values of at most `longest` bytes."""
        values = [self._values.peek(key) for key in keys]
        return [value if value is not None and len(value) <= longest else None for value in values]

    async def health(self) -> StoreHealth:
        """Say how much is held."""
        return StoreHealth(
            mode="memory",
            available=True,
            response_time_ms=0.0,
            connections=0,
            commands=self._commands,
            detail=f"{len(self._values)} values, {self._values.bytes} bytes",
        )

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._registries.clear()
        self._complete.clear()

    async def aclose(self) -> None:
        """Do nothing: memory needs no giving back."""

    def _registry(self, registry: bytes) -> set[bytes]:
        found = self._registries.get(registry)
        if found is None:
            found = self._registries[registry] = set()
            if len(self._registries) > self._max_registries:
                oldest, _ = self._registries.popitem(last=False)
                self._complete.discard(oldest)
        self._registries.move_to_end(registry)
        return found
