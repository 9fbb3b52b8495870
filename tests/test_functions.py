"""Cached functions: whose, under which key, for how long; one computation per call; and what never gets in."""

import asyncio
import dataclasses
import datetime as dt
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx2
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette._utils import is_async_callable
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from nexcache import CacheMiddleware, ConfigurationError, NexCache, Policy, Settings, tenants
from nexcache.errors import CannotKey, InvalidName, NoTenant
from nexcache.invalidation.tags import MOST_TAGS
from nexcache.telemetry.events import Answered, Event, HookFailed, NotStored
from nexcache.telemetry.names import Bypass, NotStoredReason, Result
from nexcache.value_codec import NotEncodable
from tests.servers import Valkey


def in_memory(**more: Any) -> NexCache:
    return NexCache(Settings(redis_url=None, redis_host=None), default_tenant="acme", **more)


def in_store(url: str, **more: Any) -> NexCache:
    return NexCache(Settings(redis_url=url, op_timeout_ms=2000, **more), default_tenant="acme")


@pytest.fixture(params=["memory", "store"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[NexCache]:
    made = in_memory() if request.param == "memory" else in_store(request.getfixturevalue("redis_url"))
    async with made:
        yield made


@pytest.fixture
async def local() -> AsyncIterator[NexCache]:
    async with in_memory() as made:
        yield made


class Calls:
    """Counts the calls of what is cached, and says what the results are."""

    def __init__(self, result: Callable[..., Any] = lambda *args, **kwargs: [*args, kwargs]) -> None:
        self.made: list[tuple[Any, ...]] = []
        self._result = result

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.made.append(args)
        return self._result(*args, **kwargs)

    def __len__(self) -> int:
        return len(self.made)


# --- results -------------------------------------------------------------------------------------------------------


async def test_a_result_is_computed_once(cache: NexCache) -> None:
    calls = Calls()

    @cache.cached("users", ttl="10m")
    async def users(limit: int, active: bool = True) -> list[object]:
        return calls(limit, active)  # type: ignore[no-any-return]

    assert [await users(5), await users(5, True), await users(limit=5), await users(active=True, limit=5)] == [
        [5, True, {}]
    ] * 4
    assert len(calls) == 1
    assert await users(5, False) == [5, False, {}]
    assert len(calls) == 2


async def test_a_caller_who_changes_a_result_changes_his_own_only(cache: NexCache) -> None:
    @cache.cached("users", ttl=60)
    async def users() -> dict[str, list[int]]:
        return {"ids": [1]}

    for _ in range(4):  # computed, from the store, from memory, from memory again
        found = await users()
        assert found == {"ids": [1]}
        found["ids"].append(2)
        found["more"] = []


async def test_those_who_wait_for_one_computation_get_each_their_own_result(cache: NexCache) -> None:
    @cache.cached("users", ttl=60)
    async def users() -> list[int]:
        await asyncio.sleep(0.01)
        return [1]

    first, second, third = await asyncio.gather(users(), users(), users())

    first.append(2)
    assert second == third == [1]
    assert second is not third


async def test_what_nobody_can_change_is_read_once(local: NexCache) -> None:
    @local.cached("users", ttl=60)
    async def users() -> tuple[str, ...]:
        return "a" * 1000, "b"

    await users()
    await users()
    first = await users()

    assert await users() is first


@dataclasses.dataclass
class Line:
    amount: Decimal
    booked: dt.datetime


class Invoice(pydantic.BaseModel):
    id: UUID
    lines: list[Line]
    tags: set[str] = set()


async def test_classes_of_the_annotation_come_back_as_they_were(cache: NexCache) -> None:
    def make() -> dict[str, Invoice | dt.date]:
        line = Line(Decimal("1.10"), dt.datetime(2024, 1, 1, tzinfo=dt.UTC))
        return {"invoice": Invoice(id=UUID(int=5), lines=[line], tags={"a"}), "day": dt.date(2024, 1, 1)}

    calls = Calls(make)

    @cache.cached("invoices", ttl=60)
    async def invoices() -> dict[str, Invoice | dt.date]:
        return calls()  # type: ignore[no-any-return]

    for _ in range(3):
        found = await invoices()
        assert found == make()
        assert isinstance(found["invoice"], Invoice)
        assert type(found["invoice"].lines[0].amount) is Decimal
        found["invoice"].lines.clear()
    assert len(calls) == 1


@pytest.mark.parametrize(("cache_none", "computed"), [(True, 1), (False, 3)])
async def test_none_is_a_result_unless_it_is_declared_to_be_none(
    cache: NexCache, cache_none: bool, computed: int
) -> None:
    calls = Calls(lambda: None)

    @cache.cached("user", ttl=60, cache_none=cache_none)
    async def user() -> None:
        calls()

    for _ in range(3):
        await user()
    assert len(calls) == computed


async def test_an_exception_is_raised_to_its_caller_and_never_kept(cache: NexCache) -> None:
    answers: Iterator[int | KeyError] = iter([KeyError("a"), KeyError("b"), 5, 6])

    @cache.cached("user", ttl=60)
    async def user() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    for name in ("a", "b"):
        with pytest.raises(KeyError, match=name):
            await user()
    assert [await user(), await user()] == [5, 5]


async def test_of_those_who_wait_for_a_computation_that_fails_one_computes_next(local: NexCache) -> None:
    """Nobody gets another's exception, and a broken back end is not stormed at once."""
    running, most = 0, 0
    calls = Calls()

    @local.cached("user", ttl=60)
    async def user() -> int:
        nonlocal running, most
        calls()
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        if len(calls) < 3:
            raise OSError(len(calls))
        return len(calls)

    results = await asyncio.gather(*(user() for _ in range(10)), return_exceptions=True)

    failed = [str(each) for each in results if isinstance(each, OSError)]
    assert failed == ["1", "2"]
    assert all(isinstance(each, int) for each in results if not isinstance(each, OSError))


async def test_what_the_condition_refuses_is_returned_and_not_kept(cache: NexCache) -> None:
    calls = Calls(list)

    @cache.cached("user", ttl=60, condition=bool)
    async def user() -> list[int]:
        return calls()  # type: ignore[no-any-return]

    assert [await user(), await user()] == [[], []]
    assert len(calls) == 2


def _raises(*_: object, **__: object) -> Any:
    raise LookupError("as the test wants it")


async def _raises_later(*_: object, **__: object) -> str:
    raise LookupError("as the test wants it")


@pytest.mark.parametrize(
    ("options", "hook"),
    [
        pytest.param({"key": _raises}, "key", id="key"),
        pytest.param({"tags": _raises}, "tags", id="tags"),
        pytest.param({"tags": ["user:{number.absent}"]}, "tags", id="a tag's template"),
        pytest.param({"tenant": _raises}, "tenant", id="tenant"),
        pytest.param({"tenant": _raises_later}, "tenant", id="tenant that is waited for"),
        pytest.param({"condition": _raises}, "condition", id="condition"),
    ],
)
async def test_what_the_application_gave_may_raise_and_the_call_is_answered_all_the_same(
    cache: NexCache, options: dict[str, Any], hook: str
) -> None:
    failed: list[HookFailed] = []
    cache.emitter.subscribe(failed.append, HookFailed)  # type: ignore[arg-type]
    calls = Calls(lambda: "answer")
    settings: dict[str, Any] = {"ttl": 60, "tenant": lambda number: "acme", **options}

    @cache.cached("user", **settings)
    async def user(number: int) -> str:
        return calls()  # type: ignore[no-any-return]

    assert [await user(1), await user(1)] == ["answer", "answer"]
    assert len(calls) == 2, "nothing of it is kept"
    assert failed == [HookFailed(hook, failed[0].error)] * 2
    if hook != "condition":
        with pytest.raises((LookupError, AttributeError)):
            await user.invalidate(1)  # what is asked for by name is not passed over


async def test_in_synchronous_code_too(local: NexCache) -> None:
    failed: list[HookFailed] = []
    local.emitter.subscribe(failed.append, HookFailed)  # type: ignore[arg-type]

    def ask() -> list[str]:
        asked = []
        for options in ({"key": _raises}, {"tags": _raises}, {"tenant": _raises}, {"tenant": _raises_later}):
            settings: dict[str, Any] = {"ttl": 60, "tenant": lambda: "acme", **options}
            asked.append(local.sync.cached("user", **settings)(lambda: "answer")())
        return asked

    assert await asyncio.to_thread(ask) == ["answer"] * 4
    assert [each.hook for each in failed] == ["key", "tags", "tenant", "tenant"]


class Opaque:
    pass


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Opaque(), NotStoredReason.VALUE),
        (
            Line(Decimal(1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)),
            NotStoredReason.VALUE,
        ),  # a class that no annotation names
        ("x" * 2000, NotStoredReason.TOO_LARGE),
    ],
    ids=["opaque", "unnamed class", "too large"],
)
async def test_what_cannot_be_kept_is_returned_and_the_reason_told(
    cache: NexCache, value: object, reason: NotStoredReason
) -> None:
    told: list[Event] = []
    cache.emitter.subscribe(told.append, NotStored)
    calls = Calls(lambda: value)

    @cache.cached("user", ttl=60, max_size=1000)
    async def user() -> object:
        return calls()

    assert await user() is value
    assert list(await asyncio.gather(user(), user(), user())) == [value] * 3
    assert {event.reason for event in told if isinstance(event, NotStored)} == {reason}
    assert len(calls) >= 2


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True), (1, 1.0), (1, "1"), (True, 1.0), (True, "True"), (1.0, "1.0"), (0, False), (None, "None"),
        (b"a", "a"), ((1,), [1]), ([], ()), ({1: 2}, [(1, 2)]), (Decimal(1), 1), (Decimal("1.0"), Decimal("1.00")),
        (dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)), (["a", "b"], ["ab"]), ("", None), (0.0, -0.0),
        ([1, [2]], [[1], 2]), (2**64, str(2**64)),
    ],
    ids=repr,
)  # fmt: skip
async def test_arguments_that_differ_by_type_alone_are_different_calls(local: NexCache, one: Any, other: Any) -> None:
    @local.cached("users", ttl=60)
    async def users(argument: Any) -> str:
        return repr(argument)

    assert [await users(one), await users(other)] == [repr(one), repr(other)]
    assert [await users(one), await users(other)] == [repr(one), repr(other)]
    assert users.key(one) != users.key(other)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.decimals(allow_nan=False) | st.dates() | st.datetimes() | st.timedeltas() | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3)
    | st.frozensets(st.integers() | st.text(), max_size=3),
    max_leaves=5,
)  # fmt: skip


