"""How the history of a server is told apart from any other, so that a failover revives nothing."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from redis.exceptions import AuthenticationError

from nexcache.errors import StoreRefused, StoreUnavailable
from nexcache.stores.faults import classify
from nexcache.stores.lane import Command


class InfoEpoch:
    """Tells a server's history by its run id and its replication id: a restart or a failover is a new epoch.

    A replica is never read from: it may lag behind an invalidation that its primary has acknowledged.
    """

    commands: Sequence[Command] = (("INFO", "server"), ("INFO", "replication"))

    def of(self, replies: Sequence[Any]) -> bytes:
        """Return the digest of both ids; raises StoreRefused where INFO is not to be had."""
        found: dict[bytes, bytes] = {}
        for reply in replies:
            if isinstance(reply, BaseException):
                refused = classify(reply)
                if isinstance(refused, StoreUnavailable) or isinstance(reply, AuthenticationError):
                    raise refused
                raise StoreRefused(
                    "refused",
                    "the server does not permit INFO, which tells a restart or a failover: allow it, or set "
                    "CACHE_FAILOVER=trust and accept that an invalidation may be lost in a failover",
                )
            for line in bytes(reply).splitlines():
                name, _, value = line.partition(b":")
                found[name] = value
        if found.get(b"role") == b"slave":
            raise StoreUnavailable("connection", "the server is a replica, which may lag behind its primary")
        try:
            ids = found[b"run_id"] + b"/" + found[b"master_replid"]
        except KeyError:
            raise StoreRefused("refused", "INFO tells no run_id or master_replid: set CACHE_FAILOVER=trust") from None
        return blake2b(ids, digest_size=8, person=b"nexcache-epoch").digest()


class TrustedEpoch:
    """Takes every answer for one history (`CACHE_FAILOVER=trust`): a failover may revive what was invalidated."""

    commands: Sequence[Command] = ()

    def of(self, replies: Sequence[Any]) -> bytes:
        """Return the only epoch."""
        del replies
        return b""
