"""Rate limits: what is let through, in one process and in the store, and what happens while the store is away."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexcache import ConfigurationError, NexCache, Settings
from nexcache.key import KeySpace
from nexcache.rate_limit import SCRIPTS, Algorithm, LocalCounts, Rate, RateLimit, State, decide
from nexcache.testing import FakeClock, FaultProxy
from tests.servers import Valkey
from tests.wire.server import until

SECOND = 1_000_000


# --- rates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limit", "window"),
    [
        ("100/minute", 100, 60.0),
        ("100/min", 100, 60.0),
        ("5 per 10 seconds", 5, 10.0),
        ("1/s", 1, 1.0),
        (" 7 / 2 hours ", 7, 7200.0),
        ("1000/day", 1000, 86400.0),
        ("3/week", 3, 604800.0),
        ("60/M", 60, 60.0),
    ],
)
def test_a_rate_is_read_as_it_is_spoken(text: str, limit: int, window: float) -> None:
    assert Rate.parse(text) == Rate(limit, window)


@pytest.mark.parametrize(
    "text", ["", "100", "100/", "/minute", "-1/s", "0/s", "1/0s", "1.5/s", "100/fortnight", "9/s/s", "9" * 12 + "/s"]
)
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"rate"):
        Rate.parse(text)


# --- one process ---------------------------------------------------------------------------------------------------


def local(rate: str, algorithm: Algorithm, clock: FakeClock) -> RateLimit:
    return RateLimit(rate, algorithm=algorithm, store=None, keys=KeySpace(), local=LocalCounts(clock=clock))


async def allowed(limit: RateLimit, times: int, subject: str = "user") -> int:
    return sum([(await limit.check(subject, tenant="acme")).allowed for _ in range(times)])


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_as_many_as_the_limit_pass_at_once_and_no_more(algorithm: Algorithm) -> None:
    limit = local("100/minute", algorithm, FakeClock(1_000_000.0))
    assert await allowed(limit, 250) == 100
    decision = await limit.check("user", tenant="acme")
    assert (decision.allowed, decision.remaining, decision.count) == (False, 0, 100)
    assert decision.retry_after > 0


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_who_waits_as_told_is_let_through(algorithm: Algorithm) -> None:
    clock = FakeClock(1_000_000.0)
    limit = local("10/minute", algorithm, clock)
    await allowed(limit, 10)
    clock.advance((await limit.check("user", tenant="acme")).retry_after - 0.001)
    assert not (await limit.check("user", tenant="acme")).allowed
    clock.advance(0.002)
    assert (await limit.check("user", tenant="acme")).allowed


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_tenants_and_subjects_are_counted_apart(algorithm: Algorithm) -> None:
    limit = local("1/minute", algorithm, FakeClock(1_000_000.0))
    for tenant, subject in (("acme", "a"), ("acme", "b"), ("globex", "a")):
        assert (await limit.check(subject, tenant=tenant)).allowed
        assert not (await limit.check(subject, tenant=tenant)).allowed


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_looking_counts_nothing(algorithm: Algorithm) -> None:
    limit = local("2/minute", algorithm, FakeClock(1_000_000.0))
    await allowed(limit, 1)
    looks = [await limit.check("user", tenant="acme", cost=0) for _ in range(5)]
    assert {(look.allowed, look.count, look.remaining) for look in looks} == {(True, 1, 1)}


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_a_cost_that_does_not_fit_counts_nothing(algorithm: Algorithm) -> None:
    limit = local("5/minute", algorithm, FakeClock(1_000_000.0))
    assert not (await limit.check("user", tenant="acme", cost=6)).allowed
    assert (await limit.check("user", tenant="acme", cost=5)).allowed
    with pytest.raises(ValueError, match="cost"):
        await limit.check("user", tenant="acme", cost=-1)


async def test_a_fixed_window_ends_all_at_once() -> None:
    clock = FakeClock(1_000_000.0)
    limit = local("10/minute", Algorithm.FIXED_WINDOW, clock)
    await allowed(limit, 1)
    clock.advance(59)
    assert await allowed(limit, 20) == 9
    clock.advance(1.001)
    assert await allowed(limit, 20) == 10


async def test_a_sliding_window_fades() -> None:
    clock = FakeClock(1_000_020.0)  # sixty seconds divide 1,000,020
    limit = local("10/minute", Algorithm.SLIDING_WINDOW, clock)
    assert await allowed(limit, 20) == 10
    clock.advance(60 + 30)
    assert await allowed(limit, 20) == 5


async def test_gcra_gives_room_back_one_by_one() -> None:
    clock = FakeClock(1_000_000.0)
    limit = local("60/minute", Algorithm.GCRA, clock)
    assert await allowed(limit, 100) == 60
    clock.advance(3.0)
    assert await allowed(limit, 100) == 3


def test_a_process_remembers_a_bounded_number_of_subjects_and_no_longer_than_it_must() -> None:
    clock = FakeClock()
    counts = LocalCounts(clock=clock, most=100)
    for number in range(1_000):
        counts.count(Algorithm.GCRA, b"k%d" % number, Rate(1, 60.0), 1)
    assert len(counts) == 100
    assert counts.forget(b"k99") == 10
    clock.advance(61)
    counts.count(Algorithm.GCRA, b"k950", Rate(1, 60.0), 0)
    assert counts.count(Algorithm.GCRA, b"k950", Rate(1, 60.0), 1)[0] == 1


@given(
    st.sampled_from(Algorithm),
    st.integers(1, 50),
    st.integers(1, 100).map(lambda tenths: tenths * SECOND // 10),
    st.lists(st.tuples(st.integers(0, 3 * SECOND), st.integers(0, 5)), min_size=1, max_size=80),
)
def test_no_window_lets_more_than_twice_the_limit_through_and_gcra_no_more_than_its_rate(
    algorithm: Algorithm, limit: int, window: int, steps: list[tuple[int, int]]
) -> None:
    """Every span of one window is looked at."""
    state: State = ()
    now, passed = 10**12, []
    for pause, cost in steps:
        now += pause
        (ok, count, reset, retry), state, _ = decide(algorithm, state, now=now, limit=limit, window=window, cost=cost)
        assert 0 <= count <= limit or not ok
        assert reset >= 0
        assert (retry > 0) is (not ok) or cost > limit
        if ok:
            passed.append((now, cost))
    for start, _ in passed:
        inside = sum(cost for at, cost in passed if start <= at < start + window)
        assert inside <= 2 * limit
    since = passed[0][0] if passed else 0
    if algorithm is Algorithm.GCRA:
        assert sum(cost for _, cost in passed) <= limit + (now - since) * limit / window + 1e-6


# --- the store -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(valkey: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis(port=valkey.port, socket_timeout=5) as client:
        yield client


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(Algorithm),
    st.integers(1, 1000),
    st.integers(1, 10**6).map(lambda milliseconds: milliseconds * 1000),
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 5)), min_size=1, max_size=25),
)
def test_the_script_and_the_function_decide_alike(
    server: redis.Redis, algorithm: Algorithm, limit: int, window: int, steps: list[tuple[int, int]]
) -> None:
    """The script is told the time here, and otherwise carried out as it is."""
    script = SCRIPTS[algorithm].replace(b"redis.call('TIME')", b"{ARGV[4], ARGV[5]}")
    assert script != SCRIPTS[algorithm]
    server.delete("limit")
    state: State = ()
    now = 1_700_000_000 * SECOND
    for pause, cost in steps:
        now += min(pause, 3 * window)
        transaction = server.pipeline()
        transaction.eval(script.decode(), 1, "limit", limit, window, cost, now // SECOND, now % SECOND)
        transaction.persist("limit")  # its time does not pass
        reply, _ = transaction.execute()
        expected, state, _ = decide(algorithm, state, now=now, limit=limit, window=window, cost=cost)
        assert tuple(reply) == expected


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[NexCache]:
    async with NexCache(Settings(redis_url=redis_url, op_timeout_ms=1000)) as made:
        yield made


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_the_store_counts_and_forgets(cache: NexCache, valkey: Valkey, algorithm: Algorithm) -> None:
    limit = cache.rate_limit("3/hour", algorithm=algorithm)
    decisions = [await limit.check("user@example.com", tenant="acme") for _ in range(5)]
    assert [decision.allowed for decision in decisions] == [True, True, True, False, False]
    assert {decision.counted_by for decision in decisions} == {"store"}
    (key,) = valkey.ask("KEYS", "nexarch.limit:acme:*")
    assert b"user" not in key
    assert 0 < valkey.ask("PTTL", key) <= 2 * 3_600_000


COUNTER = """
import asyncio, sys
from nexcache import NexCache, Settings

