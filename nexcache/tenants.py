"""Which tenant a request belongs to. A resolver takes the ASGI scope and returns an id, or None: a bypass.

A tenant's id decides whose data is answered, so it must come from something that the caller cannot choose:
an authenticated identity first, a header only if a trusted proxy sets it.
"""

import inspect
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Final, TypeAlias

from nexcache.asgi import Scope
from nexcache.errors import ConfigurationError, InvalidName
from nexcache.semantics.headers import spellings

Resolver: TypeAlias = Callable[[Scope], str | Awaitable[str | None] | None]

LONGEST_ID: Final = 150
"""Bytes of UTF-8, as Loki, Mimir and Tempo have it."""


class Caller:
    """Whose request is being served, found out when somebody asks."""

    __slots__ = ("_resolver", "_scope")

    def __init__(self, resolver: Resolver, scope: Scope) -> None:
        self._resolver = resolver
        self._scope = scope

    def resolve(self) -> str | Awaitable[str | None] | None:
        """Return the tenant; a resolver that fails names nobody."""
        try:
            return self._resolver(self._scope)
        except Exception:  # noqa: BLE001 - it is the application's own
            return None


current: Final[ContextVar[str | Caller | None]] = ContextVar("nexcache_tenant", default=None)
"""Whose request is being served: set by the middleware, read by cached functions that name no tenant themselves."""


@contextmanager
def acting_for(tenant: str) -> Iterator[None]:
    """Make a tenant the one that cached functions in this block are called for: in workers and scripts."""
    if not is_valid_id(tenant):
        raise InvalidName(f"not a tenant's id: {tenant!a}")
    token = current.set(tenant)
    try:
        yield
    finally:
        current.reset(token)


_KEY: Final = re.compile(
    r"(?P<tenant>[^=]+)=sha256:(?P<digest>[0-9a-fA-F]{64})"
    r"(?:;id=(?P<id>[A-Za-z0-9_.-]{1,64}))?(?:;expires=(?P<expires>[0-9TZ:.+-]{10,40}))?(?P<operator>;role=operator)?"
)


def is_valid_id(tenant: object) -> bool:
    """Whether this can name a tenant: text, not empty, at most 150 bytes, no control characters."""
    if not isinstance(tenant, str) or not tenant or not tenant.isprintable():
        return False
    return len(tenant) <= LONGEST_ID and (tenant.isascii() or len(tenant.encode()) <= LONGEST_ID)


def only(scope: Scope, name: bytes, names: Collection[bytes] = ()) -> str | None:
    """Return the value of a request header field that is there exactly once and is UTF-8, else None.

    `names` are the spellings that somebody might take for this field: a proxy that sets or removes the field may let
    another spelling through, so that one of them makes it None.
    """
    found = [(field, value) for field, value in scope["headers"] if field == name or field in names]
    if len(found) != 1 or found[0][0] != name:
        return None
    try:
        return bytes(found[0][1]).decode()
    except UnicodeDecodeError:
        return None


