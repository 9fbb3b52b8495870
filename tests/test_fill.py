"""The fill by itself: one task, one leader, and every way in which either may end."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest

from nexcache.asgi import ASGIApp, Headers, Message, Receive, Scope, Send
from nexcache.fill import Complete, Failed, Fill, Overdue, Unstorable
from nexcache.message import StoredResponse
from nexcache.semantics.storing import Storable
from nexcache.telemetry.names import NotStoredReason

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"1")]}


class Leader:
    """Drives one fill as the middleware does."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        decide: Storable | NotStoredReason = Storable(None),  # noqa: B008 - frozen
        keep: Callable[[StoredResponse], Awaitable[NotStoredReason | None]] | None = None,
        body: bytes | None = None,
        max_body: int = 1000,
        soft_limit: float = 60.0,
        hard_limit: float = 60.0,
    ) -> None:
        self.kept: list[StoredResponse] = []
        self.gave_up: list[Unstorable | Failed] = []
        self.released = 0
        self.client: asyncio.Queue[Message] = asyncio.Queue()

        async def keep_it(response: StoredResponse) -> NotStoredReason | None:
            self.kept.append(response)
            return None

        def decided(status: int, headers: Headers, trailers: bool) -> Storable | NotStoredReason:
            return decide

        def count() -> None:
            self.released += 1

        self.fill = Fill(
            app=app,
            scope={"type": "http"},
            receive=self.client.get,
            body=body,
            ttl=60.0,
            max_body=max_body,
            soft_limit=soft_limit,
            hard_limit=hard_limit,
            decide=decided,
            keep=keep or keep_it,
            gave_up=self.gave_up.append,
        )
        self.fill.on_release(count)

    async def messages(self) -> list[Message]:
        found: list[Message] = []
        while (message := await self.fill.next()) is not None:
            found.append(message)
        return found


def sends(*messages: Message) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_a_whole_answer_is_passed_on_kept_and_shared() -> None:
    leader = Leader(sends(START, body(b"one", more=True), body(b"two")))
    assert [message.get("body") for message in await leader.messages()] == [None, b"one", b"two"]
    await leader.fill.join()
    outcome = leader.fill.outcome.result()
    assert isinstance(outcome, Complete)
    assert leader.kept == [outcome.response]
    assert (outcome.response.body, outcome.response.status) == (b"onetwo", 200)
    assert (leader.gave_up, leader.released) == ([], 1)


async def test_it_is_released_only_once_it_is_kept() -> None:
    go = asyncio.Event()

    async def keep(response: StoredResponse) -> None:
        await go.wait()

    leader = Leader(sends(START, body(b"x")), keep=keep)
    assert len(await leader.messages()) == 2  # the client waits for no store
    assert leader.fill.outcome.done()  # nor does anybody else
    assert leader.released == 0
    go.set()
    await leader.fill.join()
    assert leader.released == 1


async def test_a_store_that_raises_is_reported_and_no_failure_of_the_app() -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))

    async def keep(response: StoredResponse) -> None:
        raise MemoryError

    after = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await sends(START, body(b"x"))(scope, receive, send)
        after.set()

    leader = Leader(app, keep=keep)
    await leader.messages()
    await leader.fill.join()
    assert after.is_set()
    assert (leader.fill.not_stored, leader.released) == (NotStoredReason.BACKEND, 1)
    assert reported == ["an answer could not be stored"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        pytest.param([START], NotStoredReason.TRUNCATED, id="no body"),
        pytest.param([START, body(b"x", more=True)], NotStoredReason.TRUNCATED, id="no end"),
        pytest.param([], NotStoredReason.TRUNCATED, id="nothing"),
        pytest.param([body(b"x")], NotStoredReason.FAILED, id="no start"),
        pytest.param([START, START, body(b"x")], NotStoredReason.FAILED, id="two starts"),
    ],
)
async def test_what_is_no_answer_fails_for_those_who_wait(messages: list[Message], reason: NotStoredReason) -> None:
    leader = Leader(sends(*messages))
    assert len(await leader.messages()) == len(messages)
    await leader.fill.join()
    assert leader.fill.outcome.result() == Failed(reason)
    assert (leader.gave_up, leader.released, leader.kept) == ([Failed(reason)], 1, [])


