"""The synchronous face: plain functions from any thread, before and after forks, beside an event loop and without."""

import asyncio
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from nexcache import CacheMiddleware, ConfigurationError, NexCache, Settings, tenants
from nexcache.errors import CannotKey, NoTenant, StoreUnavailable
from nexcache.forgetting import Forgotten
from nexcache.functions import Cached
from nexcache.rate_limit import RateLimit
from nexcache.sessions import Sessions
from nexcache.sync import SyncCached, SyncFace, SyncRateLimit, SyncSessions, SyncValues
from nexcache.telemetry.events import Answered, Event
from nexcache.telemetry.names import Result, Tier
from nexcache.values import Values
from tests.servers import Valkey

ROOT = Path(__file__).parent.parent


def in_memory() -> NexCache:
    return NexCache(Settings(redis_url=None, redis_host=None), default_tenant="acme")


def in_store(url: str, **more: Any) -> NexCache:
    return NexCache(Settings(redis_url=url, op_timeout_ms=2000, **more), default_tenant="acme")


@pytest.fixture(params=["memory", "store"])
def cache(request: pytest.FixtureRequest) -> Iterator[NexCache]:
    made = in_memory() if request.param == "memory" else in_store(request.getfixturevalue("redis_url"))
    with made.sync:
        yield made
    assert "nexcache-sync" not in {thread.name for thread in threading.enumerate()}


# --- functions -----------------------------------------------------------------------------------------------------


def test_a_plain_functions_result_is_computed_once_in_the_thread_that_asked(cache: NexCache) -> None:
    computed: list[tuple[int, str]] = []

    @cache.sync.cached("users", ttl=60, tags=["user:{number}"])
    def users(number: int) -> list[int]:
        """Users."""
        computed.append((number, threading.current_thread().name))
        return [number]

    assert [users(1), users(number=1), users(2), users(1)] == [[1], [1], [2], [1]]
    assert computed == [(1, "MainThread"), (2, "MainThread")]
    users(1).append(5)
    assert users(1) == [1]
    assert users.__doc__ == "Users."
    cache.sync.invalidate("acme", tags=["user:1"])
    users(1)
    users(2)
    assert len(computed) == 3


def test_one_call_is_invalidated_refreshed_set_and_bypassed(cache: NexCache) -> None:
    count = iter(range(100))

    @cache.sync.cached("users", ttl=60)
    def users(number: int) -> int:
        return next(count)

    assert [users(1), users(1)] == [0, 0]
    assert users.invalidate(1).acknowledged
    assert [users(1), users(1)] == [1, 1]
    assert [users.refresh(1), users(1)] == [2, 2]
    assert users.set(50, 1)
    assert [users(1), users.bypass(1), users(1)] == [50, 3, 50]
    assert users.explain(1).stored
    assert users.key(1) == users.explain(1).key


def test_none_is_kept_and_an_exception_is_not(cache: NexCache) -> None:
    answers: Iterator[object] = iter([KeyError("a"), None])

    @cache.sync.cached("users", ttl=60)
    def users() -> None:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer

    with pytest.raises(KeyError, match="a"):
        users()
    for _ in range(3):
        users()


def test_methods_are_cached(cache: NexCache) -> None:
    class Repository:
        def __init__(self) -> None:
            self.calls = 0

        @cache.sync.cached("client", ttl=60, exclude=["self"])
        def client(self, number: int) -> int:
            """One client."""
            self.calls += 1
            return number

    one, other = Repository(), Repository()
    assert [one.client(1), other.client(1), one.client(2)] == [1, 1, 2]
    assert (one.calls, other.calls) == (2, 0)
    assert one.client.__doc__ == "One client."