async def main():
    async with NexCache(Settings(redis_url=sys.argv[1], op_timeout_ms=5000)) as cache:
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(10):
            calls = (cache.check_rate_limit("whatsapp", limit=700, window="1d") for _ in range(50))
            print(sum(allowed for allowed, _ in await asyncio.gather(*calls)), flush=True)

asyncio.run(main())
"""


async def test_a_thousand_calls_from_two_processes_are_counted_exactly(redis_url: str, cache: NexCache) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", COUNTER, redis_url, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))

    passed = [sum(map(int, output.split())) for output, _ in outputs]
    assert sum(passed) == 700
    assert min(passed) > 0, "the two did not run at the same time"
    assert await cache.check_rate_limit("whatsapp", limit=700, window="1d") == (False, 700)
    assert await cache.check_rate_limit("whatsapp", limit=701, window="1d") == (True, 701)


# --- the store is away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when_away", "instances", "passed", "counted_by"),
    [("local", 1, 10, "process"), ("local", 4, 2, "process"), ("open", 1, 30, "nobody"), ("closed", 1, 0, "nobody")],
)
async def test_while_the_store_is_away_each_limit_does_what_it_says(
    own_valkey: Valkey, when_away: Literal["local", "open", "closed"], instances: int, passed: int, counted_by: str
) -> None:
    async with NexCache(Settings(redis_url=own_valkey.url, op_timeout_ms=500)) as cache:
        limit = cache.rate_limit("10/hour", when_away=when_away, instances=instances)
        assert (await limit.check("user", tenant="acme")).counted_by == "store"
        own_valkey.kill()
        decisions = [await limit.check("user", tenant="acme") for _ in range(30)]
        assert {decision.counted_by for decision in decisions} == {counted_by}
        assert sum(decision.allowed for decision in decisions) == passed


async def test_how_many_processes_share_a_limit_is_a_setting(own_valkey: Valkey) -> None:
    async with NexCache(Settings(redis_url=own_valkey.url, op_timeout_ms=500, instances=5)) as cache:
        own_valkey.kill()
        for told, passed in ((None, 2), (1, 10)):
            limit = cache.rate_limit("10/hour", name=f"told-{told}", instances=told)
            assert sum([(await limit.check("user", tenant="acme")).allowed for _ in range(12)]) == passed


async def test_what_may_have_been_counted_is_not_counted_again(valkey: Valkey, redis_url: str) -> None:
    """The connection is lost after the command was carried out, before its answer came."""
    async with FaultProxy(valkey.port) as link:
        url = redis_url.replace(str(valkey.port), str(link.port))
        async with NexCache(Settings(redis_url=url, op_timeout_ms=2000, l1_enabled=False)) as cache:
            limit = cache.rate_limit("10/hour")
            await limit.check("user", tenant="acme")
            before = valkey.calls()["eval"]
            link.down.swallow = True
            checking = asyncio.create_task(limit.check("user", tenant="acme"))
            await until(lambda: valkey.calls()["eval"] == before + 1, "the command is carried out")
            await until(lambda: link.seen["swallowed"], "its answer is lost")
            link.heal()
            link.reset()

            assert (await checking).counted_by == "process"
            assert valkey.calls()["eval"] == before + 1
            assert (await limit.check("user", tenant="acme", cost=0)).count == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "a b"}, "name"),
        ({"algorithm": "leaky"}, "algorithm"),
        ({"when_away": "maybe"}, "when_away"),
        ({"instances": 0}, "instances"),
    ],
)
def test_what_cannot_work_is_told_when_the_limit_is_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        NexCache(Settings(redis_url=None)).rate_limit("1/s", **options)
