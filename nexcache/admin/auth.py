"""Who calls an admin endpoint, and what that permits. Deny by default."""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from nexcache.asgi import Scope
from nexcache.tenants import is_valid_id


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller: somebody of a tenant, or an operator, who may name any tenant."""

    tenant: str | None
    operator: bool = False


Authorize: TypeAlias = Callable[[Scope], "str | Caller | Awaitable[str | Caller | None] | None"]
"""From a request to its caller; text is a tenant's id. None: nobody."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The request is refused."""

    status: int
    detail: str


async def authenticate(scope: Scope, authorize: Authorize) -> Caller | Denied:
    """Resolve the caller; whatever goes wrong is nobody. Exceptions are the caller's to report."""
    found = authorize(scope)
    if inspect.isawaitable(found):
        found = await found
    if isinstance(found, str) and is_valid_id(found):
        return Caller(found)
    if isinstance(found, Caller) and (found.operator or (found.tenant is not None and is_valid_id(found.tenant))):
        return found
    return Denied(401, "An API key or token of a tenant is needed.")


def tenant_of(caller: Caller, named: str | None) -> str | Denied:
    """Return the tenant that a request is about: the caller's own, or the one an operator names."""
    if named is None:
        if caller.tenant is not None:
            return caller.tenant
        return Denied(400, "An operator must name the tenant: ?tenant=…")
    if named == caller.tenant:
        return named
    if not caller.operator:
        return Denied(403, "This key is not of that tenant.")
    return named if is_valid_id(named) else Denied(400, "That cannot be a tenant's id.")
