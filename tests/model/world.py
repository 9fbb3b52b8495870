"""Nodes, a server, what lies between them and what happens to them; and the judge of every answer.

The nodes run NexCache as it is, from the middleware down to the bytes of a command; only time, sockets and the
server are the world's. What happens is a `Step`: a name and numbers, meaningful in every state, so that a list of
them is a program that can be searched for, kept, shortened and replayed.

The judge (faults.md §2): a request that starts after an invalidation in its scope was acknowledged must not be
answered from data that was captured before the invalidation began. The source has one version that only grows; every
invalidation first makes a new one.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Literal, NamedTuple
from unittest.mock import patch

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants, wiring
from nexcache.asgi import Message, Receive, Scope, Send
from nexcache.collapse import Flights
from nexcache.ingest.hook import IngestHook
from nexcache.ingest.rules import IngestRule
from nexcache.ingest.spans import Span
from nexcache.invalidation.apply import Invalidation
from nexcache.invalidation.targets import matches
from nexcache.stores.redis import NODES, RedisStore, Target
from nexcache.telemetry.events import Emitter
from nexcache.telemetry.names import Tier
from tests.model.network import ROLES, Fate, Network, Wire
from tests.model.server import ModelServer, Server
from tests.model.virtual import Chance, Clock, Loop, virtual_time

TENANTS: Final = ("acme", "globex")
OPERATIONS: Final = ("alpha", "alter")
PAGES: Final = 2
GROUPS: Final = 2
GLOBS: Final = ("al*", "alp*", "?lter")
FATES: Final[tuple[Fate, ...]] = ("arrive", "lost", "late", "twice")
TICKS: Final = (0.001, 0.06, 0.13, 0.26, 0.45, 1.1, 2.6)
LEASE: Final = 0.25
FALLBACK: Final = 1.0
TIMEOUT: Final = 0.4
INTERVAL: Final = 0.5
STALE: Final = 0.7
"""Seconds for which the second operation's answers may be shown after a soft invalidation."""
_MIDDLE: Final = 32
_PATIENCE: Final = 12.0
_RECOVERY: Final = 1.0
"""Seconds for which a node may hold its server to be away after it could be reached again: until its next probe."""
_slow: ContextVar[bool] = ContextVar("slow", default=False)
"""Whether the handler that runs for this request takes its time."""


class Step(NamedTuple):
    """Something that happens: a method of the world, and its numbers."""

    name: str
    arguments: tuple[int, ...] = ()


class Resource(NamedTuple):
    """What can be asked for."""

    tenant: str
    operation: str
    page: int

    @property
    def path(self) -> str:
        return f"/{self.operation}/{self.page}"


RESOURCES: Final = tuple(
    Resource(tenant, operation, page) for tenant in TENANTS for operation in OPERATIONS for page in range(PAGES)
)


