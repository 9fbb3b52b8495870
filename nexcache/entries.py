"""Looking entries up and keeping them: in this process's memory, or in the store behind it.

Without a store the memory is the cache. With one, the memory is only the fallback for when the store is away:
it then serves what this process itself has filled, for a short time, under generations of its own.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar
from weakref import WeakValueDictionary

from nexcache.errors import StoreError
from nexcache.invalidation.apply import Invalidations
from nexcache.invalidation.generations import Generations, Snapshot, all_seen, seen
from nexcache.invalidation.tags import MOST_TAGS, LiveTags, Remembered
from nexcache.invalidation.view import View
from nexcache.key import PLACE, CacheKey, KeySpace
from nexcache.known import Known
from nexcache.message import Entry, StoredResponse
from nexcache.policy import LONGEST
from nexcache.quota import Quota, Quotas
from nexcache.semantics.early_refresh import refresh_at
from nexcache.semantics.reuse import Head, Prepared
from nexcache.stores.base import LeaseOffer, Reading, Store, Usage, add_up, new_token
from nexcache.stores.breaker import Breaker
from nexcache.stores.codec import Codec, Seal, Undecodable
from nexcache.stores.memory import Bounded, MemoryStore, tenant_of
from nexcache.stores.tokens import CLOCK, stale_since
from nexcache.telemetry.counts import OperationCounts
from nexcache.telemetry.events import BackendFailed, Emitter, Evicted, LookedUp, Stored
from nexcache.telemetry.names import Result, Tier

Value = TypeVar("Value", bound=Hashable)
Raw: TypeAlias = tuple[Hashable, ...]
"""A request as it came, before anything is canonicalised."""

ReadingAgain: TypeAlias = tuple["asyncio.Future[bool]", "Together", int]
"""What says whether the store still says the same; the command; and how many invalidations had failed before it."""

_MOST_ALIASES = 8
_MOST_COMMON = 4_096
_COMMON = 90
"""Bytes that a value takes beside what it is made of, to be shared."""
_ALIAS = 100
"""Bytes that a way to ask for an entry takes beside what is asked for."""
_LONGEST_HERE = 30.0
"""Seconds after which an entry that the store holds too is read from it again."""
_BREAKER = BackendFailed("get", "breaker")
_CHECKED_FOR = 0.05
"""Seconds for which generations in use need no second look as long as none changes."""


class Currency(Protocol):
    """Tells whether generations are still those of now."""

    @property
    def changes(self) -> int:
        """Rises with every change after which generations that were current may no longer be."""

    def good_until(self, generations: Sequence[tuple[bytes, bytes]]) -> float | None:
        """Return until when (on the entries' clock) they may be relied on; 0 if one changed, None if not known."""


class Ages(Protocol):
    """Tells for how long something has been stale that was invalidated softly."""

    @property
    def now(self) -> int:
        """The clock of these generations, in milliseconds."""

    def stale_since(self, generations: Iterable[tuple[bytes, bytes]], captured: int) -> int | None:
        """Return since when on that clock; None: it was invalidated for good."""


class Basis:
    """The generations that entries were computed under, and until when they are known to be those of now."""

    __slots__ = ("__weakref__", "changes", "counts", "generations", "good_until")

    def __init__(self, generations: tuple[tuple[bytes, bytes], ...], counts: OperationCounts) -> None:
        self.generations: tuple[tuple[bytes, bytes], ...] = generations
        self.counts: OperationCounts = counts
        """Of the tenant's operation, whose generations are among them."""
        self.changes: int = -1
        """What `Currency.changes` was when they were looked at."""
        self.good_until: float = 0.0


class Live(Prepared):
    """An entry in this process's memory, ready to be sent, in one object: there are hundreds of thousands of them."""

    __slots__ = (
        "alias",
        "basis",
        "captured",
        "expires_at",
        "fresh_until",
        "place",
        "result",
        "size",
        "used",
    )

    def __init__(
        self,
        key: CacheKey,
        entry: Entry,
        basis: Basis,
        *,
        share: Callable[[Head], Head],
    ) -> None:
        response = entry.response
        super().__init__(response, refresh_at=_refresh_at(response), share=share)
        self.place: bytes = key.place
        self.basis: Basis = basis
        self.captured: int = entry.captured if response.kept_on > 0 else 0
        """When its generations were, where that is asked for: it may be served stale."""
        self.expires_at: float = 0.0
        """When it leaves."""
        self.fresh_until: float = 0.0
        """Sooner than it leaves where it may be served stale."""
        self.size: int = 0
        self.used: bool = False
        """By any thread, since room was last looked for."""
        self.alias: Raw | None = None
        """The raw request that it was first asked for by."""
        self.result: object = None
        """What a function makes of the body, where it is one's result."""

    @property
    def value(self) -> "Live":
        """Itself: it is its own place in memory."""
        return self

    @property
    def name(self) -> bytes:
        """The name of its key."""
        return self.place[:-PLACE]

    @property
    def entry(self) -> Entry:
        """The entry, with a digest in place of its request."""
        return Entry(self.place[-PLACE:], self.response, self.basis.generations, self.captured)


class Found(NamedTuple):
    """A stored response that may be used."""

    prepared: Prepared
    tier: Tier
    live: Live | None = None
    stale: float | None = None
    """Seconds since its time was over or it was invalidated softly; None: it is fresh."""
    read: "Read | None" = None
    """What was read of it, where the same again means the same again."""


class Read(NamedTuple):
    """What the store answered to a lookup, and what was asked for."""

    key: CacheKey
    reply: list[bytes | None]
    epoch: bytes


class Missing(NamedTuple):
    """Nothing that may be used is stored."""

    tier: Tier
    """Where it was looked for."""
    generations: tuple[bytes, ...] | None
    """The generations that were read beside it, if every one of them was there."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One place where an entry was looked for, and what was found there."""

    tier: Tier
    entry: Entry | None
    why: str | None
    """Why it cannot be used now: `absent`, `expired`, `collision`, `generations`, `lease`, or why it is undecodable."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that is held for a key, usable or not."""

    copies: tuple[Copy, ...]
    generations: Mapping[bytes, bool]
    """Which of the generations that it depends on are present."""
    failed: str | None = None
    """Why the store could not be asked: a word of the errors' closed list."""


class Common:
    """Gives equal values one object: what many entries hold is held once. Bounded."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}
        self.new: int = 0
        """About how many bytes those took that nobody had asked for before, all together."""

    def one(self, value: Value) -> Value:
        """Return a value that is equal, the same for all who ask."""
        known: Value | None = self._known.get(value)
        if known is not None:
            return known
        if len(self._known) >= _MOST_COMMON:
            self._known.clear()
        self._known[value] = value
        self.new += _COMMON + (8 * len(value) if isinstance(value, tuple) else _size(value))
        return value

    def parts(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        """Do the same for a tuple and for the tuples, texts and bytes that it is made of."""
        known: tuple[Any, ...] | None = self._known.get(value)
        if known is not None:
            return known
        return self.one(tuple([self._part(part) for part in value]))

    def _part(self, part: Any) -> Any:
        if isinstance(part, tuple):
            return self.parts(part)
        return self.one(part) if isinstance(part, str | bytes) else part


class Memory:
    """Entries in this process, found by the raw request in one step."""

    def __init__(
        self,
        *,
        generations: Currency,
        max_bytes: int,
        max_entries: int,
        tier: Tier,
        emitter: Emitter,
        ages: Ages | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generations = generations
        self._ages = ages
        self._emitter = emitter
        self._clock = clock
        self._aliases: dict[Raw, Live] = {}
        self._further: dict[bytes, list[Raw]] = {}
        """The aliases of entries that have more than one."""
        self._common = Common()
        self._bases: WeakValueDictionary[tuple[tuple[bytes, bytes], ...], Basis] = WeakValueDictionary()
        self._entries: Bounded[Live] = Bounded(
            max_bytes=max_bytes, max_entries=max_entries, clock=clock, left=self._left, owner=tenant_of
        )
        self.tier = tier

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held."""
        return not len(self._entries)

    @property
    def size(self) -> tuple[int, int]:
        """How many entries are held, and about how many bytes."""
        return len(self._entries), self._entries.bytes

    def usage(self, prefix: bytes) -> Usage:
        """Count the entries whose keys begin with `prefix`, and about how many bytes they hold."""
        held = (place for place in self._entries if place.startswith(prefix))
        return add_up((place[:-PLACE], self._entries.size_of(place)) for place in held)

    def peek(self, raw: Raw) -> Live | None:
        """Return the entry that answers this raw request, if it may be used now."""
        live = self._aliases.get(raw)
        if live is None:
            return None
        basis, now = live.basis, self._clock()
        if basis.changes == self._generations.changes and now < basis.good_until and now < live.fresh_until:
            live.used = True
            return live
        return live if self._is_usable(live) else None

    def glance(self, raw: Raw) -> Live | None:
        """Do what `peek` does, from any thread: it changes nothing but a mark that the entry was used."""
        live = self._aliases.get(raw)
        if live is None:
            return None
        basis, changes, now = live.basis, self._generations.changes, self._clock()
        if live.fresh_until <= now:
            return None
        if not (basis.changes == changes and now < basis.good_until):
            good_until = self._generations.good_until(basis.generations)
            if good_until is None or good_until <= now or self._generations.changes != changes:
                return None
        live.used = True
        return live

    def held(self, prefix: bytes, most: int) -> Iterator[tuple[bytes, Entry, bool]]:
        """Give up to `most` entries whose keys begin with `prefix`, and whether each may be used now."""
        for place in islice((place for place in self._entries if place.startswith(prefix)), most):
            live = self._entries.peek(place)
            if live is not None:
                yield live.name, live.entry, self._why_not(live) is None

    def inspect(self, key: CacheKey) -> Copy:
        """Say what is held for a key, and change nothing."""
        live = self._entries.peek(key.place)
        if live is None:
            return Copy(self.tier, None, "absent")
        return Copy(self.tier, live.entry, self._why_not(live))

    def lookup(self, key: CacheKey) -> Found | None:
        """Look an entry up by its key."""
        live = self._entries.peek(key.place)
        if live is not None and self._is_usable(live):
            return Found(live, self.tier, live)
        return None

    def stale(self, key: CacheKey) -> Found | None:
        """Return what there is of a key that may be served stale, and since when it is."""
        live = self._entries.peek(key.place)
        if live is None:
            return None
        seconds = self._stale_for(live)
        return None if seconds is None else Found(live, self.tier, None, seconds)

    def _stale_for(self, live: Live) -> float | None:
        """Say for how long an entry has been stale; None: it may not be served at all."""
        if self._ages is None or live.kept_on <= 0:
            return None
        since = self._ages.stale_since(live.basis.generations, live.captured)
        if since is None:
            return None
        return max(0.0, self._clock() - live.fresh_until, ((self._ages.now - since) % CLOCK) / 1000)

    def alias(self, raw: Raw, live: Live) -> None:
        """Remember that this raw request is answered by this entry."""
        if raw in self._aliases or self._entries.peek(live.place) is not live:
            return
        first, rest, new = raw[0], raw[1:], self._common.new
        if isinstance(first, tuple):  # other entries' too: all but the query, mostly
            raw = (self._common.parts(first), *rest)
        size = _ALIAS + _size(rest) + self._common.new - new
        if live.alias is None:
            live.alias = raw
        else:
            further = self._further.setdefault(live.place, [])
            if len(further) + 1 >= _MOST_ALIASES:
                return
            further.append(raw)
        self._aliases[raw] = live
        self._entries.grow(live.place, by=size)

    def keep(self, key: CacheKey, entry: Entry, counts: OperationCounts, *, lifetime: float) -> Live | None:
        """Keep an entry until its time is over or its room is needed; None if it is too large."""
        new, basis = self._common.new, self._bases.get(entry.generations)
        if basis is None:
            generations = self._common.parts(entry.generations)
            basis = self._bases[generations] = Basis(generations, counts)
        live = Live(key, entry, basis, share=self._share)
        self._forget(self._entries.pop(live.place))
        size = entry.size + self._common.new - new
        kept_on = live.kept_on if self._ages is not None else 0.0
        if not self._entries.hold(live.place, live, size=size, lifetime=lifetime + kept_on):
            return None
        live.fresh_until = live.expires_at - kept_on if kept_on > 0 else live.expires_at
        return live

    def _share(self, head: Head) -> Head:
        return self._common.one(head._replace(headers=self._common.parts(head.headers)))

    def held_by(self, prefix: bytes) -> tuple[int, int]:
        """Return how many entries a tenant has here, and their bytes."""
        return self._entries.share_of(prefix)

    def with_entry(self, key: CacheKey, entry: Entry) -> tuple[int, int]:
        """Return how many entries a tenant would have here, and their bytes, if it had this one too."""
        entries, held = self._entries.share_of(key.place)
        before = self._entries.size_of(key.place)
        return entries + (not before), held - before + self._entries.cost(key.place, entry.size)

    def forget(self, prefix: bytes) -> int:
        """Forget the entries whose keys begin with `prefix`; returns how many there were."""
        places = [place for place in self._entries if place.startswith(prefix)]
        for place in places:
            self._forget(self._entries.pop(place))
        return len(places)

    def clear(self) -> None:
        """Forget every entry."""
        self._entries.clear()
        self._aliases.clear()
        self._further.clear()

    def _why_not(self, live: Live) -> str | None:
        """Say why an entry may not be used now, or None if it may; changes nothing."""
        now = self._clock()
        if live.fresh_until <= now:
            return "expired"
        good_until = self._generations.good_until(live.basis.generations)
        if good_until is None:
            return "lease"
        return None if good_until > now else "generations"

    def _is_usable(self, live: Live) -> bool:
        now, basis = self._clock(), live.basis
        if live.fresh_until > now:
            generations = self._generations
            good_until = generations.good_until(basis.generations)
            if good_until is None:  # it may still be right: the store will tell
                return False
            if good_until > now:
                basis.changes, basis.good_until = generations.changes, min(good_until, now + _CHECKED_FOR)
                live.used = True
                return True
        if self._stale_for(live) is None:
            self._forget(self._entries.pop(live.place))
        return False

    def _left(self, reason: str, live: Live) -> None:
        self._forget(live)
        self._emitter.emit(Evicted(reason, 1))

    def _forget(self, live: Live | None) -> None:
        if live is not None and live.alias is not None:
            for raw in (live.alias, *self._further.pop(live.place, ())):
                self._aliases.pop(raw, None)


class Local:
    """Entries and generations that are this process's own: the cache itself, or the fallback of a store."""

    def __init__(self, *, memory: Memory, store: MemoryStore, generations: Generations) -> None:
        self.memory = memory
        self._store = store
        self._generations = generations

    @property
    def lifetime(self) -> float:
        """Seconds for which a generation lives from its last capture."""
        return self._generations.ttl_ms / 1000

    def forget(self, prefix: bytes) -> int:
        """Forget the entries and generations whose keys begin with `prefix`; returns how many entries."""
        self._store.forget(prefix)
        return self.memory.forget(prefix)

    def lookup(self, key: CacheKey, stale_for: float = 0.0) -> Found | Missing:
        """Look an entry up by its key, one that is stale for no longer than this included."""
        found = self.memory.lookup(key)
        if found is None and stale_for > 0:
            found = self.memory.stale(key)
        if found is not None and (found.stale is None or found.stale < stale_for):
            return found
        return Missing(self.memory.tier, None)  # what is under way is known by what is captured, which costs no more

    def inspect(self, key: CacheKey) -> Inspection:
        """Say what is held for a key, and change nothing."""
        copy = self.memory.inspect(key)
        names = _depended_on(key, copy.entry)
        return Inspection((copy,), {name: self._store.peek(name) is not None for name in names})

    def capture(self, key: CacheKey) -> Snapshot:
        """Capture the generations of a key in this process."""
        snapshot = self._generations.capture_now(self._store, key)
        return snapshot if snapshot.tier is self.memory.tier else snapshot._replace(tier=self.memory.tier)

    def extend(self, key: CacheKey, names: Sequence[bytes], snapshot: Snapshot) -> tuple[bytes, ...] | None:
        """Read the generations of tags that became known only now; None if they may have changed meanwhile."""
        return self._generations.extend_now(self._store, key, names, snapshot)

    def keep(self, key: CacheKey, entry: Entry, counts: OperationCounts) -> bool | None:
        """Keep an entry unless its generations have changed (False), or it is too large (None)."""
        if not self._store.current(entry.generations) and (
            entry.response.kept_on <= 0 or self._store.stale_since(entry.generations, entry.captured) is None
        ):
            return False
        return True if self.memory.keep(key, entry, counts, lifetime=entry.response.ttl) else None


class Together(Protocol):
    """Requests whose entries are read again with one command."""

    until: float
    """Until when they wait, by the event loop's clock."""
    sent_at: float
    """When the command left; infinity: not yet."""
    took: float
    """Seconds until it was answered."""

    def join(self, before: Any, started: float) -> asyncio.Future[bool] | None:
        """Ask whether that is still so, in the same history; None where it is too late to join.

        The future may raise StoreError, and raises RuntimeError on another event loop than that of the first.
        `started` is `time.perf_counter()` of now, or of a little ago.
        """


class ReadsAgain(Protocol):
    """Reads again what was read before, and leaves the waiting to the caller."""

    def before(self, keys: Sequence[bytes], values: Sequence[bytes | None], epoch: bytes) -> Any:
        """Write down what was read of an entry and its generations."""

    def together(self, started: float, budget: float) -> Together | None:
        """Begin a command that requests may join, for which they wait for `budget` seconds; None: read them whole.

        The store times such lookups.
        """

    def failed(self, together: Any, error: Exception) -> None:
        """Note that the command has not been answered."""


class Seals(Protocol):
    """Gives each tenant's encryption."""

    async def of(self, tenant: str, *, deadline: float | None = None) -> Seal:
        """Return a tenant's seal; raises StoreError."""


class Shared:
    """Entries in a store that other processes use too."""

    def __init__(
        self,
        *,
        store: Store,
        keys: KeySpace,
        generations: Generations,
        codec: Codec,
        emitter: Emitter,
        observe: Callable[[Sequence[bytes], Reading], None] | None = None,
        breaker: Breaker | None = None,
        vault: Seals | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        self.breaker: Breaker = breaker if breaker is not None else Breaker()
        """Open while it is known that the store cannot be asked, for any tenant."""
        self._observe = observe
        self._quotas = quotas
        self._vault = vault
        self._store = store
        self._keys = keys
        self.generations: Generations = generations
        self._codec = codec
        self._emitter = emitter

    @property
    def lifetime(self) -> float:
        """Seconds for which a generation lives from its last capture."""
        return self.generations.ttl_ms / 1000

    async def lookup(
        self,
        key: CacheKey,
        *,
        deadline: float | None,
        on_sent: Callable[[], None] | None = None,
        stale_for: float = 0.0,
    ) -> tuple[Entry, float | None, float, Read | None] | Missing:
        """Fetch an entry and its generations in one round trip; raises StoreError.

        Returns also for how long it has been stale, None if it is fresh, and for how long it will be; never one that
        has been stale for longer than `stale_for`. The store's clock says so: no two nodes' clocks need agree. The
        fourth is what was read, where the same again means the same again.
        """
        names = (key.name, *key.generations)
        timed = stale_for > 0
        reading = await self._store.read(names, deadline=deadline, on_sent=on_sent, timed=timed, expiring=True)
        value, *tokens = reading.values
        epoch = reading.epoch
        if self._observe is not None:
            self._observe(key.generations, Reading(tokens, epoch, reading.sent_at))
        if value is not None:
            current = {name: seen(token, epoch) for name, token in zip(key.generations, tokens, strict=True)}
            entry = self._codec.decode(key.name, value, await self._seal(key.tenant, deadline))
            if isinstance(entry, Undecodable):
                self._emitter.emit(BackendFailed("get", entry.reason))
                if entry.worthless:
                    await self._remove(key, deadline)
            elif entry.request == key.request:
                fresh_for = _fresh_for(entry.response, reading.left)
                stale = await self._stale(key, entry, current, deadline, reading.now, overdue=-fresh_for)
                if stale is None or stale < stale_for:
                    lasting = stale is None and entry.response.kept_on <= 0 and self._vault is None
                    same = lasting and entry.generations == tuple((each, current[each]) for each in key.generations)
                    return entry, stale, fresh_for, Read(key, list(reading.values), epoch) if same else None
        known = tuple([token for token in all_seen(tokens, epoch) if token is not None])
        return Missing(self._store.tier, known if len(known) == len(tokens) else None)

    async def _remove(self, key: CacheKey, deadline: float | None) -> None:
        """Remove what no node can read: it would be fetched and counted again and again."""
        try:
            await self._store.unlink((key.name,), deadline=deadline)
        except StoreError:
            pass  # what is computed now overwrites it, or its time ends it

    async def _stale(
        self,
        key: CacheKey,
        entry: Entry,
        current: dict[bytes, bytes | None],
        deadline: float | None,
        now: int | None,
        *,
        overdue: float,
    ) -> float | None:
        """Return for how many seconds an entry has been stale, None if it is fresh; more may have to be read.

        Infinite for one that does not depend on what it must, and for one that was invalidated for good; without
        the store's clock for any that is not fresh.
        """
        depends = dict(entry.generations)
        if not self._keys.covers(key, depends):
            return math.inf
        unread = [name for name in depends if name not in current]
        if unread:  # tags that its response named, and that this process had not heard of
            reading = await self._store.read(unread, deadline=deadline)
            if self._observe is not None:
                self._observe(unread, reading)
            current.update(
                {name: seen(token, reading.epoch) for name, token in zip(unread, reading.values, strict=True)}
            )
        stale = overdue if overdue > 0 and entry.response.kept_on > 0 else None
        for name, token in depends.items():
            found = current[name]
            if found != token:
                since = None if found is None else stale_since(token, found, entry.captured)
                if since is None or now is None or entry.response.kept_on <= 0:
                    return math.inf
                stale = max(stale or 0.0, ((now - since) % CLOCK) / 1000)
        return stale

    async def inspect(self, key: CacheKey) -> Inspection:
        """Say what is held for a key, and change nothing; raises StoreError."""
        (value,) = (await self._store.read((key.name,))).values
        decoded = None
        if value is not None:
            decoded = self._codec.decode(key.name, value, await self._seal(key.tenant))
        entry, why = None, "absent" if value is None else None
        if isinstance(decoded, Undecodable):
            why = decoded.reason
        elif decoded is not None and decoded.request != key.request:
            why = "collision"
        else:
            entry = decoded
        names = _depended_on(key, entry)
        reading = await self._store.read(names)
        current = {name: seen(token, reading.epoch) for name, token in zip(names, reading.values, strict=True)}
        if entry is not None and any(current[name] != token for name, token in entry.generations):
            why = "generations"
        present = {name: token is not None for name, token in current.items()}
        return Inspection((Copy(self._store.tier, entry, why),), present)

    async def extend(self, key: CacheKey, names: Sequence[bytes], snapshot: Snapshot) -> tuple[bytes, ...] | None:
        """Read the generations of tags that became known only now; None if they may have changed meanwhile."""
        return await self.generations.extend(key, names, snapshot)

    async def keep(self, key: CacheKey, entry: Entry, quota: Quota | None = None) -> bool:
        """Keep an entry unless its generations have changed meanwhile; raises StoreError and OverQuota."""
        names = [name for name, _ in entry.generations]
        reading = await self._store.read(names)
        if self._observe is not None:
            self._observe(names, reading)
        tokens = all_seen(reading.values, reading.epoch)
        if tokens != [token for _, token in entry.generations] and not (
            entry.response.kept_on > 0
            and all(  # invalidated softly meanwhile: better than what it replaces, and stale from the start
                new is not None and (new == old or stale_since(old, new, entry.captured) is not None)
                for new, (_, old) in zip(tokens, entry.generations, strict=True)
            )
        ):
            return False
        ttl_ms = int(min(entry.response.ttl + entry.response.kept_on, LONGEST) * 1000)
        value = self._codec.encode(key.name, entry, await self._seal(key.tenant))
        if quota is not None and self._quotas is not None:
            await self._quotas.write(key.tenant, quota, key.name, value, ttl_ms=ttl_ms)
        else:
            await self._store.write(key.name, value, ttl_ms=ttl_ms)
        return True

    async def _seal(self, tenant: str, deadline: float | None = None) -> Seal | None:
        return None if self._vault is None else await self._vault.of(tenant, deadline=deadline)


class Entries:
    """The entries of a cache: in the store if there is one and it answers, else in memory."""

    def __init__(
        self,
        *,
        keys: KeySpace,
        local: Local,
        shared: Shared | None,
        l1: Memory | None,
        view: View | None,
        tags: LiveTags,
        remembered: Remembered,
        invalidations: Invalidations,
        emitter: Emitter,
        fallback_ttl: float,
        quotas: Quotas | None = None,
        again: ReadsAgain | None = None,
    ) -> None:
        self.quotas: Quotas | None = quotas
        """What tenants may hold; None: nobody has a quota."""
        self._keys = keys
        self._local = local
        self._shared = shared
        self._l1 = l1
        self._view = view
        self._tags = tags
        self._remembered = remembered
        self._breaker = shared.breaker if shared is not None else Breaker()
        self.first: Memory | None = local.memory if shared is None else l1
        """What is asked before anything else, without waiting; None: nothing in this process may be."""
        self._invalidations = invalidations
        self._emitter = emitter
        self._fallback_ttl = fallback_ttl
        self._again: ReadsAgain | None = again if l1 is None else None
        self._together: Together | None = None
        """What was asked last, which others may join."""
        self._calm = -1
        """What the invalidations' `failures` was when nothing was queued and the fallback was empty; -1: not known."""

    @property
    def at_hand(self) -> Memory | None:
        """What a request asks before anything else: while the store is away, the fallback."""
        return self._local.memory if self._breaker.is_open else self.first

    @property
    def memory(self) -> Memory:
        """What this process holds."""
        return self._l1 if self._l1 is not None else self._local.memory

    @property
    def in_process(self) -> bool:
        """Whether this process is all there is."""
        return self._shared is None

    def known(self, key: CacheKey) -> CacheKey:
        """Return a key with all that its answer is known to depend on by now."""
        tags = self._tags.generations(key.tenant, key.tags) if key.tags else ()
        generations = key.generations[:2] + tags + (self._remembered.of(key) or ())
        return key if generations == key.generations else key._replace(generations=generations)

    async def recalled(self, key: CacheKey, *, deadline: float | None) -> CacheKey:
        """Return a key with what other nodes have learnt that its answer depends on; never raises for the store."""
        if self._shared is None or self._remembered.of(key) is not None:
            return key
        lifetime = self._shared.lifetime
        found = await self._remembered.recall(key, deadline=deadline, lifetime=lifetime)
        return key._replace(generations=(*key.generations[: key.base], *found)) if found else key

    def named(self, key: CacheKey, tags: Sequence[str]) -> tuple[bytes, ...] | None:
        """Return the generations of tags that a response names beside those of its request; None: too many."""
        own = [self._keys.of_tag(key.tenant, tag) for tag in tags]
        if len({*own, *key.tags}) > MOST_TAGS:
            return None
        mapped = [self._tags.generation(key.tenant, each) for each in own if each not in key.tags]
        return tuple(dict.fromkeys(mapped))

    def lookup_here(self, key: CacheKey, stale_for: float = 0.0) -> Found | Missing | None:
        """Look an entry up in this process; None: what the store says must be asked for.

        A Missing says under which generations a computation may be joined without asking.
        """
        if self._shared is None:
            return self._local.lookup(key, stale_for)
        if self._breaker.is_open:
            self._emitter.emit(_BREAKER)
            return self._local.lookup(key)
        if self._l1 is None or self._view is None:
            return None
        found = self._l1.lookup(key)
        if found is not None:
            return found
        known = self._view.tokens(key.generations)
        return None if known is None else Missing(Tier.REDIS, known)

    def remember(self, known: Known, found: Found) -> None:
        """Take over what was read of a request, so that it can be read again at once."""
        read = found.read
        if read is not None and self._again is not None:
            known.key, known.prepared, known.held = read.key, found.prepared, len(read.reply[0] or b"")
            known.before = self._again.before((read.key.name, *read.key.generations), read.reply, read.epoch)

    def read_again(self, known: Known, started: float, budget: float) -> ReadingAgain | None:
        """Ask the store whether it still says what it said of a known request; None: look it up.

        Whoever asks waits for the first of what is returned, for `budget` seconds at most, and hands all of it to
        `may_use` if it is true: a coroutine for that would cost a tenth of it all.
        """
        store, invalidations, before, under_way = self._again, self._invalidations, known.before, known.under_way
        failures = invalidations.failures
        if before is None or store is None:
            return None
        if failures != self._calm:  # nothing is ever queued that is not counted there
            if invalidations.queued or not self._local.memory.is_empty:
                return None
            self._calm = failures
        if under_way is not None and under_way.sent_at == math.inf:  # they share a lookup
            return None
        together = self._together
        same = None if together is None else together.join(before, started)
        if same is None or together is None:
            self._together = together = store.together(started, budget)
            same = None if together is None else together.join(before, started)
            if together is None or same is None:
                return None
        known.under_way = together
        return same, together, failures

    def not_read_again(self, asked: ReadingAgain, error: StoreError | RuntimeError) -> bool:
        """Note that the store has not answered, or not on this event loop; False."""
        if self._again is not None:
            self._again.failed(asked[1], error)
        return False

    def may_use(self, known: Known, asked: ReadingAgain) -> bool:
        """Whether what the store still says may be used; False: look it up."""
        if self._invalidations.failures != asked[2]:
            return False
        if LookedUp in self._emitter.heard:
            self._emitter.emit(LookedUp(known.key.operation, Result.HIT, Tier.REDIS, asked[1].took))
        return True

    async def lookup(
        self,
        key: CacheKey,
        counts: OperationCounts,
        *,
        deadline: float | None,
        on_sent: Callable[[], None] | None = None,
        stale_for: float = 0.0,
    ) -> Found | Missing:
        """Look an entry up, one that has been stale for less than `stale_for` included; never raises for the store."""
        if self._shared is None:
            return self._local.lookup(key, stale_for)
        started = time.perf_counter()
        found: Found | Missing
        try:
            failures = self._invalidations.failures
            if self._invalidations.queued and not await self._invalidations.caught_up(key.tenant, deadline=deadline):
                return self._local.lookup(key)
            looked = await self._shared.lookup(key, deadline=deadline, on_sent=on_sent, stale_for=stale_for)
            if self._invalidations.failures != failures:  # what was read may be what was invalidated meanwhile
                return self._local.lookup(key)
            if not self._local.memory.is_empty:
                self.store_came_back()
            if isinstance(looked, Missing):
                found = looked
            else:
                entry, stale, fresh_for, read = looked
                if len(entry.generations) > key.base:
                    named = tuple([name for name, _ in entry.generations[key.base :]])
                    self._remembered.learn(key, named, lifetime=self._shared.lifetime)
                live = self._keep_here(key, entry, counts, fresh_for) if stale is None else None
                prepared = live if live is not None else ready(entry.response)
                found = Found(prepared, Tier.REDIS, live, stale, read)
        except StoreError:
            found = self._local.lookup(key)
        result = Result.HIT if isinstance(found, Found) else Result.MISS
        self._emitter.looked_up(key.operation, result, found.tier, time.perf_counter() - started)
        return found

    async def inspect(self, key: CacheKey) -> Inspection:
        """Say what is held for a key in every tier, and change nothing; never raises for the store."""
        if self._shared is None:
            return self._local.inspect(key)
        here = (self._l1.inspect(key),) if self._l1 is not None else ()
        try:
            there = await self._shared.inspect(key)
        except StoreError as error:
            fallback = self._local.inspect(key)
            return Inspection((*here, *fallback.copies), fallback.generations, getattr(error, "kind", "error"))
        return Inspection((*here, *there.copies), there.generations)

    async def capture(
        self,
        key: CacheKey,
        missing: Missing,
        *,
        deadline: float | None,
        on_sent: Callable[[], None] | None = None,
        lease: LeaseOffer | None = None,
    ) -> Snapshot:
        """Capture generations where the entry was looked for, and a lease if free; never raises for the store.

        A store that answered the lookup may go on to answer others, who then know of invalidations that this process
        does not. Where it takes no capture, being full for instance, the answer is for those who asked for it together.
        """
        if self._shared is not None and missing.tier is Tier.REDIS:
            failures = self._invalidations.failures
            try:
                snapshot = await self._shared.generations.capture(key, deadline=deadline, on_sent=on_sent, lease=lease)
            except StoreError:
                tokens = tuple(new_token() for _ in key.generations)
                return Snapshot(Tier.FALLBACK, tokens, new_token(), lost=True)
            if self._invalidations.failures == failures:
                self._tags.used(key.tenant, key.generations, lifetime=self._shared.lifetime)
                return snapshot
        return self.capture_here(key)

    def capture_here(self, key: CacheKey) -> Snapshot:
        """Do what `capture` does where nothing leaves this process, without waiting."""
        self._tags.used(key.tenant, key.generations, lifetime=self._local.lifetime)
        snapshot = self._local.capture(key)
        return snapshot if self._shared is None or self._fallback_ttl > 0 else snapshot._replace(lost=True)

    async def keep(
        self,
        key: CacheKey,
        snapshot: Snapshot,
        response: StoredResponse,
        counts: OperationCounts,
        named: tuple[bytes, ...] = (),
    ) -> bool | None:
        """Keep a response under the generations that it was computed under, where they were captured.

        `named` are the generations of the tags that the response itself names. Returns False if one of them may have
        changed since the capture, and None if the store did not take it. Raises OverQuota.
        """
        if snapshot.lost:
            return None
        quota = self.quotas.of(key.tenant) if self.quotas is not None else None
        try:
            pairs = await self._pairs(key, snapshot, named)
        except StoreError:
            return None
        if pairs is None:
            return False
        entry = Entry(key.request, response, pairs, snapshot.captured)
        if quota is not None and self.quotas is not None:
            await self.quotas.admit(key.tenant, quota)
        if snapshot.tier is Tier.REDIS and self._shared is not None:
            try:
                kept: bool | None = await self._shared.keep(
                    key, entry, quota if quota is not None and quota.holds else None
                )
            except StoreError:
                return None
            if kept:
                self._keep_here(key, entry, counts, entry.response.ttl)
        else:
            if self._shared is not None:
                if self._fallback_ttl <= 0:
                    return None
                entry = replace(entry, response=_shortened(response, self._fallback_ttl))
                self._calm = -1
            if quota is not None and self.quotas is not None and quota.holds:
                entries, held = self._local.memory.with_entry(key, entry)
                self.quotas.account(key.tenant, quota, entries, held, kept=quota.permits(entries, held))
            kept = self._local.keep(key, entry, counts)
        if kept:
            counts.stored(snapshot.tier)
            if self._emitter.hears(Stored):
                size = len(response.body)
                self._emitter.emit(Stored(key.operation, key.tenant, snapshot.tier, size, response.ttl))
        return kept

    async def _pairs(
        self, key: CacheKey, snapshot: Snapshot, named: tuple[bytes, ...]
    ) -> tuple[tuple[bytes, bytes], ...] | None:
        """Return what a response depends on, and the generations that were current before it was computed."""
        captured = dict(zip(key.generations, snapshot.generations, strict=True))
        where = self._shared if snapshot.tier is Tier.REDIS and self._shared is not None else self._local
        if self._remembered.learn(key, named, lifetime=where.lifetime) and where is self._shared:
            await self._remembered.tell(key, named, lifetime=where.lifetime)
        unknown = tuple(name for name in named if name not in captured)
        if unknown:
            self._tags.used(key.tenant, unknown, lifetime=where.lifetime)
            found = where.extend(key, unknown, snapshot)
            tokens = found if isinstance(found, tuple | None) else await found
            if tokens is None:
                return None
            captured.update(zip(unknown, tokens, strict=True))
        return tuple((name, captured[name]) for name in dict.fromkeys((*key.generations[: key.base], *named)))

    def forget(self, tenant: str) -> int:
        """Forget what this process holds of a tenant; returns how many entries there were."""
        prefix = self._keys.prefix(tenant)
        return self._local.forget(prefix) + (self._l1.forget(prefix) if self._l1 is not None else 0)

    async def aclose(self) -> None:
        """Let what is under way in the background end."""
        await self._tags.aclose()

    def store_came_back(self) -> None:
        """Forget the fallback's entries: from here on the store is right again."""
        if self._shared is not None:
            self._local.memory.clear()

    def _keep_here(self, key: CacheKey, entry: Entry, counts: OperationCounts, fresh_for: float) -> Live | None:
        """Keep what the store holds in this process too, for a while."""
        if self._l1 is None:
            return None
        lifetime = min(fresh_for, _LONGEST_HERE)
        return self._l1.keep(key, entry, counts, lifetime=lifetime) if lifetime > 0 else None


def _fresh_for(response: StoredResponse, left: float | None) -> float:
    """Return the seconds for which an entry is still fresh, given those for which the store holds it on.

    Negative once it is stale. One whose key went, or was written, at this very moment is kept by nobody else.
    """
    if left is None:
        return 0.0
    return left - max(0.0, min(response.ttl + response.kept_on, LONGEST) - response.ttl)


def _depended_on(key: CacheKey, entry: Entry | None) -> tuple[bytes, ...]:
    """Return what an answer of this key depends on; an entry may know of more than its key."""
    return tuple(dict.fromkeys((*key.generations, *(name for name, _ in (entry.generations if entry else ())))))


def _shortened(response: StoredResponse, ttl: float) -> StoredResponse:
    return replace(response, ttl=min(response.ttl, ttl), kept_on=0.0)


def ready(response: StoredResponse) -> Prepared:
    """Prepare a stored response, and draw when it is to be computed again."""
    return Prepared(response, refresh_at=_refresh_at(response))


def _refresh_at(response: StoredResponse) -> float:
    return refresh_at(response, 1 - random.random())  # noqa: S311 - no secret


def _size(raw: Hashable) -> int:
    """Return about how many bytes of memory a raw request holds."""
    if isinstance(raw, tuple):
        return 56 + sum(map(_size, raw))
    return 56 + len(raw) if isinstance(raw, bytes | str) else 0
