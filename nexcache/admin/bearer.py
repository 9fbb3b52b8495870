"""Callers by bearer token: a JWT (RFC 7519) whose signature, algorithm, audience, issuer and expiry are checked.

Needs the extra `jwt`. The algorithms are pinned by whoever configures them; what a token says of itself decides
nothing (RFC 8725 §3.1).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jwt

from nexcache.admin.auth import Caller
from nexcache.asgi import Scope
from nexcache.errors import ConfigurationError
from nexcache.tenants import is_valid_id, only

_SYMMETRIC: Final = frozenset(("HS256", "HS384", "HS512"))
_ASYMMETRIC: Final = frozenset(
    ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
)
_LONGEST: Final = 8 * 1024
_SHORTEST_SECRET: Final = 32


def bearer_jwt(
    keys: str | bytes | Mapping[str, Any],
    *,
    algorithms: Sequence[str],
    audience: str,
    issuer: str,
    tenant_claim: str = "tenant",
    operator_claim: tuple[str, str] | None = None,
    leeway: float = 30.0,
) -> Callable[[Scope], Caller | None]:
    """Make an `authorize` for `AdminApp` of bearer tokens.

    `keys`: a public key (PEM) or a secret, or several by their `kid`. `operator_claim`, such as `("role",
    "operator")`, names a claim and the value (or member of a list) that makes its bearer an operator. `leeway` in
    seconds is granted to clocks. A token without `exp`, `aud`, `iss` and `sub` is nobody's. Raises
    ConfigurationError for what cannot be safe.
    """
    pinned = [algorithms] if isinstance(algorithms, str) else list(algorithms)
    if not pinned or not (set(pinned) <= _SYMMETRIC or set(pinned) <= _ASYMMETRIC):
        raise ConfigurationError(
            "bearer_jwt: algorithms pins signatures of one kind: of a shared secret (HS256 …), or of a public key "
            "(RS256, ES256, EdDSA …); a mixture would let a public key be used as a secret"
        )
    ring: dict[str | None, Any] = {}
    ring.update(keys.items() if isinstance(keys, Mapping) else ((None, keys),))
    if not ring:
        raise ConfigurationError("bearer_jwt needs a key")
    if set(pinned) <= _SYMMETRIC and any(len(key) < _SHORTEST_SECRET for key in ring.values()):
        raise ConfigurationError("bearer_jwt: a shared secret has at least 32 bytes (RFC 7518 §3.2)")
    if not audience or not issuer:
        raise ConfigurationError("bearer_jwt needs audience= and issuer=: a token for another service is none for this")

    def authorize(scope: Scope) -> Caller | None:
        scheme, _, token = (only(scope, b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > _LONGEST:
            return None
        try:
            kid = jwt.get_unverified_header(token).get("kid") if None not in ring else None
            if kid not in ring:
                return None
            claims = jwt.decode(
                token.strip(),
                ring[kid],
                algorithms=pinned,
                audience=audience,
                issuer=issuer,
                leeway=leeway,
                options={"require": ["exp", "aud", "iss", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        subject, tenant = claims["sub"], claims.get(tenant_claim)
        operator = operator_claim is not None and _has(claims.get(operator_claim[0]), operator_claim[1])
        if tenant is not None and not is_valid_id(tenant):
            return None
        return Caller(tenant, operator, subject) if tenant is not None or operator else None

    return authorize


def _has(claim: object, wanted: str) -> bool:
    return claim == wanted or (isinstance(claim, list) and wanted in claim)
