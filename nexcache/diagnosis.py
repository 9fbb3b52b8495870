"""What is wrong with a store, judged from facts that were read from it: each finding with its remedy. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

LEAST_REDIS: Final = (6, 2)
LEAST_VALKEY: Final = (7, 2)
_DAY: Final = 86_400.0
_ENDS_SOON: Final = 21 * _DAY
_SKEWED: Final = 1.0
"""Seconds that clocks may differ."""
_FULL: Final = 0.9
_SLOW: Final = 0.5
"""The share of CACHE_OP_TIMEOUT_MS that an answer may take."""
_LAGS: Final = 10
"""Seconds without news from a replica."""


class Severity(StrEnum):
    """How much a finding matters."""

    PROBLEM = "problem"
    """A promise of the cache does not hold, or it does not work."""
    WARNING = "warning"
    """A promise holds less far than it could, or will soon not hold."""
    NOTE = "note"
    """Good to know."""


class Area(StrEnum):
    """What was looked at, in this order."""

    SETTINGS = "settings"
    REACHABILITY = "reachability"
    TLS = "TLS"
    ACCESS = "access"
    VERSIONS = "versions"
    MEMORY = "memory and eviction"
    REPLICATION = "replication and failover"
    EXPIRY = "expiry"
    CLOCKS = "clocks"
    ISOLATION = "isolation"


class Fix(StrEnum):
    """What can be put right from here."""

    EVICTION = "eviction"
    EXPIRY = "expiry"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, and what to do about it."""

    code: str
    area: Area
    severity: Severity
    what: str
    remedy: str
    where: str = ""
    """The server, where there are several."""
    fix: Fix | None = None
    fixed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Give the document."""
        return {
            "code": self.code,
            "area": self.area.value,
            "severity": self.severity.value,
            "what": self.what,
            "remedy": self.remedy,
            "where": self.where,
            "fixable": self.fix is not None,
            "fixed": self.fixed,
        }


class Refusal(StrEnum):
    """Why a command was not carried out."""

    PERMISSION = "permission"
    UNKNOWN = "unknown"
    MEMORY = "memory"
    REPLICA = "replica"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Why no connection came about: `kind` is one of `certificate`, `plain`, `tls`, `auth`, `name`, or `connection`."""

    kind: str
    words: str


@dataclass(frozen=True, slots=True)
class Keys:
    """What a bounded look at the keys has shown."""

    looked_at: int = 0
    complete: bool = True
    unexpiring: int = 0
    """Of the cache's own, those that never expire."""
    examples: Sequence[str] = ()
    kept: int = 0
    """Values, sessions and the like that never expire because nobody said when."""
    foreign: int = 0
    """Other programs' keys."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read from one server; None for what it hides."""

    server: str
    loopback: bool = True
    tls: bool = False
    password: bool = True
    """Credentials are sent."""
    unreachable: Unreachable | None = None
    certificate_ends: float | None = None
    """Seconds since the epoch."""
    info: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] | None = None
    user: str | None = None
    user_words: Sequence[str] | None = None
    """The user's flags and rights, as ACL GETUSER tells them."""
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    """By command."""
    response_ms: float = 0.0
    clock_ahead: float | None = None
    """Seconds that the server's clock is ahead of this one."""
    keys: Keys = Keys()
    on_cluster: bool = False
    """The settings take it for a node of a cluster."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the settings say that concerns the server."""

    failover_trusted: bool = False
    timeout_ms: float = 50.0
    lease_ms: float = 250.0


def diagnose(facts: Facts, expected: Expected, now: float) -> tuple[Finding, ...]:
    """Judge one server."""
    found = [*_reachability(facts)]
    if facts.unreachable is None:
        found += [
            *_tls(facts, now),
            *_access(facts),
            *_versions(facts),
            *_memory(facts),
            *_replication(facts, expected),
            *_expiry(facts),
            *_clocks(facts, expected),
        ]
    return tuple(replace(each, where=facts.server) for each in found)


