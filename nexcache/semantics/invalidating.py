"""What a write makes invalid (RFC 9111 §4.4). Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from nexcache.asgi import Headers, Scope
from nexcache.errors import InvalidName
from nexcache.semantics.groups import named_groups, tags_in
from nexcache.semantics.headers import first, values

SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PROPFIND", "REPORT", "SEARCH"))
"""Methods that change nothing (RFC 9110 §9.2.1); every other may, the unknown included."""
_PORTS: Final = {"http": 80, "https": 443}
MOST_NAMED: Final = 30
"""Tags that a response names for itself."""
_SUCCEEDED: Final = range(200, 400)


@dataclass(frozen=True, slots=True)
class Target:
    """The target URI of a request (RFC 9110 §7.1)."""

    scheme: str
    authority: str
    path: str
    """With the query."""

    @property
    def uri(self) -> str:
        """The URI as text."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def tag(self) -> str:
        """The tag that every stored response of this URI depends on."""
        return tag_of(self.uri)

    @property
    def origin(self) -> str:
        """What Cache-Groups are shared within (RFC 6454)."""
        return f"{self.scheme}://{self.authority}"


def target_of(scope: Scope) -> Target:
    """Return the URI that a request is for."""
    scheme = scope.get("scheme", "http")
    raw: bytes | None = scope.get("raw_path")
    path = raw.decode("latin-1") if raw else quote(scope["path"])
    query: bytes = scope["query_string"]
    host = (first(scope["headers"], b"host") or b"").decode("latin-1")
    return Target(scheme, _authority(scheme, host), path + ("?" + query.decode("latin-1") if query else ""))


def invalidated(
    target: Target, method: str, status: int, headers: Iterable[tuple[bytes, bytes]], *, also: str | None = None
) -> tuple[str, ...]:
    """Return the tags of the URIs that a response makes invalid; none where the method is safe, or it failed.

    Location and Content-Location count where they are of the same origin, so that no origin empties another's part
    of the cache. `also` is an origin by which the same service calls itself (`http://host:port`).
    """
    if method in SAFE or status not in _SUCCEEDED:
        return ()
    headers = tuple(headers)
    uris = [target.uri]
    for name in (b"location", b"content-location"):
        for value in values(headers, name):
            try:
                parts = urlsplit(urljoin(target.uri, value.decode("latin-1").strip()))
                authority = _authority(parts.scheme, parts.netloc)
            except ValueError:
                continue
            if f"{parts.scheme}://{authority}" in (target.origin, also):
                uris.append(target.origin + (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    return tuple(dict.fromkeys(tag_of(uri) for uri in uris))


def groups_invalidated(target: Target, method: str, headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, ...]:
    """Return the tags of the groups that a response makes invalid (RFC 9875 §3): not where the method is safe."""
    if method in SAFE:
        return ()
    groups = named_groups(tuple(headers), b"cache-group-invalidation")
    return (*(_group_tag(target.origin, group) for group in groups), _many(target.origin)) if groups else ()


def groups_of(target: Target, headers: Headers) -> tuple[str, ...]:
    """Return the tags of a response's groups within its origin (RFC 9875 §2).

    A response of very many groups is of one that every invalidation of a group reaches. A malformed field is ignored.
    """
    found = tuple(_group_tag(target.origin, group) for group in named_groups(headers) or ())
    return (_many(target.origin),) if len(found) > MOST_NAMED else found


def named_by(target: Target, headers: Headers) -> tuple[str, ...]:
    """Return the tags that a response names for itself: its groups within its origin, and plain ones."""
    scoped = groups_of(target, headers)
    try:
        plain = tags_in(headers)
    except InvalidName:
        plain = ()
    return (*scoped, *plain[: MOST_NAMED - len(scoped)])


def _group_tag(origin: str, group: str) -> str:
    return "group:" + blake2b(f"{origin} {group}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _many(origin: str) -> str:
    return "groups:" + blake2b(origin.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def tag_of(uri: str) -> str:
    """Return the tag of a URI: hashed, so that any URI can be one."""
    return "uri:" + blake2b(uri.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _authority(scheme: str, host: str) -> str:
    host = host.lower().strip()
    default = f":{_PORTS.get(scheme, '')}"
    return host.removesuffix(default) if len(default) > 1 else host
