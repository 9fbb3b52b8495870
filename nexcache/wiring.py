"""Puts the parts of a cache together. The one file that knows every part."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nexcache.admission import Admission
from nexcache.alerting import Gauges, Watch, Webhook
from nexcache.alerts import rules
from nexcache.collapse import Flights
from nexcache.entries import Entries, Local, Memory, Shared
from nexcache.errors import ConfigurationError
from nexcache.explain import Explainer, Reasons
from nexcache.fill_lease import FillLeases
from nexcache.forgetting import Sweeps
from nexcache.functions import Calls
from nexcache.invalidation.apply import Invalidations
from nexcache.invalidation.generations import Generations
from nexcache.invalidation.tags import LiveTags, Remembered
from nexcache.key import KeySpace
from nexcache.ladder import Ladder, Rung, rung_of
from nexcache.ledger import Ledger
from nexcache.quota import Quota, Quotas
from nexcache.rate_limit import LocalCounts, Scripted
from nexcache.refresh import Recent, Refreshes
from nexcache.sample import Sampler
from nexcache.settings import Settings, in_workers, parse_redis_url
from nexcache.shadowing import Shadows
from nexcache.stores.base import Reading, Store
from nexcache.stores.codec import Codec
from nexcache.stores.memory import MemoryStore
from nexcache.switches import Switches
from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import Emitter, NotStored, Started
from nexcache.telemetry.log import LogListener
from nexcache.telemetry.metrics import OTelMetrics
from nexcache.telemetry.names import Tier
from nexcache.telemetry.otel import OTelTracing
from nexcache.telemetry.prometheus import PrometheusText
from nexcache.turns import Turns
from nexcache.values import Backend, MemoryValues, RedisValues

if TYPE_CHECKING:
    from nexcache.invalidation.coherence import Coherence
    from nexcache.stores.redis import RedisCommands
    from nexcache.stores.target import AnyTarget, CredentialProvider
    from nexcache.vault import Vault


BUDGET_FACTOR: Final = 1.2
"""All asking of the store before something is computed may take this many times the limit of one answer."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A cache's parts, ready to use; nothing has been connected yet."""

    keys: KeySpace
    counts: Counts
    emitter: Emitter
    entries: Entries
    flights: Flights
    turns: Turns
    admission: Admission
    leases: FillLeases | None
    invalidations: Invalidations
    coherence: "Coherence | None"
    generations: tuple[Generations, ...]
    store: Store
    started: Started
    ledger: Ledger
    switches: Switches
    recent: Recent
    calls: Calls
    codec: Codec
    values: Backend
    memory_values: MemoryValues
    limits: LocalCounts
    scripted: Scripted | None
    sweeps: Sweeps | None
    mends: Callable[[int], Awaitable[int]] | None
    refreshes: Refreshes
    shadows: Shadows
    vault: "Vault | None"
    metrics: OTelMetrics
    prometheus: PrometheusText
    tracing: OTelTracing
    watch: Watch
    ladder: Ladder
    explainer: Explainer
    sampler: Sampler
    held: Memory
    """The memory of this process that counts against its bounds."""


