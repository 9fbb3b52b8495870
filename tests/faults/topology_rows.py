"""Several servers, or several nodes: slots that move, shards that are lost, messages that are, memories that lag."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from redis.crc import key_slot

from nexcache.testing import FaultProxy
from tests.faults.app import KEYS, TENANTS, body_of
from tests.faults.rows import Place, Seen, row
from tests.faults.stand import App, Stand, latencies, standing
from tests.faults.store_rows import BACK, say
from tests.faults.traffic import connect, until
from tests.servers import Valkey
from tests.topologies.servers import Cluster

CLUSTER = 5.0
"""Seconds after which a cluster's replica that has taken over is used."""


@row("F9", "slots move between the nodes of a cluster", "no error; misses at most")
async def resharding(place: Place, seen: Seen) -> None:
    cluster = await asyncio.to_thread(Cluster, place.directory, place.program)
    try:
        async with standing(place, cluster.url, l1_enabled=False, op_timeout_ms=500, changes=8.0) as stand:
            before = {kind: await asyncio.to_thread(cluster.errors, kind) for kind in ("MOVED", "ASK", "TRYAGAIN")}
            hits = stand.traffic.hits

            def move() -> None:
                for _ in range(2):
                    for tenant in TENANTS:
                        slot, source = key_slot(b"{%b}" % tenant.encode()), cluster.of(tenant)
                        cluster.move(slot, source, next(each for each in cluster.nodes if each.port != source.port))
                        time.sleep(0.2)

            await asyncio.to_thread(move)
            counts = {kind: await asyncio.to_thread(cluster.errors, kind) - count for kind, count in before.items()}
            seen.fault("MOVED", counts["MOVED"])
            seen.fault("ASK or TRYAGAIN", counts["ASK"] + counts["TRYAGAIN"])
            seen.figure("hits meanwhile", stand.traffic.hits - hits, least=1)
            latencies(seen, *await stand.added(), p99=60.0)
            await stand.used_again()
            await stand.stock()
            seen.figure("connections", stand.app.opened["connections"], most=2 * len(cluster.nodes))
            stand.app.opened["connections"] = 2 * len(cluster.nodes)
            await stand.judge(seen)
    finally:
        await asyncio.to_thread(cluster.close)


@row("F10", "a shard is lost, and its replica takes over", "its tenants miss, no others; used again within 5 s")
async def lost_shard(place: Place, seen: Seen) -> None:
    cluster = await asyncio.to_thread(lambda: Cluster(place.directory, place.program, replicas=True))
    try:
        async with standing(place, cluster.url, l1_enabled=False, changes=0.0, fallback_ttl_seconds=0) as stand:
            lost = cluster.of(TENANTS[0])
            assert cluster.of(TENANTS[1]) is not lost
            for _ in range(3):  # everything is stored
                await stand.traffic.burst(len(KEYS), 0)
            lost.kill()
            began = time.monotonic()
            seen.fault("killed by SIGKILL", int(lost._process is None))
            await stand.run(0.2)
            before = stand.traffic.hits_of.copy(), stand.traffic.asked_of.copy()
            await stand.run(0.5)
            now = stand.traffic.hits_of, stand.traffic.asked_of
            ratios = [
                (now[0][tenant] - before[0][tenant]) / max(1, now[1][tenant] - before[1][tenant]) for tenant in TENANTS
            ]
            seen.figure("hit ratio of the lost shard's tenant", ratios[0], most=0.0)
            seen.figure("hit ratio of the other", ratios[1], least=0.95)

            async def served() -> bool:
                return stand.traffic.hits_of[TENANTS[0]] > now_hits

            now_hits = stand.traffic.hits_of[TENANTS[0]]
            await until(served, "the shard is used again", patience=CLUSTER * 5)
            seen.figure("used again after", time.monotonic() - began, "s", most=CLUSTER)
            # its replica has the leases of computations whose end it has not heard of: they last for a second
            latencies(seen, *await stand.added(), p99=1000.0)
            await stand.until_state("ok", "backplane-lost")
            await stand.stock()
            stand.app.opened["connections"] = 2 * 3  # to each primary, as its tenants ask
            await stand.judge(seen, lines=False)  # each shard has a line of its own
    finally:
        await asyncio.to_thread(cluster.close)