_UNREACHABLE: Final[Mapping[str, tuple[Area, str, str]]] = {
    "certificate": (
        Area.TLS,
        "the server's certificate is not to be trusted",
        "name its certificate authority in REDIS_SSL_CA_CERTS, and the server by a name that the certificate holds",
    ),
    "plain": (
        Area.TLS,
        "the server does not speak TLS on this port",
        "give the port that does, or redis:// in place of rediss:// if the network is trusted",
    ),
    "tls": (
        Area.TLS,
        "the server closes connections without TLS",
        "if it expects TLS, give rediss:// in place of redis://, or REDIS_SSL=true",
    ),
    "auth": (
        Area.ACCESS,
        "the server refuses the credentials",
        "check REDIS_USERNAME and REDIS_PASSWORD, or the URL; ACL LIST on the server shows its users",
    ),
    "name": (Area.REACHABILITY, "the server's name is not known", "check the host in REDIS_URL or REDIS_HOST"),
    "connection": (
        Area.REACHABILITY,
        "the server cannot be reached",
        "check host and port, that it runs, and that no firewall is between",
    ),
}


def _reachability(facts: Facts) -> Iterator[Finding]:
    if facts.unreachable is None:
        return
    area, what, remedy = _UNREACHABLE[facts.unreachable.kind]
    words = f" ({facts.unreachable.words})" if facts.unreachable.words else ""
    yield Finding(
        {"certificate": "certificate", "plain": "no-tls", "tls": "tls-expected", "auth": "credentials"}.get(
            facts.unreachable.kind, "unreachable"
        ),
        area,
        Severity.PROBLEM,
        what + words,
        remedy,
    )


def _tls(facts: Facts, now: float) -> Iterator[Finding]:
    if not facts.tls and not facts.loopback:
        yield Finding(
            "plain-text",
            Area.TLS,
            Severity.WARNING,
            "answers and the password cross the network unencrypted",
            "switch TLS on at the server and give rediss://, or REDIS_SSL=true",
        )
    if facts.certificate_ends is not None and facts.certificate_ends - now < _ENDS_SOON:
        days = max(0, int((facts.certificate_ends - now) / _DAY))
        yield Finding(
            "certificate-ends",
            Area.TLS,
            Severity.WARNING,
            f"the server's certificate ends in {days} days",
            "renew it before: afterwards nothing is read from the store any more",
        )


_ACL: Final = (
    "+auth +select +client|setname +ping +info +mget +get +set +unlink +del +sadd +smembers +smismember +pttl +pexpire "
    "+persist +exists +incrby "
    "+hset +hget +hmget +hgetall +hsetnx +hincrby +hdel +pfadd +pfcount +strlen +getrange +scan +dbsize +time +eval "
    "+publish +subscribe"
)


def _access(facts: Facts) -> Iterator[Finding]:
    denied = sorted(name for name, why in facts.refusals.items() if why is Refusal.PERMISSION)
    if denied:
        yield Finding(
            "acl",
            Area.ACCESS,
            Severity.PROBLEM,
            f"the user {facts.user or 'of the cache'!s} may not: {', '.join(denied)}",
            f"ACL SETUSER {facts.user or 'nexcache'} ~nexarch:* ~nexarch.* &nexarch:@* {_ACL}",
        )
    renamed = sorted(name for name, why in facts.refusals.items() if why is Refusal.UNKNOWN)
    if renamed:
        yield Finding(
            "commands-missing",
            Area.ACCESS,
            Severity.PROBLEM,
            f"the server does not know: {', '.join(renamed)}",
            "undo rename-command for them, or use a server that has them: Redis 6.2 or Valkey 7.2, and later",
        )
    words = facts.user_words
    if "nopass" in words if words is not None else not facts.password:
        yield Finding(
            "no-password",
            Area.ACCESS,
            Severity.NOTE if facts.loopback else Severity.PROBLEM,
            "no password is needed: whoever reaches the server reads and forges every tenant's answers",
            "create a user with a password (deploy/valkey/users.acl), and switch the default one off",
        )
    elif words is not None and "+@all" in words:
        yield Finding(
            "acl-wide",
            Area.ACCESS,
            Severity.WARNING,
            f"the user {facts.user} may do everything, FLUSHALL and CONFIG included",
            "give the cache a user of its own with the rights that it uses: deploy/valkey/users.acl",
        )


def version_of(info: Mapping[str, str]) -> tuple[str, tuple[int, ...]]:
    """Return which server it is, and its version."""
    name = "Valkey" if "valkey_version" in info else "Redis"
    text = info.get("valkey_version") or info.get("redis_version", "")
    return name, tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


