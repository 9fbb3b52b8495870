"""Which requests an operation was asked for lately, and how to compute them again before anybody waits.

Kept in this process only: what a request was made of, never its credentials. Who warms an operation sends their
own credentials, so that the app decides what they may see.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from nexcache.asgi import Scope
from nexcache.stores.memory import Bounded

REFRESH: Final = "nexcache.refresh"
"""The scope's key that makes the middleware compute instead of looking up; no client can set it."""

CREDENTIALS: Final = frozenset((b"authorization", b"cookie", b"x-api-key"))
"""Header fields that say who asks: never remembered."""

_PER_OPERATION: Final = 50
_OPERATIONS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Target:
    """What a request asked for: everything but who asked."""

    method: str
    path: str
    raw_path: bytes | None
    query_string: bytes
    root_path: str
    scheme: str
    fields: tuple[tuple[bytes, bytes], ...]
    """The keyed header fields; credentials that a policy varies by are left out."""
    body: bytes

    def scope(self, headers: Sequence[tuple[bytes, bytes]], **extra: Any) -> Scope:
        """Write the request down as an ASGI scope, with further header fields that say who asks now."""
        named = {name for name, _ in headers}
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": self.scheme,
            "path": self.path,
            "raw_path": self.raw_path,
            "query_string": self.query_string,
            "root_path": self.root_path,
            "headers": [*(pair for pair in self.fields if pair[0] not in named), *headers],
            "client": None,
            "server": None,
            **extra,
        }


class Recent:
    """The last requests of every tenant's operation, bounded."""

    def __init__(self) -> None:
        self._operations: Bounded[OrderedDict[Target, None]] = Bounded(
            max_bytes=64 * 1024 * 1024, max_entries=_OPERATIONS
        )

    def note(self, tenant: str, operation: str, target: Target) -> None:
        """Remember a request as the latest."""
        name = f"{len(tenant)}:{tenant}{operation}".encode("utf-8", "surrogatepass")
        targets = self._operations.get(name)
        if targets is None:
            targets = OrderedDict()
            self._operations.put(name, targets, size=0, lifetime=86_400.0)
        targets[target] = None
        targets.move_to_end(target)
        if len(targets) > _PER_OPERATION:
            targets.popitem(last=False)

    def of(self, tenant: str, operation: str) -> tuple[Target, ...]:
        """Return the requests of an operation, the latest first."""
        name = f"{len(tenant)}:{tenant}{operation}".encode("utf-8", "surrogatepass")
        return tuple(reversed(self._operations.get(name) or ()))


@dataclass(slots=True)
class Refreshing:
    """A computation that was asked for by `refresh`, and whether its answer was stored."""

    tenant: str
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Warmed:
    """What became of a warm-up."""

    operation: str
    requested: int
    """How many requests were known."""
    refreshed: int
    """How many of them are now stored anew."""
    failed: int
    """How many were not: the app refused, failed, or answered what may not be stored."""
    ms: float


class Warms(Protocol):
    """An app behind the cache that can compute its requests again."""

    @property
    def operations(self) -> frozenset[str]:
        """The operations that it has policies for."""

    async def refresh(self, tenant: str, target: Target, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Compute one request for the sender of these header fields, and store it; False if that did not work."""
