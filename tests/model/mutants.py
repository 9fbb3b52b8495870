"""NexCache with one safeguard taken out. A proof that does not notice each of these proves nothing.

Every mutant is a thing that breaks the guarantee (faults.md §2) or one of the races that were found on the way here.
It is applied by patching, and must be noticed, by the judge of `tests.model.world`, in programs drawn from any seed.
"""

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import pytest

from nexcache import CacheMiddleware, entries
from nexcache.asgi import Message, Receive, Scope, Send
from nexcache.collapse import Flights
from nexcache.entries import Entries, Missing, Shared
from nexcache.errors import StoreError
from nexcache.fill import Fill
from nexcache.ingest.coalescing import Coalescer
from nexcache.invalidation import coherence, generations
from nexcache.invalidation.apply import Invalidations
from nexcache.invalidation.coherence import Coherence
from nexcache.invalidation.generations import Generations, Snapshot
from nexcache.invalidation.view import Trusted, View
from nexcache.key import CacheKey, segment
from nexcache.message import Entry
from nexcache.semantics import reuse
from nexcache.stores import redis as redis_store
from nexcache.stores.base import SENTINEL, Capture
from nexcache.stores.redis import EVENTS, RedisCommands
from tests.model.network import Connection, Network
from tests.model.programs import drawn
from tests.model.world import Node, Step, Violation, World, replay, stage

Patch: TypeAlias = pytest.MonkeyPatch
MOST_PROGRAMS: Final = 3_000
LENGTH: Final = 30


@dataclass(frozen=True)
class Mutant:
    """NexCache without one of its safeguards."""

    name: str
    wrong: str
    """What it does wrong, in the words of whoever would do it."""
    apply: Callable[[Patch], None]


ALL: Final[dict[str, Mutant]] = {}


