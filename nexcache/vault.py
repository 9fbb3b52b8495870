"""Each tenant's encryption key, as long as there is one: derived here, destroyed in the store."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol

from nexcache.errors import StoreRefused
from nexcache.key import KeySpace
from nexcache.stores.sealing import SALT_BYTES, KeyRing, TenantSeal

_KNOWN_FOR: Final = 5.0
"""Seconds after which a salt is read again: another node may have destroyed it."""
_MOST_KNOWN: Final = 10_000
_GET_OR_MAKE: Final = b"redis.call('SET', KEYS[1], ARGV[1], 'NX') return redis.call('GET', KEYS[1])"
_DESTROY: Final = b"return redis.call('DEL', KEYS[1])"


class Keeps(Protocol):
    """A store that carries out scripts."""

    async def evaluate(
        self, script: bytes, keys: tuple[bytes, ...], arguments: tuple[bytes, ...], *, deadline: float | None = None
    ) -> Any:
        """Carry out a script at one moment; raises StoreError."""


class Vault:
    """Gives each tenant's seal, and destroys it. Without its salt, what was sealed is lost to everyone for good."""

    def __init__(
        self, ring: KeyRing, *, store: Keeps, keys: KeySpace, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ring = ring
        self._store = store
        self._keys = keys
        self._clock = clock
        self._known: OrderedDict[str, tuple[bytes, TenantSeal, float]] = OrderedDict()

    async def of(self, tenant: str, *, deadline: float | None = None) -> TenantSeal:
        """Return a tenant's seal, made where there was none; raises StoreError."""
        known = self._known.get(tenant)
        now = self._clock()
        if known is not None and known[2] > now:
            return known[1]
        key = (self._keys.salt(tenant),)
        salt = await self._store.evaluate(_GET_OR_MAKE, key, (secrets.token_bytes(SALT_BYTES),), deadline=deadline)
        if not isinstance(salt, bytes) or len(salt) != SALT_BYTES:
            raise StoreRefused("refused", "the store's salt for a tenant's encryption key was not written by NexCache")
        seal = known[1] if known is not None and known[0] == salt else self._ring.of(tenant, salt)
        self._known[tenant] = (salt, seal, now + _KNOWN_FOR)
        self._known.move_to_end(tenant)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return seal

    async def shred(self, tenant: str) -> None:
        """Destroy a tenant's key; raises StoreError, after which it may or may not exist. Other nodes notice in 5 s."""
        self._known.pop(tenant, None)
        await self._store.evaluate(_DESTROY, (self._keys.salt(tenant),), ())
        self._known.pop(tenant, None)
