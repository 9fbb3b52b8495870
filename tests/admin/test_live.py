"""The stream of events: of whom, how much of it, and that nothing stays behind when it ends."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from nexcache.admin.live import MOST, Live
from nexcache.asgi import Message
from nexcache.telemetry.events import (
    Answered,
    BackendChanged,
    BackendFailed,
    Emitter,
    Event,
    Evicted,
    HookFailed,
    Invalidated,
    Started,
    Stopped,
)
from nexcache.telemetry.names import Result, Tier, Trigger
from tests.admin.conftest import OPERATOR, SECRETS, Site


def answered(tenant: str | None, operation: str = "overview") -> Answered:
    return Answered(operation, tenant, Result.HIT, Tier.MEMORY)


def invalidated(tenant: str) -> Invalidated:
    return Invalidated(tenant, Trigger.API, "tenant", ("*",), (), True, 0.0)


def parsed(frames: bytes) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for frame in frames.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in frame.splitlines() if line and not line.startswith((":", "retry")))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


async def begun(live: Live, tenant: str | None, **options: Any) -> AsyncGenerator[bytes, None]:
    watching = live.watch(tenant, **({"operator": False} | options))
    assert b"watching" in await anext(watching)
    return watching


ALL: list[Event] = [
    answered("acme"),
    answered("globex"),
    answered(None),
    invalidated("acme"),
    invalidated("globex"),
    BackendChanged("redis", available=False, kind="timeout"),
    BackendFailed("get", "timeout"),
    Evicted("capacity", 1),
    HookFailed("tenant", "KeyError"),
    Started("redis", "Redis redis://host:6379/0"),
]


@pytest.mark.parametrize(
    ("tenant", "operator", "heard"),
    [
        pytest.param("acme", False, [0, 3, 5], id="a tenant hears of itself and of the store's state"),
        pytest.param("acme", True, [0, 3, 5], id="an operator who names a tenant too"),
        pytest.param(None, True, list(range(len(ALL))), id="an operator hears everything"),
    ],
)
async def test_everybody_hears_what_is_theirs(tenant: str | None, operator: bool, heard: list[int]) -> None:
    emitter = Emitter()
    watching = await begun(Live(emitter), tenant, operator=operator)

    for event in ALL:
        emitter.emit(event)
    frames = parsed(await anext(watching))
    await watching.aclose()

    names = ["answered", "answered", "answered", "invalidated", "invalidated"]
    names += ["backend_changed", "backend_failed", "evicted", "hook_failed", "started"]
    assert [name for name, _ in frames] == [names[index] for index in heard]
    if tenant is not None:
        assert {fields.get("tenant", tenant) for _, fields in frames} == {tenant}


async def test_nobody_is_listened_to_when_nobody_watches() -> None:
    emitter = Emitter()
    live = Live(emitter)
    assert not emitter.hears(Answered)
    watching = await begun(live, "acme")
    assert emitter.hears(Answered)
    assert live.watching == 1
    await watching.aclose()
    assert not emitter.hears(Answered)
    assert live.watching == 0


async def test_what_a_slow_watcher_cannot_hold_is_dropped_and_counted() -> None:
    emitter = Emitter()
    watching = await begun(Live(emitter), "acme", queued=10)

    for number in range(25):
        emitter.emit(answered("acme", f"op{number}"))
    frames = parsed(await anext(watching))
    emitter.emit(answered("acme", "later"))
    later = parsed(await anext(watching))
    await watching.aclose()

    assert [fields["operation"] for name, fields in frames if name == "answered"] == [f"op{n}" for n in range(10)]
    assert frames[-1] == ("dropped", {"dropped": 15})
    assert [name for name, _ in later] == ["answered"]


async def test_of_requests_only_so_many_a_second_are_given_and_the_others_counted() -> None:
    emitter = Emitter()
    watching = await begun(Live(emitter), "acme", answered=3)

    for _ in range(10):
        emitter.emit(answered("acme"))
    emitter.emit(invalidated("acme"))
    frames = parsed(await anext(watching))
    await watching.aclose()

    assert [name for name, _ in frames] == ["answered"] * 3 + ["invalidated", "thinned"]
    assert frames[-1][1] == {"answered": 7}


async def test_who_wants_no_requests_makes_no_hit_slower() -> None:
    emitter = Emitter()
    watching = await begun(Live(emitter), "acme", answered=0)
    assert not emitter.hears(Answered)
    assert emitter.hears(Invalidated)
    await watching.aclose()


async def test_silence_is_filled_with_comments() -> None:
    watching = await begun(Live(Emitter()), "acme", heartbeat=0.001)
    assert (await anext(watching)).startswith(b":")
    await watching.aclose()


async def test_a_stream_ends_with_the_cache_and_with_its_time() -> None:
    emitter = Emitter()
    watching = await begun(Live(emitter), "acme")
    emitter.emit(answered("acme"))
    emitter.emit(Stopped())
    pieces = [piece async for piece in watching]
    assert [name for name, _ in parsed(b"".join(pieces))] == ["answered", "end"]

    watching = await begun(Live(emitter), "acme", longest=0.0)
    assert parsed(b"".join([piece async for piece in watching])) == [("end", {"reason": "time"})]


async def test_an_event_of_another_thread_wakes_the_watcher() -> None:
    emitter = Emitter()
    watching = await begun(Live(emitter), "acme")
    waiting = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    await asyncio.to_thread(emitter.emit, answered("acme"))
    assert [name for name, _ in parsed(await asyncio.wait_for(waiting, 5))] == ["answered"]
    await watching.aclose()


async def test_a_hostile_name_makes_no_second_event() -> None:
    emitter = Emitter()
    watching = await begun(Live(emitter), "acme")
    emitter.emit(answered("acme", "x\n\nevent: forged\ndata: {}\n\n\u2028"))
    frames = parsed(await anext(watching))
    await watching.aclose()
    assert [name for name, _ in frames] == ["answered"]


class Client:
    """A client of the endpoint, on ASGI itself: it can leave in the middle."""

    def __init__(self, site: Site, path: str, who: str = "acme", method: str = "GET", accept: str = "*/*") -> None:
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self.left = asyncio.Event()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "method": method,
            "path": path.partition("?")[0],
            "query_string": path.partition("?")[2].encode(),
            "root_path": "",
            "headers": [(b"x-api-key", SECRETS.get(who, OPERATOR).encode()), (b"accept", accept.encode())],
        }
        self.task = asyncio.create_task(site.admin(scope, self._receive, self.sent.put))
        self.asked = False

    async def _receive(self) -> Message:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def next(self) -> Message:
        return await asyncio.wait_for(self.sent.get(), 5)


def tasks() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def test_the_endpoint_streams_what_happens_to_the_callers_requests(site: Site) -> None:
    client = Client(site, "/events")
    start = await client.next()
    await client.next()

    await site.ask("/overview", who="globex")
    await site.ask("/overview")
    frames: list[tuple[str, dict[str, Any]]] = []
    while ("answered", "miss") not in [(name, fields.get("result")) for name, fields in frames]:
        frames += parsed((await client.next())["body"])
    client.left.set()
    await asyncio.wait_for(client.task, 5)

    assert (b"content-type", b"text/event-stream") in start["headers"]
    assert {fields["tenant"] for _, fields in frames} == {"acme"}
    assert {name for name, _ in frames} == {"filled", "stored", "answered"}


async def test_a_client_that_leaves_leaves_nothing_behind(site: Site) -> None:
    before = tasks()
    clients = [Client(site, "/events") for _ in range(5)]
    for client in clients:
        await client.next()
        await client.next()
    for client in clients:
        client.left.set()
    await asyncio.gather(*(client.task for client in clients))

    assert tasks() == before
    assert site.admin._live.watching == 0
    assert not site.cache.emitter.hears(Answered)


async def test_a_server_that_cancels_the_request_leaves_nothing_behind(site: Site) -> None:
    before = tasks()
    client = Client(site, "/events")
    await client.next()
    await client.next()
    client.task.cancel()
    await asyncio.gather(client.task, return_exceptions=True)

    assert tasks() == before
    assert site.admin._live.watching == 0


async def test_the_stream_ends_when_the_cache_is_closed(site: Site) -> None:
    client = Client(site, "/events")
    await client.next()
    await client.next()
    await site.cache.aclose()
    await asyncio.wait_for(client.task, 5)
    last = [client.sent.get_nowait() for _ in range(client.sent.qsize())]
    assert b"event: end" in last[-2]["body"]
    assert last[-1]["more_body"] is False


async def test_too_many_watchers_are_told_to_come_again(site: Site) -> None:
    site.admin._live.watching = MOST
    answer = await site.ask("/admin/events")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize("who", ["acme", "ops"])
async def test_a_head_of_the_stream_ends_at_once(site: Site, who: str) -> None:
    answer = await site.ask("/admin/events", method="HEAD", who=who)
    assert (answer.status_code, answer.content) == (200, b"")
    assert site.admin._live.watching == 0


@pytest.mark.parametrize("kind", ["application/x-ndjson", "text/event-stream"])
async def test_a_warm_up_tells_how_far_it_is(site: Site, kind: str) -> None:
    for number in range(6):
        await site.ask(f"/overview?{number}")

    answer = await site.ask("/admin/warm/overview", method="POST", headers={"accept": kind})

    assert answer.headers["content-type"] == kind
    if kind == "application/x-ndjson":
        lines = [json.loads(line) for line in answer.text.splitlines()]
    else:
        frames = parsed(answer.content)
        assert [name for name, _ in frames] == ["progress"] * 6 + ["result"]
        lines = [fields for _, fields in frames]
    assert [line["refreshed"] for line in lines] == [1, 2, 3, 4, 5, 6, 6]
    assert {(line["operation"], line["requested"], line["failed"]) for line in lines} == {("overview", 6, 0)}


async def test_a_warm_up_ends_with_its_reader(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        await site.ask(f"/overview?{number}")
    before = tasks()
    begun = asyncio.Event()

    async def never(*_: Any) -> bool:
        begun.set()
        await asyncio.Event().wait()
        return True

    for app in site.cache._apps:
        monkeypatch.setattr(type(app), "refresh", never)
    client = Client(site, "/warm/overview", method="POST", accept="application/x-ndjson")
    await asyncio.wait_for(begun.wait(), 5)
    second = await site.ask("/admin/warm/overview", method="POST")
    assert (second.status_code, second.headers["retry-after"]) == (429, "1"), "one request is many computations"
    client.left.set()
    await asyncio.wait_for(client.task, 5)

    assert tasks() == before
    monkeypatch.undo()
    assert (await site.ask("/admin/warm/overview", method="POST")).status_code == 200