def mutant(wrong: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Add a mutant."""

    def add(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        ALL[apply.__name__] = Mutant(apply.__name__, wrong, apply)
        return apply

    return add


# --- generations -------------------------------------------------------------------------------------------------


@mutant("the generations are captured after the computation")
def captured_after_the_computation(patch: Patch) -> None:
    keep = Entries.keep

    async def late(self: Entries, key: CacheKey, snapshot: Snapshot, *args: Any) -> Any:
        again = await self.capture(key, Missing(snapshot.tier, None), deadline=None)
        return await keep(self, key, again, *args)

    patch.setattr(Entries, "keep", late)


@mutant("an entry is served whatever its generations have become")
def generations_not_compared(patch: Patch) -> None:
    lookup = Shared.lookup

    async def trusting(self: Shared, key: CacheKey, **options: Any) -> Any:
        looked = await lookup(self, key, **options)
        if not isinstance(looked, Missing):
            return looked
        entry = await _stored(self, key)
        return looked if entry is None else (entry, None, entry.response.ttl, None)

    patch.setattr(Shared, "lookup", trusting)


@mutant("generations are counters: lost and begun anew, they come to the same number again")
def generations_are_counters(patch: Patch) -> None:
    patch.setattr(redis_store, "new_token", lambda: b"1")

    async def unlink(
        self: RedisCommands, keys: Sequence[bytes], *, message: bytes | None = None, deadline: float | None = None
    ) -> int:
        commands: list[Any] = [("INCR", key) for key in keys]
        commands += [("PUBLISH", EVENTS, message)] if message is not None else []
        await self._call("invalidate", commands, deadline=deadline)
        return len(keys)

    patch.setattr(RedisCommands, "unlink", unlink)


@mutant("SCAN and DEL: what is being computed meanwhile is stored afterwards")
def scan_and_delete(patch: Patch) -> None:
    async def unlink(
        self: RedisCommands, keys: Sequence[bytes], *, message: bytes | None = None, deadline: float | None = None
    ) -> int:
        tenant = keys[0].split(b":")[1]
        found = await self.names(b"nexarch:%b:" % tenant, most=10_000)
        stored = [key for key in found.keys if b":@" not in key]
        commands: list[Any] = [("UNLINK", *stored)] if stored else []
        commands += [("PUBLISH", EVENTS, message)] if message is not None else []
        if commands:
            await self._call("invalidate", commands, deadline=deadline)
        return len(stored)

    patch.setattr(RedisCommands, "unlink", unlink)


@mutant("an entry is as old as the clock of its node says: invalidated before, or stored after?")
def wall_clocks_are_compared(patch: Patch) -> None:
    unlink = RedisCommands.unlink

    async def note(self: RedisCommands, keys: Sequence[bytes], **options: Any) -> int:
        done = await unlink(self, keys, **options)
        stamp = b"%.6f" % vars(entries)["time"].time()
        await self._call("invalidate", [("SET", key + b"!", stamp) for key in keys], deadline=None)
        return done

    async def compare(self: Shared, key: CacheKey, *, stale_for: float = 0.0, **options: Any) -> Any:
        names = [name + b"!" for name in key.generations]
        reading = await self._store.read(names, **options)
        entry = await _stored(self, key)
        stamps = [float(stamp) for stamp in reading.values if stamp is not None]
        if entry is None or any(stamp > entry.response.stored_at for stamp in stamps):
            return Missing(self._store.tier, None)
        return entry, None, entry.response.ttl, None

    patch.setattr(RedisCommands, "unlink", note)
    patch.setattr(Shared, "lookup", compare)


@mutant("a promoted or restarted server is taken for the one that it was")
def histories_are_not_told_apart(patch: Patch) -> None:
    def as_it_is(token: bytes | None, epoch: bytes) -> bytes | None:
        return token

    def as_they_are(tokens: Sequence[bytes | None], epoch: bytes) -> list[bytes | None]:
        return list(tokens)

    patch.setattr(entries, "seen", as_it_is)
    for module in (generations, coherence, entries):
        patch.setattr(module, "all_seen", as_they_are)


@mutant("reads go to a replica")
def reads_go_to_a_replica(patch: Patch) -> None:
    carry_out = Network.carry_out

    def elsewhere(self: Network, connection: Connection, command: Sequence[Any]) -> list[Any]:
        return [self.server.replica(command)] if command[0] == "MGET" else carry_out(self, connection, command)

    patch.setattr(Network, "carry_out", elsewhere)


@mutant("a registry that was lost in part is taken for whole")
def a_partly_lost_registry_is_taken_for_whole(patch: Patch) -> None:
    capture = RedisCommands.capture

    async def members(
        self: RedisCommands, registry: bytes, *, deadline: float | None = None
    ) -> frozenset[bytes] | None:
        (found,), _ = await self._call("invalidate", (("SMEMBERS", registry),), deadline=deadline)
        return frozenset(found) - {SENTINEL}

    async def whole(self: RedisCommands, *args: Any, **options: Any) -> Capture:
        return (await capture(self, *args, **options))._replace(complete=True)

    patch.setattr(RedisCommands, "members", members)
    patch.setattr(RedisCommands, "capture", whole)


@mutant("who restores a lost registry does not invalidate what was filled under it")
def a_registry_is_restored_without_an_invalidation(patch: Patch) -> None:
    async def restore(
        self: RedisCommands, registry: bytes, token: bytes, *, ttl_ms: int, deadline: float | None = None
    ) -> None:
        await self._call("capture", (("SADD", registry, SENTINEL),), deadline=deadline)

    patch.setattr(RedisCommands, "restore_sentinel", restore)


@mutant("a glob forgets that memories may trust the token that was removed when the registry was restored")
def a_restored_registry_is_not_told_of(patch: Patch) -> None:
    patch.setattr(Invalidations, "_doubtful", lambda self, tenant, targets, tokens: tokens)


@mutant("@any is read before the token of a tag is created that only the answer names")
def any_is_read_too_early(patch: Patch) -> None:
    async def early(
        self: Generations, key: CacheKey, names: Sequence[bytes], snapshot: Snapshot, *, deadline: float | None = None
    ) -> tuple[bytes, ...] | None:
        reading = await self._store.read((self._keys.of_any(key.tenant),))
        if generations.seen(reading.values[0], reading.epoch) != snapshot.any:
            return None
        await asyncio.sleep(0.02)
        registry, operation = self._keys.registry(key.tenant), segment(key.operation)
        captured = await self._store.capture(names, registry=registry, operation=operation, ttl_ms=self.ttl_ms)
        found = [generations.seen(token, captured.epoch) for token in captured.tokens]
        known = tuple(token for token in found if token is not None)
        return known if len(known) == len(found) else None

    patch.setattr(Generations, "extend", early)


@mutant("what an answer names is captured when it is stored, without asking whether it changed meanwhile")
def any_is_not_compared(patch: Patch) -> None:
    def known(snapshot: Snapshot, captured: Capture) -> tuple[bytes, ...] | None:
        found = [generations.seen(token, captured.epoch) for token in captured.tokens]
        return tuple(token for token in found if token is not None)[:-1] if None not in found else None

    patch.setattr(generations, "_same", known)


@mutant("who waits is answered with what an answer names, whatever that has become")
def followers_are_given_what_is_not_captured(patch: Patch) -> None:
    init = Fill.__init__

    def anyhow(self: Fill, *args: Any, **options: Any) -> None:
        shareable = options["shareable"]
        init(self, *args, **{**options, "shareable": lambda response: shareable(response) or True})

    patch.setattr(Fill, "__init__", anyhow)


@mutant("an invalidation that the server did not carry out is acknowledged")
def errors_of_the_server_are_swallowed(patch: Patch) -> None:
    unlink = RedisCommands.unlink

    async def swallow(self: RedisCommands, keys: Sequence[bytes], **options: Any) -> int:
        try:
            return await unlink(self, keys, **options)
        except StoreError:
            return 0

    patch.setattr(RedisCommands, "unlink", swallow)


@mutant("the store is read again before it was told what was queued")
def the_own_queue_is_not_waited_for(patch: Patch) -> None:
    lookup = Entries.lookup

    async def at_once(self: Entries, *args: Any, **options: Any) -> Any:
        invalidations = self._invalidations
        queue, invalidations._queue = invalidations._queue, type(invalidations._queue)()
        blocked = invalidations._coherence
        if blocked is not None:
            blocked.blocked = False
        try:
            return await lookup(self, *args, **options)
        finally:
            queue.update(invalidations._queue)
            invalidations._queue = queue

    patch.setattr(Entries, "lookup", at_once)


@mutant("a soft invalidation has no bound")
def soft_invalidations_have_no_bound(patch: Patch) -> None:
    stale = Shared._stale

    async def just_now(self: Shared, *args: Any, **options: Any) -> float | None:
        seconds = await stale(self, *args, **options)
        return seconds if seconds is None or math.isinf(seconds) else 0.0

    patch.setattr(Shared, "_stale", just_now)


@mutant("what was invalidated for good is served while it is computed anew")
def stale_is_served_after_a_hard_invalidation(patch: Patch) -> None:
    lookup = Shared.lookup

    async def anyhow(self: Shared, key: CacheKey, *, stale_for: float = 0.0, **options: Any) -> Any:
        looked = await lookup(self, key, stale_for=stale_for, **options)
        if isinstance(looked, Missing) and stale_for > 0:
            entry = await _stored(self, key)
            return looked if entry is None else (entry, 0.0, 0.0, None)
        return looked

    patch.setattr(Shared, "lookup", anyhow)


# --- computations ------------------------------------------------------------------------------------------------


@mutant("who asks after an invalidation joins a computation from before it")
def joined_across_an_invalidation(patch: Patch) -> None:
    def any_of(self: Flights, key: CacheKey, generations: tuple[bytes, ...] | None) -> Any:
        return next((fill for (request, _), fill in self._fills.items() if request == key.request), None)

    patch.setattr(Flights, "get", any_of)


@mutant("a lookup is shared after it has left")
def lookups_are_shared_after_they_have_left(patch: Patch) -> None:
    lookup = Entries.lookup

    async def held_open(self: Entries, *args: Any, **options: Any) -> Any:
        return await lookup(self, *args, **{**options, "on_sent": None})

    patch.setattr(Entries, "lookup", held_open)


@mutant("a capture that the server refused is replaced by one of the process, which others may join")
def a_refused_capture_is_joined(patch: Patch) -> None:
    capture = Entries.capture

    async def own(self: Entries, key: CacheKey, missing: Missing, **options: Any) -> Snapshot:
        snapshot = await capture(self, key, missing, **options)
        return self._local.capture(key) if snapshot.lost else snapshot

    patch.setattr(Entries, "capture", own)


@mutant("a warm-up stores what it read before an invalidation")
def warming_stores_what_was_read_before(patch: Patch) -> None:
    again, keep = CacheMiddleware._again, Entries.keep
    refreshing: ContextVar[bool] = ContextVar("refreshing", default=False)

    async def marked(self: CacheMiddleware, *args: Any) -> bool:
        refreshing.set(True)
        return await again(self, *args)

    async def late(self: Entries, key: CacheKey, snapshot: Snapshot, *args: Any) -> Any:
        if refreshing.get():
            snapshot = await self.capture(key, Missing(snapshot.tier, None), deadline=None)
        return await keep(self, key, snapshot, *args)

    patch.setattr(CacheMiddleware, "_again", marked)
    patch.setattr(Entries, "keep", late)


@mutant("a coalescer drops what comes while it waits")
def the_trailing_change_is_dropped(patch: Patch) -> None:
    take, pending = Coalescer._take, Coalescer.pending

    def forget(self: Coalescer, *args: Any) -> Any:
        due = take(self, *args)
        return replace(due, targets=replace(due.targets, operations=frozenset(("dropped",))))

    patch.setattr(Coalescer, "_take", forget)
    patch.setattr(Coalescer, "pending", pending)


# --- what clients hold -------------------------------------------------------------------------------------------


@mutant("304 by a validator that is remembered beyond its entry")
def not_modified_from_a_dead_entry(patch: Patch) -> None:
    call = CacheMiddleware.__call__
    known: dict[tuple[int, bytes, str], bytes] = {}

    async def remembering(self: CacheMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        asked = (id(self), headers.get(b"x-tenant", b""), scope["path"])
        if asked in known and headers.get(b"if-none-match") == known[asked]:
            fields = [(b"etag", known[asked]), (b"cache-status", b"NexCache; hit")]
            await send({"type": "http.response.start", "status": 304, "headers": fields})
            await send({"type": "http.response.body", "body": b""})
            return

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                known[asked] = dict(message["headers"]).get(b"etag", b"")
            await send(message)

        await call(self, scope, receive, note)

    patch.setattr(CacheMiddleware, "__call__", remembering)


@mutant("browsers may show an answer again without asking")
def browsers_need_not_ask(patch: Patch) -> None:
    patch.setattr(reuse, "REVALIDATE", (b"cache-control", b"private, max-age=60"))


# --- memories of nodes -------------------------------------------------------------------------------------------


@mutant("a read that was sent before a message's barrier enters the view")
def barriers_are_not_kept(patch: Patch) -> None:
    def invalidated(self: View, keys: Iterable[bytes]) -> None:
        self.changes += 1
        for key in keys:
            self._trusted.pop(key, None)

    patch.setattr(View, "invalidated", invalidated)


@mutant("the lease runs from the reply of a read instead of its sending")
def the_lease_runs_from_the_reply(patch: Patch) -> None:
    for name in ("read", "capture"):
        call = getattr(RedisCommands, name)

        async def later(self: RedisCommands, *args: Any, call: Any = call, **options: Any) -> Any:
            return (await call(self, *args, **options))._replace(sent_at=self._clock())

        patch.setattr(RedisCommands, name, later)


@mutant("the view takes a reply over without asking when it was sent")
def the_view_is_updated_without_a_timestamp(patch: Patch) -> None:
    def observe(self: View, keys: Sequence[bytes], tokens: Sequence[bytes | None], *, sent_at: float) -> None:
        self.changes += 1
        for key, token in zip(keys, tokens, strict=True):
            if token is None:
                self._trusted.pop(key, None)
            else:
                self._trusted[key] = Trusted(token, self.clock() + self.lease)

    patch.setattr(View, "observe", observe)


@mutant("a memory that learns of changes by pub/sub only")
def memories_rely_on_messages(patch: Patch) -> None:
    def observe(self: View, keys: Sequence[bytes], tokens: Sequence[bytes | None], *, sent_at: float) -> None:
        for key, token in zip(keys, tokens, strict=True):
            if token is not None and self._barriers.get(key, 0.0) < sent_at:
                self._trusted[key] = Trusted(token, float("inf"))

    async def never(self: Coherence) -> None:
        await asyncio.Event().wait()

    patch.setattr(View, "observe", observe)
    patch.setattr(Coherence, "_renew", never)


@mutant("a generation in memory without a lease: renewed, but trusted for ever where that fails")
def memories_have_no_lease(patch: Patch) -> None:
    observe = View.observe

    def for_ever(self: View, keys: Sequence[bytes], tokens: Sequence[bytes | None], *, sent_at: float) -> None:
        observe(self, keys, tokens, sent_at=sent_at)
        for key in keys:
            if key in self._trusted:
                self._trusted[key] = Trusted(self._trusted[key].token, float("inf"))

    patch.setattr(View, "observe", for_ever)


@mutant("the clock of the lease stops while the process does")
def the_clock_stops_during_suspension(patch: Patch) -> None:
    init = Node.__init__

    def with_another_clock(self: Node, world: World, number: int) -> None:
        init(self, world, number)
        parts = self.cache._parts

        def monotonic() -> float:
            return world.clock.now - self.slept

        assert parts.coherence is not None
        assert parts.entries._l1 is not None
        parts.coherence.view.clock = self.store._clock = parts.entries._l1._clock = monotonic

    patch.setattr(Node, "__init__", with_another_clock)


@mutant("the node that invalidates learns of it by message only")
def the_own_memory_is_not_told(patch: Patch) -> None:
    patch.setattr(Coherence, "invalidated", lambda *_: None)


@mutant("strict waits for nobody")
def strict_waits_for_nobody(patch: Patch) -> None:
    async def at_once(self: Coherence, keys: Sequence[bytes]) -> None:
        pass

    patch.setattr(Coherence, "confirmed", at_once)


@mutant("a node trusts what it reads without standing in the register")
def nodes_trust_without_being_registered(patch: Patch) -> None:
    registering = RedisCommands._registering

    def only_named(node: bytes, registration: bytes) -> list[Any]:
        name, _, read = registering(node, registration)
        return [name, ("EXISTS", redis_store.NODES), read]

    patch.setattr(RedisCommands, "_registering", staticmethod(only_named))


@mutant("a register of nodes that was lost is taken for whole")
def a_lost_register_is_taken_for_whole(patch: Patch) -> None:
    patch.setattr(Coherence, "_is_whole", lambda *_: True)


async def _stored(shared: Shared, key: CacheKey) -> Entry | None:
    """Return what is stored for a key, dead or alive."""
    value = (await shared._store.read((key.name,))).values[0]
    entry = shared._codec.decode(key.name, value) if value is not None else None
    return entry if isinstance(entry, Entry) else None


# --- the hunt ----------------------------------------------------------------------------------------------------


def breaks(each: Mutant | None, program: Sequence[Step], *, nodes: int) -> str | None:
    """Return how a program shows that a safeguard is missing; None if it does not."""
    with stage() as clock, pytest.MonkeyPatch.context() as patch:
        if each is not None:
            each.apply(patch)
        try:
            replay(clock, program, nodes=nodes)
        except Violation as violation:
            return str(violation)
    return None


@dataclass(frozen=True)
class Kill:
    """How a mutant was noticed."""

    programs: int
    """How many had to be drawn."""
    program: Sequence[Step]
    nodes: int


def hunt(each: Mutant, seed: int, *, most: int = MOST_PROGRAMS) -> Kill | None:
    """Draw programs until one shows that a safeguard is missing; None if none of them does."""
    draw = random.Random(f"{each.name} {seed}")
    for number in range(1, most + 1):
        program, nodes = drawn(draw, LENGTH), draw.choice((2, 2, 3))
        if breaks(each, program, nodes=nodes) is not None:
            return Kill(number, program, nodes)
    return None