def typed(value: Any) -> Any:
    """A value with the types that Python's equality does not see."""
    match value:
        case dict():
            return dict, [(typed(key), typed(each)) for key, each in value.items()]
        case list() | tuple():
            return type(value), [typed(each) for each in value]
        case frozenset():
            return frozenset, sorted(map(repr, value))
        case _:
            return type(value), repr(value)


CALLS = in_memory()


@CALLS.cached("one", ttl=60)
async def drawn(a: Any, b: Any = None, *rest: Any, c: Any = None, **more: Any) -> None:
    """Anything."""


@settings(max_examples=200, deadline=None)
@given(st.tuples(VALUES, VALUES, VALUES), st.tuples(VALUES, VALUES, VALUES))
def test_two_drawn_calls_share_a_key_only_if_they_are_the_same(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    assert (drawn.key(*first) == drawn.key(*second)) == (typed(first) == typed(second))


def test_no_two_different_calls_share_a_key_in_100_000_drawn_pairs() -> None:
    """Pairs are drawn to be near each other: the same atoms, moved, retyped, nested, named, or given to another."""
    draw = random.Random(8)
    atoms: list[Any] = [
        None, True, False, 0, 1, 2, 1.0, 0.0, -0.0, "", "1", "a", "b", "ab", "None", b"1", b"", Decimal(1), (), [], {},
        "a,b", "a:b", "1:a", dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC), UUID(int=1), 2**64,
        frozenset({1}),
    ]  # fmt: skip
    tenant_ids = ["acme", "acm", "a", "a:one", "one"]
    by_tenant = {}
    for operation in ("one", "on", "two"):

        @CALLS.cached(operation, ttl=60, tenant="tenant")
        async def named(tenant: str, a: Any = None, b: Any = None, *rest: Any, c: Any = None, **more: Any) -> None:
            """Anything."""

        by_tenant[operation] = named

    def argument() -> Any:
        kind = draw.randrange(8)
        if kind < 5:
            return draw.choice(atoms)
        inner = [draw.choice(atoms) for _ in range(draw.randrange(3))]
        return inner if kind == 5 else tuple(inner) if kind == 6 else dict(zip("ab", inner, strict=False))

    def drawn_call() -> tuple[Any, ...]:
        positional = tuple(argument() for _ in range(draw.randrange(4)))
        named = tuple((name, argument()) for name in ("c", "x", "y") if draw.randrange(4) == 0)
        return draw.choice(tuple(by_tenant)), draw.choice(tenant_ids), positional, named

    def meant(call: tuple[Any, ...]) -> str:
        operation, tenant, given, named = call
        positional: list[Any] = list(given)
        by_name = dict(named)
        a, b, *rest = [*positional, None, None][: max(2, len(positional))]
        more = [(name, by_name[name]) for name in ("x", "y") if name in by_name]
        return repr((operation, tenant, a, b, tuple(rest), by_name.get("c"), more))

    def key(call: tuple[Any, ...]) -> str:
        operation, tenant, positional, named = call
        return by_tenant[operation].key(tenant, *positional, **dict(named))

    def near(call: tuple[Any, ...]) -> tuple[Any, ...]:
        """All the same but one thing."""
        place, other = draw.randrange(4), drawn_call()
        return (*call[:place], other[place], *call[place + 1 :])

    calls = [drawn_call() for _ in range(15_000)]
    calls += [near(call) for call in calls]
    keyed = [(key(call), meant(call)) for call in calls]
    pairs = [(keyed[number], keyed[number + 15_000]) for number in range(15_000)]
    while len(pairs) < 120_000:
        pairs.append((draw.choice(keyed), draw.choice(keyed)))

    different = [(one, other) for one, other in pairs if one[1] != other[1]]
    assert len(different) > 100_000
    assert [pair for pair in different if pair[0][0] == pair[1][0]] == []
    assert len({name for name, _ in keyed}) == len({call for _, call in keyed})  # and so for every other pair of them