@row("F17", "the process that computes is killed", "those who wait compute themselves, once, within 1 s")
async def killed_while_filling(place: Place, seen: Seen) -> None:
    with place.server() as server:
        async with standing(place, server.url, changes=0.0) as stand:
            stand.traffic.spared.add(5)
            slow = App(replace(stand.app.task, node=7, least=3600.0))
            slow.killed = True
            await slow.start()
            asking, waiting = list[asyncio.Task[bytes]](), list[asyncio.Task[bytes]]()
            try:
                assert await stand.traffic.change(0, 5, strict=True)
                before = (await stand.report())["calls"]
                asking = [asyncio.create_task(_ask(slow.port, 5)) for _ in range(12)]
                await until(lambda: _computing(slow, server), "it computes, and holds the lease")
                waiting = [asyncio.create_task(_ask(stand.app.port, 5)) for _ in range(20)]
                await stand.run(0.1)
                assert not any(each.done() for each in waiting)
                slow.send(signal.SIGKILL)
                killed = time.monotonic()
                bodies = {await each for each in waiting}
                seen.fault("killed by SIGKILL while it computed", 1)
                seen.figure("answered after", time.monotonic() - killed, "s", most=1.0)
                assert bodies == {body_of(5, stand.traffic.parts[0].acknowledged[-1].version)}
                seen.figure("computations by those who waited", (await stand.report())["calls"] - before, most=1)
            finally:
                await slow.end(signal.SIGKILL)
                await asyncio.gather(*asking, *waiting, return_exceptions=True)
            await stand.judge(seen)


async def _ask(port: int, key: int) -> bytes:
    """Ask for a page over a connection of its own."""
    tenant, page = KEYS[key]
    connection = await connect(port)
    try:
        await connection.ask(f"/page/{page}", fields=[("x-tenant", tenant)])
        answer = await connection.answer()
    finally:
        connection.close()
    assert answer.status == 200
    return answer.body


async def _computing(app: App, server: Valkey) -> bool:
    keys: list[bytes] = await say(server, "KEYS", "nexarch:*")
    return (await app.ask("/@report"))["calls"] >= 1 and any(b":l:" in key for key in keys)


@asynccontextmanager
async def two_nodes(place: Place, **options: Any) -> AsyncIterator[tuple[Valkey, tuple[FaultProxy, FaultProxy], Stand]]:
    """Give two nodes whose ways to the server can be harmed one by one."""
    with place.server() as server:
        async with FaultProxy(server.port, seed=place.seed) as one, FaultProxy(server.port, seed=place.seed) as two:
            one.only = two.only = options.pop("only", b"")
            urls = [f"redis://127.0.0.1:{proxy.port}" for proxy in (one, two)]
            async with standing(place, *urls, **options) as stand:
                yield server, (one, two), stand


@row("F23", "messages between nodes are lost or late", "0 stale: strictly at once, else after one lease")
async def lost_messages(place: Place, seen: Seen) -> None:
    async with two_nodes(place, only=b"SUBSCRIBE", changes=40.0) as (server, proxies, stand):
        killed = 0
        for _ in range(6):
            killed += await say(server, "CLIENT", "KILL", "TYPE", "pubsub")
            await stand.run(0.2)
        proxies[1].delay(0.15, jitter=0.1)
        await stand.run(1.0)
        seen.fault("connections killed", killed)
        seen.fault("messages delayed", proxies[1].seen["delayed"])
        latencies(seen, *await stand.added(), p99=60.0)
        proxies[1].heal()
        await stand.used_again()
        acknowledged = sum(len(part.acknowledged) for part in stand.traffic.parts.values())
        seen.figure("invalidations", acknowledged, least=20)
        await stand.judge(seen)


@row(
    "F24", "the connection over which messages are heard is silent", "noticed within 500 ms; hits all the same; 0 stale"
)
async def silent_messages(place: Place, seen: Seen) -> None:
    async with two_nodes(place, only=b"SUBSCRIBE", changes=10.0) as (_, proxies, stand):
        hits = stand.traffic.hits
        began = time.monotonic()
        for proxy in proxies:
            proxy.swallow()
        for number in range(2):
            await stand.until_state("backplane-lost", number=number)
        seen.figure("noticed after", (time.monotonic() - began) * 1000, "ms", most=500.0)
        await stand.run(1.5)
        for proxy in proxies:
            seen.fault("bytes swallowed", proxy.seen["swallowed"])
        seen.figure("hits meanwhile", stand.traffic.hits - hits, least=10)
        latencies(seen, *await stand.added(), p99=60.0)
        for proxy in proxies:
            proxy.heal()
        await stand.used_again()
        await stand.judge(seen)


