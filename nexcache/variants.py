"""The stored responses of one URI: which of them a request selects, and where one is stored (RFC 9111 §4.1).

A response that varies by nothing is stored under the key of its URI. Otherwise a *signpost* is stored there: by which
request fields the responses vary; each response has a key of its own, made of the values of these fields. A process
remembers the signposts it has seen and asks for what they point at in the same round trip; a wrong guess costs a
second one.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from nexcache.asgi import Headers
from nexcache.collapse import Flights
from nexcache.entries import Entries, Found, Missing
from nexcache.fill_lease import FillLeases, Lease
from nexcache.invalidation.generations import Snapshot
from nexcache.key import LONGEST_REQUEST, CacheKey, KeySpace
from nexcache.message import StoredResponse
from nexcache.semantics.headers import first
from nexcache.semantics.stored import Facts, facts
from nexcache.semantics.vary import Nominated, resembling, selecting
from nexcache.stores.memory import Bounded
from nexcache.telemetry.counts import OperationCounts
from nexcache.telemetry.names import Tier

_SIGNPOST: Final = b":vary"
"""What a signpost's fields are called; no field that came over HTTP can be."""
_MOST: Final = 8
"""Vary fields of one URI that are remembered; the oldest leave first."""
_GUESSED_FOR: Final = 86_400.0
"""Seconds for which a process remembers a signpost."""


class Parts(Protocol):
    """What is needed of a cache."""

    @property
    def store_budget(self) -> float:
        """Seconds that all asking of the store may take before the app is called."""

    @property
    def keys(self) -> KeySpace:
        """Builds keys."""

    @property
    def entries(self) -> Entries:
        """Finds and keeps entries."""

    @property
    def flights(self) -> Flights:
        """The computations under way."""

    @property
    def leases(self) -> FillLeases | None:
        """The leases of fills; None where there are no other nodes."""


@dataclass(frozen=True, slots=True)
class Place:
    """A URI's place in the store, for one tenant and principal."""

    key: CacheKey
    tags: tuple[str, ...]
    headers: Headers
    """The fields of the request, which select between the URI's responses."""


@dataclass(frozen=True, slots=True)
class Selected:
    """The stored response that a request selects."""

    key: CacheKey
    response: StoredResponse
    facts: Facts
    tier: Tier
    known: tuple[Nominated, ...]
    """By which fields the responses of this URI vary, as far as is known; empty where only one is stored."""


@dataclass(frozen=True, slots=True)
class NoneSelected:
    """Nothing stored answers the request: nothing of this URI at all, or nothing for its header fields."""

    missing: Missing
    known: tuple[Nominated, ...] = ()

    @property
    def fwd(self) -> str:
        """The reason as Cache-Status has it."""
        return "vary-miss" if self.known else "uri-miss"


@dataclass(frozen=True, slots=True)
class Captured:
    """The generations of a URI, as they were before the origin was asked."""

    generations: tuple[bytes, ...]
    """Their keys."""
    snapshot: Snapshot
    lease: Lease | None = None
    """This node's: others wait for it."""
    elsewhere: bytes | None = None
    """The name of the lease that another node holds."""
    at: float = 0.0
    """When it was asked for (`time.monotonic`)."""

    def of(self, key: CacheKey) -> CacheKey:
        """Return a key of the same URI that depends on just these."""
        return key._replace(generations=self.generations)