def test_an_argument_that_cannot_be_keyed_is_named_and_a_missing_tenant_told() -> None:
    cache = NexCache(Settings(redis_url=None, redis_host=None))

    @cache.sync.cached("users", ttl=60)
    def users(session: object) -> None:
        """Nothing."""

    with tenants.acting_for("acme"), pytest.raises(CannotKey, match="'session'"):
        users(object())
    with pytest.raises(NoTenant):
        users(1)
    assert cache.home is None  # nothing was started for that


async def coroutine_function() -> None:
    """Nothing."""


def generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(("function", "message"), [(coroutine_function, "cache.cached"), (generator, "return a list")])
def test_only_plain_functions_are_taken(function: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        in_memory().sync.cached("users", ttl=60)(function)


def test_get_or_compute(cache: NexCache) -> None:
    count = iter(range(100))
    for _ in range(3):
        assert cache.sync.get_or_compute("acme", "report", (1, "a"), lambda: next(count), ttl=60) == 0
    assert cache.sync.get_or_compute("acme", "report", (1, "b"), lambda: next(count), ttl=60) == 1


def test_a_disabled_operation_is_called(cache: NexCache) -> None:
    count = iter(range(100))
    cached = cache.sync.cached("users", ttl=60)(lambda: next(count))
    cache.disable("users")
    assert [cached(), cached(), cache.sync.get_or_compute("acme", "users", (), lambda: next(count))] == [0, 1, 2]
    cache.enable("users")
    assert [cached(), cached()] == [3, 3]


def test_values_statistics_health_and_limits_have_their_synchronous_forms(cache: NexCache) -> None:
    values = cache.sync.tenant("acme")
    values.set("a", 1)
    values.set_many({"b": [2], "c": None}, "1h")
    with values.pipeline() as pipeline:
        count = pipeline.increment("a", 4)

    assert (count.value, values.get("a"), values.increment("a", 5), values.exists("x")) == (5, 5, 10, False)
    assert values.get_many(["a", "b", "x"]) == {"a": 10, "b": [2]}
    assert (values.expire("a", 60), values.delete("a", "b", "x"), values.get("a", 0)) == (True, 2, 0)
    assert [cache.sync.check_rate_limit("whatsapp", 2, 86400) for _ in range(3)] == [(True, 1), (True, 2), (False, 2)]
    cached = cache.sync.cached("users", ttl=60)(lambda: 1)
    cached()
    cached()
    statistics = cache.sync.stats("acme")
    assert (statistics.operations["users"].hits, statistics.operations["users"].misses) == (1, 1)
    assert cache.sync.health().available
    assert "users" in cache.sync.operations("acme")
    assert cache.sync.warm("acme", "users").requested == 0
    assert cache.sync.run(cache.status()).store.available


def test_sessions_and_rate_limits_have_their_synchronous_forms(cache: NexCache) -> None:
    sessions = cache.sync.sessions(ttl="1h", tenant="acme")
    session = sessions.create({"cart": [1]}, user="ann")
    changed = sessions.update(session.id, {"cart": [1, 2]})
    saved = sessions.save(session, {"cart": []})
    rotated = sessions.rotate(session.id)
    assert changed is not None
    assert saved is not None
    assert rotated is not None
    other = sessions.create(user="ann")

    assert (changed.data, saved.data, rotated.data) == ({"cart": [1, 2]}, {"cart": []}, {"cart": []})
    assert sessions.get(session.id) is None
    assert (sessions.delete(other.id), sessions.delete(other.id)) == (True, False)
    sessions.revoke("ann")
    assert sessions.get(rotated.id) is None

    limit = cache.sync.rate_limit("2/hour", name="calls", algorithm="fixed-window")
    assert [limit.check("ann", tenant="acme").allowed for _ in range(3)] == [True, True, False]
    assert limit.check("ann", tenant="globex", cost=0).count == 0


def test_a_tenant_is_looked_after_and_forgotten_from_synchronous_code(cache: NexCache) -> None:
    values = cache.sync.tenant("acme")
    values.set("a", 1)
    cached = cache.sync.cached("users", ttl=60)(lambda: 1)
    cached()
    told: list[Forgotten] = []

    assert cache.sync.preview("acme", "users").entries == 1
    assert cache.sync.switch("users", tenant="acme", off=True)
    assert cache.is_disabled("users", "acme")
    assert cache.sync.trend("acme").last(3600).misses == 1
    assert "acme" in cache.sync.tenants()[0]
    assert cache.sync.status().store.available
    assert len(cache.sync.sample("acme").entries) == 1
    assert cache.sync.explain("acme", "/x").verdict == "no-policy"
    assert cache.sync.mend() == 0
    done = cache.sync.forget("acme", progress=told.append)
    assert told[-1] == done
    assert done.done
    assert (values.get("a"), cache.is_disabled("users", "acme")) == (None, False)


INSIDE = {"start", "aclose", "refill", "invalidate_targets", "preview_targets"}
"""What has no synchronous form: it starts itself, and the rest is for other parts of the cache."""


@pytest.mark.parametrize(
    ("awaited", "plain"),
    [(NexCache, SyncFace), (Values, SyncValues), (Sessions, SyncSessions), (RateLimit, SyncRateLimit),
     (Cached, SyncCached)],
)  # fmt: skip
def test_every_call_has_a_synchronous_form_with_the_same_parameters(awaited: type, plain: type) -> None:
    calls = {
        name: list(inspect.signature(call).parameters.values())
        for name, call in inspect.getmembers(awaited, inspect.isfunction)
        if not name.startswith("_") and name not in INSIDE and inspect.iscoroutinefunction(call)
    }
    if awaited is NexCache:
        calls |= {name: [*inspect.signature(getattr(NexCache, name)).parameters.values()] for name in MADE}
    assert calls
    for name, parameters in calls.items():
        form = [*inspect.signature(getattr(plain, name)).parameters.values()]
        assert [(each.name, each.kind, each.default) for each in form] == [
            (each.name, each.kind, each.default) for each in parameters
        ], name


MADE = ("cached", "tenant", "sessions", "rate_limit")


def test_the_same_entries_are_behind_both_faces(redis_url: str) -> None:
    """A coroutine function and a plain one with the same key share results."""
    cache = in_store(redis_url)
    plain = cache.sync.cached("users", ttl=60, key=lambda number: number)(lambda number: f"plain {number}")
    with cache.sync:
        assert plain(1) == "plain 1"

    async def main() -> str:
        async with in_store(redis_url) as other:

            @other.cached("users", ttl=60, key=lambda number: number)
            async def users(number: int) -> str:
                return "coroutine"

            return await users(1)

    assert asyncio.run(main()) == "plain 1"


# --- threads -------------------------------------------------------------------------------------------------------


def test_of_fifty_threads_that_ask_for_the_same_one_computes(cache: NexCache) -> None:
    computed: list[int] = []

    @cache.sync.cached("users", ttl=60)
    def users(number: int) -> list[int]:
        computed.append(number)
        time.sleep(0.05)
        return [number]

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(users, [1] * 50))

    assert results == [[1]] * 50
    assert len({id(result) for result in results}) == 50
    assert computed == [1]