async def test_two_functions_of_one_operation_are_apart(local: NexCache) -> None:
    @local.cached("users", ttl=60)
    async def one(number: int) -> str:
        return "one"

    @local.cached("users", ttl=60)
    async def other(number: int) -> str:
        return "other"

    assert [await one(1), await other(1)] == ["one", "other"]
    assert [await one(1), await other(1)] == ["one", "other"]


async def test_another_version_is_another_key(local: NexCache) -> None:
    keys = set()
    for version in ("", "2"):

        @local.cached("users", ttl=60, version=version)
        async def users(number: int) -> int:
            return number

        keys.add(users.key(1))

    assert len(keys) == 2


async def test_an_argument_that_cannot_be_keyed_is_an_error_that_names_it(local: NexCache) -> None:
    calls = Calls()

    @local.cached("users", ttl=60)
    async def users(limit: int, session: object) -> None:
        calls()

    with pytest.raises(CannotKey, match=r"users\(\): the argument 'session' of type Opaque .* exclude=") as raised:
        await users(1, Opaque())
    assert raised.value.argument == "session"
    assert len(calls) == 0


async def test_an_excluded_argument_makes_no_difference(local: NexCache) -> None:
    calls = Calls()

    @local.cached("users", ttl=60, exclude=["session"])
    async def users(limit: int, session: object = None) -> list[Any]:
        return calls(limit)  # type: ignore[no-any-return]

    await users(1, Opaque())
    await users(1, session=Opaque())
    await users(2, Opaque())

    assert calls.made == [(1,), (2,)]


