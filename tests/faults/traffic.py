"""Clients of the stand: they ask at a steady rate, change data, and judge every answer."""

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from tests.faults.app import KEYS, body_of
from tests.model.history import Acknowledged, Part, violations
from tests.wire.server import Answer, Connection

LEASE = 0.25
_BARE = 0.25
"""The share of requests that no policy is for."""


class Traffic:
    """Asks the nodes of a stand, over connections that are kept, so many times a second."""

    def __init__(
        self,
        ports: Callable[[], list[int]],
        *,
        rate: float = 250.0,
        clients: int = 8,
        changes: float = 15.0,
        seed: int = 0,
    ) -> None:
        self._ports = ports
        self._rate = rate
        self._clients = clients
        self._changes = changes
        self._draw = random.Random(seed)
        self._tasks: list[asyncio.Task[None]] = []
        self._over = False
        self.parts: dict[int, Part] = {}
        self.own: dict[int, list[Acknowledged]] = defaultdict(list)
        """What was invalidated while the store was away: it holds in its own process."""
        self.wrong: list[str] = []
        self.hits = 0
        self.hits_of: Counter[str] = Counter()
        self.asked_of: Counter[str] = Counter()
        """The same by tenant, and how many answers there were."""
        self.broken = 0
        """Connections that ended because their node was killed."""
        self.details: dict[str, int] = {}
        self.acks: list[float] = []
        """Seconds that invalidations took."""
        self.spared: set[int] = set()
        """Keys that nobody asks for without being told to."""
        self.forgiven: set[int] = set()
        """Ports whose nodes a row has killed."""
        self.answered_at: list[tuple[float, bool]] = []
        """When answers came, and whether from the store or a memory that it vouches for."""

    def start(self) -> None:
        """Ask from now on."""
        self._tasks = [asyncio.create_task(self._ask_on(number)) for number in range(self._clients)]
        self._tasks += [asyncio.create_task(self._change_on(strict)) for strict in (False, True)]

    async def stop(self) -> None:
        """End in order; raises what the clients raised."""
        self._over = True
        await asyncio.gather(*self._tasks)

    @property
    def asked(self) -> int:
        """How many answers were judged."""
        return sum(len(part.answers) for part in self.parts.values())

    @property
    def stale(self) -> int:
        """How many answers were older than what was acknowledged when they were asked for."""
        found = violations(self.parts.values(), lease=LEASE)
        for node, mine in self.own.items():
            alone = Part(node, self.parts[node].answers, mine) if node in self.parts else Part(node)
            found += violations((alone,), lease=0.0)
        return len(found)

    async def _ask_on(self, number: int) -> None:
        connections: dict[int, Connection] = {}
        pause = self._clients / self._rate
        due = time.monotonic() + pause * number / self._clients
        while not self._over:
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            due = max(due + pause, time.monotonic() - 0.1)  # what was held up is not made up for
            ports = self._ports()
            node = self._draw.randrange(len(ports))
            bare = self._draw.random() < _BARE
            key = self._draw.randrange(len(KEYS))
            if key not in self.spared:
                await self._ask(connections, node, ports[node], key, bare=bare)
        for connection in connections.values():
            connection.close()

    async def _ask(
        self, connections: dict[int, Connection], node: int, port: int, key: int, *, bare: bool = False
    ) -> None:
        tenant, page = KEYS[key]
        started = time.monotonic()
        try:
            answer = await self.answer(connections, port, f"/{'bare' if bare else 'page'}/{page}", tenant)
        except (OSError, EOFError) as error:
            gone = connections.pop(port, None)
            if gone is not None:
                gone.close()
            if port in self.forgiven:
                self.broken += 1
                await asyncio.sleep(0.02)
            else:
                self.wrong.append(f"no answer: {error!r}")
            return
        self._judge(node, key, started, answer)

    async def answer(self, connections: dict[int, Connection], port: int, path: str, tenant: str) -> Answer:
        """Ask over a connection that is kept."""
        if port not in connections:
            connections[port] = await connect(port)
        await connections[port].ask(path, fields=[("x-tenant", tenant)])
        return await connections[port].answer()

    async def burst(self, number: int, node: int) -> None:
        """Ask for any page so many times at once, each over a connection of its own."""
        port = self._ports()[node % len(self._ports())]

        async def one(key: int) -> None:
            connections: dict[int, Connection] = {}
            await self._ask(connections, node % len(self._ports()), port, key)
            for connection in connections.values():
                connection.close()

        await asyncio.gather(*(one(each % len(KEYS)) for each in range(number)))

    def _judge(self, node: int, key: int, started: float, answer: Answer) -> None:
        tenant, page = KEYS[key]
        words = answer.body.split(b" ", 3)
        if (
            answer.status != 200
            or len(words) != 4
            or not words[2].isdigit()
            or answer.body != body_of(key, int(words[2]))
        ):
            self.wrong.append(f"{answer.status} for {tenant} {page}: {answer.body[:60]!r}")
            return
        told = answer.cache
        if not told:  # no policy is for it
            return
        from_memory = "detail=memory" in told or "collapsed" in told
        detail = told.partition("detail=")[2] or ("stored" if "stored" in told else "none")
        self.details[detail] = self.details.get(detail, 0) + 1
        self.hits += answer.hit
        self.hits_of[tenant] += answer.hit
        self.asked_of[tenant] += 1
        self.answered_at.append((time.monotonic(), answer.hit and "fallback" not in told))
        self.parts.setdefault(node, Part(node)).answers.add(started, key, int(words[2]), memory=from_memory)

    async def _change_on(self, strict: bool) -> None:
        connections: dict[int, Connection] = {}
        rate = self._changes * (0.2 if strict else 0.8)
        while not self._over:
            await asyncio.sleep(self._draw.expovariate(rate) if rate else 0.05)
            if not rate:
                continue
            ports = self._ports()
            node = self._draw.randrange(len(ports))
            key = self._draw.randrange(len(KEYS) // len(ports)) * len(ports) + node  # each node changes its own
            await self.change(node, key, strict=strict, connections=connections)
        for connection in connections.values():
            connection.close()

    async def change(
        self, node: int, key: int, *, strict: bool = False, connections: dict[int, Connection] | None = None
    ) -> bool:
        """Change data through a node; returns whether it was acknowledged."""
        port = self._ports()[node]
        try:
            told = await control(port, f"/@change?key={key}&wait={'strict' if strict else 'fast'}", connections)
        except (OSError, EOFError) as error:
            if port not in self.forgiven:
                self.wrong.append(f"a change was not answered: {error!r}")
            return False
        done = Acknowledged(key, told["version"], told["at"], node, strict)
        self.acks.append(told["took"])
        if told["acknowledged"]:
            self.parts.setdefault(node, Part(node)).acknowledged.append(done)
        else:
            self.own[node].append(done)
        return bool(told["acknowledged"])


async def connect(port: int) -> Connection:
    """Open a connection to a node."""
    return Connection(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 22))


async def control(port: int, target: str, connections: dict[int, Connection] | None = None) -> dict[str, Any]:
    """Ask a node for what stands beside its cache."""
    kept = connections if connections is not None else {}
    try:
        if port not in kept:
            kept[port] = await connect(port)
        await kept[port].ask(target)
        answer = await kept[port].answer()
    except (OSError, EOFError):
        if (gone := kept.pop(port, None)) is not None:
            gone.close()
        raise
    if connections is None:
        kept[port].close()
    assert answer.status == 200, answer.body
    found: dict[str, Any] = json.loads(answer.body)
    return found


async def until(holds: Callable[[], Awaitable[object]], what: str, *, patience: float = 20.0) -> float:
    """Wait until something holds; returns the seconds that it took."""
    began = time.monotonic()
    while not await holds():
        assert time.monotonic() - began < patience, what
        await asyncio.sleep(0.02)
    return time.monotonic() - began