def test_hits_in_memory_are_answered_in_the_calling_thread_while_the_loop_stands_still() -> None:
    told: list[tuple[Event, str]] = []
    cache = in_memory()
    cache.emitter.subscribe(lambda event: told.append((event, threading.current_thread().name)), Answered)
    with cache.sync:
        cached = cache.sync.cached("users", ttl=60)(lambda: 1)
        cached()
        cached()
        assert cache.home is not None
        held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            go_on.wait(10)

        cache.home.call_soon_threadsafe(hold)
        assert held.wait(10)
        try:
            assert cached() == 1
        finally:
            go_on.set()

    event, thread = told[-1]
    assert isinstance(event, Answered)
    assert (event.result, event.tier, thread) == (Result.HIT, Tier.MEMORY, "MainThread")


def test_what_the_store_holds_is_soon_answered_from_memory(redis_url: str) -> None:
    tiers: list[Tier | None] = []
    cache = in_store(redis_url)
    cache.emitter.subscribe(lambda event: tiers.append(event.tier) if isinstance(event, Answered) else None, Answered)
    with cache.sync:
        cached = cache.sync.cached("users", ttl=60)(lambda: 1)
        for _ in range(200):
            cached()
            if Tier.MEMORY in tiers:
                break
            time.sleep(0.02)

    assert tiers[-1] is Tier.MEMORY