async def test_a_key_of_ones_own_says_what_makes_a_difference(local: NexCache) -> None:
    calls = Calls()

    @local.cached("users", ttl=60, key=lambda user, **_: user["id"])
    async def users(user: dict[str, Any], *, session: object) -> None:
        calls(user["name"])

    await users({"id": 1, "name": "a"}, session=Opaque())
    await users({"id": 1, "name": "b"}, session=Opaque())
    await users({"id": 2, "name": "c"}, session=Opaque())
    assert calls.made == [("a",), ("c",)]

    with pytest.raises(CannotKey, match="'key'"):
        await users({"id": Opaque(), "name": ""}, session=None)


class Directory:
    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = Calls()

    def __cache_key__(self) -> str:
        return self.name


async def test_methods_are_cached_by_what_their_instance_says_it_is(local: NexCache) -> None:
    class Remote(Directory):
        @local.cached("user", ttl=60)
        async def user(self, number: int) -> str:
            """One user."""
            return str(self.calls(number) and f"{self.name}{number}")

    one, same, other = Remote("a"), Remote("a"), Remote("b")

    assert [await one.user(1), await same.user(1), await other.user(1)] == ["a1", "a1", "b1"]
    assert (len(one.calls), len(same.calls), len(other.calls)) == (1, 0, 1)
    await one.user.invalidate(1)
    assert await same.user(1) == "a1"
    assert len(same.calls) == 1
    assert await one.user.refresh(1) == "a1"
    assert await one.user.set("given", 1)
    assert [await same.user(1), await same.user.bypass(1)] == ["given", "a1"]
    assert one.user.key(1) == Remote.user.key(one, 1) == same.user.key(1) != other.user.key(1)
    assert Remote.user.__doc__ == one.user.__doc__ == "One user."


async def test_methods_of_an_instance_that_says_nothing_need_self_excluded(local: NexCache) -> None:
    class Remote:
        @local.cached("user", ttl=60)
        async def user(self, number: int) -> int:
            return number

        @local.cached("user", ttl=60, exclude=["self"])
        async def shared(self, number: int) -> int:
            return number

    with pytest.raises(CannotKey, match="'self'"):
        await Remote().user(1)
    assert await Remote().shared(1) == 1
    assert Remote().shared.key(1) == Remote().shared.key(1)


async def test_static_and_class_methods_are_cached(local: NexCache) -> None:
    class Remote:
        @staticmethod
        @local.cached("user", ttl=60)
        async def user(number: int) -> int:
            return number

        @classmethod
        @local.cached("user", ttl=60, exclude=["cls"])
        async def of(cls, number: int) -> int:
            return number

    assert [await Remote.user(1), await Remote().user(2)] == [1, 2]  # type: ignore[call-arg]
    of: Any = vars(Remote)["of"].__get__(None, Remote)  # as Remote.of, which mypy takes for the function
    assert [await of(3), await of(3)] == [3, 3]


async def test_a_call_that_python_refuses_is_refused_as_python_does(local: NexCache) -> None:
    @local.cached("users", ttl=60)
    async def users(limit: int, *, active: bool = True) -> None:
        """Nothing."""

    refused: list[tuple[tuple[int, ...], dict[str, int]]] = [
        ((), {}),
        ((1, 2), {}),
        ((1,), {"limit": 1}),
        ((1,), {"unknown": 1}),
    ]
    for args, kwargs in refused:
        with pytest.raises(TypeError):
            await users(*args, **kwargs)  # type: ignore[arg-type]


async def test_a_key_that_is_too_long_bypasses_the_cache(local: NexCache) -> None:
    calls = Calls()
    told: list[Event] = []
    local.emitter.subscribe(told.append, Answered)

    @local.cached("users", ttl=60)
    async def users(text: str) -> int:
        calls()
        return len(text)

    assert [await users("x" * 100_000), await users("x" * 100_000)] == [100_000] * 2
    assert len(calls) == 2
    assert [event.reason for event in told if isinstance(event, Answered)] == [Bypass.KEY_TOO_LONG] * 2


# --- whose ---------------------------------------------------------------------------------------------------------


async def test_without_a_tenant_a_call_is_an_error_that_says_what_to_do() -> None:
    async with NexCache(Settings(redis_url=None, redis_host=None)) as cache:

        @cache.cached("users", ttl=60)
        async def users() -> None:
            """Nothing."""

        with pytest.raises(NoTenant, match=r"tenant=….*acting_for.*default_tenant"):
            await users()


