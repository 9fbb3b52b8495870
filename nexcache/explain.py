"""Why a request is, or is not, answered from the cache: policy, key, generations, copies, and what would end it.

Asking changes nothing. Values of header fields that may be credentials, and principals that nobody named, appear as
a digest that is comparable within one process and says nothing outside it.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from secrets import token_bytes
from typing import Any, Final, Literal, Protocol
from urllib.parse import unquote_to_bytes

from nexcache.asgi import Headers, Scope
from nexcache.entries import Copy, Entries
from nexcache.errors import InvalidName
from nexcache.key import KEYED, CacheKey, KeySpace
from nexcache.policy import Policy
from nexcache.refresh import Recent, Warms
from nexcache.semantics.reuse import current_age, time_to_live
from nexcache.telemetry.events import Event, NotStored
from nexcache.telemetry.names import Bypass, NotStoredReason
from nexcache.tenants import is_valid_id

_MOST_REASONS: Final = 10_000
_LONGEST_PATH: Final = 16 * 1024
_SHOWN: Final = KEYED | {
    b"host",
    b"forwarded",
    b"content-type",
    b"content-encoding",
    b"accept",
    b"accept-encoding",
    b"accept-language",
    b"user-agent",
}
"""Header fields whose values are shown; any other may be a credential of the application's own."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What an app would do with a request, as far as it can be said without asking the store."""

    policy: Policy
    ttl: float
    """Seconds for which an answer would be kept, settings included."""
    bypass: Bypass | None
    """Why the cache would not be asked; None where it would."""
    credentials: frozenset[bytes]
    """The header fields that say who asks."""
    principal: str | None = None
    fields: Headers = ()
    """The header fields that are part of the key."""
    tags: tuple[str, ...] = ()
    key: CacheKey | None = None


class Examines(Protocol):
    """An app behind the cache that can say what it would do with a request."""

    async def examine(self, tenant: str, scope: Scope, principal: str | None = None) -> Examined | None:
        """Say what would become of a request of a tenant, without doing it; None: no policy is for it."""


class Behind(Warms, Examines, Protocol):
    """An app behind the cache, as it registers itself."""


class Reasons:
    """Why answers were not kept lately, by key: the last reason each, bounded, in this process."""

    def __init__(self) -> None:
        self._reasons: OrderedDict[tuple[str | None, str, str], tuple[NotStoredReason, float]] = OrderedDict()

    def note(self, event: Event) -> None:
        """Take a `NotStored` event over."""
        if isinstance(event, NotStored) and event.key_hash is not None:
            name = (event.tenant, event.operation, event.key_hash)
            self._reasons[name] = (event.reason, time.time())
            self._reasons.move_to_end(name)
            if len(self._reasons) > _MOST_REASONS:
                self._reasons.popitem(last=False)

    def of(self, key: CacheKey) -> tuple[NotStoredReason, float] | None:
        """Return the last reason for this key, and when that was (seconds since the epoch)."""
        return self._reasons.get((key.tenant, key.operation, key.hash))


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of a request's answer; `as_dict` is what `GET /explain` answers."""

    tenant: str
    scope: Scope
    seen: bool
    """The request was completed from one of the same path and query that this process has answered lately."""
    named: str | None
    """The principal that was named by whoever asks."""
    examined: Examined | None
    copies: tuple[Copy, ...] = ()
    generations: tuple[tuple[str, bool], ...] = ()
    """What the answer depends on (`tenant`, `operation:…`, `tag:…`), and whether its generation is present."""
    store_failed: str | None = None
    """Why the store could not be asked, in one word."""
    not_stored: tuple[NotStoredReason, float] | None = None
    at: float = 0.0

    @property
    def verdict(self) -> Literal["no-policy", "bypass", "stored", "not-stored"]:
        """In one word what would become of the request now."""
        if self.examined is None:
            return "no-policy"
        if self.examined.bypass is not None:
            return "bypass"
        return "stored" if any(copy.why is None for copy in self.copies) else "not-stored"

    def as_dict(self) -> dict[str, Any]:
        """Write it down without secrets."""
        examined = self.examined
        document: dict[str, Any] = {
            "tenant": self.tenant,
            "request": {
                "method": self.scope["method"],
                "path": self.scope["path"],
                "query": self.scope["query_string"].decode("latin-1"),
                "seen": self.seen,
            },
            "verdict": self.verdict,
            "policy": _policy(examined) if examined is not None else None,
            "bypass": examined.bypass.value if examined is not None and examined.bypass is not None else None,
            "key": None,
            "tags": list(examined.tags) if examined is not None else [],
            "generations": [{"of": name, "present": present} for name, present in self.generations],
            "copies": [self._copy(copy) for copy in self.copies],
            "store_failed": self.store_failed,
            "not_stored": None,
            "invalidated_by": self._invalidated_by(),
        }
        if examined is not None and examined.key is not None:
            document["key"] = {
                "name": examined.key.name.decode(),
                "hash": examined.key.hash,
                "parts": self._parts(examined),
            }
        if self.not_stored is not None:
            reason, at = self.not_stored
            document["not_stored"] = {"reason": reason.value, "seconds_ago": round(max(0.0, self.at - at), 1)}
        return document

    def _parts(self, examined: Examined) -> dict[str, Any]:
        principal = examined.principal
        if principal is not None and principal not in (self.named, self.tenant):
            principal = _digest(principal)
        return {
            "operation": examined.policy.op,
            "version": examined.policy.version,
            "tenant": self.tenant,
            "principal": principal
            if principal is None or principal in (self.named, self.tenant)
            else _digest(principal),
            "method": "GET" if self.scope["method"] == "HEAD" else self.scope["method"],
            "scheme": self.scope.get("scheme", "http"),
            "root_path": self.scope.get("root_path", ""),
            "path": self.scope["path"],
            "raw_path": (self.scope.get("raw_path") or b"").decode("latin-1"),
            "query": _canonical_query(examined.policy, self.scope["query_string"]).decode("latin-1"),
            "headers": [
                {"name": name.decode("latin-1"), "value": _shown(name, value, examined.credentials)}
                for name, value in examined.fields
            ],
        }

    def _copy(self, copy: Copy) -> dict[str, Any]:
        response = copy.entry.response if copy.entry is not None else None
        return {
            "tier": copy.tier.value,
            "usable": copy.why is None,
            "why_not": copy.why,
            "age": current_age(response, self.at) if response is not None else None,
            "ttl": round(time_to_live(response, self.at), 3) if response is not None else None,
            "status": response.status if response is not None else None,
            "bytes": len(response.body) if response is not None else None,
        }

    def _invalidated_by(self) -> dict[str, list[str]]:
        """List the targets of an invalidation that would reach the answer."""
        if self.examined is None or self.examined.bypass is not None:
            return {"operations": [], "tags": []}
        tags = {name.removeprefix("tag:") for name, _ in self.generations if name.startswith("tag:")}
        return {"operations": ["*", self.examined.policy.op], "tags": sorted(tags | set(self.examined.tags))}