@dataclass(eq=False)
class Capture:
    """One run of a handler: what it read, when, and which generations it was started under."""

    number: int
    resource: Resource
    version: int
    at: float
    node: int
    tier: Tier | None
    cut_off: bool
    """The node could not reach its server then, or shortly before."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    ended_at: float | None = None

    @property
    def group(self) -> str | None:
        """The tag that the answer names for itself, which nobody can know before."""
        return f"group:{self.number % GROUPS}" if self.resource.page else None


@dataclass(eq=False)
class Act:
    """One invalidation: what it aimed at and the version that it announced."""

    version: int
    node: int
    tenant: str
    targets: tuple[str, ...]
    strict: bool
    acknowledged_at: float | None = None
    held: bool = False
    """It was returned from: in its own process it holds."""
    soft: bool = False
    """Who opted in may be shown what is stale, for a while."""
    forgotten: bool = False
    """Its process ended before the server was told."""

    def covers(self, capture: Capture) -> bool:
        """Whether what was captured before it must not be shown any more."""
        resource = capture.resource
        tags = (f"tag:page:{resource.page}", f"tag:{capture.group}")
        return resource.tenant == self.tenant and any(
            target in tags or matches(target, resource.operation) for target in self.targets
        )


@dataclass(eq=False)
class Question:
    """One request."""

    resource: Resource
    node: int
    started_at: float
    before: int
    """How many acts had been acknowledged, or returned from, when it started."""
    client: "Capture | None"
    """What the client holds already, and asks to have confirmed."""


class Held(NamedTuple):
    """What a client holds, as a browser does."""

    etag: bytes
    capture: Capture
    asks: bool
    """It has it confirmed before it shows it again."""


class Violation(AssertionError):  # noqa: N818 - the word of the guarantee
    """An answer that breaks the guarantee."""


@cache
def settings() -> Settings:
    """The settings of every node."""
    return Settings(
        redis_url="redis://model:1",
        redis_host=None,
        op_timeout_ms=TIMEOUT * 1000,
        l1_lease_ms=LEASE * 1000,
        fallback_ttl_seconds=FALLBACK,
    )


class _NoMetrics:
    def __init__(self, *_: object, **__: object) -> None:
        pass


class _NoLog:
    def subscribe(self, emitter: Emitter) -> None:
        del emitter


class Node:
    """One process: an app behind the cache, on an event loop of its own."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.number = number
        self.loop = Loop(world.clock)
        self.wire: Wire = world.network.wires[number]
        self.suspended_at: float | None = None
        self.slept = 0.0
        """Seconds that it has been suspended for."""
        self.skew = 0.0
        self.started = False
        self.store = RedisStore(
            Target(),
            emitter=Emitter(),
            timeout=TIMEOUT,
            connect=self.wire.connect,  # type: ignore[arg-type] # as much of a connection as is used
            clock=world.clock,
        )
        self.cache = NexCache(settings(), store=self.store)
        self.tiers: dict[asyncio.Task[None], Tier] = {}
        flights: Flights = self.cache.flights
        add = flights.add

        def noted(key: Any, snapshot: Any, fill: Any, **options: Any) -> None:
            self.tiers[fill.task] = snapshot.tier
            add(key, snapshot, fill, **options)

        flights.add = noted  # type: ignore[method-assign]
        self.app = CacheMiddleware(
            self._handle,
            cache=self.cache,
            tenant=tenants.header("x-tenant", trusted=True),
            policies=[
                Policy("/alpha/{page}", op="alpha", ttl="1h", tags=["page:{page}"]),
                Policy("/alter/{page}", op="alter", ttl="2s", tags=["page:{page}"], stale_while_revalidate=STALE),
            ],
        )

        self.hook = IngestHook(
            self.cache,
            [IngestRule(match={"service": operation}, ops=[operation]) for operation in OPERATIONS],
            min_interval=INTERVAL,
            clock=world.clock,
        )

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        tenant = dict(scope["headers"])[b"x-tenant"].decode()
        _, operation, page = scope["path"].split("/")
        task = asyncio.current_task()
        tier = self.tiers.pop(task) if task in self.tiers else None
        capture = self.world.captured(Resource(tenant, operation, int(page)), self, tier)
        await capture.gate.wait()
        capture.ended_at = self.world.clock.now
        body = b"%d" % capture.number
        headers = [(b"content-type", b"text/plain")]
        if capture.group is not None:
            headers.append((b"cache-groups", b'"%b"' % capture.group.encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def notify(self, tenant: str, operation: str) -> Invalidation:
        """Tell the hook of a span, and wait until what it changes is invalidated."""
        await self.cache.start()
        span = Span(operation, {}, {"service.name": operation}, "shop", {}, 2, 1, 0, 1)
        done = await self.hook.notify(tenant, [span], wait=True)
        assert done is not None
        return done

    @property
    def suspended(self) -> bool:
        """Whether the process is stopped."""
        return self.suspended_at is not None

    def suspend(self) -> None:
        """Stop the process."""
        if self.suspended_at is None:
            self.suspended_at = self.world.clock.now

    def resume(self) -> None:
        """Let it go on."""
        if self.suspended_at is not None:
            self.slept += self.world.clock.now - self.suspended_at
            self.suspended_at = None

    def run(self) -> None:
        """Do what is due."""
        self.world.clock.skew = self.skew
        self.loop.run_forever()

    def end(self) -> None:
        """End the process: nothing that it was at is finished."""
        self.wire.sever()
        self.loop.end()


@contextmanager
def stage(seed: int = 0) -> Iterator[Clock]:
    """Make NexCache run on virtual time, and say nothing to anybody."""
    clock, chance = Clock(), Chance(random.Random(seed))
    with ExitStack() as stack:
        stack.enter_context(virtual_time(clock, chance))
        stack.enter_context(patch.object(wiring, "OTelMetrics", _NoMetrics))
        stack.enter_context(patch.object(wiring, "OTelTracing", lambda: None))
        stack.enter_context(patch.object(wiring, "LogListener", _NoLog))
        yield clock


class World:
    """Everything there is. Make one inside `stage`, let things happen with `do`, and `end` it."""

    def __init__(self, clock: Clock, *, nodes: int = 2, server: Server | None = None) -> None:
        self.clock = clock
        self.server: Server = server if server is not None else ModelServer(clock)
        self.network = Network(self.server, clock)
        for _ in range(nodes):
            self.network.wire()
        self.nodes = [Node(self, number) for number in range(nodes)]
        self.version = 0
        self.captures: list[Capture] = []
        self.waiting: list[Capture] = []
        self.failure: BaseException | None = None
        self.acts: list[Act] = []
        """In the order in which they began to hold."""
        self.owed: list[Act] = []
        """Queued in their process, which has yet to tell the server."""
        self.pending: list[tuple[Act, asyncio.Task[Invalidation]]] = []
        self.open: set[Question] = set()
        self.held_by_clients: dict[tuple[int, Resource], Held] = {}
        self.program: list[Step] = []
        self.checked = 0
        self.hits = 0
        self.covered = 0
        """Answers that an invalidation in their scope had come before."""
        self.statuses: dict[str, int] = {}

    # --- the machinery ------------------------------------------------------------------------------------------

    def do(self, step: Step) -> None:
        """Let something happen, and whatever follows from it at this instant."""
        self.program.append(step)
        getattr(self, step.name)(*step.arguments)
        self.settle()
        if self.failure is not None:
            raise self.failure

    def settle(self) -> None:
        """Run every node until it waits for time or for others."""
        for _ in range(10_000):
            busy = [node for node in self.nodes if not node.suspended and node.loop.has_work]
            if not busy:
                break
            for node in busy:
                node.run()
        else:
            raise Violation("the nodes never come to rest")
        self._note_acts()

    def advance(self, seconds: float) -> None:
        """Let time go by, with all that is due in it."""
        until = self.clock.now + seconds
        self.settle()
        while True:
            timers = [node.loop.next_timer for node in self.nodes if not node.suspended]
            due = min(timers, default=float("inf"))
            if due > until:
                break
            self._move(due)
            self.settle()
        self._move(until)
        self.settle()

    def _move(self, to: float) -> None:
        if to > self.clock.now:
            self.server.passed(to - self.clock.now)
            self.clock.now = to

    def _note_acts(self) -> None:
        for act, task in list(self.pending):
            if not task.done():
                continue
            self.pending.remove((act, task))
            if task.cancelled():
                continue
            done = task.result()
            act.held = True
            if done.acknowledged:
                act.acknowledged_at = self.clock.now
            else:
                self.owed.append(act)
            self.acts.append(act)
        for act in list(self.owed):
            if not self.nodes[act.node].cache._parts.invalidations.queued:
                self.owed.remove(act)
                # a new act, because it holds for everybody only from here on
                self.acts.append(
                    Act(act.version, act.node, act.tenant, act.targets, strict=False, acknowledged_at=self.clock.now)
                )

    def captured(self, resource: Resource, node: Node, tier: Tier | None) -> Capture:
        """Read the source for a handler."""
        now = self.clock.now
        cut_off = not node.store.available or node.wire.disturbed or now - node.wire.disturbed_at <= _RECOVERY
        capture = Capture(len(self.captures), resource, self.version, now, node.number, tier, cut_off)
        self.captures.append(capture)
        if _slow.get():
            self.waiting.append(capture)
        else:
            capture.gate.set()
        return capture

    # --- the judge ----------------------------------------------------------------------------------------------

    def answered(self, question: Question, messages: Sequence[Message]) -> None:
        """Take an answer, and judge it."""
        self.open.discard(question)
        status, headers = messages[0]["status"], dict(messages[0]["headers"])
        told = headers[b"cache-status"].decode()
        if status == 304:
            assert question.client is not None, "304 for a client that has nothing"
            capture = question.client
        elif status == 200:
            capture = self.captures[int(b"".join(each["body"] for each in messages[1:]))]
            if b"etag" in headers:
                asks = any(word in headers.get(b"cache-control", b"no-cache") for word in (b"no-cache", b"no-store"))
                self.held_by_clients[question.node, question.resource] = Held(headers[b"etag"], capture, asks=asks)
        else:
            raise Violation(f"answered {status}")
        self._judge(question, capture, told)

    def _judge(self, question: Question, capture: Capture, told: str) -> None:
        self.checked += 1
        self.hits += "; hit" in told
        detail = told.partition("; ")[2]
        kind = detail if "hit" not in detail else "hit " + detail.rpartition("detail=")[2]
        self.statuses[kind] = self.statuses.get(kind, 0) + 1
        if capture.resource != question.resource:
            self._violated(question, capture, told, "another's data")
        in_scope = [act for act in self.acts[: question.before] if not act.forgotten and act.covers(capture)]
        self.covered += bool(in_scope)
        for act in in_scope:
            if capture.version < act.version and not self._excused(question, capture, told, act):
                self._violated(question, capture, told, f"{act}")

    def _excused(self, question: Question, capture: Capture, told: str, act: Act) -> bool:
        """Whether the guarantee makes an exception: a lease for other nodes' memories (G1), the fallback (G2)."""
        if act.acknowledged_at is None:
            return question.node != act.node  # queued: it holds in its own process
        if (
            act.soft
            and question.resource.operation == OPERATIONS[1]
            and question.started_at < act.acknowledged_at + STALE
        ):
            return True
        if question.node == act.node:
            return False
        if (
            not act.strict
            and question.started_at < act.acknowledged_at + LEASE
            and ("detail=memory" in told or "collapsed" in told)
        ):
            return True
        wire = self.network.wires[question.node]
        return (
            capture.tier is Tier.FALLBACK
            and capture.node == question.node
            and (capture.cut_off or wire.disturbed or wire.disturbed_at >= capture.at)
            and (capture.ended_at is None or question.started_at - capture.ended_at <= FALLBACK)
        )

    def _violated(self, question: Question, capture: Capture, told: str, why: str) -> None:
        raise Violation(
            f"node {question.node} answered {question.resource} at {question.started_at:.3f} from version "
            f"{capture.version}, captured at {capture.at:.3f} on node {capture.node} ({capture.tier}); {told}; {why}\n"
            + "\n".join(f"    {step.name}{step.arguments}" for step in self.program)
        )

    # --- what can happen ----------------------------------------------------------------------------------------

    def ask(self, node: int, resource: int, conditional: int = 0) -> None:
        """A request; where it has to be computed, the handler answers at once."""
        self._request(node, resource, conditional, waits=False)

    def begin(self, node: int, resource: int) -> None:
        """A request; where it has to be computed, the handler has read its data and takes its time."""
        self._request(node, resource, 0, waits=True)

    def _request(self, node: int, resource: int, conditional: int, *, waits: bool) -> None:
        asked = RESOURCES[resource % len(RESOURCES)]
        at = self.nodes[node % len(self.nodes)]
        headers = [(b"host", b"app"), (b"x-tenant", asked.tenant.encode())]
        held = self.held_by_clients.get((at.number, asked)) if conditional else None
        if held is not None:
            headers.append((b"if-none-match", held.etag))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": asked.path,
            "raw_path": asked.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": None,
        }
        question = Question(asked, at.number, 0.0, 0, held.capture if held is not None else None)
        if held is not None and not held.asks:
            question.started_at, question.before = self.clock.now, len(self.acts)
            self._judge(question, held.capture, "from the browser; hit")
            return
        self.open.add(question)

        async def request() -> None:
            messages: list[Message] = []

            async def receive() -> Message:
                await asyncio.Event().wait()
                raise AssertionError

            async def send(message: Message) -> None:
                messages.append(message)

            question.started_at, question.before = self.clock.now, len(self.acts)
            _slow.set(waits)
            try:
                await at.app(scope, receive, send)
            except asyncio.CancelledError:
                self.open.discard(question)
                raise
            self.answered(question, messages)

        self._watch(at.loop.create_task(request()))

    def _watch(self, task: asyncio.Task[Any]) -> None:
        def ended(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.failure = self.failure or error

        task.add_done_callback(ended)

    def end_fill(self, which: int) -> None:
        """One of the handlers that take their time sends its answer."""
        if self.waiting:
            self.waiting.pop(which % len(self.waiting)).gate.set()

    def warm(self, node: int, tenant: int, operation: int) -> None:
        """Recent requests are computed again."""
        at = self.nodes[node % len(self.nodes)]
        name = TENANTS[tenant % len(TENANTS)]
        headers = [(b"x-tenant", name.encode())]
        self._watch(at.loop.create_task(at.cache.warm(name, OPERATIONS[operation % 2], headers=headers)))

    def get_ready(self, node: int, resource: int) -> None:
        """A node comes to answer from its memory, where nothing hinders it."""
        self.ask(node, resource)
        self.advance(LEASE / 2)
        self.ask(node, resource)

    def soften(self, node: int, tenant: int, kind: int, target: int, strict: int) -> None:
        """The source changes, and somebody says so, softly."""
        self.invalidate(node, tenant, kind, target, strict, soft=True)

    def decay(self, node: int, resource: int, tick: int) -> None:
        """Something is invalidated softly, once or again, and asked for before and after its bound."""
        asked = RESOURCES[resource % len(RESOURCES)]
        self.get_ready(node, resource)
        for _ in range(1 + tick % 2):
            self.soften(node + tick, TENANTS.index(asked.tenant), 0, OPERATIONS.index(asked.operation), 0)
            self.advance(TICKS[tick % len(TICKS)])
            self.begin(node, resource)
            self.settle()
        self.advance(STALE)
        self.ask(node, resource)

    def invalidate(self, node: int, tenant: int, kind: int, target: int, strict: int, *, soft: bool = False) -> None:
        """The source changes, and somebody says so."""
        at, name = self.nodes[node % len(self.nodes)], TENANTS[tenant % len(TENANTS)]
        operation: str | None = None
        tags: tuple[str, ...] = ()
        match kind % 6:
            case 0:
                operation = OPERATIONS[target % len(OPERATIONS)]
            case 1:
                operation = GLOBS[target % len(GLOBS)]
            case 2:
                tags = (f"page:{target % PAGES}",)
            case 3:
                operation = "*"
            case 4:
                tags = (f"group:{target % GROUPS}",)
            case _:
                operation, tags = OPERATIONS[target % len(OPERATIONS)], (f"page:{target % PAGES}",)
        self.version += 1
        targets = (*(() if operation is None else (operation,)), *(f"tag:{tag}" for tag in tags))
        act = Act(self.version, at.number, name, targets, strict=bool(strict), soft=soft)

        async def invalidate() -> Invalidation:
            wait: Literal["strict", "fast"] = "strict" if strict else "fast"
            return await at.cache.invalidate(name, operation, tags=tags, wait=wait, soft=soft)

        task = at.loop.create_task(invalidate())
        self._watch(task)
        self.pending.append((act, task))

    def ingest(self, node: int, resource: int, times: int) -> None:
        """The source changes, once or twice in a row, by spans that arrive; it is asked for in between."""
        at, asked = self.nodes[node % len(self.nodes)], RESOURCES[resource % len(RESOURCES)]
        for _ in range(1 + times % 2):
            self.version += 1
            act = Act(self.version, at.number, asked.tenant, (asked.operation,), strict=False)
            task = at.loop.create_task(at.notify(asked.tenant, asked.operation))
            self._watch(task)
            self.pending.append((act, task))
            self.settle()
            self.ask(node, resource)
            self.settle()
        self.advance(TICKS[times % len(TICKS)])
        self.ask(node, resource)

    def change(self, node: int, resource: int, how: int) -> None:
        """What a node serves from its memory changes, the other node says so, and all are asked again."""
        self.get_ready(node, resource)
        asked, fate = RESOURCES[resource % len(RESOURCES)], self.network.fate
        if how >= _MIDDLE:
            self.network.fate = "lost"
        self.invalidate(node + 1, TENANTS.index(asked.tenant), 0, OPERATIONS.index(asked.operation), how % 2)
        self.settle()
        self.network.fate = fate
        for number in range(len(self.nodes)):
            self.ask(number, resource)

    def race(self, node: int, resource: int, kind: int, strict: int) -> None:
        """A handler has read its data when they change; who asks after that is answered anew."""
        asked = RESOURCES[resource % len(RESOURCES)]
        self.begin(node, resource)
        self.settle()
        self.invalidate(node + 1, TENANTS.index(asked.tenant), kind, resource, strict)
        self.settle()
        self.begin(node, resource)
        self.settle()
        self.end_fill(0)
        self.settle()
        for number in range(len(self.nodes)):
            self.ask(number, resource)

    def name(self, node: int, resource: int, strict: int) -> None:
        """A handler has read its data when what its answer is going to name changes."""
        asked = RESOURCES[resource % len(RESOURCES)]._replace(page=1)
        number = RESOURCES.index(asked)
        self.begin(node, number)
        self.settle()
        if self.waiting:
            group = self.waiting[-1].number % GROUPS
            if strict < _MIDDLE:
                self.invalidate(node + 1, TENANTS.index(asked.tenant), 4, group, strict % 2)
                self.settle()
                last = len(self.waiting) - 1
                self.ask(node, number)
                self.settle()
                self.end_fill(last)
            else:  # what it names is looked at just then
                self.end_fill(len(self.waiting) - 1)
                self.settle()
                self.invalidate(node + 1, TENANTS.index(asked.tenant), 4, group, strict % 2)
            self.advance(TICKS[1])
            self.ask(node, number)

    def late_reply(self, node: int, resource: int, tick: int, strict: int) -> None:
        """A lookup's reply stays away while what it says changes; others ask meanwhile, or not, and afterwards."""
        asked, wire = RESOURCES[resource % len(RESOURCES)], self.network.wires[node % len(self.nodes)]
        other = RESOURCES.index(asked._replace(page=(asked.page + 1) % PAGES))
        self.ask(node, other)
        if tick >= _MIDDLE:
            self.advance(TICKS[-1])  # by now every node stands in a register that is known to be whole
            self.get_ready(node, other)
        self.settle()
        self.ask(node + 1, resource)
        self.settle()
        wire.hold("data", "down")
        self.ask(node, resource)
        self.settle()
        self.invalidate(node + 1, TENANTS.index(asked.tenant), 0, OPERATIONS.index(asked.operation), strict)
        self.settle()
        if tick % 16 < 8:
            self.ask(node, resource)
        self.advance(TICKS[tick % 4])
        if tick % 32 < 16:
            self.ask(node, resource)
        self.settle()
        wire.release("data")
        self.settle()
        self.ask(node, resource)

    def late_warming(self, node: int, resource: int, strict: int) -> None:
        """Recent requests are being computed again when their data change."""
        asked = RESOURCES[resource % len(RESOURCES)]
        self.ask(node, resource)
        self.settle()
        _slow.set(True)
        self.warm(node, TENANTS.index(asked.tenant), OPERATIONS.index(asked.operation))
        _slow.set(False)
        self.settle()
        self.invalidate(node + 1, TENANTS.index(asked.tenant), 0, OPERATIONS.index(asked.operation), strict)
        self.settle()
        while self.waiting:
            self.end_fill(0)
            self.settle()
        for number in range(len(self.nodes)):
            self.ask(number, resource)

    def tick(self, which: int) -> None:
        """Time goes by."""
        self.advance(TICKS[which % len(TICKS)])

    def hold(self, node: int, role: int, way: int) -> None:
        """Commands or replies of a node's connections stay away until `release`."""
        self.network.wires[node % len(self.nodes)].hold(ROLES[role % len(ROLES)], ("up", "down")[way % 2])

    def release(self, node: int) -> None:
        """What stayed away arrives."""
        self.network.wires[node % len(self.nodes)].release()

    def messages(self, fate: int) -> None:
        """From here on messages to other nodes arrive, are lost, are late, or come twice."""
        self.network.fate = FATES[fate % len(FATES)]

    def deliver(self, which: int) -> None:
        """A late message arrives."""
        self.network.deliver_late(which)

    def cut_backplane(self, node: int) -> None:
        """A node no longer hears messages, until it has connected again."""
        self.network.wires[node % len(self.nodes)].sever("messages")

    def partition(self, node: int) -> None:
        """A node cannot reach the server."""
        wire = self.network.wires[node % len(self.nodes)]
        wire.cut = True
        wire.sever()

    def heal(self, node: int) -> None:
        """A node can reach the server again."""
        wire = self.network.wires[node % len(self.nodes)]
        wire.disturb()
        wire.cut = False

    def queued(self, node: int, resource: int, tick: int) -> None:
        """A node that cannot reach the server is told of a change, comes back, and is asked."""
        asked = RESOURCES[resource % len(RESOURCES)]
        self.ask(node, resource)
        self.settle()
        self.partition(node)
        self.invalidate(node, TENANTS.index(asked.tenant), 0, OPERATIONS.index(asked.operation), 0)
        self.advance(TICKS[tick % len(TICKS)])
        self.heal(node)
        self.ask(node, resource)
        self.advance(TICKS[tick // len(TICKS) % len(TICKS)])
        self.ask(node, resource)

    def suspend(self, node: int) -> None:
        """A process is stopped."""
        self.nodes[node % len(self.nodes)].suspend()

    def resume(self, node: int) -> None:
        """A stopped process goes on."""
        self.nodes[node % len(self.nodes)].resume()

    def sleep(self, node: int, resource: int, tick: int) -> None:
        """A process that answers from its memory is stopped while what it holds changes, and goes on later."""
        asked = RESOURCES[resource % len(RESOURCES)]
        self.get_ready(node, resource)
        self.suspend(node)
        self.invalidate(node + 1, TENANTS.index(asked.tenant), 0, OPERATIONS.index(asked.operation), 0)
        self.advance(TICKS[tick % len(TICKS)])
        self.resume(node)
        self.ask(node, resource)

    def restart_node(self, node: int) -> None:
        """A process ends and another begins."""
        number = node % len(self.nodes)
        self.nodes[number].end()
        self.network.wires[number].release()
        self.owed = [act for act in self.owed if act.node != number]
        self.pending = [(act, task) for act, task in self.pending if act.node != number]
        self.waiting = [capture for capture in self.waiting if capture.node != number]
        self.open = {question for question in self.open if question.node != number}
        for act in self.acts:
            act.forgotten |= act.acknowledged_at is None and act.node == number
        self.nodes[number] = Node(self, number)

    def skew(self, node: int, seconds: int) -> None:
        """A node's wall clock is set."""
        self.nodes[node % len(self.nodes)].skew = float(seconds)

    def snapshot(self) -> None:
        """The server saves its data."""
        self.server.snapshot()

    def restart(self, empty: int) -> None:
        """The server ends, and begins again with nothing or with what it last saved."""
        self.network.sever()
        self.server.restart(empty=bool(empty))

    def replicate(self) -> None:
        """The replica catches up."""
        self.server.replicate()

    def failover(self) -> None:
        """The replica becomes the primary, with what it has; the old primary becomes its replica."""
        self.network.sever()
        self.server.failover()

    def lag(self, node: int, resource: int) -> None:
        """The replica has what has been changed since."""
        asked = RESOURCES[resource % len(RESOURCES)]
        self.ask(node, resource)
        self.settle()
        self.replicate()
        self.invalidate(node, TENANTS.index(asked.tenant), 0, OPERATIONS.index(asked.operation), 0)
        self.settle()
        for number in range(len(self.nodes)):
            self.ask(number, resource)

    def relapse(self, node: int, resource: int, how: int) -> None:
        """Something is filled and its server's state kept; it changes; then that state comes back."""
        asked = RESOURCES[resource % len(RESOURCES)]
        self.ask(node, resource)
        self.settle()
        (self.replicate if how % 2 else self.snapshot)()
        self.invalidate(node, TENANTS.index(asked.tenant), 0, OPERATIONS.index(asked.operation), 0)
        self.settle()
        if how % 2:
            self.failover()
        else:
            self.restart(0)
        self.settle()
        for number in range(len(self.nodes)):
            self.ask(number, resource)

    def evict(self, which: int) -> None:
        """The server needs room and drops a key."""
        keys = self.server.keys()
        if keys:
            self.server.evict(keys[which % len(keys)])

    def lose_token(self, node: int, resource: int, kind: int) -> None:
        """Something is filled, one of its generations is evicted, and it changes."""
        asked = RESOURCES[resource % len(RESOURCES)]
        self.ask(node, resource)
        self.settle()
        tenant = asked.tenant.encode()
        self.server.evict(
            (b"nexarch:%b:@op:%b" % (tenant, asked.operation.encode()), b"nexarch:%b:@tenant" % tenant)[kind % 2]
        )
        self.invalidate(node, TENANTS.index(asked.tenant), (0, 3)[kind % 2], OPERATIONS.index(asked.operation), 0)
        self.settle()
        for number in range(len(self.nodes)):
            self.ask(number, resource)

    def lose_register(self, node: int, resource: int, tick: int) -> None:
        """The register of nodes is lost while a node answers from its memory what then changes."""
        asked = RESOURCES[resource % len(RESOURCES)]
        self.advance(TICKS[tick % len(TICKS)])
        self.get_ready(node, resource)
        self.server.evict(NODES)
        fate, self.network.fate = self.network.fate, "lost"
        self.invalidate(node + 1, TENANTS.index(asked.tenant), 0, OPERATIONS.index(asked.operation), 1)
        self.settle()
        self.ask(node, resource)
        self.network.fate = fate

    def lose_registry(self, tenant: int) -> None:
        """The server drops what knows a tenant's operations."""
        self.server.evict(b"nexarch:%b:@ops" % TENANTS[tenant % len(TENANTS)].encode())

    def partial_loss(self, node: int, tenant: int, glob: int) -> None:
        """A registry is lost, others write into it again, and a glob is resolved in it."""
        tenant %= len(TENANTS)
        first, second = tenant * 2 * PAGES, tenant * 2 * PAGES + PAGES
        self.ask(node, first)
        self.ask(node, second)
        self.settle()
        self.lose_registry(tenant)
        self.server.execute(("SADD", b"nexarch:%b:@ops" % TENANTS[tenant].encode(), OPERATIONS[glob % 2]))
        self.invalidate(node, tenant, 1, 0, 0)
        self.settle()
        self.ask(node, first)
        self.ask(node, second)

    def rebuilt(self, node: int, tenant: int, page: int) -> None:
        """A registry is lost, restored for another operation, and a glob is resolved in it."""
        tenant %= len(TENANTS)
        first = tenant * 2 * PAGES + page % PAGES
        self.ask(node, first)
        self.settle()
        self.lose_registry(tenant)
        self.invalidate(node, tenant, 0, 1, 0)
        self.settle()
        self.ask(node + page, first + PAGES)
        self.settle()
        self.invalidate(node, tenant, 1, 0, 0)
        self.settle()
        self.ask(node, first)

    def refuse(self, node: int, resource: int, kind: int, strict: int) -> None:
        """A server without memory takes no capture while what is being computed changes."""
        self.invalidate(node, TENANTS.index(RESOURCES[resource % len(RESOURCES)].tenant), 0, kind, 0)
        self.settle()
        self.full(1)
        self.race(node, resource, kind, strict)
        self.settle()
        self.full(kind)

    def full(self, full: int) -> None:
        """The server has no memory left, or has some again."""
        self.server.full(full=bool(full))

    # --- the end ------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Put everything right again, see that every request is answered and that answers are right; then stop."""
        try:
            if self.failure is None:
                self._recover()
        finally:
            for node in self.nodes:
                node.end()

    def _recover(self) -> None:
        self.network.fate = "arrive"
        self.server.full(full=False)
        for number, node in enumerate(self.nodes):
            node.resume()
            if self.network.wires[number].cut:
                self.heal(number)
            self.release(number)
        for _ in range(4):
            while self.waiting:
                self.do(Step("end_fill", (0,)))
            self.advance(_PATIENCE / 4)
            if not (self.open or self.pending or self.owed or self.waiting):
                break
        if self.failure is not None:
            raise self.failure
        if self.open or self.pending:
            raise Violation(f"never answered: {self.open} {self.pending}")
        for number in range(len(self.nodes)):
            for resource in range(len(RESOURCES)):
                self.do(Step("ask", (number, resource)))
        self.settle()
        if self.failure is not None:
            raise self.failure


def replay(
    clock: Clock, program: Sequence[Step], *, server: Callable[[], Server] | None = None, nodes: int = 2
) -> World:
    """Let a program happen; raises Violation if it breaks the guarantee. Returns the world as it ended."""
    world = World(clock, nodes=nodes, server=server() if server is not None else None)
    try:
        for step in program:
            world.do(step)
    except BaseException as error:
        world.failure = world.failure or error
        raise
    finally:
        world.end()
    return world