class Variants:
    """Selects and stores responses."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._guesses: Bounded[tuple[Nominated, ...]] = Bounded(max_bytes=4 * 1024 * 1024, max_entries=10_000)

    def key(self, place: Place, names: Nominated) -> CacheKey:
        """Return the key of the response that varies by these fields, and that the request selects."""
        if not names:
            request = place.key.request + b"4:vary"
        else:
            parts = [b"vary"]
            for name, value in selecting(place.headers, names):
                parts += (name, b"-" if value is None else b"=" + value)
            request = place.key.request + b"".join(b"%d:%b" % (len(part), part) for part in parts)
        return self._parts.keys.key(place.key.tenant, place.key.operation, request, place.tags)

    def flight(self, place: Place, selected: Selected | NoneSelected) -> CacheKey:
        """Return what requests have in common that wait for the same response: nobody waits for another variant.

        Where nobody knows by what the responses of a URI vary, they have all in common that could matter.
        """
        if isinstance(selected, Selected):
            return selected.key
        known = selected.known or self._guesses.get(place.key.name)
        if known == ():
            return place.key
        named = (self.key(place, names).name for names in known or ())
        alike = b"".join(named) if known else resembling(place.headers)
        request = place.key.request + b"%d:%b" % (len(alike), alike)
        return self._parts.keys.key(place.key.tenant, place.key.operation, request, place.tags)

    async def select(self, place: Place, counts: OperationCounts, *, anew: bool = False) -> Selected | NoneSelected:
        """Find the response that a request selects: of several the latest (§4.1).

        `anew`: the store is asked, whatever this process holds.
        """
        deadline = asyncio.get_running_loop().time() + self._parts.store_budget
        guessed = self._guesses.get(place.key.name) or ()
        keys = (place.key, *(self.key(place, names) for names in guessed))
        post, *others = await self._look_all(keys, counts, deadline, anew=anew)
        if isinstance(post, Missing):
            return NoneSelected(post)
        known = _names(post.prepared.response)
        if known is None:
            return _selected(place.key, post, ())
        looked = dict(zip(guessed, others, strict=True))
        unseen = [names for names in known if names not in looked]
        if unseen:
            self._remember(place, known)
            keys = tuple(self.key(place, names) for names in unseen)
            looked |= zip(unseen, await self._look_all(keys, counts, deadline, anew=anew), strict=True)
        found = [
            _selected(self.key(place, names), hit, known)
            for names, hit in looked.items()
            if names in known and isinstance(hit, Found)
        ]
        if found:  # one without Vary is the default of a resource that forgets to say what it varies by
            return max(found, key=lambda each: (first(each.response.headers, b"vary") is not None, each.facts.date))
        missing = next((hit for hit in looked.values() if isinstance(hit, Missing)), Missing(post.tier, None))
        return NoneSelected(missing, known)

    async def keep(
        self,
        place: Place,
        response: StoredResponse,
        captured: Captured,
        counts: OperationCounts,
        *,
        varies: Nominated,
        known: Sequence[Nominated],
        tags: Sequence[str],
    ) -> bool | None:
        """Store a response; `known` is what the signpost said. Returns what `Entries.keep` does."""
        entries = self._parts.entries
        if not varies and not known:
            kept = await self.replace(place.key, response, captured, counts, tags=tags)
            self._remember(place, ())
            return kept
        key = self.key(place, varies)
        if len(key.request) > LONGEST_REQUEST:
            return None
        kept = await self.replace(key, response, captured, counts, tags=tags)
        if kept:
            names = tuple(dict.fromkeys((varies, *known)))[:_MOST]
            await entries.keep(captured.of(place.key), captured.snapshot, _signpost(names, response), OperationCounts())
            self._remember(place, names)
        return kept

    async def replace(
        self,
        key: CacheKey,
        response: StoredResponse,
        captured: Captured,
        counts: OperationCounts,
        *,
        tags: Sequence[str],
    ) -> bool | None:
        """Store a response under its key. `tags` are those that it names itself."""
        entries, key = self._parts.entries, captured.of(key)
        named = entries.named(key, tags)
        return None if named is None else await entries.keep(key, captured.snapshot, response, counts, named)

    async def capture(
        self, place: Place, missing: Missing, flight: CacheKey | None = None, *, since: float | None = None
    ) -> Captured:
        """Capture the generations under which a response may be stored.

        With the lease of `flight`, if it is free and has not ended after `since` (`time.monotonic`).
        """
        entries, leases = self._parts.entries, self._parts.leases
        deadline = asyncio.get_running_loop().time() + self._parts.store_budget
        key = entries.known(place.key)
        if missing.tier is Tier.REDIS:
            key = await entries.recalled(key, deadline=deadline)
        capture = partial(entries.capture, key, Missing(missing.tier, None), deadline=deadline)
        if leases is None or flight is None or missing.tier is not Tier.REDIS:
            return Captured(key.generations, await capture())
        leased = await leases.capture(flight, missing.generations, capture, deadline=deadline, since=since)
        return Captured(key.generations, leased.snapshot, leased.lease, leased.elsewhere, leased.at)

    def _remember(self, place: Place, known: tuple[Nominated, ...]) -> None:
        self._guesses.put(place.key.name, known, size=64 * len(known), lifetime=_GUESSED_FOR)

    async def _look_all(
        self, keys: Sequence[CacheKey], counts: OperationCounts, deadline: float, *, anew: bool
    ) -> list[Found | Missing]:
        """Look for entries, for all of them in one round trip."""
        if len(keys) == 1 or self._parts.entries.in_process:
            return [await self._look(key, counts, deadline, anew=anew) for key in keys]
        return await asyncio.gather(*(self._look(key, counts, deadline, anew=anew) for key in keys))

    async def _look(self, key: CacheKey, counts: OperationCounts, deadline: float, *, anew: bool) -> Found | Missing:
        entries, flights = self._parts.entries, self._parts.flights
        key = entries.known(key)
        here = None if anew and not entries.in_process else entries.lookup_here(key)
        if isinstance(here, Found) or (isinstance(here, Missing) and entries.in_process):
            return here
        return await flights.lookups.run(
            key.identity,
            lambda on_sent: entries.lookup(key, counts, deadline=deadline, on_sent=on_sent),
            since=time.perf_counter(),
        )


def _selected(key: CacheKey, found: Found, known: tuple[Nominated, ...]) -> Selected:
    prepared, response = found.prepared, found.prepared.response
    if prepared.facts is None:
        prepared.facts = facts(response.status, response.headers, received=response.stored_at)
    return Selected(key, response, prepared.facts, found.tier, known)


def _signpost(known: Sequence[Nominated], response: StoredResponse) -> StoredResponse:
    fields = tuple((_SIGNPOST, b",".join(names)) for names in known)
    return StoredResponse(200, fields, b"", b"", response.stored_at, response.ttl)


def _names(response: StoredResponse) -> tuple[Nominated, ...] | None:
    """Return what a signpost says; None for a response."""
    if not response.headers or response.headers[0][0] != _SIGNPOST:
        return None
    return tuple(tuple(value.split(b",")) if value else () for _, value in response.headers)
