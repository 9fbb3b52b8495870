"""Under which permission set a request acts. A resolver takes the ASGI scope and returns a name, or None: a bypass.

Two requests of one tenant share answers only if their principals are equal. A role or a set of scopes shares
best; a user's id is always safe. Any resolver of `nexcache.tenants` may be used too: then all callers of a
tenant share.
"""

from hashlib import blake2b

from nexcache.asgi import Scope
from nexcache.errors import ConfigurationError
from nexcache.semantics.headers import spellings
from nexcache.tenants import Resolver, first_of, fixed, scope

__all__ = ["Resolver", "first_of", "fixed", "per_credential", "scope"]


def per_credential(*headers: str) -> Resolver:
    """Share with nobody but callers who send the very same credential: right for any kind of token.

    A request that carries none of the fields is answered as nobody, separately from all others. The credential
    itself is never stored; its digest is part of the key.
    """
    names: tuple[object, ...] = headers or ("authorization", "cookie", "x-api-key")
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigurationError("principals.per_credential takes names of header fields")
    fields = frozenset(spelling for name in names for spelling in spellings(str(name)))

    def resolve(scope: Scope) -> str | None:
        digest = blake2b(digest_size=16, person=b"nexcache-princ")
        for name, value in scope["headers"]:
            if name in fields:
                digest.update(b"%d:%b%d:%b" % (len(name), name, len(value), value))
        return digest.hexdigest()

    return resolve