@row(
    "F25",
    "one of two nodes is cut off from the store",
    "it answers itself, and its invalidations are queued, then replayed",
)
async def cut_off_alone(place: Place, seen: Seen) -> None:
    async with two_nodes(place, changes=25.0, fallback_ttl_seconds=0) as (_, proxies, stand):
        proxies[0].swallow()
        await stand.until_state("down", number=0)
        await stand.run(1.5)
        assert (await stand.state(1))["state"] in ("ok", "slow")
        seen.fault("bytes swallowed", proxies[0].seen["swallowed"])
        seen.figure("its invalidations queued", len(stand.traffic.own[0]), least=1)
        seen.figure("the other's queued", len(stand.traffic.own[1]), most=0)
        latencies(seen, *await stand.added(), p99=60.0)
        proxies[0].heal()
        seen.figure("used again after", await stand.used_again(), "s", most=BACK)

        async def replayed() -> bool:
            return bool((await stand.state(0))["details"]["queued_invalidations"] == 0)

        await until(replayed, "what was queued is replayed")
        await stand.run(0.3)  # a lease
        behind = Counter[str]()
        for key in range(0, len(KEYS), 2):  # those that the node which was cut off changes
            body = await _ask(stand.apps[1].port, key)
            newest = max((each.version for each in stand.traffic.own[0] if each.key == key), default=0)
            behind["old"] += int(body.split(b" ", 3)[2]) < newest
        seen.figure("old answers of the other after the replay", behind["old"], most=0)
        await stand.judge(seen)


@row(
    "F26",
    "the server restarts: empty, and with an old copy of its data",
    "nothing of before is served; used within 2 s",
)
async def restarts(place: Place, seen: Seen) -> None:
    with place.server() as server:
        async with standing(place, server.url, changes=40.0) as stand:
            for what in ("with an old copy", "empty"):
                if what == "with an old copy":
                    await say(server, "SAVE")
                    await stand.run(0.7)  # all that was saved is invalidated and filled again
                server.kill()
                if what == "empty":
                    (place.directory / "one" / "dump.rdb").unlink()
                await asyncio.to_thread(server.start)
                brought = await say(server, "INFO", "persistence")
                seen.fault(f"restarted {what}", int(bool(brought["rdb_last_load_keys_loaded"]) == (what != "empty")))
                seen.figure(f"used again after ({what})", await stand.used_again(), "s", most=BACK)
                await stand.run(0.4)
            latencies(seen, *await stand.added(), p99=60.0)
            await stand.judge(seen)


@row(
    "F32", "a crowd asks for what was just invalidated, and for all at once", "one computation per key, over all nodes"
)
async def herd(place: Place, seen: Seen) -> None:
    async with two_nodes(place, rate=20.0, changes=0.0, least=0.05, op_timeout_ms=500) as (_, __, stand):
        stand.traffic.spared.update(range(len(KEYS)))
        calls = 0
        for key in range(8):
            assert await stand.traffic.change(key % 2, key, strict=True)
            before = await _computed(stand, key)
            await asyncio.gather(*(_ask(stand.apps[number % 2].port, key) for number in range(60)))
            calls = max(calls, await _computed(stand, key) - before)
            seen.fault("requests at once for one key", 60)
        seen.figure("computations per invalidation", calls, most=1)
        for app in stand.apps:
            await app.ask("/@empty")
        await asyncio.gather(*(stand.traffic.burst(10 * len(KEYS), number) for number in range(2)))
        seen.fault("requests at once after everything was invalidated", 20 * len(KEYS))
        twice = Counter[str]()
        for number in range(2):
            twice.update((await stand.report(number))["since"])
        seen.figure("computations of a key", max(twice.values()), most=1)
        stand.traffic.spared.clear()
        await stand.used_again()
        await stand.judge(seen)


async def _computed(stand: Stand, key: int) -> int:
    return sum([(await app.ask("/@report"))["since"].get(str(key), 0) for app in stand.apps])