async def test_the_tenant_is_an_argument_a_callable_the_context_or_the_default(local: NexCache) -> None:
    @local.cached("users", ttl=60, tenant="org")
    async def by_argument(number: int, org: str = "acme") -> None:
        """Nothing."""

    @local.cached("users", ttl=60, tenant=lambda user: user["org"])
    async def by_callable(user: dict[str, Any]) -> None:
        """Nothing."""

    @local.cached("users", ttl=60)
    async def by_context() -> None:
        """Nothing."""

    def of(key: str) -> str:
        return key.split(":")[1]

    assert of(by_argument.key(1, "globex")) == of(by_argument.key(1, org="globex")) == "globex"
    assert of(by_argument.key(1)) == "acme"
    assert of(by_callable.key({"org": "globex"})) == "globex"
    assert of(by_context.key()) == "acme"
    with tenants.acting_for("globex"):
        assert of(by_context.key()) == "globex"
    assert of(by_context.key()) == "acme"
    with pytest.raises(InvalidName):
        by_argument.key(1, "a\nb")
    with pytest.raises(InvalidName), tenants.acting_for(""):
        pass


async def test_a_tenant_that_must_be_waited_for_is(local: NexCache) -> None:
    async def tenant(user: str) -> str:
        await asyncio.sleep(0)
        return user.partition("@")[2]

    calls = Calls()

    @local.cached("users", ttl=60, tenant=tenant)
    async def mail(user: str) -> None:
        calls()

    await mail("a@globex")
    await mail("a@globex")

    assert len(calls) == 1
    assert (await local.stats("globex")).operations["users"].hits == 1


async def test_the_same_call_for_two_tenants_is_two_entries(cache: NexCache) -> None:
    calls = Calls()

    @cache.cached("users", ttl=60)
    async def users() -> str:
        calls()
        tenant = tenants.current.get()
        assert isinstance(tenant, str)
        return tenant

    for _ in range(2):
        for tenant in ("a", "b", "a:b"):
            with tenants.acting_for(tenant):
                assert await users() == tenant
    assert len(calls) == 3


async def test_inside_a_request_the_tenant_is_the_requests() -> None:
    """Where a policy applies, where none does, and where the cache is bypassed; also where the tenant is awaited."""
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    calls = Calls()

    @cache.cached("users", ttl=60)
    async def users() -> int:
        calls()
        return len(calls)

    async def handler(_: Request) -> Response:
        try:
            return PlainTextResponse(f"{users.key().split(':')[1]} {await users()}")
        except NoTenant:
            return PlainTextResponse(f"nobody {await users() if awaited else ''}")

    async def slowly(scope: Any) -> str | None:
        await asyncio.sleep(0)
        return dict(scope["headers"]).get(b"x-tenant", b"").decode() or None

    for resolver, awaited in ((tenants.header("x-tenant", trusted=True), False), (slowly, True)):
        middleware = Middleware(
            CacheMiddleware, cache=cache, tenant=resolver, policies=[Policy("/cached", op="page", ttl=60)]
        )
        routes = [Route("/cached", handler), Route("/plain", handler)]
        app = Starlette(routes=routes, middleware=[middleware])
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://app") as client:
            for path in ("/plain", "/cached", "/cached?x=1"):
                for tenant in ("acme", "globex"):
                    answer = await client.get(path, headers={"x-tenant": tenant})
                    number = {"acme": 1, "globex": 2}[tenant]
                    assert answer.text in (f"{tenant} {number}", f"nobody {number}")
            if not awaited:
                assert (await client.get("/plain")).text == "nobody "
    assert len(calls) == 2


async def test_inside_a_websocket_the_tenant_is_that_of_its_opening_request() -> None:
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    users = cache.cached("users", ttl=60)(function)
    keys: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        keys.append(users.key(1).split(":")[1])

    middleware = CacheMiddleware(app, cache=cache, tenant=tenants.header("x-tenant", trusted=True))

    async def nothing(*_: Any) -> Any:
        raise AssertionError("no message is sent or asked for")

    await middleware({"type": "websocket", "headers": [(b"x-tenant", b"acme")]}, nothing, nothing)

    assert keys == ["acme"]


# --- by hand -------------------------------------------------------------------------------------------------------


async def test_one_call_is_invalidated_refreshed_and_set_by_its_arguments(cache: NexCache) -> None:
    calls = Calls(lambda number: [number, len(calls)])

    @cache.cached("users", ttl=60)
    async def users(number: int) -> list[int]:
        return calls(number)  # type: ignore[no-any-return]

    assert [await users(1), await users(2)] == [[1, 1], [2, 2]]
    done = await users.invalidate(1)
    assert (done.acknowledged, done.queued) == (True, False)
    assert [await users(1), await users(2)] == [[1, 3], [2, 2]]
    assert await users.refresh(2) == [2, 4]
    assert await users(2) == [2, 4]
    assert await users.set([0, 0], 1)
    assert await users(1) == [0, 0]
    assert await users.bypass(1) == [1, 5]
    assert await users(1) == [0, 0]
    with pytest.raises(NotEncodable):
        await users.set(Opaque(), 1)  # type: ignore[arg-type]