def test_hits_of_many_threads_are_all_counted(cache: NexCache) -> None:
    cached = cache.sync.cached("users", ttl=60)(lambda number: number)
    for number in range(10):
        cached(number)
    threads = [threading.Thread(target=lambda: [cached(number % 10) for number in range(2_000)]) for _ in range(4)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)

    statistics = cache.sync.stats("acme").operations["users"]
    assert (statistics.misses, statistics.hits) == (10, 8_000)


def test_an_invalidation_by_one_thread_is_seen_by_the_next_call_of_another(cache: NexCache) -> None:
    database = 0

    @cache.sync.cached("users", ttl=60)
    def users() -> int:
        return database

    acknowledged, asked = threading.Semaphore(0), threading.Semaphore(0)
    wrong: list[tuple[int, int]] = []

    def ask() -> None:
        for number in range(1, 101):
            acknowledged.acquire()
            if (found := users()) != number:
                wrong.append((number, found))
            asked.release()

    reader = threading.Thread(target=ask)
    reader.start()
    for database in range(1, 101):  # noqa: B007 - read by the function
        cache.sync.invalidate("acme", "users")
        acknowledged.release()
        asked.acquire()
    reader.join()

    assert wrong == []


def test_a_computation_may_ask_the_cache_itself(cache: NexCache) -> None:
    inner = cache.sync.cached("inner", ttl=60)(lambda number: number + 1)
    outer = cache.sync.cached("outer", ttl=60)(lambda number: inner(number) * 10)

    assert [outer(1), outer(1), inner(1)] == [20, 20, 2]


# --- beside an event loop ------------------------------------------------------------------------------------------


async def test_in_a_thread_with_an_event_loop_it_is_refused() -> None:
    cache = in_memory()
    calls: list[Callable[[], object]] = [
        cache.sync.cached("users", ttl=60)(lambda: 1),
        lambda: cache.sync.tenant("acme").get("a"),
        lambda: cache.sync.get_or_compute("acme", "users", (), lambda: 1),
    ]

    for call in calls:
        with pytest.raises(RuntimeError, match="await the same call of the cache itself"):
            call()


async def test_a_programs_own_event_loop_is_used_by_its_threads() -> None:
    async with in_memory() as cache:
        cached = cache.sync.cached("users", ttl=60)(lambda number: number)
        values = cache.sync.tenant("acme")

        assert await asyncio.to_thread(cached, 1) == 1
        await asyncio.to_thread(values.set, "a", 5)

        assert cache.home is asyncio.get_running_loop()
        assert await cache.tenant("acme").get("a") == 5
        assert "nexcache-sync" not in {thread.name for thread in threading.enumerate()}


def test_import_time_calls_and_the_event_loop_that_comes_later_share_one_cache(redis_url: str) -> None:
    """Used before the server starts, in it, and after it has ended."""
    cache = in_store(redis_url)
    cached = cache.sync.cached("users", ttl=60)(lambda number: [number])
    assert cached(1) == [1]
    assert cache.home is not None

    async def main() -> None:
        async with cache:
            assert cache.home is asyncio.get_running_loop()
            await cache.tenant("acme").set("a", 1)
            assert await asyncio.to_thread(cached, 1) == [1]
            assert await asyncio.to_thread(cached, 2) == [2]
        assert "nexcache-sync" not in {thread.name for thread in threading.enumerate()}

    asyncio.run(main())
    with cache.sync:
        assert cache.sync.tenant("acme").get("a") == 1
        assert cached(3) == [3]