def header(name: str, *, trusted: bool | Sequence[str]) -> Resolver:
    """Take the tenant from a header field that appears exactly once.

    `trusted` says why the caller cannot forge it: `True` if something upstream sets or checks the field on every
    request, otherwise the networks (such as `"10.0.0.0/8"`) of the proxies that do; a request from elsewhere has
    no tenant.
    """
    exact, fields = name.lower().encode(), spellings(name)
    if not name:
        raise ConfigurationError("tenants.header takes the name of a header field")
    if trusted is False or (not isinstance(trusted, bool) and not trusted):
        raise ConfigurationError(
            f"tenants.header({name!a}): a header that anyone may set cannot name a tenant; pass trusted=True if a "
            "proxy sets or checks it, or the proxies' networks"
        )
    if trusted is True:
        return lambda scope: only(scope, exact, fields)
    try:
        networks = [ip_network(network) for network in ([trusted] if isinstance(trusted, str) else trusted)]
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"tenants.header({name!a}): {error}") from error

    def resolve(scope: Scope) -> str | None:
        client = scope.get("client")
        try:
            address = ip_address(client[0]) if client else None
        except ValueError:
            return None
        if address is None:
            return None
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:  # a socket that serves both families
            address = address.ipv4_mapped
        if not any(address in network for network in networks):
            return None
        return only(scope, exact, fields)

    return resolve


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One API key of a tenant, or of an operator, known by its SHA-256 only. A tenant may have several at a time."""

    tenant: str
    """Whose key it is; the operator's name where it is one's."""
    digest: str
    name: str = ""
    """What logs call the key; without one it is the first digits of its digest."""
    expires: float | None = None
    """Seconds since the epoch after which it is nobody's."""
    operator: bool = False
    """It may name any tenant to the admin endpoints, and is of none itself."""

    @property
    def id(self) -> str:
        """What tells this key from others without telling the key."""
        return self.name or self.digest[:8]

    @classmethod
    def parse(cls, text: str) -> "ApiKey":
        """Read `tenant=sha256:<64 hex digits>[;id=NAME][;expires=2027-01-31][;role=operator]`.

        An expiry without a zone is UTC. Raises ConfigurationError, without repeating the text.
        """
        match = _KEY.fullmatch(text.strip())
        if match is None:
            raise ConfigurationError(
                "an API key is written tenant=sha256:<64 hex digits>, then ;id=, ;expires= and ;role=operator where "
                "they are needed; `nexcache key TENANT` makes one"
            )
        if not is_valid_id(match["tenant"]):
            raise ConfigurationError("an API key's tenant must be 1 to 150 bytes without control characters")
        expires = None
        if match["expires"] is not None:
            try:
                instant = datetime.fromisoformat(match["expires"])
            except ValueError:
                raise ConfigurationError("an API key's expiry is an ISO 8601 date or time: 2027-01-31") from None
            expires = (instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)).timestamp()
        return cls(match["tenant"], match["digest"].lower(), match["id"] or "", expires, match["operator"] is not None)

    @classmethod
    def of(cls, tenant: str, secret: str) -> "ApiKey":
        """Hash a key. Keys are long random strings, which is what makes a plain digest safe.

        Raises ConfigurationError for an empty key, which anybody could present.
        """
        if not is_valid_id(tenant):
            raise ConfigurationError("an API key's tenant must be 1 to 150 bytes without control characters")
        if not secret.strip():
            raise ConfigurationError(f"the API key of the tenant {tenant!a} is empty")
        return cls(tenant, sha256(secret.encode("utf-8", "surrogateescape")).hexdigest())

    def __str__(self) -> str:
        """Write it the way the setting `CACHE_API_KEYS` holds it."""
        text = f"{self.tenant}=sha256:{self.digest}" + (f";id={self.name}" if self.name else "")
        if self.expires is not None:
            text += f";expires={datetime.fromtimestamp(self.expires, UTC).isoformat()}"
        return text + (";role=operator" if self.operator else "")


class ApiKeys:
    """Resolves a tenant from an API key in a request header; unknown, expired, missing or repeated keys give None.

    To rotate a key, list the new one beside the old one, which may be given an expiry. Raises ConfigurationError if
    one key stands for two tenants.
    """

    def __init__(self, field: str, keys: Iterable[ApiKey], *, clock: Callable[[], float] = time.time) -> None:
        self.reads: frozenset[bytes] = spellings(field)
        """The request header fields that it looks at, and nothing else."""
        self._keys: dict[bytes, ApiKey] = {}
        self._met: dict[bytes, str] = {}
        """Tenants by the secrets that requests came with: of those that are known, and hold for ever."""
        self._clock = clock
        for key in keys:
            known = self._keys.setdefault(bytes.fromhex(key.digest), key)
            if (known.tenant, known.operator) != (key.tenant, key.operator):
                raise ConfigurationError(f"the tenants {known.tenant!a} and {key.tenant!a} have the same API key")

    def __call__(self, scope: Scope) -> str | None:
        """Return the tenant whose key the request carries; an operator's key is no tenant's."""
        found = self._found(scope)
        return None if found is None else self.whose(found)

    def whose(self, secret: bytes) -> str | None:
        """Return the tenant whose key this is."""
        # a dictionary compares with what has the same keyed hash of 64 bits: that tells a guesser nothing either
        tenant = self._met.get(secret)
        if tenant is not None:
            return tenant
        key = self._known(secret)
        if key is None or key.operator:
            return None
        if key.expires is None:
            self._met[secret] = key.tenant
        return key.tenant

    def identify(self, scope: Scope) -> ApiKey | None:
        """Return the key that the request carries, if it is a known one that has not expired."""
        found = self._found(scope)
        return None if found is None else self._known(found)

    def _found(self, scope: Scope) -> bytes | None:
        found: bytes | None = None
        for name, value in scope["headers"]:
            if name in self.reads:
                if found is not None:
                    return None
                found = value
        return found

    def _known(self, secret: bytes) -> ApiKey | None:
        if not secret:
            return None
        # comparing digests of secrets tells a guesser nothing of the secrets themselves
        key = self._keys.get(sha256(secret).digest())
        if key is not None and key.expires is not None and key.expires <= self._clock():
            return None
        return key


