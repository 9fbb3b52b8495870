"""What a tenant holds, from a bounded look at its entries: for listings, and for what an invalidation would reach.

Counts are exact where everything could be looked at; otherwise a part was read and the rest is projected from it,
and the answer says so. It is for people: no request waits for it, and its cost has a bound.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nexcache.entries import Memory, Seals
from nexcache.errors import StoreError
from nexcache.invalidation.apply import Invalidations
from nexcache.invalidation.generations import seen
from nexcache.invalidation.targets import Targets
from nexcache.key import KeySpace, name_of
from nexcache.message import Entry
from nexcache.stores.base import Store
from nexcache.stores.codec import Codec, Undecodable

LOOKED_AT: Final = 20_000
"""Keys that are looked at in the store."""
READ: Final = 500
"""Entries that are read, to learn their tags and whether they are still valid."""
_LONGEST: Final = 64 * 1024
_SEGMENTS: Final = 4
"""An entry's key is `nexarch:<tenant>:<op>:<hash>`."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One entry that was read."""

    operation: str
    name: bytes
    entry: Entry
    live: bool
    """Every generation that it depends on is there and equal: it may be served."""
    weight: float = 1.0
    """How many entries it stands for."""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """Entries of one tenant."""

    entries: Sequence[Seen]
    estimated: bool
    """Not everything was looked at."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What an invalidation would reach, had it been carried out."""

    targets: tuple[str, ...]
    """Operations' names, `tag:…`, or `*`: what `Invalidation.targets` would say."""
    entries: int
    """How many valid entries would become misses."""
    operations: Mapping[str, int]
    tags: Mapping[str, int]
    """By tag of the targets; an entry with two of them counts for both."""
    estimated: bool
    """Projected from a part of the entries."""

    def as_dict(self) -> dict[str, Any]:
        """Give the document that `?dry_run=1` answers."""
        return {
            "dry_run": True,
            "targets": list(self.targets),
            "entries": self.entries,
            "operations": dict(self.operations),
            "tags": dict(self.tags),
            "estimated": self.estimated,
        }


class Sampler:
    """Looks at a tenant's entries, in the store if there is one and it answers, else in this process."""

    def __init__(
        self,
        *,
        keys: KeySpace,
        memory: Callable[[], Memory],
        shared: Store | None,
        codec: Codec,
        invalidations: Invalidations,
        vault: Seals | None = None,
    ) -> None:
        self._keys = keys
        self._memory = memory
        self._shared = shared
        self._codec = codec
        self._invalidations = invalidations
        self._vault = vault

    async def of(self, tenant: str) -> Sample:
        """Look at a tenant's entries; never raises for the store."""
        prefix = self._keys.prefix(tenant)
        if self._shared is not None:
            try:
                return await self._stored(self._shared, tenant, prefix)
            except StoreError:
                return self._held(prefix, estimated=True)
        return self._held(prefix, estimated=False)

    async def preview(self, tenant: str, targets: Targets) -> Preview:
        """Say what an invalidation would reach, and change nothing; raises as `Invalidations.apply` does."""
        words, tokens = await self._invalidations.preview(tenant, targets)
        sample = await self.of(tenant)
        removed = frozenset(tokens) - {self._keys.of_any(tenant)}
        of_tags = {self._keys.of_tag(tenant, tag): tag for tag in targets.tags}
        operations: dict[str, float] = defaultdict(float)
        tags: dict[str, float] = dict.fromkeys(targets.tags, 0.0)
        for each in sample.entries:
            reached = removed.intersection(name for name, _ in each.entry.generations)
            if each.live and reached:
                operations[each.operation] += each.weight
                for name in reached & of_tags.keys():
                    tags[of_tags[name]] += each.weight
        rounded = {name: round(number) for name, number in sorted(operations.items())}
        return Preview(
            words,
            sum(rounded.values()),
            rounded,
            {name: round(number) for name, number in sorted(tags.items())},
            sample.estimated,
        )

    async def tenants(self) -> tuple[frozenset[str], bool]:
        """Return the tenants whose statistics the store keeps, and whether all of them could be looked at."""
        if self._shared is None:
            return frozenset(), True
        prefix = b"nexarch.stats:"
        try:
            names = await self._shared.names(prefix, most=LOOKED_AT)
        except StoreError:
            return frozenset(), False
        found = (key.removeprefix(prefix) for key in names.keys)
        return frozenset(name_of(name.removeprefix(b"{").removesuffix(b"}")) for name in found), names.complete

    def _held(self, prefix: bytes, *, estimated: bool) -> Sample:
        found = [
            Seen(_operation(name), name, entry, live, tags=_tags(entry, prefix))
            for name, entry, live in self._memory().held(prefix, LOOKED_AT)
        ]
        return Sample(found, estimated or len(found) >= LOOKED_AT)

    async def _stored(self, store: Store, tenant: str, prefix: bytes) -> Sample:
        seal = await self._vault.of(tenant) if self._vault is not None else None
        names = await store.names(prefix, most=LOOKED_AT)
        keys = sorted(key for key in names.keys if _is_entry(key, prefix))
        read = keys[:: -(-len(keys) // READ) or 1]
        entries: dict[bytes, Entry] = {}
        for key, value in zip(read, await store.peek_many(read, longest=_LONGEST), strict=True):
            entry = self._codec.decode(key, value, seal) if value is not None else None
            if entry is not None and not isinstance(entry, Undecodable):
                entries[key] = entry
        current = await _current(store, {name for entry in entries.values() for name, _ in entry.generations})
        of_each = Counter(map(_operation, keys))
        of_read = Counter(map(_operation, entries))
        found = [
            Seen(
                _operation(key),
                key,
                entry,
                all(current.get(name) == token for name, token in entry.generations),
                names.factor * of_each[_operation(key)] / of_read[_operation(key)],
                _tags(entry, prefix),
            )
            for key, entry in entries.items()
        ]
        return Sample(found, estimated=not names.complete or len(entries) < len(keys))


async def _current(store: Store, names: Iterable[bytes]) -> dict[bytes, bytes | None]:
    wanted, current = sorted(names), {}
    for start in range(0, len(wanted), READ):
        some = wanted[start : start + READ]
        reading = await store.read(some)
        current.update({name: seen(token, reading.epoch) for name, token in zip(some, reading.values, strict=True)})
    return current


def _is_entry(key: bytes, prefix: bytes) -> bool:
    return key.count(b":") == _SEGMENTS - 1 and not key.startswith(prefix + b"@")


def _tags(entry: Entry, prefix: bytes) -> tuple[str, ...]:
    tagged = prefix + b"@tag:"
    return tuple(name_of(name.removeprefix(tagged)) for name, _ in entry.generations if name.startswith(tagged))


def _operation(key: bytes) -> str:
    return name_of(key.split(b":")[-2])
