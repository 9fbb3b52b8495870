"""From a request to its key. Pure.

`nexarch:<tenant>:<op>:<hash>`: a tenant or an operation is percent-encoded, so that no id reaches outside its
segment and no two ids give one segment; the hash covers, each with its length, every part of the request that
a handler may read, so that no two requests give one sequence of bytes.
"""

import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from importlib.resources import files
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias

from nexcache.asgi import Scope
from nexcache.errors import ConfigurationError
from nexcache.policy import Policy
from nexcache.semantics.headers import spellings
from nexcache.telemetry.names import Bypass

FORMAT: Final = 1
"""The version of everything below; another version's keys are other keys."""
ENVELOPE: Final = 4
"""The version of what is stored under them: in a rolling deployment the nodes of two versions do not overwrite each
other's entries again and again, and depend on the same generations all the same."""

PLACE: Final = 16
"""Bytes by which a place in memory is longer than the name of its key."""
LONGEST_REQUEST: Final = 16 * 1024
"""Bytes of one canonical request; a longer one is not worth a key."""

_SAFE: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_FORWARDED_PAIR: Final = re.compile(rb'\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=([^\s",;]*|"[^"\\]*")\s*(?:[;,]|\Z)')
_table: Final = tomllib.loads((files("nexcache") / "request_headers.toml").read_text())
KEYED: Final[frozenset[bytes]] = frozenset(name.encode() for name in _table["keyed"])
BYPASSING: Final[frozenset[bytes]] = frozenset(name.encode() for name in _table["bypass"])
_ROLES: Final = {
    b"host": "host",
    b"forwarded": "forwarded",
    b"content-length": "length",
    b"transfer-encoding": "body",
    b"content-type": "media",
    b"content-encoding": "media",
    b"if-none-match": "none-match",
    b"if-modified-since": "conditional",
    b"if-match": "precondition",
    b"if-unmodified-since": "precondition",
    b"range": "range",
    b"cache-control": "control",
}
"""What the request fields do that HTTP itself gives a meaning."""


_NAME_OF: Final = itemgetter(0)
_LAYOUTS: Final = 256
_LAYOUT_BYTES: Final = 1_000
"""Layouts that are remembered, and the bytes of the longest."""
_NAMES: Final = 8192
"""Tenants, operations and the like of which is remembered how they are written; texts that come from outside, but
only after a tenant or an operator was known by them."""


@lru_cache(maxsize=_NAMES)
def segment(name: str) -> bytes:
    """Percent-encode a name for one segment of a key; nothing is folded or normalised."""
    raw = name.encode("utf-8", "surrogatepass")
    return b"".join(bytes((byte,)) if byte in _SAFE else b"%%%02X" % byte for byte in raw)


@lru_cache(maxsize=_NAMES)
def _prefix(tenant: str, cluster: bool) -> bytes:
    encoded = segment(tenant)
    return b"nexarch:{" + encoded + b"}:" if cluster else b"nexarch:" + encoded + b":"


def name_of(encoded: bytes) -> str:
    """Undo `segment`."""
    plain = re.sub(rb"%([0-9A-F]{2})", lambda match: bytes((int(match[1], 16),)), encoded)
    try:
        return plain.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # not written by `segment`
        return plain.decode("utf-8", "replace")


class Keyed(NamedTuple):
    """What the header fields of a request contribute to its key."""

    fields: tuple[tuple[bytes, bytes], ...]
    """Names and values in the order of the request."""
    if_none_match: bytes | None
    conditional: bool
    """Whether there are conditions that only a full answer may be tested against."""


Pairs: TypeAlias = Sequence[tuple[bytes, bytes]]


class Layout(NamedTuple):
    """Where the fields that matter stand in a request, told by the names of all its fields."""

    watched: Callable[[Pairs], tuple[tuple[bytes, bytes], ...]]
    """Takes those that may decide about the answer."""
    api_key: int
    """The place of the only API key; -1: there is none, or more than one."""