def api_key(
    header: str = "X-API-Key", *, keys: Iterable[ApiKey] | Mapping[str, str], clock: Callable[[], float] = time.time
) -> ApiKeys:
    """Take the tenant from an API key; `keys` are hashed keys, or a mapping of tenants to secrets."""
    if isinstance(keys, Mapping):
        keys = [ApiKey.of(tenant, secret) for tenant, secret in keys.items()]
    return ApiKeys(header, keys, clock=clock)


def path(param: str) -> Resolver:
    """Take the tenant from a path parameter of the policy's template, or of the route that leads here.

    Anybody can write any path: use it only with a `principal` that comes from authentication, or behind a
    check that the caller belongs to the tenant.
    """

    def resolve(scope: Scope) -> str | None:
        for source in ("nexcache.parameters", "path_params"):
            found = scope.get(source, {}).get(param)
            if isinstance(found, str):
                return found
        return None

    return resolve


def host(pattern: str) -> Resolver:
    """Take the tenant from the Host field, by a pattern such as `"{tenant}.example.com"` (the port is ignored)."""
    before, found, after = pattern.partition("{tenant}")
    if not found or "{" in before + after:
        raise ConfigurationError(f'tenants.host takes a pattern such as "{{tenant}}.example.com", not {pattern!a}')
    template = re.compile(
        re.escape(before) + r"(?P<tenant>[a-z0-9_-]+)" + re.escape(after) + r"(?::\d+)?", re.IGNORECASE | re.ASCII
    )

    def resolve(scope: Scope) -> str | None:
        match = template.fullmatch(only(scope, b"host") or "")
        return match["tenant"].lower() if match else None

    return resolve


def scope(path: str) -> Resolver:
    """Take the tenant from what authentication put into the scope: `"user.tenant_id"`, `"auth.claims.org"`.

    Each step is a key of a mapping or an attribute; where one is missing there is no tenant.
    """
    steps = path.split(".")

    def resolve(scope: Scope) -> str | None:
        found: Any = scope
        for step in steps:
            found = found.get(step) if isinstance(found, Mapping) else getattr(found, step, None)
            if found is None:
                return None
        return found if isinstance(found, str) else None

    return resolve


def first_of(*resolvers: Resolver) -> Resolver:
    """Ask several resolvers in turn; the first id counts. Authenticated sources come first."""
    if not resolvers:
        raise ConfigurationError("tenants.first_of needs at least one resolver")

    async def resolve(scope: Scope) -> str | None:
        for resolver in resolvers:
            found = resolver(scope)
            if inspect.isawaitable(found):
                found = await found
            if found is not None:
                return found
        return None

    return resolve


def fixed(tenant: str) -> Resolver:
    """Use one tenant for every request: for programs that have only one."""
    if not is_valid_id(tenant):
        raise ConfigurationError(f"tenants.fixed: not a tenant's id: {tenant!a}")
    return lambda _scope: tenant
