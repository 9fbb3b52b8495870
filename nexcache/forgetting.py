"""A tenant forgotten: everything that the store holds of it, removed in steps that hold up nobody.

Its entries are invalidated on all nodes and its encryption key is destroyed before anything is looked for: from then on
nothing of it can be read, however long the rest takes.
"""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from nexcache.key import KeySpace

_FAMILIES: Final = (b"value", b"session", b"limit", b"quota", b"trend")
"""Families whose keys go on after the tenant's segment."""
_SINGLE: Final = (b"stats", b"key")
"""Families with one key per tenant."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How far a tenant is forgotten. Given back as `resume`, it goes on from there; from the start is right as well."""

    tenant: str
    removed: int = 0
    """Keys removed from the store, and values from this process's memory."""
    done: bool = False
    cursor: bytes = b"0"
    """Where the look through the store goes on."""


class Sweeps(Protocol):
    """A store that can be looked through."""

    async def sweep(self, pattern: bytes, *, cursor: bytes, chosen: Callable[[bytes], bool]) -> tuple[bytes, int]:
        """Remove those of the next keys that match a pattern and are chosen; returns where to go on, and how many.

        Begins at `0`, and is at the end when it returns it. Raises StoreError.
        """


def belongs(keys: KeySpace, tenant: str) -> tuple[bytes, Callable[[bytes], bool]]:
    """Return a pattern that all keys of a tenant match, and what tells them from others that do."""
    prefix = keys.prefix(tenant)
    own = prefix.removeprefix(b"nexarch:").removesuffix(b":")
    begins = (prefix, *(b"nexarch.%b:%b:" % (family, own) for family in _FAMILIES))
    single = frozenset(b"nexarch.%b:%b" % (family, own) for family in _SINGLE)
    pattern = b"nexarch*:" + re.sub(rb"([\\*?\[\]])", rb"\\\1", own) + b"*"
    return pattern, lambda key: key.startswith(begins) or key in single


async def forget(
    store: Sweeps, keys: KeySpace, tenant: str, *, resume: Forgotten | None = None
) -> AsyncIterator[Forgotten]:
    """Remove all keys of a tenant, and tell after every step how far it is; raises StoreError."""
    pattern, chosen = belongs(keys, tenant)
    so_far = resume if resume is not None and resume.tenant == tenant else Forgotten(tenant)
    so_far = replace(so_far, done=False)
    while not so_far.done:
        cursor, removed = await store.sweep(pattern, cursor=so_far.cursor, chosen=chosen)
        so_far = Forgotten(tenant, so_far.removed + removed, cursor == b"0", cursor)
        yield so_far