class Layouts:
    """The layouts that have been seen: a client sends the same fields in the same order again and again."""

    def __init__(self, watched: frozenset[bytes], api_key: frozenset[bytes]) -> None:
        self._watched = watched
        self._api_key = api_key
        self._seen: dict[tuple[bytes, ...], Layout] = {}

    def __len__(self) -> int:
        """Return how many are remembered."""
        return len(self._seen)

    def of(self, headers: Pairs) -> Layout:
        """Return the layout of a request with these header fields."""
        names = tuple(map(_NAME_OF, headers))
        layout = self._seen.get(names)
        if layout is None:
            layout = self._made(names)
            if sum(map(len, names)) <= _LAYOUT_BYTES:
                if len(self._seen) >= _LAYOUTS:  # names come from outside: forget all rather than grow
                    self._seen.clear()
                self._seen[names] = layout
        return layout

    def _made(self, names: Sequence[bytes]) -> Layout:
        watched = [place for place, name in enumerate(names) if name in self._watched]
        keys = [place for place, name in enumerate(names) if name in self._api_key]
        return Layout(_taking(watched), keys[0] if len(keys) == 1 else -1)


def _taking(places: Sequence[int]) -> Callable[[Pairs], tuple[tuple[bytes, bytes], ...]]:
    """Return what takes the pairs of these places."""
    match places:
        case []:
            return lambda _pairs: ()
        case [only]:
            return lambda pairs: (pairs[only],)
        case _:
            return itemgetter(*places)


class HeaderRules:
    """Reads the header fields of requests in one pass: what is keyed, and what makes a bypass.

    `principal`: one is configured, so that requests with credentials are told apart by it.
    """

    def __init__(self, credentials: Iterable[str], policies: Iterable[Policy], *, principal: bool) -> None:
        if isinstance(credentials, str):
            raise ConfigurationError(f"credentials takes a list of header fields, such as [{credentials!a}]")
        fields = [name.lower() for name in credentials]
        self._roles: dict[bytes, str] = {}
        for names, role in (
            (fields, "credential"),
            ((name for policy in policies for name in policy.vary), "vary"),
            (_table["keyed"], "keyed"),
            (_table["bypass"], "override"),
        ):
            self._roles.update((spelling, role) for name in names for spelling in spellings(name))
        self._roles |= _ROLES
        # somebody behind may take these for what the cache acts on, which it itself does not
        self._roles |= {odd: "override" for name in _ROLES for odd in spellings(name.decode()) - {name}}
        self._principal = principal
        self._authenticating = frozenset(name.encode() for name in fields) - {b"cookie"} if principal else frozenset()
        self._credentials = frozenset(spelling for name in fields for spelling in spellings(name))
        for name in fields:
            if self._roles[name.encode()] not in ("credential", "vary"):
                raise ConfigurationError(f"credentials: {name} is read by the cache itself and cannot be a credential")

    def covered(self, policy: Policy) -> frozenset[bytes]:
        """Return the request fields by which a response may vary, because they are part of the key."""
        covered = (KEYED - {b"forwarded"}) | self._authenticating | {name.encode() for name in policy.vary}
        return covered | {b"accept-encoding"} if policy.compress else covered  # the handler does not see it

    def watched(self, policy: Policy) -> frozenset[bytes]:
        """Return the fields that `read` looks at, for requests of one policy; all others make no difference to it."""
        trusted = self._principal or policy.share_authenticated
        return frozenset(
            name
            for name, role in self._roles.items()
            if not (
                (role == "credential" and (trusted or name not in self._credentials))
                or (role == "vary" and (trusted or name not in self._credentials) and not _is_among(name, policy.vary))
            )
        )

    def read(self, method: str, headers: Iterable[tuple[bytes, bytes]], policy: Policy) -> Keyed | Bypass:
        """Return what is keyed, or why the cache must not be asked."""
        trusted = self._principal or policy.share_authenticated
        has_body = method in ("POST", "QUERY")
        roles, fields = self._roles, []
        hosts = 0
        none_match: bytes | None = None
        conditional = False
        for name, value in headers:
            role = roles.get(name)
            if role is None:
                continue
            match role:
                case "host":
                    hosts += 1
                    fields.append((name, value))
                case "keyed":
                    fields.append((name, value))
                case "credential" | "vary":
                    if not trusted and name in self._credentials:
                        return Bypass.AUTHORIZATION
                    if role == "vary" and _is_among(name, policy.vary):
                        fields.append((name, value))
                case "none-match":
                    none_match = value if none_match is None else none_match + b", " + value
                case "conditional":
                    conditional = True
                case "length":
                    if not has_body and value.strip() not in (b"", b"0"):
                        return Bypass.BODY
                case "body":
                    if not has_body:
                        return Bypass.BODY
                case "media":
                    if has_body or _is_among(name, policy.vary):
                        fields.append((name, value))
                case "forwarded":
                    fields.append((name, value if "forwarded" in policy.vary else _without_machines(value)))
                case "override":
                    return Bypass.OVERRIDE
                case "precondition":
                    return Bypass.PRECONDITION
                case "range":
                    return Bypass.RANGE
                case "control":
                    if b"no-store" in value.lower():
                        return Bypass.NO_STORE
        if hosts > 1:
            return Bypass.HOST
        return Keyed(tuple(fields), none_match, conditional)


