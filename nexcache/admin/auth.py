"""Who calls an admin endpoint, and what that permits. Deny by default."""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from nexcache.asgi import Scope
from nexcache.tenants import ApiKeys, is_valid_id


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller: somebody of a tenant, or an operator, who may name any tenant."""

    tenant: str | None
    operator: bool = False
    id: str = ""
    """Whom the audit names: a key's name, a token's subject; never the credential. Without one, the tenant."""

    @property
    def who(self) -> str:
        """What the audit calls this caller."""
        return self.id or self.tenant or "operator"


Authorize: TypeAlias = Callable[[Scope], "str | Caller | Awaitable[str | Caller | None] | None"]
"""From a request to its caller; text is a tenant's id. None: nobody."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The request is refused."""

    status: int
    detail: str


def first_of(*authorizers: Authorize) -> Authorize:
    """Ask several in turn, such as API keys and then tokens; the first caller found counts."""

    async def authorize(scope: Scope) -> Caller | None:
        for each in authorizers:
            caller = await authenticate(scope, each)
            if isinstance(caller, Caller):
                return caller
        return None

    return authorize


async def authenticate(scope: Scope, authorize: Authorize) -> Caller | Denied:
    """Resolve the caller; whatever goes wrong is nobody. Exceptions are the caller's to report."""
    if isinstance(authorize, ApiKeys):
        key = authorize.identify(scope)
        found = Caller(None if key.operator else key.tenant, key.operator, key.id) if key is not None else None
        return found if found is not None else Denied(401, _NOBODY)
    answer = authorize(scope)
    if inspect.isawaitable(answer):
        answer = await answer
    if isinstance(answer, str) and is_valid_id(answer):
        return Caller(answer)
    if isinstance(answer, Caller) and (answer.operator if answer.tenant is None else is_valid_id(answer.tenant)):
        return answer
    return Denied(401, _NOBODY)


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


_NOBODY = "An API key or token of a tenant is needed."
