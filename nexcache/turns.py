"""How many computations a tenant may have under way: beyond that its requests wait for their turn, in their order.

Without this, one tenant's cold requests fill the app, and every other tenant waits behind them. Those who wait do
not wait for ever: after a limit they go on, because a cache must never be the reason that nothing is answered.
"""

import asyncio
from collections.abc import Hashable
from typing import Final

UNBOUNDED: Final = 0


class Turn:
    """A place among a tenant's computations, until it is given back."""

    __slots__ = ("_tenant", "_turns", "name")

    def __init__(self, turns: "Turns", tenant: str, name: Hashable) -> None:
        self._turns: Turns | None = turns
        self._tenant = tenant
        self.name: Hashable = name

    def give_back(self) -> None:
        """Let the next one have it; a second time does nothing."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.end(self._tenant, self.name)


class _Queue:
    """What one tenant has under way, and who waits, by name and in their order."""

    __slots__ = ("names", "waiting")

    def __init__(self) -> None:
        self.names: dict[Hashable, int] = {}
        self.waiting: dict[Hashable, list[asyncio.Future[Turn]]] = {}


class Turns:
    """Counts the computations of each tenant by name: those of one name have one place together.

    `most` is per tenant and process; 0: as many as there are.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._queues: dict[str, _Queue] = {}

    def under_way(self, tenant: str) -> int:
        """How many places a tenant holds."""
        queue = self._queues.get(tenant)
        return len(queue.names) if queue is not None else 0

    def at_once(self, tenant: str, name: Hashable) -> Turn | None:
        """Take a place if there is one, or if this name has one already."""
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = _Queue()
        elif name not in queue.names and self._most != UNBOUNDED and len(queue.names) >= self._most:
            return None
        queue.names[name] = queue.names.get(name, 0) + 1
        return Turn(self, tenant, name)

    async def wait(self, tenant: str, name: Hashable, limit: float) -> Turn | None:
        """Take a place when it is this name's turn; None after `limit` seconds."""
        turn = self.at_once(tenant, name)
        if turn is not None:
            return turn
        waiting = self._queues[tenant].waiting
        mine: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        waiting.setdefault(name, []).append(mine)
        try:
            await asyncio.wait((mine,), timeout=limit)
        except asyncio.CancelledError:
            if mine.done():
                mine.result().give_back()
            raise
        finally:
            if not mine.done():
                waiting[name].remove(mine)
                if not waiting[name]:
                    del waiting[name]
        return mine.result() if mine.done() else None

    def end(self, tenant: str, name: Hashable) -> None:
        """Count one less, and let those who wait longest have the place that becomes free."""
        queue = self._queues[tenant]
        queue.names[name] -= 1
        if queue.names[name]:
            return
        del queue.names[name]
        if queue.waiting:
            following = next(iter(queue.waiting))
            for each in queue.waiting.pop(following):
                queue.names[following] = queue.names.get(following, 0) + 1
                each.set_result(Turn(self, tenant, following))
        elif not queue.names:
            del self._queues[tenant]
