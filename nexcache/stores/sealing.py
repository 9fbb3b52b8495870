"""Encryption of stored values: AES-256-GCM under a ring of keys, a key of its own for each tenant.

A tenant's key is derived from a key of the ring and the tenant's salt, which is random and kept in the store: whoever
destroys the salt has destroyed the key, and with it whatever was written, copies included. The name of a value is
authenticated with it, so that it cannot be put in another's place.
"""

import secrets
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SALT_BYTES: Final = 32
_NONCE: Final = 12
"""Bytes; random, which is safe for 2**32 values of one tenant and key (NIST SP 800-38D §8.3)."""
_KEY: Final = 32


class TenantSeal:
    """Encrypts and decrypts one tenant's values: the first key of the ring encrypts, all of them decrypt."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._ciphers = {kid.encode(): AESGCM(key) for kid, key in keys.items()}
        self._kid = next(iter(self._ciphers))

    def seal(self, name: bytes, plain: bytes) -> bytes:
        """Encrypt what is stored under this name."""
        nonce = secrets.token_bytes(_NONCE)
        sealed = self._ciphers[self._kid].encrypt(nonce, plain, name)
        return b"%c%b%b%b" % (len(self._kid), self._kid, nonce, sealed)

    def open(self, name: bytes, sealed: bytes) -> bytes | None:
        """Decrypt; None for what was not sealed under this name with one of the keys."""
        end = 1 + sealed[0] if sealed else 0
        cipher = self._ciphers.get(sealed[1:end])
        if cipher is None:
            return None
        try:
            return cipher.decrypt(sealed[end : end + _NONCE], sealed[end + _NONCE :], name)
        except (InvalidTag, ValueError):
            return None


class KeyRing:
    """The keys of the setting `CACHE_ENCRYPTION_KEYS`, from which each tenant's are derived."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = {
            kid: blake2b(key, digest_size=_KEY, person=b"nexcache-ring").digest() for kid, key in keys.items()
        }

    def of(self, tenant: str, salt: bytes) -> TenantSeal:
        """Derive a tenant's keys."""
        return TenantSeal(
            {
                kid: blake2b(
                    salt + tenant.encode("utf-8", "surrogatepass"),
                    digest_size=_KEY,
                    key=key,
                    person=b"nexcache-tenant",
                ).digest()
                for kid, key in self._keys.items()
            }
        )