async def test_one_call_invalidates_a_users_results_of_several_operations(cache: NexCache) -> None:
    """Mission B: one user's entries across operations, by a tag."""
    calls = Calls()

    @cache.cached("user_info", ttl=60, tags=["user:{user_id}"])
    async def info(user_id: int) -> None:
        calls("info", user_id)

    @cache.cached("calendar", ttl=60, tags=lambda user_id, day: [f"user:{user_id}", f"day:{day}"])
    async def calendar(user_id: int, day: str = "today") -> None:
        calls("calendar", user_id)

    async def ask() -> list[tuple[Any, ...]]:
        calls.made.clear()
        for user in (1, 2):
            await info(user)
            await calendar(user)
        return calls.made[:]

    assert len(await ask()) == 4
    assert await ask() == []
    await cache.invalidate("acme", tags=["user:1"])
    assert await ask() == [("info", 1), ("calendar", 1)]
    await cache.invalidate("acme", "cal*")
    assert await ask() == [("calendar", 1), ("calendar", 2)]
    await cache.invalidate("acme", tags=["day:today"])
    assert await ask() == [("calendar", 1), ("calendar", 2)]
    await cache.invalidate("globex", "*")
    assert await ask() == []
    await cache.invalidate("acme", "*")
    assert len(await ask()) == 4


async def test_the_tags_that_stand_for_single_calls_use_up_none_of_a_tenants_tags(
    valkey: Valkey, redis_url: str
) -> None:
    async with in_store(redis_url, max_tags=3) as cache:
        plain = cache.cached("users", ttl=60)(function)
        tagged = cache.cached("user_info", ttl=60, tags=["user:{user_id}"])(function)
        for number in range(20):
            await plain(number)
        await tagged(1)
        await tagged(2)

        assert valkey.ask("EXISTS", "nexarch:acme:@tag:user%3A1", "nexarch:acme:@tag:user%3A2") == 2
        assert valkey.ask("KEYS", "nexarch:acme:@tags:*") == []
        await plain.invalidate(1)
        stored = [(await plain.explain(number)).stored for number in range(20)]
        assert stored == [number != 1 for number in range(20)]


async def test_what_was_invalidated_while_it_was_computed_is_not_kept(cache: NexCache) -> None:
    database = 1
    read, go_on = asyncio.Event(), asyncio.Event()

    @cache.cached("users", ttl=60)
    async def users() -> int:
        value = database
        read.set()
        await go_on.wait()
        return value

    first = asyncio.create_task(users())
    await read.wait()
    database = 2
    await cache.invalidate("acme", "users")
    second = asyncio.create_task(users())  # started later: must not join the first
    for _ in range(20):
        await asyncio.sleep(0)
    go_on.set()

    assert [await first, await second, await users()] == [1, 2, 2]


async def test_get_or_compute_is_found_by_its_parts(cache: NexCache) -> None:
    calls = Calls(lambda *_: len(calls))

    async def compute() -> int:
        return calls()  # type: ignore[no-any-return]

    assert await cache.get_or_compute("acme", "report", ["2024-01", 1], compute, ttl=60) == 1
    assert await cache.get_or_compute("acme", "report", ("2024-01", 1), compute, ttl=60) == 1
    assert await cache.get_or_compute("acme", "report", ("2024-01", True), compute, ttl=60) == 2
    assert await cache.get_or_compute("globex", "report", ("2024-01", 1), compute, ttl=60, tags=["t"]) == 3
    await cache.invalidate("acme", "report")
    assert await cache.get_or_compute("acme", "report", ("2024-01", 1), compute, ttl=60) == 4
    assert await cache.get_or_compute("globex", "report", ("2024-01", 1), compute, ttl=60, tags=["t"]) == 3
    await cache.invalidate("globex", tags=["t"])
    assert await cache.get_or_compute("globex", "report", ("2024-01", 1), compute, ttl=60, tags=["t"]) == 5
    with pytest.raises(CannotKey):
        await cache.get_or_compute("acme", "report", [Opaque()], compute)
    with pytest.raises(InvalidName):
        await cache.get_or_compute("acme", "report", ["x" * 100_000], compute)


async def test_explain_says_where_a_call_is_kept_and_for_how_long(cache: NexCache) -> None:
    @cache.cached("users", ttl=60, tags=["user:{number}"])
    async def users(number: int) -> int:
        return number

    before = await users.explain(1)
    assert (before.stored, before.tier, before.remaining, before.ttl) == (False, None, None, 60)
    await users(1)
    after = await users.explain(1)

    assert after.stored
    assert after.key == users.key(1)
    assert after.key.startswith("nexarch:acme:users:")
    assert "user:1" in after.tags
    assert after.remaining is not None
    assert 50 < after.remaining <= 60
    assert (await cache.stats("acme")).operations["users"].hits == 0


# --- declarations --------------------------------------------------------------------------------------------------


def plain() -> None:
    """Nothing."""


