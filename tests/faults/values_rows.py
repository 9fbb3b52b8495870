"""Values in the store that are not what this node wrote, and clocks that do not agree."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from unittest import mock

from nexcache import Policy, tenants
from nexcache.asgi import Receive, Scope, Send
from nexcache.stores import codec
from tests.faults.rows import Place, Seen, row
from tests.faults.site import Raw, Site, no_crossing, nothing_left, site
from tests.wire.server import Answer, ask, until

LIFE_MS = 3_600_000


class Pages:
    """An app that answers with tenant, path and the version of its data."""

    def __init__(self) -> None:
        self.version = 0
        self.calls = 0

    def body(self, path: str, tenant: str = "acme") -> bytes:
        """Return what is right now."""
        return b"%b %b version %d" % (tenant.encode(), path.encode(), self.version)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("knows no lifespan")
        self.calls += 1
        tenant = dict(scope["headers"]).get(b"x-tenant", b"acme").decode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": self.body(scope["path"], tenant)})


def _damaged(value: bytes, draw: random.Random) -> Iterator[bytes]:
    """Change one bit of every byte; leave off every other end; add something."""
    for place, byte in enumerate(value):
        yield value[:place] + bytes([byte ^ (1 << draw.randrange(8))]) + value[place + 1 :]
    for length in range(0, len(value), 2):
        yield value[:length]
    yield value + b"\x00"
    yield value * 2


@row("F13", "entries with bits changed, cut short, of another key or tenant", "a miss, counted, removed")
async def corrupted(place: Place, seen: Seen) -> None:
    for keys in ("", "k1:0123456789abcdef"):
        await _corrupted(place, seen, keys)


async def _corrupted(place: Place, seen: Seen, keys: str) -> None:
    draw, app = random.Random(place.seed), Pages()
    policies = [Policy("/{page}", op="page", ttl="1h", share_authenticated=True)]
    whose = tenants.header("x-tenant", trusted=True)
    with place.server(f"signed-{bool(keys)}") as server, Raw(server) as raw:
        async with site(app, place, server, policies=policies, tenant=whose, l1_enabled=False, signing_keys=keys) as at:
            for name in ("globex", "acme"):
                await at.client.get("/0", x_tenant=name)
            await at.client.get("/1", x_tenant="acme")
            await at.quiet()
            values = {entry: raw.ask("GET", entry) for entry in raw.entries()}
            theirs = next(value for entry, value in values.items() if b":globex:" in entry)
            (key,) = [entry for entry, value in values.items() if b"acme /0" in value]
            (other,) = [value for entry, value in values.items() if b"acme /1" in value]
            right, accepted, headers = app.body("/0"), 0, [(b"x-tenant", b"acme")]
            damaged = [*_damaged(values[key], draw), theirs, other]
            for number, value in enumerate(damaged):
                raw.ask("SET", key, value, "PX", LIFE_MS)
                if number % 20:
                    answer = await ask(at.app, "/0", headers=headers)
                else:
                    answer = await at.client.get("/0", x_tenant="acme")
                await at.quiet()
                no_crossing([(answer, right)])
                accepted += answer.hit
            noticed = [each for each in at.failures if each.operation == "get"]
            seen.fault("values damaged, cut short or moved", len(damaged))
            signed = "signed" if keys else "unsigned"
            seen.figure(f"{signed}: accepted", accepted, f"of {len(damaged)}", most=0)
            seen.figure(f"{signed}: counted", len(noticed), least=len(damaged))
            await _removed_and_replaced(at, raw, seen, (key, damaged[0]), right)


async def _removed_and_replaced(at: Site, raw: Raw, seen: Seen, damaged: tuple[bytes, bytes], right: bytes) -> None:
    """A value that nobody can read is removed, one of another Redis type replaced, and a generation of one healed."""
    key, value = damaged
    raw.ask("SET", key, value, "PX", LIFE_MS)
    await at.client.ask("/0", method="HEAD", fields=[("x-tenant", "acme")])  # which computes and stores nothing
    assert raw.ask("EXISTS", key) == 0
    for name in (key, *(name for name in raw.generations() if b":acme:" in name)):
        for words in (("LPUSH", name, "x"), ("HSET", name, "x", "x"), ("SADD", name, "x")):
            raw.ask("DEL", name)
            raw.ask(*words)
            seen.fault("keys of another Redis type", int(raw.ask("TYPE", name) != b"string"))
            answers = []
            for _ in range(3):
                answers.append(await at.client.get("/0", x_tenant="acme"))
                await at.quiet()
            no_crossing((answer, right) for answer in answers)
            assert name != key or not answers[0].hit
            assert answers[2].hit, f"{name!r} stayed what it was"


@contextmanager
def _version(number: int) -> Iterator[None]:
    """Be a node whose entries have this version."""
    with mock.patch.object(codec, "VERSION", number), mock.patch("nexcache.key.ENVELOPE", number):
        yield


@row("F14", "nodes of two versions during a deployment, forth and back", "each a hit on its own; newer never removed")
async def versions(place: Place, seen: Seen) -> None:
    app, old, new = Pages(), codec.VERSION, codec.VERSION + 1
    with place.server() as server, Raw(server) as raw:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(nothing_left())
            nodes: dict[int, Site] = {}
            for number in (old, new):
                with _version(number):
                    made = site(app, place, server, alone=False, l1_enabled=False)
                    nodes[number] = await stack.enter_async_context(made)

            async def get(number: int, *, method: str = "GET") -> Answer:
                with _version(number):
                    answer = await nodes[number].client.ask("/0", method=method)
                    await nodes[number].quiet()
                assert (answer.status, answer.body) == (200, app.body("/0") if method == "GET" else b"")
                return answer

            hits = asked = 0
            for turn in range(3):
                for number in (old, new) if turn % 2 else (new, old):
                    assert not (await get(number)).hit
                    seen.fault("nodes of another version on one server", 1)
                for _ in range(5):  # each of them goes on with what it stored
                    hits += sum([(await get(number)).hit for number in (old, new)])
                    asked += 2
                app.version += 1
                with _version((old, new)[turn % 2]):  # either version invalidates for both
                    assert (await nodes[(old, new)[turn % 2]].cache.invalidate("acme", "page")).acknowledged
            seen.figure("hits beside nodes of another version", hits, f"of {asked}", least=asked)

            removed = 0
            for number, reason in ((new, "newer"), (old - 1, "older")):
                await get(old)
                foreign = b""
                for key in raw.entries():
                    payload = nodes[old].cache._parts.codec.verify(key, raw.ask("GET", key))
                    if isinstance(payload, bytes):
                        with _version(number):
                            foreign = codec.Codec().sign(key, payload)
                        raw.ask("SET", key, foreign, "PX", LIFE_MS)
                before = nodes[old].count(reason)
                assert not (await get(old, method="HEAD")).hit
                assert nodes[old].count(reason) == before + 1
                seen.fault(f"entries under this node's key of a version that is {reason}", 1)
                removed += not any(raw.ask("GET", key) == foreign for key in raw.entries())
                assert not (await get(old)).hit
                assert (await get(old)).hit
            seen.figure("removed", removed, most=0)


RINGS = (
    "",
    "k1:aaaaaaaaaaaaaaaa",
    "k2:bbbbbbbbbbbbbbbb,k1:aaaaaaaaaaaaaaaa",
    "k2:bbbbbbbbbbbbbbbb",
    "k1:cccccccccccccccc",
)


def _is_read(writer: str, reader: str) -> bool:
    """Whether a reader's ring holds the key that the writer's signs with."""
    signed = writer.split(",", maxsplit=1)[0]
    return signed in reader.split(",") if signed else not reader


@row("F15", "signing keys rotated, exchanged, absent, node by node", "read where the ring has the key, else a miss")
async def rings(place: Place, seen: Seen) -> None:
    app = Pages()
    outcomes: Counter[bool] = Counter()
    with place.server() as server:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(nothing_left())
            nodes = [
                await stack.enter_async_context(
                    site(app, place, server, alone=False, l1_enabled=False, signing_keys=ring)
                )
                for ring in RINGS
            ]
            for writing, writer in enumerate(nodes):
                for reading, reader in enumerate(nodes):
                    path = f"/{writing}-{reading}"
                    await writer.client.get(path)
                    await writer.quiet()
                    looked = await reader.client.ask(path, method="HEAD")
                    expected = _is_read(RINGS[writing], RINGS[reading])
                    assert looked.hit is expected, (RINGS[writing], RINGS[reading])
                    outcomes[expected] += 1
                    forged = RINGS[writing].startswith("k1:") and RINGS[reading].endswith(("k1:" + "a" * 16, "c" * 16))
                    if not expected and not forged:  # of one kid with two secrets nobody can tell who is right
                        assert (await writer.client.get(path)).hit, "a node that cannot read it has removed it"
                    answer = await reader.client.get(path)
                    await reader.quiet()
                    no_crossing([(answer, app.body(path)), (await reader.client.get(path), app.body(path))])
    seen.fault("entries signed with a key that the reader does not have", outcomes[False])
    seen.figure("read by their signature", outcomes[True], f"of {sum(outcomes.values())}", least=8, most=8)


class Clocks:
    """A wall clock per node, told when that node is at work."""

    def __init__(self) -> None:
        self.wrong = 0
        self._shift = 0.0
        self._wall = time.time

    def __call__(self) -> float:
        self.wrong += self._shift != 0
        return self._wall() + self._shift

    @contextmanager
    def off_by(self, seconds: float) -> Iterator[None]:
        """Be a node whose clock is off."""
        self._shift = seconds
        try:
            yield
        finally:
            self._shift = 0.0


HOUR = 3600.0
SHIFTS = (-HOUR, HOUR)
Get = Callable[[Site, str, float], Awaitable[Answer]]
TTL = 0.8


@row("F16", "clocks of nodes off by an hour, and stepping", "time is the store's; Age never negative; nothing stale")
async def clocks(place: Place, seen: Seen) -> None:
    app, draw = Pages(), random.Random(place.seed)
    policies = [
        Policy("/brief{page}", op="brief", ttl=TTL, jitter=0, early_refresh=False),
        Policy("/stale{page}", op="stale", ttl=TTL, jitter=0, early_refresh=False, stale_while_revalidate=60),
        Policy("/{page}", op="page", ttl="1h"),
    ]
    clocks = Clocks()
    with place.server() as server, mock.patch.object(time, "time", clocks):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(nothing_left())
            one, two = [
                await stack.enter_async_context(site(app, place, server, policies=policies, alone=False))
                for _ in range(2)
            ]
            ages: list[int] = []

            async def get(at: Site, path: str, shift: float) -> Answer:
                with clocks.off_by(shift):
                    answer = await at.client.get(path)
                    await at.quiet()
                    ages.extend(int(age) for age in answer.all("age"))
                return answer

            for at in (one, two):  # until each is registered, and its memory trusted
                while not (await get(at, "/first", 0.0)).cache.endswith("detail=memory"):
                    await asyncio.sleep(0.01)
            await _times(app, one, two, get_=get, seen=seen)

            stale = checked = 0
            for _ in range(150):
                at, shift = draw.choice((one, two)), draw.choice((-HOUR, -1.0, 0.0, 0.3, HOUR))
                if draw.random() < 0.1:
                    app.version += 1
                    with clocks.off_by(shift):
                        assert (await at.cache.invalidate("acme", "page", wait="strict")).acknowledged
                    continue
                answer = await get(at, f"/{draw.randrange(4)}", shift)
                stale += not answer.body.endswith(b" %d" % app.version)
                checked += 1
            seen.fault("readings of a clock that was wrong", clocks.wrong)
            seen.figure("stale after an invalidation", stale, f"of {checked}", most=0)
            seen.figure("least Age", min(ages), "s", least=0)


async def _times(app: Pages, one: Site, two: Site, *, get_: Get, seen: Seen) -> None:
    """What one node stores is fresh on another for as long as the store says, whatever that node's clock says."""
    started = time.monotonic()
    from_memory = 0
    for shift in SHIFTS:
        for path in (f"/brief{shift:+.0f}", f"/stale{shift:+.0f}"):
            assert not (await get_(one, path, 0.0)).hit
            for _ in range(3):
                answer = await get_(two, path, shift)
                assert answer.hit or time.monotonic() - started > TTL, "fresh by the store's clock"
                from_memory += answer.cache.endswith("detail=memory")
    assert from_memory > 0
    app.version += 1  # nobody is told: only time can end these
    await asyncio.sleep(max(0.0, started + 2 * TTL + 0.2 - time.monotonic()))
    for shift in SHIFTS:
        answer = await get_(two, f"/brief{shift:+.0f}", shift)
        seen.figure(f"served beyond its time at {shift / HOUR:+.0f} h", int(answer.hit), most=0)
        soft = f"/stale{shift:+.0f}"
        first = await get_(two, soft, shift)
        assert first.cache.endswith("detail=stale")
        await until(lambda: not two.cache.refreshes.running, "what was stale is computed anew")
        then = await get_(two, soft, shift)
        seen.figure(f"not computed anew at {shift / HOUR:+.0f} h", int(then.body != app.body(soft)), most=0)
