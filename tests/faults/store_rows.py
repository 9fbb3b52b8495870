"""The store is away, silent, slow, full, or refuses: the app answers as if there were no cache."""

import asyncio
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import redis

from nexcache.testing import FaultProxy
from tests.faults.rows import Place, Seen, row
from tests.faults.stand import Stand, errors_of, hung, latencies, share, standing
from tests.faults.traffic import until
from tests.servers import Valkey
from tests.topologies.servers import Watched

BACK, SENTINEL = 2.0, 4.0
"""Seconds after which a server that is back is used, and one that a Sentinel has promoted."""


async def say(server: Valkey, *words: str | int) -> Any:
    """Tell a server something, without holding up the clients."""
    return await asyncio.to_thread(server.ask, *words)


@row(
    "F1", "the server is down at the start", "the app starts; added p99 ≤ 5 ms; degraded; used within 2 s of its coming"
)
async def down_at_start(place: Place, seen: Seen) -> None:
    with place.server() as server:
        server.kill()
        async with standing(place, server.url, warm=False) as stand:
            await stand.until_state("down")
            await stand.run(1.0)
            report = await stand.report()
            assert (await stand.state())["status"] == "degraded"
            seen.fault("connections refused", report["failures"]["connection"])
            latencies(seen, *await stand.added(), p99=5.0)
            await asyncio.to_thread(server.start)
            seen.figure("used after", await stand.used_again(), "s", most=BACK)
            await stand.run(0.3)
            await stand.stock()
            await stand.judge(seen)


@row("F2", "the server dies under load", "added ≤ 110 ms once per connection, then ≤ 1 ms; used again within 2 s")
async def dies(place: Place, seen: Seen) -> None:
    with place.server() as server:
        async with standing(place, server.url) as stand:
            server.kill()
            seen.fault("killed by SIGKILL", int(server._process is None))
            await stand.until_state("down")
            await stand.run(1.0)
            added, bare = await stand.added()
            seen.figure("added at most", max(took for _, took, _ in added) * 1000, "ms", most=110.0)
            latencies(seen, [each for each in added if not each[2]], bare, ", breaker open", p99=1.0)
            await asyncio.to_thread(server.start)
            seen.figure("used again after", await stand.used_again(), "s", most=BACK)
            await stand.judge(seen)


async def out_of_reach(stand: Stand, seen: Seen, seconds: float = 1.5) -> None:
    """Measure what requests pay until the breaker opens, and then."""
    await stand.until_state("down")
    await stand.run(seconds)
    added, bare = await stand.added()
    opened = min((at for at, _, shut in added if not shut), default=0.0)
    latencies(seen, [each for each in added if each[2] and each[0] <= opened], bare, ", breaker shut", p99=60.0)
    latencies(seen, [each for each in added if not each[2]], bare, ", breaker open", p99=1.0)
    latencies(seen, added, bare, p99=60.0, mean=2.0)


@row("F3", "the server hangs: it accepts and says nothing", "added p99 ≤ 60 ms, then ≤ 1 ms; used again within 2 s")
async def hangs(place: Place, seen: Seen) -> None:
    with place.server() as server:
        async with standing(place, server.url) as stand:
            seen.fault("hung by SIGSTOP", await asyncio.to_thread(hung, server))
            await out_of_reach(stand, seen, 2.0)
            server.resume()
            seen.figure("used again after", await stand.used_again(), "s", most=BACK)
            await stand.judge(seen)


@asynccontextmanager
async def over_a_proxy(place: Place, **options: Any) -> AsyncIterator[tuple[Valkey, FaultProxy, Stand]]:
    """Give a stand whose way to the server can be harmed."""
    with place.server() as server:
        async with (
            FaultProxy(server.port, seed=place.seed) as proxy,
            standing(place, f"redis://127.0.0.1:{proxy.port}", **options) as stand,
        ):
            yield server, proxy, stand


@row("F4", "every answer is 500 ms late", "as F3")
async def too_slow(place: Place, seen: Seen) -> None:
    async with over_a_proxy(place) as (_, proxy, stand):
        proxy.delay(0.5)
        await out_of_reach(stand, seen)
        seen.fault("delayed", proxy.seen["delayed"])
        proxy.heal()
        seen.figure("used again after", await stand.used_again(), "s", most=BACK)
        await stand.judge(seen)


