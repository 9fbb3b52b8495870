"""What NexCache asks of a store: the Protocol. Keys and values are bytes; policy lives elsewhere."""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeAlias

from nexcache.stores.tokens import HARD, UNTOUCHED
from nexcache.telemetry.names import Tier

SENTINEL: Final = b"@"
"""The member that marks a registry as complete; no encoded operation begins with it."""


def new_token() -> bytes:
    """Make a generation: 16 random bytes, and 8 that say how often and when it was last invalidated softly.

    Counters and clocks alone would repeat after a restart.
    """
    return secrets.token_bytes(HARD) + UNTOUCHED


class Reading(NamedTuple):
    """What one read returned: the values in the order of the keys, None where a key is absent."""

    values: Sequence[bytes | None]
    epoch: bytes
    """Names the server's history (run id and replication id): values of two epochs never compare equal."""
    sent_at: float = 0.0
    """When the command left, by `nexcache.invalidation.view.boottime`."""
    now: int | None = None
    """The store's clock, if it was asked for: milliseconds, below `CLOCK`."""
    left: float | None = None
    """Seconds for which the first key will live on, at least; None where that was not asked for or it is absent."""


@dataclass(frozen=True, slots=True)
class Register:
    """The register of the nodes that trust what they have read, as it is now."""

    nodes: Mapping[bytes, bytes]
    """Nodes and their registrations."""
    name: bytes | None
    """Names this register in this history of the server: one that was lost and begun anew has another name."""
    vouched: bool = False
    """A node has known this register for so long that whoever trusts anything stands in it."""


class Capture(NamedTuple):
    """The generations of some tags, read at one moment and created where they were missing."""

    tokens: Sequence[bytes | None]
    epoch: bytes
    complete: bool
    """The registry held its sentinel after the tokens were read: nothing had been lost from it."""
    registered: bool
    """The registry held the operation after the tokens were read."""
    sent_at: float = 0.0
    """When the commands left, by `nexcache.invalidation.view.boottime`."""
    leased: bool = False
    """The lease that was asked for beside it was free, and is the caller's now."""
    now: int = 0
    """The store's clock, before the tokens were read: milliseconds, below `CLOCK`."""


class LeaseOffer(NamedTuple):
    """A lease that somebody would take if it is free."""

    name: bytes
    token: bytes
    """Random: names the holder."""
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """What a store says of itself."""

    mode: str
    """`redis` or `memory`."""
    available: bool
    response_time_ms: float
    connections: int
    commands: int
    """Commands sent since start."""
    detail: str = ""


ByOperation: TypeAlias = Mapping[bytes, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of a store belongs to somebody."""

    entries: int
    bytes: int
    estimated: bool
    """Only a part of the keys was looked at, and the figures are projected from it."""
    operations: ByOperation = field(default_factory=dict)
    """Entries and bytes by the segment of the key that names the operation."""


def add_up(sizes: Iterable[tuple[bytes, int]], *, factor: float = 1.0, estimated: bool = False) -> Usage:
    """Add up entries' keys and sizes, each of which stands for `factor` of them."""
    found: dict[bytes, tuple[int, int]] = {}
    for key, size in sizes:
        operation = key.split(b":")[-2]
        entries, held = found.get(operation, (0, 0))
        found[operation] = (entries + 1, held + size)
    operations = {name: (round(number * factor), round(held * factor)) for name, (number, held) in found.items()}
    return Usage(
        sum(number for number, _ in operations.values()),
        sum(held for _, held in operations.values()),
        estimated,
        operations,
    )


@dataclass(frozen=True, slots=True)
class Names:
    """Keys that begin alike, as far as they were looked at."""

    keys: Sequence[bytes]
    factor: float
    """How many keys of the store each of those stands for: 1 where all were looked at."""
    complete: bool


class Store(Protocol):
    """Bytes under keys, with expiry. Every call keeps the deadline it is given.

    `deadline` is an instant of the running loop's clock (`loop.time()`); None means the store's own limit.
    `on_sent` is called when the command is about to leave: until then, and no longer, its answer may be shared
    with requests that start now. Failures are StoreUnavailable or StoreRefused, nothing else.
    """

    @property
    def tier(self) -> Tier:
        """What telemetry calls this store."""

    async def read(
        self,
        keys: Sequence[bytes],
        *,
        deadline: float | None = None,
        on_sent: Callable[[], None] | None = None,
        timed: bool = False,
        expiring: bool = False,
    ) -> Reading:
        """Read several keys at one moment, in one round trip; and then, where `timed`, the store's clock.

        Where `expiring`, also for how long the first of them will live on: nobody's own clock has to tell.
        """

    async def capture(
        self,
        keys: Sequence[bytes],
        *,
        registry: bytes,
        operation: bytes,
        ttl_ms: int,
        deadline: float | None = None,
        on_sent: Callable[[], None] | None = None,
        lease: LeaseOffer | None = None,
    ) -> Capture:
        """Register an operation, create missing tokens, read all of them, and read the registry back; take a lease.

        In this order and in one round trip. If the registry is whole, it and the tokens live for at least seven
        eighths of `ttl_ms` from now; nothing's life is shortened.
        """

    async def acquire(self, name: bytes, token: bytes, *, ttl_ms: int, deadline: float | None = None) -> bool:
        """Keep a token under a name for `ttl_ms` milliseconds, unless there is one; False if there is."""

    async def write(self, key: bytes, value: bytes, *, ttl_ms: int, deadline: float | None = None) -> None:
        """Keep a value for `ttl_ms` milliseconds."""

    async def unlink(
        self, keys: Sequence[bytes], *, message: bytes | None = None, deadline: float | None = None
    ) -> int:
        """Remove keys, then tell other nodes with `message`; returns how many existed. Repeating it is harmless."""

    async def soften(
        self, keys: Sequence[bytes], *, message: bytes | None = None, deadline: float | None = None
    ) -> None:
        """Invalidate the tokens under these keys softly, as far as there are any, then tell other nodes.

        Raises StoreRefused where the store can do no more than remove them.
        """

    async def members(self, registry: bytes, *, deadline: float | None = None) -> frozenset[bytes] | None:
        """Read a registry; None where its sentinel is missing, for it may then be incomplete."""

    async def restore_sentinel(
        self, registry: bytes, token: bytes, *, ttl_ms: int, deadline: float | None = None
    ) -> None:
        """Remove the tenant's token, then mark the registry as complete from here on, in that order."""

    async def add(self, key: bytes, amounts: Mapping[bytes, int], *, once: Mapping[bytes, int], ttl_ms: int) -> None:
        """Add to the numbers under a key, and set those of `once` that are not there yet.

        Never repeated after a doubtful failure, which would count twice.
        """

    async def numbers(self, key: bytes) -> Mapping[bytes, int]:
        """Read the numbers under a key."""

    async def drop(self, key: bytes, names: Sequence[bytes]) -> None:
        """Remove some of the numbers under a key. Repeating it is harmless."""

    async def usage(self, prefix: bytes, *, most: int) -> "Usage":
        """Count the values whose keys begin with `prefix`, looking at about `most` keys."""

    async def names(self, prefix: bytes, *, most: int) -> Names:
        """List the keys that begin with `prefix`, looking at about `most` keys; for people, not for requests."""

    async def peek_many(self, keys: Sequence[bytes], *, longest: int) -> Sequence[bytes | None]:
        """Read values of at most `longest` bytes, None for others; held up by no request, and holding up none."""

    async def health(self) -> StoreHealth:
        """Ask the store how it is; never raises StoreError."""

    async def aclose(self) -> None:
        """Give back sockets; a later call opens them again."""
