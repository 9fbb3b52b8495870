"""Which operations are switched off, for one tenant or for all: the app then answers as if there were no cache.

A switch is kept in the store, in one hash of the whole deployment, which every process reads every two seconds; so
it holds on all nodes and for those that start later. While the store is away each process keeps to what it knows,
and tells it afterwards. A store that has lost the hash is given it again by the processes that remember.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, TypeAlias

from nexcache.ending import end
from nexcache.errors import StoreError
from nexcache.key import name_of, segment
from nexcache.stores.base import Store

_KEY: Final = b"nexarch.switch:all"
_EVERYBODY: Final = b"*"
"""Stands for all tenants: no segment is written so."""
_THERE: Final = b"@"
"""The field by which a hash without switches differs from one that was lost."""
_KEPT_MS: Final = 10 * 365 * 86_400_000
_EVERY: Final = 2.0
"""Seconds between two looks."""

_Pair: TypeAlias = tuple[str | None, str]
Known: TypeAlias = tuple[frozenset[_Pair], frozenset[str], Mapping[_Pair, bool]]


class Switches:
    """The switches of a deployment, as far as this process knows; without a store, its own."""

    def __init__(self, shared: Store | None) -> None:
        self._shared = shared
        self.some: bool = False
        """Whether anything is off at all: each request asks that."""
        self._off: frozenset[_Pair] = frozenset()
        self._untold: dict[_Pair, bool] = {}
        self._here: frozenset[str] = frozenset()
        self._changing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look regularly from now on, if there is a store."""
        loop = asyncio.get_running_loop()
        if self._shared is not None and (self._task is None or self._task.done() or self._task.get_loop() is not loop):
            self._task = loop.create_task(self._run(), name="nexcache-switches")

    async def aclose(self) -> None:
        """Stop looking; what is known stays."""
        task, self._task = self._task, None
        await end(task)

    def is_off(self, operation: str, tenant: str | None) -> bool:
        """Whether a tenant's requests of an operation go to the app; None asks for all tenants."""
        if operation in self._here:
            return True
        off = self._off
        return bool(off) and ((None, operation) in off or (tenant, operation) in off)

    def here(self, operation: str, *, off: bool) -> None:
        """Switch for all tenants in this process only."""
        self._here = self._here | {operation} if off else self._here - {operation}
        self._know(self._off)

    def _know(self, off: frozenset[_Pair]) -> None:
        self._off = off
        self.some = bool(off or self._here)

    @property
    def known(self) -> Known:
        """What this process knows, for `take_over`."""
        return self._off, self._here, self._untold

    def take_over(self, known: Known) -> None:
        """Know what another knew, as in a forked process."""
        off, self._here, untold = known
        self._untold = dict(untold)
        self._know(off)

    async def switch(self, operation: str, tenant: str | None, *, off: bool) -> bool:
        """Switch for a tenant, or for all of them; False: the store is away, and the other nodes are told later.

        Switching on for all leaves what was switched off for single tenants, and the other way round.
        """
        pair = (tenant, operation)
        if tenant is None and not off:
            self.here(operation, off=False)
        async with self._changing:
            self._know(self._off | {pair} if off else self._off - {pair})
            if self._shared is None:
                return True
            self._untold[pair] = off
            try:
                await self._tell(self._shared, self._untold)
            except StoreError:
                return False
            self._untold.clear()
            return True

    async def forget(self, tenant: str) -> None:
        """Forget what was ever switched for a tenant, here and in the store; raises StoreError."""
        async with self._changing:
            self._know(frozenset(pair for pair in self._off if pair[0] != tenant))
            for pair in [pair for pair in self._untold if pair[0] == tenant]:
                del self._untold[pair]
            if self._shared is not None:
                begin = _name((tenant, ""))
                numbers = await self._shared.numbers(_KEY)
                await self._shared.drop(_KEY, [name for name in numbers if name.startswith(begin)])

    async def look(self) -> None:
        """Take over what the store has; raises StoreError."""
        if self._shared is None:
            return
        async with self._changing:
            if self._untold:
                await self._tell(self._shared, self._untold)
                self._untold.clear()
            numbers = await self._shared.numbers(_KEY)
            if not numbers and self._off:  # it was lost: restarted without its data, or emptied
                await self._tell(self._shared, dict.fromkeys(self._off, True))
            if _THERE in numbers:
                self._know(frozenset(_pair(name) for name, number in numbers.items() if number > 0 and name != _THERE))

    async def _tell(self, shared: Store, switched: Mapping[_Pair, bool]) -> None:
        numbers = await shared.numbers(_KEY)
        amounts = {}
        for pair, off in switched.items():
            name = _name(pair)
            # a sum can only be added to. Two who do so at once may both add: above 0 is off, however far
            if change := int(off) - numbers.get(name, 0):
                amounts[name] = change
        await shared.add(_KEY, amounts, once={_THERE: 1}, ttl_ms=_KEPT_MS)

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except StoreError:
                pass
            await asyncio.sleep(_EVERY)


def _name(pair: _Pair) -> bytes:
    tenant, operation = pair
    return (_EVERYBODY if tenant is None else segment(tenant)) + b"|" + segment(operation)


def _pair(name: bytes) -> _Pair:
    tenant, _, operation = name.partition(b"|")
    return None if tenant == _EVERYBODY else name_of(tenant), name_of(operation)