async def test_inside_a_request_a_plain_handlers_call_has_the_requests_tenant() -> None:
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    keys: set[str] = set()

    @cache.sync.cached("users", ttl=60)
    def users() -> int:
        return 1

    def handler(_: Request) -> Response:
        users()
        users.explain()
        keys.add(users.explain().key.split(":")[1])
        return PlainTextResponse("")

    async def slowly(scope: Any) -> str | None:
        await asyncio.sleep(0)
        return "globex"

    for resolver in (tenants.fixed("acme"), slowly):
        middleware = Middleware(CacheMiddleware, cache=cache, tenant=resolver)
        app = Starlette(routes=[Route("/", handler)], middleware=[middleware])
        async with cache, httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://app") as client:
            assert (await client.get("/")).status_code == 200

    assert keys == {"acme", "globex"}


# --- life cycle ----------------------------------------------------------------------------------------------------


def test_it_is_a_context_manager_that_opens_again(cache: NexCache) -> None:
    cached = cache.sync.cached("users", ttl=60)(lambda: 1)
    for _ in range(3):
        with cache.sync:
            assert cached() == 1
            cache.sync.tenant("acme").increment("count")
        assert cache.home is None
    cache.sync.close()
    cache.sync.close()


def test_while_the_store_is_away_functions_answer_and_values_raise(own_valkey: Valkey) -> None:
    with in_store(own_valkey.url).sync as face:
        cached = face.cached("users", ttl=60)(lambda number: number)
        cached(1)
        own_valkey.kill()

        assert cached(2) == 2
        with pytest.raises(StoreUnavailable):
            face.tenant("acme").get("a")


