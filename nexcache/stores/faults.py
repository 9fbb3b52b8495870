"""What the client's and the server's errors mean for a cache: away, or there and refusing."""

from collections.abc import Collection, Sequence
from typing import Final

from redis import exceptions as redis

from nexcache.errors import StoreRefused, StoreUnavailable

_REFUSALS: Final = (
    (redis.AuthenticationError, "auth", "the server refused the credentials"),
    (redis.AuthorizationError, "auth", "the server refused the credentials"),
    (redis.NoPermissionError, "auth", "the user's ACL does not permit the command"),
    (redis.OutOfMemoryError, "out-of-memory", "the server's memory is full and it evicts nothing"),
    (redis.ReadOnlyError, "readonly", "the server is a replica and takes no writes"),
)


class Redirected(StoreUnavailable):
    """Another node of the cluster has the keys: nothing of what was asked has been done.

    With `ask` only these commands are to go there, each after ASKING; the slot has not moved yet.
    """

    def __init__(self, host: str, port: int, slot: int, *, ask: bool) -> None:
        super().__init__("busy", "another node of the cluster has the keys; set REDIS_URL to redis+cluster://…")
        self.host = host
        self.port = port
        self.slot = slot
        self.ask = ask


def redirected(replies: Sequence[object], optional: Collection[int] = ()) -> Redirected | None:
    """Say where a group of commands is to go; None where it was carried out at least in part, or failed otherwise."""
    found = {
        (reply.host, reply.port, reply.slot_id, not isinstance(reply, redis.MovedError))
        if isinstance(reply, redis.AskError)  # of which MovedError is a kind
        else None
        for index, reply in enumerate(replies)
        if index not in optional
    }
    place = found.pop() if len(found) == 1 else None
    return Redirected(place[0], place[1], place[2], ask=place[3]) if place is not None else None


def classify(error: BaseException) -> StoreUnavailable | StoreRefused:
    """Translate an error of the client. Messages are our own: the client's may repeat what was sent."""
    if isinstance(error, StoreUnavailable | StoreRefused):
        return error
    for kind, word, message in _REFUSALS:  # before ConnectionError, of which some of these are subclasses
        if isinstance(error, kind):
            return StoreRefused(word, message)
    if isinstance(error, redis.BusyLoadingError | redis.MasterDownError | redis.ClusterDownError):
        return StoreUnavailable("busy", "the server is loading its data or has no primary")
    if isinstance(error, redis.AskError | redis.TryAgainError):
        return StoreUnavailable("busy", "keys are moving between nodes of the cluster")
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return StoreUnavailable("timeout", "the store did not answer in time")
    if isinstance(error, redis.ConnectionError | OSError):
        return StoreUnavailable("connection", "the store could not be reached")
    if isinstance(error, redis.ResponseError):
        text = str(error)
        if text.startswith(("NOAUTH", "WRONGPASS")):
            return StoreRefused("auth", "the server refused the credentials")
        if text.startswith(("LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "TRYAGAIN")):
            return StoreUnavailable("busy", "the server is busy or has no primary")
        word = text.split(" ", 1)[0]
        name = word if word.isalpha() and word.isupper() else "ERR"
        return StoreRefused("refused", f"the server refused a command ({name})")
    return StoreUnavailable("connection", f"the client failed ({type(error).__name__})")