@row("F4", "every answer is 20 to 30 ms late", "hits all the same; no more than the limit, which is 240 ms here")
async def slow(place: Place, seen: Seen) -> None:
    async with over_a_proxy(place, changes=5.0, op_timeout_ms=200) as (_, proxy, stand):
        proxy.delay(0.02, jitter=0.01)
        hits, asked = stand.traffic.hits, stand.traffic.asked
        await stand.run(1.5)
        latencies(seen, *await stand.added(), p99=240.0)
        seen.fault("delayed", proxy.seen["delayed"])
        seen.figure("hit ratio", (stand.traffic.hits - hits) / (stand.traffic.asked - asked), least=0.5)
        proxy.delay(0.13)
        await stand.until_state("slow")

        async def told() -> bool:
            return "slow" in stand.traffic.details

        await until(told, "Cache-Status tells of it")
        proxy.heal()
        await stand.used_again()
        await stand.judge(seen)


@row("F5", "nobody answers the first packet of a connection", "as F3")
async def black_hole(place: Place, seen: Seen) -> None:
    """A queue that is full: the kernel drops the packets of who would like to connect."""
    with place.server() as server:
        async with standing(place, server.url) as stand:
            server.kill()
            with socket.socket() as full:
                full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                full.bind(("127.0.0.1", server.port))
                full.listen(0)
                filling = [socket.socket() for _ in range(4)]
                for each in filling:
                    each.setblocking(False)
                    each.connect_ex(("127.0.0.1", server.port))
                await out_of_reach(stand, seen)
                failures = (await stand.report())["failures"]
                seen.fault("connections that nobody answered", failures.get("timeout", 0))
                for each in filling:
                    each.close()
            await asyncio.to_thread(server.start)
            seen.figure("used again after", await stand.used_again(), "s", most=BACK)
            await stand.judge(seen)


@row("F5", "connections are half open: nothing passes in one direction, or in both", "as F3; noticed within 500 ms")
async def half_open(place: Place, seen: Seen) -> None:
    async with over_a_proxy(place) as (_, proxy, stand):
        for way in ("up", "down", "both"):
            before, since = proxy.seen["swallowed"], time.monotonic()
            proxy.up.swallow, proxy.down.swallow = way != "down", way != "up"

            async def deaf() -> bool:
                return not (await stand.report())["hears"]  # health would wait for the store

            await until(deaf, "the backplane's loss is noticed")
            seen.figure(f"noticed after ({way})", (time.monotonic() - since) * 1000, "ms", most=500.0)
            await stand.run(0.3)
            seen.fault(f"bytes swallowed ({way})", proxy.seen["swallowed"] - before)
            proxy.heal()
            seen.figure(f"used again after ({way})", await stand.used_again(), "s", most=BACK)
        latencies(seen, *await stand.added(), p99=60.0)
        await stand.judge(seen)


@row("F5", "connections are reset, closed, garbled", "as F3")
async def cut_off(place: Place, seen: Seen) -> None:
    async with over_a_proxy(place) as (_, proxy, stand):
        for _ in range(6):
            proxy.reset()
            await stand.run(0.1)
            proxy.close()
            await stand.run(0.1)
            proxy.half_close()
            await stand.run(0.1)
            proxy.down.flips = 3
            await stand.run(0.1)
        for what in ("reset", "closed", "half-closed", "flipped"):
            seen.fault(what, proxy.seen[what])
        latencies(seen, *await stand.added(), p99=60.0, mean=2.0)
        proxy.heal()
        seen.figure("used again after", await stand.used_again(), "s", most=BACK)
        await stand.judge(seen)


@row("F6", "memory is full, and nothing is evicted", "what is kept is served; invalidations are acknowledged")
async def full(place: Place, seen: Seen) -> None:
    with place.server(**{"maxmemory-policy": "noeviction"}) as server:
        async with standing(place, server.url, changes=6.0) as stand:
            before = sum(len(part.acknowledged) for part in stand.traffic.parts.values())
            await say(server, "CONFIG", "SET", "maxmemory", "100kb")
            hits = stand.traffic.hits
            await stand.run(0.5)
            seen.figure("hits meanwhile", stand.traffic.hits - hits, least=1)
            await stand.run(1.0)
            latencies(seen, *await stand.added(), p99=60.0)
            seen.fault("refused for lack of memory", await errors_of(server, "OOM"))
            done = sum(len(part.acknowledged) for part in stand.traffic.parts.values()) - before
            seen.figure("invalidations acknowledged", done, least=1)
            seen.figure("invalidations not acknowledged", sum(map(len, stand.traffic.own.values())), most=0)
            await say(server, "CONFIG", "SET", "maxmemory", "0")
            seen.figure("used again after", await stand.used_again(), "s", most=BACK)
            await stand.judge(seen)


