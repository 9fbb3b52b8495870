"""Everybody who uses the back end: the services that send spans, the readers, and those who look for the canary."""

import asyncio
import random
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

from nexcache.demo import shop
from nexcache.demo.app import UNCACHED
from nexcache.demo.board import Board
from nexcache.demo.checks import CANARY
from nexcache.demo.http_client import Connection
from nexcache.demo.readers import READS_PER_SECOND, Canary, Page, Reader, pages
from nexcache.demo.services import ROUND_SECONDS, Services

_UNCACHED_PER_SECOND: Final = 1.0
"""Reads of each tenant below the path without the cache, to compare."""

_WARM_CONNECTIONS: Final = 4
_CANARY_OVERVIEWS: Final = 2


class Crowd:
    """Sends and reads over loopback as a board's tenants, and lets the board count."""

    def __init__(self, board: Board, rng: random.Random) -> None:
        self._board = board
        self._random = rng

    async def warm_up(self, stop: asyncio.Event) -> None:
        """Read every page once, as readers who were there before would have."""
        async with asyncio.TaskGroup() as group:
            for tenant in self._board.keys:
                every = iter(pages(shop.services()))
                for _ in range(_WARM_CONNECTIONS):
                    group.create_task(self._read_all(self._reader(tenant), every, stop))

    async def run(
        self, readers: int, show: Coroutine[None, None, None], duration: float | None, stop: asyncio.Event
    ) -> None:
        """Send and read, and show it, for `duration` seconds or until stopped; from its beginning the board counts."""
        board = self._board
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            senders = []
            for tenant, key in board.keys.items():
                endpoint = f"http://{board.address}/v1/traces"
                services = Services(endpoint, key, tenant, board.acknowledgements, self._rng())
                thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix=f"services-{tenant}"))
                senders.append((tenant, services, thread))
            board.begin()
            # one after the other, so that not all the tenants' dashboards change in the same moment
            sending = [
                self._send(*sender, first=ROUND_SECONDS * number / len(senders))
                for number, sender in enumerate(senders)
            ]
            running = [asyncio.create_task(each) for each in (*sending, *self._reading(readers), show)]
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([stopping, *running], timeout=duration, return_when=asyncio.FIRST_COMPLETED)
            board.stopped = time.monotonic()
            ended = [task for task in running if task.done()]
            for task in (stopping, *running):
                task.cancel()
            await asyncio.gather(stopping, *running, return_exceptions=True)
            await asyncio.gather(*(loop.run_in_executor(thread, services.close) for _, services, thread in senders))
            for task in ended:
                task.result()  # nobody ends by itself unless something went wrong

    def _reading(self, readers: int) -> Iterator[Coroutine[None, None, None]]:
        every, keys = pages(shop.services()), list(self._board.keys)
        for number in range(readers):
            yield self._reader(keys[number % len(keys)]).run(every, self._rng(), rate=READS_PER_SECOND)
        for tenant in keys:
            yield self._reader(tenant).run(every, self._rng(), rate=_UNCACHED_PER_SECOND, prefix=UNCACHED)

    async def _send(self, tenant: str, services: Services, thread: ThreadPoolExecutor, *, first: float) -> None:
        """After `first` seconds send a round of spans about once a second, and look for the canary each time."""
        loop = asyncio.get_running_loop()
        wanted = canary_pages()
        canary = Canary([self._reader(tenant) for _ in wanted], wanted)
        looking: asyncio.Task[None] | None = None
        due = loop.time() + first
        try:
            while True:
                await asyncio.sleep(due - loop.time())
                trace_id = await loop.run_in_executor(thread, services.round, time.time_ns())
                if looking is None or looking.done():
                    looking = asyncio.create_task(canary.look(trace_id))
                due = max(due + ROUND_SECONDS, loop.time())
        finally:
            if looking is not None:
                looking.cancel()
            canary.close()

    async def _read_all(self, reader: Reader, remaining: Iterator[Page], stop: asyncio.Event) -> None:
        for page in remaining:
            if stop.is_set():
                break
            await reader.read(page)
        reader.close()

    def _reader(self, tenant: str) -> Reader:
        board = self._board
        host, _, port = board.address.partition(":")
        connection = Connection(host, int(port), {"X-API-Key": board.keys[tenant]})
        return Reader(connection, tenant, board.acknowledgements, board.judgement, board.figures)

    def _rng(self) -> random.Random:
        return random.Random(self._random.random())  # noqa: S311 - imagined traffic, no secret


def canary_pages() -> list[Page]:
    """Return the pages in which the canary is looked for: the overviews that readers want most, and its own."""
    every = sorted(pages((CANARY,)), key=lambda page: -page.weight)
    return [
        *[page for page in every if page.subject is None][:_CANARY_OVERVIEWS],
        *[page for page in every if page.subject == f"service:{CANARY}"],
    ]
