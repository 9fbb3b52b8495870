"""What a request asks of a cache (RFC 9111 §5.2.1, RFC 9110 §13, §14). Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from nexcache.semantics.cache_control import LARGEST, MALFORMED, delta_seconds, directives
from nexcache.semantics.headers import first, members, values


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request says to caches on its way, and which conditions it sets."""

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age: int | None = None
    min_fresh: int = 0
    max_stale: int = 0
    """Seconds beyond its lifetime for which the client takes a response."""
    stale_if_error: int = 0
    if_none_match: bytes | None = None
    if_modified_since: bytes | None = None
    precondition: bool = False
    """The request is only to be done on a state that only the origin knows (RFC 9110 §13.1.1, §13.1.4)."""
    range: bytes | None = None
    if_range: bytes | None = None
    authorized: bool = False
    """It carries `Authorization`, or another field that the operator said is a credential."""


_PLAIN = Asked()
_READ = frozenset(
    (
        b"cache-control",
        b"pragma",
        b"if-none-match",
        b"if-modified-since",
        b"if-match",
        b"if-unmodified-since",
        b"range",
        b"if-range",
    )
)


def asked(
    headers: Iterable[tuple[bytes, bytes]], *, credentials: frozenset[bytes] = frozenset((b"authorization",))
) -> Asked:
    """Read a request. What is not understood changes nothing; what is malformed asks for more care, not less."""
    relevant = [pair for pair in headers if pair[0] in _READ or pair[0] in credentials]
    if not relevant:
        return _PLAIN
    names = {name for name, _ in relevant}
    control = directives(relevant)
    if b"cache-control" not in names and b"pragma" in names and b"no-cache" in members(relevant, b"pragma"):
        control = {b"no-cache": None}  # §5.4
    tags = list(values(relevant, b"if-none-match"))
    return Asked(
        no_store=b"no-store" in control,
        no_cache=b"no-cache" in control,
        only_if_cached=b"only-if-cached" in control,
        max_age=_at_most(relevant, b"max-age") if b"max-age" in control else None,
        min_fresh=_at_least(relevant, b"min-fresh") if b"min-fresh" in control else 0,
        max_stale=_stale(relevant, control[b"max-stale"]) if b"max-stale" in control else 0,
        stale_if_error=_at_most(relevant, b"stale-if-error") if b"stale-if-error" in control else 0,
        if_none_match=b", ".join(tags) if tags else None,
        if_modified_since=first(relevant, b"if-modified-since"),
        precondition=b"if-match" in names or b"if-unmodified-since" in names,
        range=_only(relevant, b"range"),
        if_range=_only(relevant, b"if-range"),
        authorized=not credentials.isdisjoint(names),
    )


def _at_most(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> int:
    seconds = delta_seconds(headers, name)
    return 0 if seconds is None or seconds is MALFORMED else seconds


def _at_least(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> int:
    seconds = delta_seconds(headers, name)
    return LARGEST if seconds is None or seconds is MALFORMED else seconds


def _stale(headers: Iterable[tuple[bytes, bytes]], argument: bytes | None) -> int:
    return LARGEST if argument is None else _at_most(headers, b"max-stale")


def _only(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    found = list(values(headers, name))
    return b", ".join(found) if found else None