@row("F7", "the server has become a replica", "invalidations are queued, not lost; used again within 1 s of the end")
async def read_only(place: Place, seen: Seen) -> None:
    with place.server() as server:
        async with standing(place, server.url) as stand:
            await say(server, "CONFIG", "RESETSTAT")
            await say(server, "REPLICAOF", "127.0.0.1", "1")
            await stand.run(1.0)

            async def refused() -> bool:
                return await errors_of(server, "READONLY") > 0

            await until(refused, "a replica refuses")
            seen.fault("refused by a replica", await errors_of(server, "READONLY"))
            queued = sum(map(len, stand.traffic.own.values()))
            seen.figure("invalidations queued", queued, least=1)
            latencies(seen, *await stand.added(), p99=60.0)
            await say(server, "REPLICAOF", "NO", "ONE")
            seen.figure("used again after", await stand.used_again(), "s", most=BACK)
            await stand.judge(seen)


@row("F7", "the primary dies, and a Sentinel names another", "used again within 4 s; nothing of before is served")
async def failover(place: Place, seen: Seen) -> None:
    watched = await asyncio.to_thread(Watched, place.directory, place.program)
    try:
        async with standing(place, f"redis+sentinel://127.0.0.1:{watched.port}/main") as stand:
            watched.primary.kill()
            began = time.monotonic()
            await stand.until_state("down")
            await stand.used_again()
            seen.figure("used again after", time.monotonic() - began, "s", most=SENTINEL)
            assert await asyncio.to_thread(watched.named) == watched.replica.port
            seen.fault("failovers", 1)
            latencies(seen, *await stand.added(), p99=60.0)
            await stand.judge(seen)
    finally:
        watched.close()


def _close_all_but(inside: Any) -> None:
    """Close all connections but this one."""
    for kind in ("normal", "pubsub"):
        inside.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


@row(
    "F8",
    "the password was changed",
    "added p99 ≤ 5 ms; one attempt a second; health says it; used within 2 s of its mending",
)
async def wrong_password(place: Place, seen: Seen) -> None:
    with place.server() as server, redis.Redis(port=server.port, protocol=2) as inside:
        async with standing(place, server.url) as stand:
            for words in (("CONFIG", "RESETSTAT"), ("CONFIG", "SET", "requirepass", "new")):
                inside.execute_command(*words)
            _close_all_but(inside)
            began = time.monotonic()
            await stand.until_state("down")
            await stand.run(2.0)
            stats: Any = inside.execute_command("INFO", "errorstats")
            refused = int(stats["errorstat_NOAUTH"]["count"])
            seen.fault("refused connections", refused)
            seen.figure("attempts a second", refused / (time.monotonic() - began), most=1.0)
            assert "credentials" in (await stand.state())["details"]["store"]
            latencies(seen, *await stand.added(), p99=5.0)
            inside.execute_command("CONFIG", "SET", "requirepass", "")
            seen.figure("used again after", await stand.used_again(), "s", most=BACK)
            await stand.judge(seen)


@row(
    "F8",
    "the ACL does not permit what the cache needs",
    "added p99 ≤ 5 ms; health says it; used within 2 s of its mending",
)
async def not_permitted(place: Place, seen: Seen) -> None:
    with place.server() as server:
        async with standing(place, server.least_rights_url) as stand:
            await say(server, "CONFIG", "RESETSTAT")
            await say(server, "ACL", "SETUSER", "nexcache", "-mget")
            await stand.run(1.5)
            seen.fault("refused commands", await errors_of(server, "NOPERM"))
            assert "auth" in (await stand.state())["details"]["store"]
            latencies(seen, *await stand.added(), p99=5.0)
            await say(server, "ACL", "SETUSER", "nexcache", "+mget")
            seen.figure("used again after", await stand.used_again(), "s", most=BACK)
            await stand.judge(seen)


async def busy(server: Valkey) -> Callable[[], Awaitable[None]]:
    await say(server, "CONFIG", "SET", "busy-reply-threshold", "10")
    script = "local till = redis.call('TIME')[1] + 2 while tonumber(redis.call('TIME')[1]) < till do end"

    def run() -> None:
        try:
            server.ask("EVAL", script, 0)
        except redis.RedisError:
            pass  # killed

    task = asyncio.create_task(asyncio.to_thread(run))

    async def end() -> None:
        try:
            await say(server, "SCRIPT", "KILL")
        except redis.RedisError:
            pass
        await task

    return end


def configured(name: str, value: str, after: str) -> Callable[[Valkey], Awaitable[Callable[[], Awaitable[None]]]]:
    async def begin(server: Valkey) -> Callable[[], Awaitable[None]]:
        await say(server, "CONFIG", "SET", name, value)

        async def end() -> None:
            await say(server, "CONFIG", "SET", name, after)

        return end

    return begin