async def generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("function", [plain, generator], ids=["plain", "generator"])
def test_only_coroutine_functions_are_taken(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="no coroutine function"):
        in_memory().cached("users", ttl=60)(function)


async def function(user_id: int) -> None:
    """Nothing."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": ["sesion"]}, "no parameter 'sesion'"),
        ({"exclude": "user_id"}, r'exclude takes a list, such as \["user_id"\]'),
        ({"tenant": "org"}, "no parameter 'org'"),
        ({"tags": "user:{user_id}"}, "tags takes a list"),
        ({"tags": ["user:{user}"]}, "the tag 'user:{user}' names no parameter"),
        ({"max_size": "big"}, "max_size"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_a_declaration_that_cannot_work_is_refused_where_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        in_memory().cached("users", **{"ttl": 60, **options})(function)


@pytest.mark.parametrize("name", ["", "a*b", "a?", "a\nb"])
def test_an_operation_is_named_like_one(name: str) -> None:
    with pytest.raises(InvalidName):
        in_memory().cached(name, ttl=60)


@pytest.mark.parametrize("ttl", [0, -1, "soon", 31 * 86400])
async def test_a_lifetime_that_is_none_is_refused(ttl: Any) -> None:
    cached = in_memory().cached("users", ttl=ttl)(function)
    with pytest.raises(ConfigurationError, match="ttl"):
        await cached(1)


async def test_a_call_with_too_many_tags_bypasses_the_cache(local: NexCache) -> None:
    calls = Calls()

    @local.cached("users", ttl=60, tags=lambda count: [f"t{number}" for number in range(count)])
    async def users(count: int) -> None:
        calls()

    for count in (MOST_TAGS - 1, MOST_TAGS - 1, MOST_TAGS, MOST_TAGS):
        await users(count)
    assert len(calls) == 3


async def test_the_environment_overrules_the_declared_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_TTL_USER_INFO", "600")
    monkeypatch.setenv("REDIS_SUMMARY_TTL", "900")
    async with in_memory() as cache:

        async def ttl(operation: str) -> float:
            return (await cache.cached(operation, ttl=5)(function).explain(1)).ttl

        assert [await ttl("user_info"), await ttl("summary"), await ttl("other")] == [600, 900, 5]


# --- life cycle ----------------------------------------------------------------------------------------------------


async def test_the_master_switch_and_a_disabled_operation_call_the_function() -> None:
    calls = Calls()
    for cache in (NexCache(Settings(redis_url=None, redis_host=None, enabled=False), default_tenant="a"), in_memory()):
        cached = cache.cached("users", ttl=60)(_counted(calls))
        cache.disable("users")
        calls.made.clear()
        for _ in range(3):
            await cached(1)
        assert len(calls) == 3
        assert await cached.refresh(1) is None
        assert not await cached.set(None, 1)


async def test_a_tenants_switch_is_for_its_calls_only(cache: NexCache) -> None:
    calls = Calls()
    cached = cache.cached("users", ttl=60)(_counted(calls))
    await cached(1)
    await cache.switch("users", tenant="globex", off=True)
    await cached(1)
    assert len(calls) == 1
    await cache.switch("users", tenant="acme", off=True)
    await cached(1)
    await cached.refresh(1)
    assert len(calls) == 3
    await cache.switch("users", tenant="acme", off=False)
    await cached(1)
    assert len(calls) == 3


def _counted(calls: Calls) -> Callable[[int], Any]:
    async def counted(number: int) -> None:
        calls(number)

    return counted


async def test_a_computation_goes_on_for_those_who_wait_when_its_caller_leaves(local: NexCache) -> None:
    go_on = asyncio.Event()
    calls = Calls()

    @local.cached("users", ttl=60)
    async def users() -> int:
        calls()
        await go_on.wait()
        return 1

    first = asyncio.create_task(users())
    await asyncio.sleep(0.01)
    second = asyncio.create_task(users())
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    go_on.set()

    assert await second == 1
    assert len(calls) == 1


async def test_computations_that_wait_for_each_other_do_not_wait_for_ever(
    local: NexCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call inside its own computation, and two that need each other."""
    monkeypatch.setattr("nexcache.functions._AWAITED", 0.05)
    depth = 0

    @local.cached("users", ttl=60)
    async def users(number: int) -> int:
        nonlocal depth
        depth += 1
        return 0 if depth > 2 else 1 + await users(1 - number)

    assert await asyncio.wait_for(users(0), 10) == 2
    assert depth == 3


async def test_what_another_version_of_the_program_wrote_is_computed_anew(valkey: Valkey, redis_url: str) -> None:
    async with in_store(redis_url, l1_enabled=False) as cache:
        calls = Calls(lambda: Line(Decimal(len(calls)), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)))

        @cache.cached("users", ttl=60, key=lambda: 1, types=[Line])
        async def before() -> Line:
            return calls()  # type: ignore[no-any-return]

        @cache.cached("users", ttl=60, key=lambda: 1)
        async def after() -> int:
            calls()
            return 5

        await before()
        assert [await after(), await after()] == [5, 5]
        assert len(calls) == 2