class Explainer:
    """Answers `explain` for the apps of one cache."""

    def __init__(self, *, keys: KeySpace, entries: Entries, recent: Recent, reasons: Reasons) -> None:
        self._keys = keys
        self._entries = entries
        self._recent = recent
        self._reasons = reasons

    async def explain(
        self, apps: Iterable[Examines], tenant: str, scope: Scope, *, principal: str | None, complete: bool
    ) -> Explanation:
        """Explain a request of a tenant; raises InvalidName for what cannot be a tenant.

        With `complete`, what the scope leaves open (the host, forwarding fields) is taken from the latest request
        of the same path and query.
        """
        if not is_valid_id(tenant):
            raise InvalidName(f"not a tenant's id: {tenant!a}")
        examined, seen, app = None, False, None
        for app in apps:
            examined = await app.examine(tenant, scope, principal)
            if examined is not None:
                break
        if examined is not None and complete and app is not None:
            for target in self._recent.of(tenant, examined.policy.op):
                method = "GET" if scope["method"] == "HEAD" else scope["method"]
                if (target.method, target.path, target.query_string) == (method, scope["path"], scope["query_string"]):
                    who = [pair for pair in scope["headers"] if pair[0] in examined.credentials]
                    scope = {**target.scope(who), "method": scope["method"]}
                    examined, seen = await app.examine(tenant, scope, principal), True
                    break
        explanation = Explanation(tenant, scope, seen, principal, examined, at=time.time())
        if examined is None or examined.key is None:
            return explanation
        found = await self._entries.inspect(examined.key)
        return replace(
            explanation,
            copies=found.copies,
            generations=tuple((self._keys.target_of(tenant, name), held) for name, held in found.generations.items()),
            store_failed=found.failed,
            not_stored=self._reasons.of(examined.key),
        )


def scope_of(
    request: str | Mapping[str, Any], *, method: str = "GET", headers: Sequence[tuple[bytes, bytes]] = ()
) -> Scope:
    """Write a request down as an ASGI scope: from a path with its query, percent-encoded, or from parts of a scope.

    Raises ValueError for text that is no path.
    """
    if isinstance(request, str):
        raw, _, query = request.partition("?")
        if (
            not raw.startswith("/")
            or len(request) > _LONGEST_PATH
            or not all("!" <= char <= "~" and char != "#" for char in request)
        ):
            raise ValueError('a request is named by its path and query, such as "/api/v1/dashboard?range=1h"')
        raw_path = raw.encode()
        request = {
            "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
            "raw_path": raw_path,
            "query_string": query.encode(),
        }
    path = request.get("path")
    if not isinstance(path, str):
        raise ValueError("a request's scope needs a path")  # noqa: TRY004 - what is wrong is the value of the mapping
    return {
        "type": "http",
        "method": method.upper(),
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": list(headers),
        "client": None,
        "server": None,
        **request,
    }


_salt: Final = token_bytes(16)


def _digest(text: str | bytes) -> str:
    value = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return f"(keyed {blake2b(value, digest_size=6, key=_salt).hexdigest()})"


def _shown(name: bytes, value: bytes, credentials: frozenset[bytes]) -> str:
    if name in _SHOWN and name not in credentials:
        return value.decode("latin-1")
    return _digest(value)


def _canonical_query(policy: Policy, query: bytes) -> bytes:
    return query if policy.query is None else policy.query.canonical(query)


def _policy(examined: Examined) -> dict[str, Any]:
    policy = examined.policy
    return {
        "path": policy.path,
        "operation": policy.op,
        "ttl": examined.ttl,
        "methods": list(policy.methods),
        "statuses": list(policy.statuses),
        "vary": list(policy.vary),
        "tags": list(policy.templates),
        "version": policy.version,
        "share_authenticated": policy.share_authenticated,
    }