def _is_among(name: bytes, varied: Iterable[str]) -> bool:
    dashed = name.decode("latin-1").replace("_", "-")
    return any(dashed == each.replace("_", "-") for each in varied)


def _without_machines(value: bytes) -> bytes:
    """Blank `for` and `by` of a Forwarded field (RFC 7239 §4); a value of another shape is kept whole."""
    kept: list[bytes] = []
    position = 0
    while position < len(value):
        match = _FORWARDED_PAIR.match(value, position)
        if match is None:
            return value
        if match[1].lower() in (b"for", b"by"):
            kept += (value[position : match.start(2)], value[match.end(2) : match.end()])
        else:
            kept.append(match[0])
        position = match.end()
    return b"".join(kept)


_SHARED_TAGS: Final = 1024


CALL: Final = "nexcache.call:"
"""Begins the tag that stands for one call of a function alone; there are as many as entries."""
_OF_CALL: Final = b"@tag:" + segment(CALL)


def is_own_tag(generation: bytes) -> bool:
    """Whether a generation is that of one tag alone, of which a tenant has so many and no more."""
    return b"@tag:" in generation and _OF_CALL not in generation


class CacheKey(NamedTuple):
    """A request's place in the store, and the generations that it depends on."""

    tenant: str
    operation: str
    name: bytes
    """`nexarch:<tenant>:<op>:<hash>`."""
    request: bytes
    """The canonical request that was hashed."""
    generations: tuple[bytes, ...]
    """The keys of the generations of the tenant, the operation and the request's tags, in this order; then those
    that earlier responses have named."""
    tags: tuple[bytes, ...] = ()
    """The keys of the own generations of the request's tags; one that shares its generation stands above with that."""

    @property
    def base(self) -> int:
        """How many of the generations follow from the request alone."""
        return 2 + len(self.tags)

    @property
    def place(self) -> bytes:
        """Where it is held in memory: its name, and `PLACE` bytes of another hash of the request.

        Requests whose names collide are thus held apart, and the request itself need not be held.
        """
        return self.name + blake2b(self.request, digest_size=PLACE, person=b"nexcache-place").digest()

    @property
    def identity(self) -> bytes:
        """What two requests have in common that depend on the same generations."""
        return b"".join((self.name, self.request, *self.generations[self.base :]))

    @property
    def hash(self) -> str:
        """The last segment alone: it names no tenant and no query."""
        return self.name.rpartition(b":")[2].decode()