async def test_while_the_store_is_away_functions_answer_and_are_kept_for_a_short_time(own_valkey: Valkey) -> None:
    async with in_store(own_valkey.url) as cache:
        cached = cache.cached("users", ttl=60)(_counted(calls := Calls()))
        await cached(1)
        own_valkey.kill()
        for _ in range(3):
            await cached(2)

        assert calls.made == [(1,), (2,)]
        assert (await cached.explain(2)).tier == "fallback"


async def test_two_nodes_compute_a_call_once(redis_url: str) -> None:
    """The fill lease of requests is that of functions, too."""
    calls = Calls()

    async def slow(number: int) -> int:
        calls(number)
        await asyncio.sleep(0.1)
        return number

    async with in_store(redis_url) as one, in_store(redis_url) as other:
        cached = [cache.cached("slow", ttl=60)(slow) for cache in (one, other)]
        await asyncio.gather(*(each(0) for each in cached))  # both listen now
        calls.made.clear()
        results = await asyncio.gather(*(each(1) for each in cached for _ in range(50)))

    assert set(results) == {1}
    assert calls.made == [(1,)]


async def test_a_node_that_looked_before_another_had_stored_looks_again_before_it_computes(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look and its capture the other's computation begins and ends: the lease is free again."""
    calls = Calls()

    async def users(number: int) -> int:
        calls(number)
        return number

    async with in_store(redis_url) as one, in_store(redis_url) as other:
        first, second = (cache.cached("users", ttl=60)(users) for cache in (one, other))
        await second(0)
        leases = other.leases
        assert leases is not None
        await until(leases._connected)
        look = other.calls._lookup

        async def slowly(*args: Any) -> Any:
            looked = await look(*args)
            if len(calls) == 1:
                heard = len(leases._heard)
                await first(1)
                await until(lambda: len(leases._heard) > heard)
            return looked

        monkeypatch.setattr(other.calls, "_lookup", slowly)
        assert await second(1) == 1

    assert calls.made == [(0,), (1,)]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about")


async def test_a_node_whose_computation_fails_hands_it_to_the_other(redis_url: str) -> None:
    calls = Calls()

    async def slow(number: int) -> int:
        calls(number)
        await asyncio.sleep(0.05)
        if number and len(calls) == 1:
            raise OSError("first")
        return number

    async with in_store(redis_url) as one, in_store(redis_url) as other:
        cached = [cache.cached("slow", ttl=60)(slow) for cache in (one, other)]
        await asyncio.gather(*(each(0) for each in cached))
        calls.made.clear()
        results = await asyncio.gather(*(each(1) for each in cached), return_exceptions=True)

    assert sorted(map(repr, results)) == ["1", "OSError('first')"]
    assert len(calls) == 2


async def test_an_entry_of_one_node_is_a_hit_on_the_other_and_an_invalidation_reaches_both(redis_url: str) -> None:
    calls = Calls()

    async def users(number: int) -> int:
        calls(number)
        return number

    async with in_store(redis_url) as one, in_store(redis_url) as other:
        first, second = (cache.cached("users", ttl=60)(users) for cache in (one, other))
        await first(1)
        await second(1)
        assert len(calls) == 1
        await other.invalidate("acme", "users", wait="strict")
        await first(1)
        assert len(calls) == 2
        await first.invalidate(1)
        await asyncio.sleep(0)
        assert (await second.explain(1)).stored is False or len(calls) == 2


# --- telemetry -----------------------------------------------------------------------------------------------------


async def test_calls_are_told_and_counted_like_requests(cache: NexCache) -> None:
    told: list[Event] = []
    cache.emitter.subscribe(told.append, Answered)

    @cache.cached("users", ttl=60)
    async def users(number: int) -> int:
        if number < 0:
            raise ValueError
        await asyncio.sleep(0.005)
        return number

    await asyncio.gather(users(1), users(1))
    await users(1)
    with pytest.raises(ValueError):
        await users(-1)
    answered = [event for event in told if isinstance(event, Answered)]
    statistics = (await cache.stats("acme")).operations["users"]

    assert [event.result for event in answered] == [Result.MISS, Result.MISS, Result.HIT, Result.ERROR]
    assert sorted(event.coalesced for event in answered) == [False, False, False, True]
    assert all(event.operation == "users" and event.tenant == "acme" for event in answered)
    assert (statistics.hits, statistics.misses) == (1, 2)


async def test_what_a_cached_function_takes_from_functools_is_there(local: NexCache) -> None:
    cached = local.cached("users", ttl=60)(function)

    assert (cached.__name__, cached.__doc__, cached.__wrapped__) == ("function", "Nothing.", function)  # type: ignore[attr-defined]
    partial: Callable[..., Awaitable[None]] = functools.partial(cached, 1)
    await partial()


async def test_frameworks_see_that_a_cached_coroutine_function_is_one(local: NexCache) -> None:
    """Starlette runs what it takes for a plain function in a thread, and returns the coroutine to nobody."""

    class Remote:
        @local.cached("user", ttl=60, exclude=["self"])
        async def user(self) -> int:
            return 1

    assert is_async_callable(local.cached("users", ttl=60)(function))
    assert is_async_callable(Remote().user)
