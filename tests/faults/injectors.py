"""What can be done to a server, to the ways to it, and to the processes of an app, at any time and in any order."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from nexcache.testing import FaultProxy
from tests.faults.stand import Stand, errors_of, hung
from tests.servers import Valkey


@dataclass
class Ground:
    """What faults are made on."""

    server: Valkey
    proxies: Sequence[FaultProxy]
    stand: Stand
    draw: random.Random

    async def say(self, *words: str | int) -> Any:
        """Tell the server something, past the proxies."""
        return await asyncio.to_thread(self.server.ask, *words)

    @property
    def proxy(self) -> FaultProxy:
        """One node's way."""
        return self.draw.choice(self.proxies)


Injector = Callable[[Ground, float], Awaitable[int]]
"""Makes a fault for so many seconds and ends it; returns how often it was seen to happen."""

INJECTORS: dict[str, Injector] = {}


def injector(act: Injector) -> Injector:
    """Enter one into the list."""
    INJECTORS[act.__name__.replace("_", " ")] = act
    return act


@injector
async def restart_empty(ground: Ground, seconds: float) -> int:
    ground.server.kill()
    await asyncio.sleep(seconds)
    await asyncio.to_thread(ground.server.start)
    return 1


@injector
async def restart_with_an_old_copy(ground: Ground, seconds: float) -> int:
    await ground.say("SAVE")
    await asyncio.sleep(seconds / 2)
    ground.server.kill()
    await asyncio.sleep(seconds / 2)
    await asyncio.to_thread(ground.server.start)
    return int((await ground.say("INFO", "persistence"))["rdb_last_load_keys_loaded"] > 0)


@injector
async def hang(ground: Ground, seconds: float) -> int:
    seen = await asyncio.to_thread(hung, ground.server)
    await asyncio.sleep(seconds)
    ground.server.resume()
    return seen


@injector
async def pause_clients(ground: Ground, seconds: float) -> int:
    mode = ground.draw.choice(("WRITE", "ALL"))
    await ground.say("CLIENT", "PAUSE", int(seconds * 1000), mode)
    await asyncio.sleep(seconds)
    return 1


@injector
async def late_answers(ground: Ground, seconds: float) -> int:
    return await _on_a_way(
        ground, seconds, "delayed", lambda proxy: proxy.delay(ground.draw.random() * 0.2, jitter=0.05)
    )


@injector
async def thin_ways(ground: Ground, seconds: float) -> int:
    def throttle(proxy: FaultProxy) -> None:
        proxy.down.rate = 20_000.0

    return await _on_a_way(ground, seconds, "throttled", throttle)


@injector
async def black_holes(ground: Ground, seconds: float) -> int:
    def swallow(proxy: FaultProxy) -> None:
        way = ground.draw.randrange(3)
        proxy.up.swallow, proxy.down.swallow = way != 0, way != 1

    return await _on_a_way(ground, seconds, "swallowed", swallow)


@injector
async def garbled_answers(ground: Ground, seconds: float) -> int:
    def flip(proxy: FaultProxy) -> None:
        proxy.down.flips = 5

    return await _on_a_way(ground, seconds, "flipped", flip)


@injector
async def refused_connections(ground: Ground, seconds: float) -> int:
    return await _on_a_way(ground, seconds, "refused", FaultProxy.refuse)


@injector
async def reset_connections(ground: Ground, seconds: float) -> int:
    return await _on_a_way(ground, seconds, "reset", FaultProxy.reset)


@injector
async def closed_connections(ground: Ground, seconds: float) -> int:
    return await _on_a_way(ground, seconds, "closed", FaultProxy.close)


@injector
async def half_closed_connections(ground: Ground, seconds: float) -> int:
    return await _on_a_way(ground, seconds, "half-closed", FaultProxy.half_close)


async def _on_a_way(ground: Ground, seconds: float, what: str, begin: Callable[[FaultProxy], None]) -> int:
    proxy = ground.proxy
    before = proxy.seen[what]
    begin(proxy)
    await asyncio.sleep(seconds)
    proxy.heal()
    return proxy.seen[what] - before


@injector
async def lost_messages(ground: Ground, seconds: float) -> int:
    killed = int(await ground.say("CLIENT", "KILL", "TYPE", "pubsub"))
    await asyncio.sleep(seconds)
    return killed


@injector
async def killed_connections(ground: Ground, seconds: float) -> int:
    killed = int(await ground.say("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
    await asyncio.sleep(seconds)
    return killed


@injector
async def full_memory(ground: Ground, seconds: float) -> int:
    return await _refusing(
        ground, seconds, "OOM", ("CONFIG", "SET", "maxmemory", "1kb"), ("CONFIG", "SET", "maxmemory", "0")
    )


@injector
async def a_replica(ground: Ground, seconds: float) -> int:
    return await _refusing(ground, seconds, "READONLY", ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"))


@injector
async def no_replicas(ground: Ground, seconds: float) -> int:
    name = "min-replicas-to-write"
    return await _refusing(ground, seconds, "NOREPLICAS", ("CONFIG", "SET", name, 1), ("CONFIG", "SET", name, 0))


@injector
async def no_permission(ground: Ground, seconds: float) -> int:
    return await _refusing(
        ground, seconds, "NOPERM", ("ACL", "SETUSER", "default", "-mget"), ("ACL", "SETUSER", "default", "+@all")
    )


async def _refusing(
    ground: Ground, seconds: float, kind: str, begin: Sequence[str | int], end: Sequence[str | int]
) -> int:
    before = await errors_of(ground.server, kind)
    await ground.say(*begin)
    await asyncio.sleep(seconds)
    seen = await errors_of(ground.server, kind) - before
    await ground.say(*end)
    return seen


@injector
async def flushed(ground: Ground, seconds: float) -> int:
    done = await ground.say("FLUSHALL")
    await asyncio.sleep(seconds)
    return int(bool(done))


@injector
async def busy_server(ground: Ground, seconds: float) -> int:
    await ground.say("CONFIG", "SET", "busy-reply-threshold", "10")
    task = asyncio.create_task(asyncio.to_thread(_spin, ground.server))
    await asyncio.sleep(seconds)
    try:
        await ground.say("SCRIPT", "KILL")
    except redis.RedisError:
        pass  # it has ended
    await task
    return 1


def _spin(server: Valkey) -> None:
    try:
        server.ask("EVAL", "while true do end", 0)
    except redis.RedisError:
        pass  # killed


@injector
async def suspended_node(ground: Ground, seconds: float) -> int:
    app = ground.draw.choice(ground.stand.apps)
    app.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(min(seconds, 1.5))
        return int(app.stopped)
    finally:
        app.send(signal.SIGCONT)
