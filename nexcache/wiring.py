"""Puts the parts of a cache together. The one file that knows every part."""

from dataclasses import dataclass
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING

from nexcache.collapse import Flights
from nexcache.entries import Entries, Memory, Shared
from nexcache.invalidation.apply import Invalidations
from nexcache.invalidation.generations import Generations
from nexcache.key import KeySpace
from nexcache.ledger import Ledger
from nexcache.refresh import Recent
from nexcache.settings import Settings, in_workers, parse_redis_url
from nexcache.stores.base import Store
from nexcache.stores.codec import Codec
from nexcache.stores.memory import MemoryStore
from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import Emitter, Started
from nexcache.telemetry.log import LogListener
from nexcache.telemetry.metrics import OTelMetrics
from nexcache.telemetry.names import Tier
from nexcache.telemetry.otel import OTelTracing

if TYPE_CHECKING:
    from nexcache.stores.redis import RedisStore


@dataclass(frozen=True, slots=True)
class Parts:
    """A cache's parts, ready to use; nothing has been connected yet."""

    keys: KeySpace
    counts: Counts
    emitter: Emitter
    entries: Entries
    flights: Flights
    invalidations: Invalidations
    generations: tuple[Generations, ...]
    store: Store
    started: Started
    ledger: Ledger
    recent: Recent
    metrics: OTelMetrics


def build(settings: Settings, *, store: "RedisStore | None" = None, emitter: Emitter | None = None) -> Parts:
    """Build a cache from its settings; `store` replaces the one that the settings name."""
    emitter = emitter if emitter is not None else Emitter()
    counts = Counts()
    keys = KeySpace(version=settings.namespace_version, secret=settings.namespace_secret.get_secret_value())
    codec = Codec({kid: secret.get_secret_value().encode() for kid, secret in settings.signing_keys.items()})
    if store is None:
        store = _redis(settings, emitter)
    local = MemoryStore(max_bytes=max(settings.l1_max_bytes // 4, 1024 * 1024))
    local_generations = Generations(local, keys)
    memory = Memory(
        store=local,
        generations=local_generations,
        max_bytes=settings.l1_max_bytes,
        max_entries=settings.l1_max_entries,
        tier=Tier.MEMORY if store is None else Tier.FALLBACK,
        emitter=emitter,
    )
    invalidations = Invalidations(keys=keys, local=local, shared=store, emitter=emitter, counts=counts)
    generations: tuple[Generations, ...] = (local_generations,)
    shared = None
    if store is not None:
        shared_generations = Generations(store, keys)
        generations = (local_generations, shared_generations)
        shared = Shared(store=store, generations=shared_generations, codec=codec, emitter=emitter)
    entries = Entries(
        memory=memory,
        shared=shared,
        invalidations=invalidations,
        emitter=emitter,
        fallback_ttl=settings.fallback_ttl_seconds,
    )
    if store is not None:
        store.on_recovery = entries.store_came_back
    emitter.tracing = OTelTracing()
    LogListener().subscribe(emitter)
    metrics = OTelMetrics(
        emitter,
        counts,
        memory=lambda: memory.size,
        available=lambda: {"redis": store.available} if store is not None else {"memory": True},
    )
    return Parts(
        keys=keys,
        counts=counts,
        emitter=emitter,
        entries=entries,
        flights=Flights(),
        invalidations=invalidations,
        generations=generations,
        store=store if store is not None else local,
        started=_started(settings, store, signs=codec.signs),
        ledger=Ledger(counts=counts, keys=keys, memory=memory, shared=store),
        recent=Recent(),
        metrics=metrics,
    )


def _redis(settings: Settings, emitter: Emitter) -> "RedisStore | None":
    url = settings.get_redis_url()
    if url is None:
        return None
    from nexcache.stores.redis import InfoEpoch, RedisStore, Target, TrustedEpoch  # noqa: PLC0415 - only where used

    place = parse_redis_url(url)
    if settings.redis_ssl and "host" in place:
        place["tls"] = True
    if settings.redis_ssl_ca_certs is not None:
        place["ca_certs"] = str(settings.redis_ssl_ca_certs)
    return RedisStore(
        Target(**place),
        emitter=emitter,
        timeout=settings.op_timeout_ms / 1000,
        epoch=TrustedEpoch() if settings.failover == "trust" else InfoEpoch(),
    )


def _started(settings: Settings, store: "RedisStore | None", *, signs: bool) -> Started:
    warnings = []
    if store is None:
        if (workers := in_workers()) > 1:
            warnings.append(
                f"{workers} worker processes each have a cache of their own: an invalidation reaches only the one "
                "that it was sent to; set REDIS_URL"
            )
        return Started("memory", "in memory (fallback)", tuple(warnings))
    if not signs:
        warnings.append(
            "values are not signed: whoever can write to the store can forge answers; set CACHE_SIGNING_KEYS"
        )
    if settings.failover == "trust":
        warnings.append("CACHE_FAILOVER=trust: a failover of the store may revive what was invalidated")
    return Started("redis", f"Redis {store.target}", tuple(warnings))


def version() -> str:
    """Return NexCache's version."""
    return installed_version("nexcache")