async def test_an_app_that_is_cancelled_from_within_fails() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    leader = Leader(app)
    assert await leader.messages() == []
    with pytest.raises(asyncio.CancelledError):
        await leader.fill.join()
    assert leader.fill.outcome.result() == Failed(NotStoredReason.FAILED)


async def test_messages_after_the_end_are_the_servers_business() -> None:
    leader = Leader(sends(START, body(b"x"), body(b"y"), START))
    await leader.fill.task
    assert len(await leader.messages()) == 4
    assert [each.body for each in leader.kept] == [b"x"]
    assert leader.gave_up == []


async def test_the_app_reads_the_request_once_and_then_waits() -> None:
    """Its client's leaving is told once the answer depends on nobody else any more."""
    read: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        read.append(await receive())
        listening = asyncio.ensure_future(receive())
        await asyncio.sleep(0.01)
        assert not listening.done()
        await sends(START, body(b"x"))(scope, receive, send)
        read.append(await listening)

    leader = Leader(app)
    leader.client.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    leader.client.put_nowait({"type": "http.disconnect"})
    await leader.messages()
    await leader.fill.join()
    assert [message["type"] for message in read] == ["http.request", "http.disconnect"]
    assert len(leader.kept) == 1


async def test_a_body_that_was_read_for_the_key_is_given_to_the_app() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        await sends(START, body(message["body"]))(scope, receive, send)

    leader = Leader(app, body=b"query")
    await leader.messages()
    assert leader.kept[0].body == b"query"


async def test_two_senders_at_once_are_both_let_on() -> None:
    """Event streams send their pings beside their data."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)

        async def many() -> None:
            for _ in range(50):
                await send(body(b"x", more=True))

        await asyncio.gather(many(), many(), many())
        await send(body(b""))

    leader = Leader(app, decide=NotStoredReason.EVENT_STREAM)
    messages = await asyncio.wait_for(leader.messages(), 5)
    assert len(messages) == 152


async def test_a_sender_that_stops_waiting_takes_no_other_with_it() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        for _ in range(15):
            await send(body(b"x", more=True))
        impatient = asyncio.ensure_future(send(body(b"ping", more=True)))
        patient = asyncio.ensure_future(send(body(b"data", more=True)))
        await asyncio.sleep(0)
        impatient.cancel()
        await patient
        await send(body(b""))

    leader = Leader(app, decide=NotStoredReason.EVENT_STREAM)
    await asyncio.sleep(0.01)
    messages = await asyncio.wait_for(leader.messages(), 5)
    assert messages[-2]["body"] == b"data"
    await leader.fill.join()


async def test_a_detached_stream_that_is_not_stored_ends_though_it_never_waits() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        while True:
            await send(body(b"x" * 100, more=True))

    leader = Leader(app)
    await leader.fill.next()
    leader.fill.detach()
    await asyncio.wait_for(asyncio.wait((leader.fill.task,)), 5)
    assert leader.gave_up == [Unstorable(NotStoredReason.TOO_LARGE)]


async def test_a_detached_answer_that_turns_out_not_storable_is_ended() -> None:
    go, cancelled = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await go.wait()
            await send(START)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    leader = Leader(app, decide=NotStoredReason.PRIVATE)
    await asyncio.sleep(0)
    leader.fill.detach()
    go.set()
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_background_work_of_a_detached_answer_is_given_some_time() -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await sends(START, body(b"x"))(scope, receive, send)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    leader = Leader(app, hard_limit=0.01)
    await leader.messages()
    leader.fill.detach()
    assert not ended.is_set()
    await asyncio.wait_for(ended.wait(), 5)
    assert len(leader.kept) == 1


async def test_a_finished_fill_leaves_no_timer_behind() -> None:
    leader = Leader(sends(START, body(b"x")))
    await leader.messages()
    await leader.fill.join()
    fill = weakref.ref(leader.fill)
    del leader
    await asyncio.sleep(0)
    gc.collect()
    assert fill() is None


async def test_an_answer_that_others_stopped_waiting_for_is_still_stored() -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await sends(START, body(b"x"))(scope, receive, send)

    leader = Leader(app, soft_limit=0.01)
    assert await asyncio.wait_for(asyncio.shield(leader.fill.outcome), 5) == Overdue()
    assert leader.released == 1
    go.set()
    await leader.messages()
    await leader.fill.join()
    assert (len(leader.kept), leader.fill.not_stored, leader.gave_up) == (1, None, [])