def build(
    settings: Settings,
    *,
    store: "RedisCommands | None" = None,
    credentials: "CredentialProvider | None" = None,
    emitter: Emitter | None = None,
) -> Parts:
    """Build a cache from its settings; `store` replaces the one that the settings name."""
    emitter = emitter if emitter is not None else Emitter()
    counts = Counts()
    keys = KeySpace(
        version=settings.namespace_version,
        secret=settings.namespace_secret.get_secret_value(),
        cluster=settings.on_cluster,
    )
    codec = Codec({kid: secret.get_secret_value().encode() for kid, secret in settings.signing_keys.items()})
    if store is None:
        store = _redis(settings, emitter, credentials)
    local = MemoryStore(max_bytes=max(settings.l1_max_bytes // 4, 1024 * 1024))
    local_generations = Generations(local, keys)
    memory = Memory(
        generations=local,
        max_bytes=settings.l1_max_bytes,
        max_entries=settings.l1_max_entries,
        tier=Tier.MEMORY if store is None else Tier.FALLBACK,
        emitter=emitter,
        ages=local if store is None else None,
    )
    coherence = _coherence(settings, store, emitter)
    invalidations = Invalidations(
        keys=keys, local=local, shared=store, coherence=coherence, emitter=emitter, counts=counts
    )
    vault = _vault(settings, store, keys)
    limits = LocalCounts()
    quotas = None
    if settings.quotas or settings.default_quota != Quota():
        quotas = Quotas(
            default=settings.default_quota,
            quotas=settings.tenant_quotas,
            keys=keys,
            store=store,
            counts=limits,
            instances=settings.processes,
        )
    generations: tuple[Generations, ...] = (local_generations,)
    shared = l1 = None
    if store is not None:
        observe = coherence.observe if coherence is not None else _observe_nothing
        shared_generations = Generations(store, keys, observe=observe)
        generations = (local_generations, shared_generations)
        shared = Shared(
            store=store,
            keys=keys,
            generations=shared_generations,
            codec=codec,
            emitter=emitter,
            observe=coherence.observe if coherence is not None else None,
            breaker=store.breaker,
            vault=vault,
            quotas=quotas,
        )
        if coherence is not None and settings.l1_enabled:
            l1 = Memory(
                generations=coherence.view,
                max_bytes=settings.l1_max_bytes,
                max_entries=settings.l1_max_entries,
                tier=Tier.MEMORY,
                emitter=emitter,
                clock=coherence.view.clock,
            )
    held = l1 if l1 is not None else memory
    live = LiveTags(keys, most=settings.max_tags, shared=store)
    memory_values = MemoryValues()
    leases = _leases(store, coherence)
    entries = Entries(
        keys=keys,
        again=store.again if store is not None else None,
        tags=live,
        remembered=Remembered(shared=store),
        local=Local(memory=memory, store=local, generations=local_generations),
        shared=shared,
        l1=l1,
        view=coherence.view if coherence is not None else None,
        invalidations=invalidations,
        emitter=emitter,
        fallback_ttl=settings.fallback_ttl_seconds,
        quotas=quotas,
    )
    if store is not None:
        store.on_recovery = entries.store_came_back
    emitter.tracing = tracing = OTelTracing()
    LogListener().subscribe(emitter)

    def available() -> dict[str, bool]:
        return {"redis": store.available} if store is not None else {"memory": True}

    def known(enabled: bool) -> Rung:
        return rung_of(
            enabled=enabled,
            available=store is None or store.available,
            backplane=None if coherence is None else not coherence.lost,
            response_time=store.pace if store is not None else 0.0,
            timeout=settings.op_timeout_ms / 1000,
        )

    ladder = Ladder(known)
    metrics = OTelMetrics(emitter, counts, memory=lambda: held.size, available=available, state=ladder.rungs)
    shadows = Shadows(emitter)
    gauges = Gauges(
        counts,
        available=lambda: all(available().values()),
        queued=lambda: invalidations.queued,
        memory=lambda: max(
            held.size[0] / settings.l1_max_entries, held.size[1] / settings.l1_max_bytes if settings.l1_max_bytes else 0
        ),
        wrong=lambda: shadows.worst,
        quota=lambda: quotas.worst if quotas is not None else None,
    )
    webhook = settings.alert_webhook
    watch = Watch(
        rules(
            hit_rate=settings.alert_hit_rate,
            error_rate=settings.alert_error_rate,
            staleness=settings.alert_staleness_seconds,
            fullness=settings.alert_fullness,
            wrong_answers=settings.alert_wrong_answers,
            after=settings.alert_after_seconds,
        ),
        gauges,
        emitter=emitter,
        interval=settings.alert_interval_seconds,
        webhook=Webhook(webhook.get_secret_value(), emitter=emitter) if webhook is not None else None,
    )
    recent, reasons = Recent(), Reasons()
    emitter.subscribe(reasons.note, NotStored)
    return Parts(
        keys=keys,
        counts=counts,
        emitter=emitter,
        entries=entries,
        flights=Flights(),
        leases=leases,
        turns=Turns(settings.tenant_max_fills),
        admission=Admission(settings.tenant_new_keys_per_minute),
        invalidations=invalidations,
        coherence=coherence,
        generations=generations,
        store=store if store is not None else local,
        started=_started(settings, store, signs=codec.signs),
        ledger=Ledger(counts=counts, keys=keys, memory=memory, shared=store, quotas=quotas),
        switches=Switches(store),
        recent=recent,
        calls=Calls(
            entries=entries, emitter=emitter, leases=leases, budget=settings.op_timeout_ms / 1000 * BUDGET_FACTOR
        ),
        codec=codec,
        values=memory_values if store is None else RedisValues(store),
        memory_values=memory_values,
        limits=limits,
        scripted=store,
        sweeps=store,
        mends=partial(_mend, store) if store is not None else None,
        refreshes=Refreshes(),
        shadows=shadows,
        vault=vault,
        metrics=metrics,
        prometheus=PrometheusText(emitter, counts, memory=lambda: held.size, available=available, state=ladder.rungs),
        tracing=tracing,
        held=held,
        watch=watch,
        ladder=ladder,
        explainer=Explainer(keys=keys, entries=entries, recent=recent, reasons=reasons),
        sampler=Sampler(
            keys=keys,
            memory=lambda: entries.memory,
            shared=store,
            codec=codec,
            invalidations=invalidations,
            vault=vault,
        ),
    )


def _coherence(settings: Settings, store: "RedisCommands | None", emitter: Emitter) -> "Coherence | None":
    """Make what keeps memories in front of the store right, this node's or only those of others; None without one."""
    if store is None:
        return None
    from nexcache.invalidation.backplane import Backplane  # noqa: PLC0415 - only with a store
    from nexcache.invalidation.coherence import Bystander, Coherence  # noqa: PLC0415 - only with a store
    from nexcache.invalidation.view import View  # noqa: PLC0415 - only with a store

    view = View(lease=settings.l1_lease_ms / 1000)
    return (Coherence if settings.l1_enabled else Bystander)(
        store=store,
        view=view,
        backplane=Backplane(store.connect, store=store, view=view, emitter=emitter, door=store.door),
    )


def _vault(settings: Settings, store: "RedisCommands | None", keys: KeySpace) -> "Vault | None":
    """Make what encrypts values in the store; None where there are no keys, or no store."""
    if store is None or not settings.encryption_keys:
        return None
    try:
        from nexcache.stores.sealing import KeyRing  # noqa: PLC0415 - the extra may be missing
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] != "cryptography":
            raise
        raise ConfigurationError("CACHE_ENCRYPTION_KEYS needs an extra: pip install 'nexcache[crypto]'") from None
    from nexcache.vault import Vault  # noqa: PLC0415 - as above

    ring = {kid: secret.get_secret_value().encode() for kid, secret in settings.encryption_keys.items()}
    return Vault(KeyRing(ring), store=store, keys=keys)


def _leases(store: "RedisCommands | None", coherence: "Coherence | None") -> FillLeases | None:
    """Make what keeps several nodes from computing the same; None where there is but one."""
    if store is None:
        return None
    leases = FillLeases(store, connected=lambda: coherence is not None and coherence.connected)
    if coherence is not None:
        coherence.on_announcement(leases.received)
    return leases


async def _mend(store: "RedisCommands", ttl_ms: int) -> int:
    from nexcache.stores.inspection import mend  # noqa: PLC0415 - only for this

    return await mend(store.target, ttl_ms)


def _observe_nothing(keys: Sequence[bytes], reading: Reading) -> None:
    """Remember nothing of what was read."""


def redis_target(settings: Settings, credentials: "CredentialProvider | None" = None) -> "AnyTarget | None":
    """Return where the settings say that the servers are; None where they name none."""
    url = settings.get_redis_url()
    if url is None:
        return None
    from nexcache.stores.target import PasswordFile, target_of  # noqa: PLC0415 - only where used

    place = parse_redis_url(url)
    if credentials is None and settings.redis_credentials != "password":
        credentials = _entra_id(settings, managed=settings.redis_credentials == "managed-identity")
    if credentials is None and settings.redis_password_file is not None:
        rotating = PasswordFile(settings.redis_password_file, place["username"])
        if place["password"] == rotating.get_credentials()[-1]:  # and not one that comes from elsewhere
            credentials = rotating
    if credentials is not None:
        place |= {"username": None, "password": None}
    return target_of(
        place,
        ca_certs=_text(settings.redis_ssl_ca_certs),
        client_cert=_text(settings.redis_ssl_certfile),
        client_key=_text(settings.redis_ssl_keyfile),
        credentials=credentials,
    )


def _redis(settings: Settings, emitter: Emitter, credentials: "CredentialProvider | None") -> "RedisCommands | None":
    target = redis_target(settings, credentials)
    if target is None:
        return None
    from nexcache.stores.cluster import ClusterStore  # noqa: PLC0415 - only where used
    from nexcache.stores.redis import InfoEpoch, RedisStore, TrustedEpoch  # noqa: PLC0415 - only where used
    from nexcache.stores.target import ClusterTarget  # noqa: PLC0415 - only where used

    timeout, trust = settings.op_timeout_ms / 1000, settings.failover == "trust"
    if isinstance(target, ClusterTarget):
        return ClusterStore(target, emitter=emitter, timeout=timeout, epoch=TrustedEpoch if trust else InfoEpoch)
    return RedisStore(target, emitter=emitter, timeout=timeout, epoch=TrustedEpoch() if trust else InfoEpoch())


def _entra_id(settings: Settings, *, managed: bool) -> "CredentialProvider":
    """Make a provider of Entra ID's tokens; they are asked for anew at every connection, and kept while they hold."""
    try:
        from nexcache.stores.entra_id import provider  # noqa: PLC0415 - needs the extra
    except ModuleNotFoundError:
        raise ConfigurationError(
            f"REDIS_CREDENTIALS={settings.redis_credentials} needs redis-entraid: pip install 'nexcache[azure]'"
        ) from None
    return provider(managed=managed, client_id=settings.redis_username)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _started(settings: Settings, store: "RedisCommands | None", *, signs: bool) -> Started:
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
