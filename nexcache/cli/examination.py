"""Looks at a store, at settings, or at a running app, and reports what is wrong with them."""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, Final

from nexcache.cli.isolation import examine
from nexcache.cli.local import patient, quiet
from nexcache.cli.remote import Remote
from nexcache.diagnosis import Area, Expected, Facts, Finding, Fix, Severity, diagnose, version_of
from nexcache.settings import Settings
from nexcache.wiring import redis_target

_EXPIRY_MS: Final = 30 * 86_400_000
_SHORT: Final = 32
"""Characters that a secret must have to be beyond guessing."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at, and what was found."""

    subject: str
    versions: dict[str, str]
    areas: tuple[Area, ...]
    findings: tuple[Finding, ...]

    @property
    def well(self) -> bool:
        """Whether nothing is broken: no problem is left."""
        return not any(each.severity is Severity.PROBLEM and not each.fixed for each in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Give the document."""
        return {
            "subject": self.subject,
            "well": self.well,
            "versions": self.versions,
            "looked_at": [area.value for area in self.areas],
            "findings": [each.as_dict() for each in self.findings],
        }


async def of_store(*, fix: bool) -> Report:
    """Look at the store of the settings here, and use it for two tenants that nobody has."""
    asked = patient()
    settings = Settings()
    found = list(of_settings(settings, time.time()))
    versions = _versions()
    target = redis_target(settings)
    if target is None:
        return Report("a cache in memory", versions, (Area.SETTINGS, Area.ISOLATION), tuple(found))
    from nexcache.stores.inspection import Inspection, servers  # noqa: PLC0415 - only where there is a store
    from nexcache.stores.target import ClusterTarget  # noqa: PLC0415 - only where there is a store

    expected = Expected(settings.failover == "trust", settings.op_timeout_ms, settings.l1_lease_ms)
    reachable = False
    for server in await servers(target):
        async with Inspection(server) as inspection:
            facts = await inspection.facts(on_cluster=isinstance(target, ClusterTarget))
            reachable = reachable or facts.unreachable is None
            findings = diagnose(facts, expected, time.time())
            if facts.info:
                name, version = version_of(facts.info)
                versions[str(server)] = f"{name} {'.'.join(map(str, version))}"
            found += await _fixed(findings, facts, inspection) if fix else findings
    if reachable:
        with quiet():
            found += await examine(asked)
    order = {severity: number for number, severity in enumerate(Severity)}
    areas = tuple(Area) if reachable else (Area.SETTINGS, Area.REACHABILITY, Area.TLS, Area.ACCESS)
    return Report(str(target), versions, areas, tuple(sorted(found, key=lambda each: order[each.severity])))


async def _fixed(findings: Sequence[Finding], facts: Facts, inspection: Any) -> list[Finding]:
    """Put right what can be, once; what could not be stays as it is."""
    done: dict[Fix, bool] = {}
    for each in findings:
        if each.fix is Fix.EVICTION and each.fix not in done:
            done[each.fix] = await inspection.evict("volatile-lru")
        elif each.fix is Fix.EXPIRY and each.fix not in done:
            done[each.fix] = await inspection.give_expiry(_EXPIRY_MS) >= facts.keys.unexpiring
    return [replace(each, fixed=each.fix is not None and done.get(each.fix, False)) for each in findings]


def of_settings(settings: Settings, now: float) -> Sequence[Finding]:
    """Judge the settings alone."""

    def finding(code: str, severity: Severity, what: str, remedy: str) -> Finding:
        return Finding(code, Area.SETTINGS, severity, what, remedy)

    found = []
    if not settings.enabled:
        found.append(
            finding("disabled", Severity.WARNING, "CACHE_ENABLED is false: nothing is cached", "set it to true")
        )
    if settings.get_redis_url() is None:
        found.append(
            finding(
                "in-memory",
                Severity.NOTE,
                "no store is named: each process has a cache of its own, and an invalidation reaches only one",
                "set REDIS_URL as soon as there are several processes",
            )
        )
    elif not settings.signing_keys:
        found.append(
            finding(
                "unsigned",
                Severity.WARNING,
                "values are not signed: whoever can write to the store can forge answers",
                "set CACHE_SIGNING_KEYS=k1:… to a random string (openssl rand -hex 32), the same for all processes",
            )
        )
    secret = settings.namespace_secret.get_secret_value()
    if settings.get_redis_url() is not None and len(secret) < _SHORT:
        found.append(
            finding(
                "namespace-secret",
                Severity.NOTE,
                "CACHE_NAMESPACE_SECRET is " + ("short" if secret else "not set") + ": who sees the names of keys can "
                "guess which requests were made",
                "set it to a random string (openssl rand -hex 32); entries are then filled anew",
            )
        )
    ended = [key for key in settings.api_keys if key.expires is not None and key.expires <= now]
    return found + [
        finding(
            "key-expired",
            Severity.WARNING,
            f"the API key {key.id} of {key.tenant} has expired",
            "remove it from CACHE_API_KEYS; nexcache key makes a new one",
        )
        for key in ended
    ]


def of_app(url: str, key: str | None, key_header: str) -> Report:
    """Ask a running app."""
    app = Remote(url, tenant=None, key=key, key_header=key_header)
    found = []

    def add(code: str, area: Area, severity: Severity, what: str, remedy: str) -> None:
        found.append(Finding(code, area, severity, what, remedy))

    if url.startswith("http://") and app.host not in ("localhost", "127.0.0.1", "::1"):
        add(
            "plain-text",
            Area.TLS,
            Severity.WARNING,
            "the key crosses the network unencrypted",
            "give an https:// URL, and make a new key",
        )
    health = app.health()
    version = app.version()
    own = metadata.version("nexcache")
    if version != own:
        add(
            "versions-differ",
            Area.VERSIONS,
            Severity.NOTE,
            f"the app has NexCache {version}, this is {own}",
            "use the same version for both",
        )
    state = health["state"]
    if state == "disabled":
        add("disabled", Area.SETTINGS, Severity.WARNING, "the cache is switched off", "set CACHE_ENABLED=true")
    elif state in ("down", "slow", "backplane-lost"):
        words = {
            "down": "its store is away or refuses",
            "slow": f"its store is slow ({health['response_time_ms']:g} ms)",
            "backplane-lost": "it does not hear invalidations of other nodes at once",
        }[state]
        severity = Severity.PROBLEM if state == "down" else Severity.WARNING
        add(state, Area.REACHABILITY, severity, words, "run nexcache doctor where the store can be reached")
    details = health["details"]
    if details.get("queued_invalidations"):
        add(
            "queued",
            Area.REACHABILITY,
            Severity.WARNING,
            f"invalidations of {details['queued_invalidations']} tenants wait for the store",
            "they are carried out when it is back",
        )
    for name in details.get("alerts", ()):
        add(
            f"alert-{name}",
            Area.REACHABILITY,
            Severity.WARNING,
            f"the alert {name} is firing",
            "see docs/operations.md",
        )
    areas = (Area.REACHABILITY, Area.TLS, Area.ACCESS, Area.VERSIONS)
    return Report(app.name, _versions() | {"app": f"NexCache {version}"}, areas, tuple(found))


def _versions() -> dict[str, str]:
    return {
        "nexcache": metadata.version("nexcache"),
        "python": platform.python_version(),
        "redis-py": metadata.version("redis"),
    }