def _versions(facts: Facts) -> Iterator[Finding]:
    name, version = version_of(facts.info)
    least = LEAST_VALKEY if name == "Valkey" else LEAST_REDIS
    if version and version < least:
        yield Finding(
            "old-server",
            Area.VERSIONS,
            Severity.PROBLEM,
            f"{name} {'.'.join(map(str, version))} lacks commands that the cache needs",
            f"use {name} {'.'.join(map(str, least))} or later",
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    info = facts.info
    limit, used = _number(info, "maxmemory"), _number(info, "used_memory")
    policy = info.get("maxmemory_policy")
    if any(why is Refusal.MEMORY for why in facts.refusals.values()):
        yield Finding(
            "out-of-memory",
            Area.MEMORY,
            Severity.PROBLEM,
            "the server refuses writes because its memory is full: nothing more is stored (invalidations still work)",
            "let it evict (CONFIG SET maxmemory-policy volatile-lru), or raise maxmemory",
            fix=Fix.EVICTION if policy == "noeviction" else None,
        )
    elif limit and used / limit > _FULL:
        yield Finding(
            "memory-full",
            Area.MEMORY,
            Severity.NOTE if policy != "noeviction" else Severity.WARNING,
            f"{used / limit:.0%} of maxmemory is used",
            "raise maxmemory, or shorten what is kept, if the hit rate suffers",
        )
    if limit and policy == "noeviction":
        yield Finding(
            "noeviction",
            Area.MEMORY,
            Severity.WARNING,
            "maxmemory-policy is noeviction: once full, the server stores nothing new",
            "CONFIG SET maxmemory-policy volatile-lru: an evicted entry or generation is a miss, never a wrong answer",
            fix=Fix.EVICTION,
        )
    elif policy is not None and policy.startswith("allkeys") and facts.keys.kept:
        yield Finding(
            "evicts-kept-values",
            Area.MEMORY,
            Severity.WARNING,
            f"maxmemory-policy is {policy}, but values are to be kept until they are deleted ({facts.keys.kept:,})",
            "CONFIG SET maxmemory-policy volatile-lru: everything that may be lost has an expiry",
            fix=Fix.EVICTION,
        )
    elif policy is not None and policy.endswith(("-random", "-ttl")):
        yield Finding(
            "eviction-blind",
            Area.MEMORY,
            Severity.NOTE,
            f"maxmemory-policy is {policy}: what is used often goes as soon as what is not",
            "CONFIG SET maxmemory-policy volatile-lru, or volatile-lfu",
            fix=Fix.EVICTION,
        )
    if not limit and "maxmemory" in info:
        yield Finding(
            "no-maxmemory",
            Area.MEMORY,
            Severity.WARNING,
            "maxmemory is not set: the server grows until the system ends it",
            "CONFIG SET maxmemory to what the machine can spare, with maxmemory-policy volatile-lru",
        )


def _replication(facts: Facts, expected: Expected) -> Iterator[Finding]:
    info = facts.info
    if info.get("role") == "slave":
        if not facts.on_cluster:  # there, requests find the primaries themselves
            yield Finding(
                "replica",
                Area.REPLICATION,
                Severity.PROBLEM,
                "this is a replica: it takes no writes, and may lag behind an invalidation",
                "give the primary's address, or redis+sentinel:// so that it is found after a failover",
            )
        return
    if info.get("cluster_enabled") == "1" and not facts.on_cluster:
        yield Finding(
            "cluster",
            Area.REPLICATION,
            Severity.PROBLEM,
            "the server is a node of a cluster, and the URL names a single server",
            "give redis+cluster:// (rediss+cluster:// with TLS) in REDIS_URL",
        )
    hidden = info and not ("run_id" in info and "master_replid" in info)
    if (hidden or facts.refusals.get("info") is Refusal.PERMISSION) and not expected.failover_trusted:
        yield Finding(
            "info-hidden",
            Area.REPLICATION,
            Severity.PROBLEM,
            "the server hides what tells a restart or a failover: nothing is read from the store",
            "permit INFO, or set CACHE_FAILOVER=trust and accept that a failover may revive what was invalidated",
        )
    if expected.failover_trusted:
        yield Finding(
            "failover-trusted",
            Area.REPLICATION,
            Severity.WARNING,
            "CACHE_FAILOVER=trust: a restart or failover may revive entries that were invalidated, until they expire",
            "leave it at epoch where the server permits INFO",
        )
    yield from _primary_that_was_replaced(facts, expected)
    for name, replica in _replicas(info):
        if replica.get("state") != "online" or _number(replica, "lag") > _LAGS:
            yield Finding(
                "replica-lags",
                Area.REPLICATION,
                Severity.WARNING,
                f"the replica {name} is {replica.get('state', 'unknown')}, {replica.get('lag', '?')} s behind",
                "look at it: a failover to it would empty the cache",
            )


def _primary_that_was_replaced(facts: Facts, expected: Expected) -> Iterator[Finding]:
    """Say how long a primary that was replaced, but that some node still reaches, may answer (G3 of the guarantee)."""
    if not _number(facts.info, "connected_slaves"):
        return
    config = facts.config
    if config is None:
        yield Finding(
            "failover-unbounded",
            Area.REPLICATION,
            Severity.NOTE,
            "CONFIG GET is not permitted: whether min-replicas-to-write is set cannot be seen",
            "make sure that it is 1 or more: otherwise a replaced primary that a node still reaches serves old entries",
        )
        return
    least = _number(config, "min-replicas-to-write") or _number(config, "min-slaves-to-write")
    lag = _number(config, "min-replicas-max-lag") or _number(config, "min-slaves-max-lag")
    if not least or not lag:
        yield Finding(
            "failover-unbounded",
            Area.REPLICATION,
            Severity.WARNING,
            "min-replicas-to-write is 0: after a failover, a node that still reaches the old primary may serve "
            "invalidated entries until they expire",
            "CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag 10 on every server of the set",
        )
        return
    yield Finding(
        "failover-bounded",
        Area.REPLICATION,
        Severity.NOTE,
        f"after a failover, a node that still reaches the old primary may serve invalidated entries for at most "
        f"{lag + expected.lease_ms / 1000:g} s (min-replicas-max-lag and CACHE_L1_LEASE_MS)",
        "lower min-replicas-max-lag if that is too long",
    )


def _expiry(facts: Facts) -> Iterator[Finding]:
    keys = facts.keys
    if keys.unexpiring:
        more = "" if keys.complete else f" among the first {keys.looked_at:,} keys"
        examples = ", ".join(keys.examples)
        yield Finding(
            "no-expiry",
            Area.EXPIRY,
            Severity.WARNING,
            f"keys of the cache that never expire{more}: {keys.unexpiring:,}, such as {examples}",
            "nexcache doctor --fix gives them 30 days; look for the program that wrote or PERSISTed them",
            fix=Fix.EXPIRY,
        )
    if keys.foreign:
        yield Finding(
            "shared-database",
            Area.EXPIRY,
            Severity.NOTE,
            f"keys of other programs are in the same database: {keys.foreign:,}",
            "give the cache a database or a server of its own: memory and eviction are shared",
        )


def _clocks(facts: Facts, expected: Expected) -> Iterator[Finding]:
    if facts.clock_ahead is not None and abs(facts.clock_ahead) > _SKEWED:
        way = "ahead of" if facts.clock_ahead > 0 else "behind"
        yield Finding(
            "clock",
            Area.CLOCKS,
            Severity.WARNING,
            f"the server's clock is {abs(facts.clock_ahead):.1f} s {way} this machine's: entries live too long or "
            "too short elsewhere (invalidation does not depend on clocks)",
            "synchronise all machines by NTP",
        )
    if facts.response_ms > expected.timeout_ms * _SLOW:
        yield Finding(
            "slow",
            Area.REACHABILITY,
            Severity.WARNING,
            f"the server answers in {facts.response_ms:.1f} ms, of {expected.timeout_ms:g} ms that are waited for",
            "bring it nearer, or raise CACHE_OP_TIMEOUT_MS if that is worth the wait",
        )


def _replicas(info: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    for name, value in info.items():
        if name.startswith("slave") and name[5:].isdigit():
            fields = dict(part.partition("=")[::2] for part in value.split(","))
            yield f"{fields.get('ip', '?')}:{fields.get('port', '?')}", fields


def _number(values: Mapping[str, str], name: str) -> int:
    text = values.get(name, "")
    return int(text) if text.isdigit() else 0