@lru_cache(maxsize=_NAMES // 4)
def _whose(  # noqa: PLR0917 - the parts that many requests of a tenant have in common
    version: bytes,
    operation: str,
    policy_version: str,
    shape: bytes,
    tenant: str,
    principal: str | None,
    method: str,
    scheme: str,
    root_path: str,
) -> bytes:
    """Write down the first parts of a canonical request."""
    parts = (
        version,
        operation.encode("utf-8", "surrogatepass"),
        policy_version.encode(),
        shape,
        tenant.encode("utf-8", "surrogatepass"),
        b"-" if principal is None else b"=" + principal.encode("utf-8", "surrogatepass"),
        b"GET" if method == "HEAD" else method.encode(),
        scheme.encode(),
        root_path.encode("utf-8", "surrogatepass"),
    )
    return b"".join([b"%d:%b" % (len(part), part) for part in parts])


class KeySpace:
    """Builds the keys of one namespace.

    `secret` keys the hash, so that nobody outside can aim at another's key; `version` separates incompatible
    deployments; on Cluster the tenant is a hash tag, so that all keys of a tenant live on one shard.
    """

    def __init__(self, *, version: str = "", secret: str = "", cluster: bool = False) -> None:
        self._secret = blake2b(secret.encode(), digest_size=32).digest() if secret else b""
        self._format = b"%d.%d/%b" % (FORMAT, ENVELOPE, version.encode())
        self._cluster = cluster

    def prefix(self, tenant: str) -> bytes:
        """Return what all keys of a tenant begin with, closing colon included."""
        return _prefix(tenant, self._cluster)

    def of_tenant(self, tenant: str) -> bytes:
        """Return the key of the generation that everything of a tenant depends on."""
        return self.prefix(tenant) + b"@tenant"

    def of_any(self, tenant: str) -> bytes:
        """Return the key of the generation that every invalidation of a tenant changes."""
        return self.guards(tenant)[1]

    def of_operation(self, tenant: str, operation: str) -> bytes:
        """Return the key of an operation's generation."""
        return self.prefix(tenant) + b"@op:" + segment(operation)

    def of_tag(self, tenant: str, tag: str) -> bytes:
        """Return the key of a tag's generation."""
        return self.prefix(tenant) + b"@tag:" + segment(tag)

    def shared_by(self, own: bytes) -> bytes:
        """Return the key of the generation that a tag shares with others, given that of its own."""
        prefix, _, name = own.partition(b"@tag:")
        number = int.from_bytes(blake2b(name, digest_size=8, key=self._secret).digest()) % _SHARED_TAGS
        return b"%b@tags:%d" % (prefix, number)

    def of_count(self, tenant: str) -> bytes:
        """Return the key of the count of a tenant's tags."""
        return self.prefix(tenant) + b"@count"

    def covers(self, key: CacheKey, generations: Collection[bytes]) -> bool:
        """Whether what an entry depends on includes all that the request says it must."""
        return all(each in generations for each in key.generations[:2]) and all(
            tag in generations or self.shared_by(tag) in generations for tag in key.tags
        )

    def target_of(self, tenant: str, generation: bytes) -> str:
        """Say in words what a generation's key stands for: `tenant`, `operation:…`, `tag:…`, `tags:…` (shared)."""
        kind, found, name = generation.removeprefix(self.prefix(tenant)).removeprefix(b"@").partition(b":")
        word = {b"op": "operation"}.get(kind, kind.decode("ascii", "replace"))
        return f"{word}:{name_of(name)}" if found else word

    def guards(self, tenant: str) -> tuple[bytes, bytes]:
        """Return the key of a tenant's registry, and that of the generation that every invalidation changes."""
        prefix = _prefix(tenant, self._cluster)
        return prefix + b"@ops", prefix + b"@any"

    def registry(self, tenant: str) -> bytes:
        """Return the key of the set of a tenant's operations."""
        return self.guards(tenant)[0]

    def salt(self, tenant: str) -> bytes:
        """Return the key of the salt that a tenant's encryption key is derived from."""
        encoded = segment(tenant)
        return b"nexarch.key:{" + encoded + b"}" if self._cluster else b"nexarch.key:" + encoded

    def values(self, tenant: str) -> bytes:
        """Return what the keys of a tenant's own values begin with; no invalidation reaches them."""
        encoded = segment(tenant)
        return b"nexarch.value:{" + encoded + b"}:" if self._cluster else b"nexarch.value:" + encoded + b":"

    def value(self, tenant: str, name: str) -> bytes:
        """Return the key of a tenant's own value."""
        return self.values(tenant) + segment(name)

    def limits(self, tenant: str) -> bytes:
        """Return what the keys of a tenant's rate limits begin with; no invalidation reaches them."""
        encoded = segment(tenant)
        return b"nexarch.limit:{" + encoded + b"}:" if self._cluster else b"nexarch.limit:" + encoded + b":"

    def limit(self, tenant: str, name: str, subject: str) -> bytes:
        """Return the key of a rate limit's count; who is limited is not to be read from it."""
        hashed = blake2b(
            subject.encode("utf-8", "surrogatepass"), digest_size=16, key=self._secret, person=b"nexcache-limit"
        )
        return self.limits(tenant) + segment(name) + b":" + hashed.hexdigest().encode()

    def sessions(self, tenant: str) -> bytes:
        """Return what the keys of a tenant's sessions begin with; no invalidation reaches them."""
        encoded = segment(tenant)
        return b"nexarch.session:{" + encoded + b"}:" if self._cluster else b"nexarch.session:" + encoded + b":"

    def session(self, tenant: str, session_id: str) -> bytes:
        """Return the key of a session; its id is not to be read from it."""
        hashed = blake2b(session_id.encode(), digest_size=32, key=self._secret, person=b"nexcache-session")
        return self.sessions(tenant) + hashed.hexdigest().encode()

    def session_user(self, tenant: str, user: str) -> bytes:
        """Return the key of what a user's sessions depend on; who the user is is not to be read from it."""
        hashed = blake2b(
            user.encode("utf-8", "surrogatepass"), digest_size=32, key=self._secret, person=b"nexcache-user"
        )
        return self.sessions(tenant) + b"@user:" + hashed.hexdigest().encode()

    def quota(self, tenant: str) -> tuple[bytes, bytes]:
        """Return the keys of the account of what a tenant holds: its entries by expiry, and their sizes."""
        encoded = segment(tenant)
        own = b"nexarch.quota:{" + encoded + b"}:" if self._cluster else b"nexarch.quota:" + encoded + b":"
        return own + b"entries", own + b"sizes"

    def of_restoration(self, tenant: str) -> bytes:
        """Return the key of the lease of whoever restores the registry."""
        return self.prefix(tenant) + b"@restoring"

    def key(self, tenant: str, operation: str, request: bytes, tags: Sequence[str] = ()) -> CacheKey:
        """Build the key of a canonical request."""
        digest = blake2b(request, digest_size=16, key=self._secret, person=b"nexcache-key").hexdigest()
        prefix, encoded = self.prefix(tenant), segment(operation)
        own = tuple([prefix + b"@tag:" + segment(tag) for tag in tags])
        return CacheKey(
            tenant,
            operation,
            b"%b%b:%b" % (prefix, encoded, digest.encode()),
            request,
            (prefix + b"@tenant", prefix + b"@op:" + encoded, *own),
            own,
        )

    def call(self, tenant: str, operation: str, identity: bytes, arguments: bytes) -> bytes:
        """Write down a function's call so that two calls are equal exactly if function and arguments are."""
        parts = (
            b"call",  # no request begins with this
            self._format,
            operation.encode("utf-8", "surrogatepass"),
            tenant.encode("utf-8", "surrogatepass"),
            identity,
            arguments,
        )
        return b"".join(b"%d:%b" % (len(part), part) for part in parts)

    def canonical(
        self,
        scope: Scope,
        policy: Policy,
        keyed: Sequence[tuple[bytes, bytes]],
        *,
        tenant: str,
        principal: str | None,
        query: bytes,
        body: bytes = b"",
    ) -> bytes:
        """Write down a request so that two requests are equal exactly if all their keyed parts are.

        HEAD is written as GET, which it is answered from (RFC 9110 §9.3.2).
        """
        path = scope["path"].encode("utf-8", "surrogatepass")
        raw_path = scope.get("raw_path") or b""
        digest = blake2b(body, digest_size=16).digest() if body else b""
        whose = _whose(
            self._format,
            policy.op,
            policy.version,
            policy.shape,
            tenant,
            principal,
            scope["method"],
            scope.get("scheme", "http"),
            scope.get("root_path", ""),
        )
        parts = [b"%d:%b%d:%b" % (len(path), path, len(raw_path), raw_path)]
        parts.append(b"%d:%b%d:%b" % (len(query), query, len(digest), digest))
        if len(keyed) > 1:
            keyed = sorted(keyed, key=itemgetter(0))
        for name, value in keyed:
            parts.append(b"%d:%b%d:%b" % (len(name), name, len(value), value))
        return whose + b"".join(parts)