async def no_primary(server: Valkey) -> Callable[[], Awaitable[None]]:
    await say(server, "CONFIG", "SET", "replica-serve-stale-data", "no")
    await say(server, "REPLICAOF", "127.0.0.1", "1")

    async def end() -> None:
        await say(server, "REPLICAOF", "NO", "ONE")

    return end


async def unsaved(server: Valkey) -> Callable[[], Awaitable[None]]:
    """Its data cannot be written down, and it was told to take no more then."""
    shutil.rmtree(server._options["dir"])
    await say(server, "CONFIG", "SET", "save", "3600 1")
    await say(server, "BGSAVE")

    async def failed() -> bool:
        return bool((await say(server, "INFO", "persistence"))["rdb_last_bgsave_status"] == "err")

    await until(failed, "saving fails")

    async def end() -> None:
        await say(server, "CONFIG", "SET", "stop-writes-on-bgsave-error", "no")

    return end


@row("F11", "the server says BUSY, MASTERDOWN, NOREPLICAS, MISCONF", "a miss; added p99 ≤ 60 ms")
async def unready(place: Place, seen: Seen) -> None:
    faults: dict[str, Callable[[Valkey], Awaitable[Callable[[], Awaitable[None]]]]] = {
        "BUSY": busy,
        "MASTERDOWN": no_primary,
        "NOREPLICAS": configured("min-replicas-to-write", "1", "0"),
        "MISCONF": unsaved,
    }
    with place.server() as server:
        async with standing(place, server.url) as stand:
            for kind, begin in faults.items():
                await say(server, "CONFIG", "RESETSTAT")
                end = await begin(server)
                await stand.run(0.7)
                if kind == "BUSY":
                    await end()
                    seen.fault(kind, await errors_of(server, kind))
                else:
                    seen.fault(kind, await errors_of(server, kind))
                    await end()
                await stand.used_again()
            latencies(seen, *await stand.added(), p99=60.0)
            await stand.judge(seen)


@row("F11", "the server loads its data", "a miss; added p99 ≤ 60 ms; used again within 2 s of its being ready")
async def loading(place: Place, seen: Seen) -> None:
    slowly = {"loading-process-events-interval-bytes": "4096", "key-load-delay": "1000"}
    with place.server() as server:
        async with standing(place, server.url) as stand:
            await say(server, "EVAL", "for i = 1, 1500 do redis.call('SET', 'filler' .. i, ('x'):rep(100)) end", 0)
            await say(server, "SAVE")
            server.kill()
            starting = asyncio.create_task(asyncio.to_thread(server.start, **slowly))
            await starting
            stats = await say(server, "INFO", "errorstats")
            seen.fault("LOADING", int(stats.get("errorstat_LOADING", {}).get("count", 0)))
            await say(server, "CONFIG", "SET", "key-load-delay", "0")
            seen.figure("used again after", await stand.used_again(), "s", most=BACK)
            latencies(seen, *await stand.added(), p99=60.0)
            await stand.judge(seen)


@row("F11", "the server has as many clients as it takes", "a miss; added p99 ≤ 60 ms; used again within 2 s")
async def crowded(place: Place, seen: Seen) -> None:
    with place.server() as server, redis.Redis(port=server.port, protocol=2, single_connection_client=True) as inside:
        async with standing(place, server.url) as stand:
            inside.config_set("maxclients", 1)
            before = inside.info("stats")["rejected_connections"]
            _close_all_but(inside)
            await stand.until_state("down")
            await stand.run(1.0)
            seen.fault("rejected connections", inside.info("stats")["rejected_connections"] - before)
            latencies(seen, *await stand.added(), p99=60.0)
            inside.config_set("maxclients", 1000)
            seen.figure("used again after", await stand.used_again(), "s", most=BACK)
            await stand.judge(seen)


@row(
    "F12",
    "500 requests at once ask a server that hangs",
    "3 connections; nobody waits in a queue for one: added p99 ≤ 60 ms",
)
async def five_hundred(place: Place, seen: Seen) -> None:
    """There is no pool that could run dry: all commands go over one connection, under one deadline each."""
    with place.server() as server:
        async with standing(place, server.url, rate=20.0, changes=0.0) as stand:
            burst = [asyncio.create_task(stand.traffic.burst(100, number)) for number in range(5)]
            await asyncio.gather(*burst)
            seen.figure("connections", len(await asyncio.to_thread(server.clients)), most=3)
            await stand.reset()
            seen.fault("hung by SIGSTOP", await asyncio.to_thread(hung, server))
            await stand.traffic.burst(500, 0)
            added = [took * 1000 for _, took, _ in (await stand.added())[0]]
            seen.fault("requests at once", len(added))
            seen.figure("added p99", share(added, 0.99), "ms", most=60.0)
            server.resume()
            await stand.used_again()
            await stand.judge(seen)
