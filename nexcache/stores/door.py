"""Keeps connections from knocking again and again where a server refused one of them: a storm helps nobody."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from nexcache.errors import StoreRefused
from nexcache.stores.faults import classify

_CLOSED_FOR: Final = 1.0
"""Seconds between two attempts, of all connections together, while the server refuses them."""
_TURN: Final = 0.1
"""Seconds that one waits for what becomes of another's attempt: a server that refuses does so at once."""


class Door:
    """What all connections of one process to one server share: whether it refused the last of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refusal: StoreRefused | None = None
        self._until = float("-inf")
        self._entering: asyncio.Future[None] | None = None

    @property
    def refusal(self) -> StoreRefused | None:
        """Why nobody may try now; None where one may."""
        if self._refusal is None or self._clock() >= self._until:
            return None
        return StoreRefused(self._refusal.kind, str(self._refusal))

    async def enter(self, connection: AbstractConnection) -> None:
        """Open a connection; raises StoreUnavailable or StoreRefused.

        Those that come while another is being opened wait for what becomes of it: where that one is refused, so are
        they, and the server is not asked again and again.
        """
        loop, other = asyncio.get_running_loop(), self._entering
        if other is not None and not other.done() and other.get_loop() is loop:
            await asyncio.wait((other,), timeout=_TURN)
        mine = self._entering = loop.create_future()
        try:
            await self._enter(connection)
        finally:
            mine.set_result(None)

    async def _enter(self, connection: AbstractConnection) -> None:
        refusal = self.refusal
        if refusal is not None:
            raise refusal
        if self._refusal is not None:
            self._until = self._clock() + _CLOSED_FOR  # this one tries for all
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            failure = classify(error)
            if isinstance(failure, StoreRefused):
                self.refused(failure)
            raise failure from error
        except Exception as error:
            # not the client's: its errors are those above. A provider of credentials may raise anything
            failure = StoreRefused("auth", f"the provider of credentials failed ({type(error).__name__})")
            self.refused(failure)
            raise failure from error

    def refused(self, refusal: StoreRefused) -> None:
        """Note that the server does not take connections of ours."""
        self._refusal = refusal
        self._until = self._clock() + _CLOSED_FOR

    def opened(self) -> None:
        """Note that a connection works."""
        self._refusal = None