def run(script: str, *arguments: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


SCRIPT = """
import sys, threading
from nexcache import NexCache, Settings
cache = NexCache(Settings(redis_url=sys.argv[1] or None, redis_host=None, op_timeout_ms=2000), default_tenant="acme")

@cache.sync.cached("users", ttl=60)
def users(number):
    return [number]

print(users(1), users(1), cache.sync.tenant("acme").increment("count"))
"""


@pytest.mark.parametrize("ending", ["", "threading.Thread(target=users, args=(2,)).start()"])
@pytest.mark.parametrize("where", ["memory", "store"])
def test_a_script_ends_cleanly_without_closing_anything(
    request: pytest.FixtureRequest, where: str, ending: str
) -> None:
    """No word on standard error, in development mode and with warnings as errors."""
    url = request.getfixturevalue("redis_url") if where == "store" else ""

    ended = run(SCRIPT + ending, url)

    assert (ended.returncode, ended.stdout) == (0, "[1] [1] 1\n")
    assert [line for line in ended.stderr.splitlines() if "nexcache.st" not in line] == []


def test_an_invalidation_just_before_the_end_of_the_interpreter_is_delivered(valkey: Valkey, redis_url: str) -> None:
    run(SCRIPT, redis_url)
    before = valkey.ask("GET", "nexarch:acme:@op:users")
    assert before is not None

    run(SCRIPT + 'cache.sync.invalidate("acme", "users")', redis_url)

    assert valkey.ask("GET", "nexarch:acme:@op:users") is None


def test_what_a_script_counted_is_in_the_statistics_after_its_end(redis_url: str) -> None:
    run(SCRIPT, redis_url)

    cache = in_store(redis_url)
    with cache.sync:
        counts = cache.sync.stats("acme").operations["users"]
    assert (counts.misses, counts.hits) == (1, 1)


FORKS = """
import os, sys, threading
from nexcache import NexCache, Settings
from nexcache.telemetry.events import Answered
cache = NexCache(Settings(redis_url=sys.argv[1] or None, redis_host=None, op_timeout_ms=2000), default_tenant="acme")
computed = []

@cache.sync.cached("users", ttl=60)
def users(number):
    computed.append(number)
    return [os.getpid(), number]

values = cache.sync.tenant("acme")
told = []
cache.emitter.subscribe(lambda event: told.append(event.operation), Answered)
values.increment("count")
users(1)
stop = threading.Event()

def ask():
    while not stop.is_set():
        users(len(computed) % 50)
        values.increment("busy")

asking = [threading.Thread(target=ask) for _ in range(2)]
for thread in asking:
    thread.start()
children = []
for number in range(4):
    pid = os.fork()
    if pid == 0:
        told.clear()
        mine = users(100 + number)
        assert told == ["users"], told
        assert mine == [os.getpid(), 100 + number], mine
        assert users(100 + number) == mine
        assert users(1)[1] == 1
        for _ in range(25):
            values.increment("count")
        cache.sync.invalidate("acme", "users")
        users(1)
        sys.exit(0)
    children.append(pid)
codes = [os.waitpid(pid, 0)[1] for pid in children]
stop.set()
for thread in asking:
    thread.join()
print(codes, values.get("count"))
"""


def test_forked_children_and_their_parent_use_the_cache_each_with_its_own_connections(redis_url: str) -> None:
    """Forked while other threads are in the middle of calls; a shared socket would give answers of others."""
    ended = run(FORKS, redis_url)

    assert (ended.returncode, ended.stdout) == (0, "[0, 0, 0, 0] 101\n"), ended.stderr
    # the last two: of a busy machine, asyncio's and those of a heartbeat that came late
    expected = ("nexcache.st", "fork()", "Executing <", "nexcache.backplane_changed")
    warned = [line for line in ended.stderr.splitlines() if not any(word in line for word in expected)]
    assert warned == []


WSGI = """
import os
from nexcache import NexCache, Settings
cache = NexCache(Settings(redis_url=os.environ["REDIS_URL"], op_timeout_ms=2000), default_tenant="acme")

@cache.sync.cached("users", ttl=60)
def users(number):
    return os.getpid()

users(0)  # at import time, in the master

def app(environ, start_response):
    count = cache.sync.tenant("acme").increment("count")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {users(int(environ['QUERY_STRING']))} {count}".encode()]
"""


def test_behind_a_pre_forking_wsgi_server(redis_url: str, tmp_path: Path) -> None:
    """gunicorn imports the app in its master, which uses the cache there, and forks its workers."""
    (tmp_path / "program.py").write_text(WSGI)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--preload", "--workers", "3", "--threads", "4", "--bind", f"127.0.0.1:{port}"]
    words += ["--chdir", str(tmp_path), "--graceful-timeout", "10", "--no-control-socket"]
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", *words, "program:app"],
        env=os.environ | {"REDIS_URL": redis_url, "PYTHONPATH": f"{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "gunicorn ended"
            time.sleep(0.05)

        def ask(number: int) -> tuple[int, ...]:
            answer = httpx2.get(f"http://127.0.0.1:{port}/?{number % 5}", timeout=20)
            assert answer.status_code == 200, answer.text
            return tuple(map(int, answer.text.split()))

        answers: list[tuple[int, ...]] = []
        with ThreadPoolExecutor(8) as pool:
            while len({asked for asked, *_ in answers}) < 3 and len(answers) < 2_000:  # a worker boots after the first
                answers += pool.map(ask, range(100))
    finally:
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=30)
    asked, computed, counts = zip(*answers, strict=True)
    assert len(set(asked)) == 3
    assert sorted(counts) == list(range(1, len(answers) + 1))
    assert set(computed) <= {*asked, server.pid}
    assert {answer[1] for number, answer in enumerate(answers) if number % 5 == 0} == {server.pid}  # at import time
    assert "Traceback" not in errors
    assert server.returncode == 0
