# ruff: noqa: DTZ001 - times without a zone are values like others

import dataclasses
import datetime as dt
import enum
import math
import random
import re
from collections import defaultdict
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pydantic
import pytest

from nexcache.value_codec import (
    NotDecodable,
    NotEncodable,
    Types,
    ValueCodec,
    encode_key,
    is_immutable,
)


def _short(value: object) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


class Colour(enum.Enum):
    RED = "red"
    DARK_RED = "red"  # noqa: PIE796 - an alias is what is tested
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    colour: Colour
    at: Point


@dataclasses.dataclass
class Tree:
    leaves: list[Leaf]
    planted: dt.date
    parent: "Tree | None" = None


class Account(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    id: UUID
    balance: Decimal = Decimal(0)
    tree: Tree | None = pydantic.Field(default=None, alias="theTree")
    _checked: bool = pydantic.PrivateAttr(default=False)


BERLIN = ZoneInfo("Europe/Berlin")
VALUES = [
    None, True, False, 0, 1, -1, 1.0, -0.0, 0.0, "1", "", "\ud800", b"1", b"", 2**63, -(2**63) - 1, 2**10_000,
    math.inf, (), (1,), [1], [], {}, {"a": 1}, {1: "a"}, {True: "a"}, {(1, 2): [3, (4,)]}, set(), {1}, frozenset({1}),
    {(1, "a"), frozenset({2})}, 1 + 2j, Decimal(1), Decimal("1.0"), Decimal("NaN"), UUID(int=1), PurePosixPath("/a/b"),
    dt.date(2024, 1, 1), dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, 0, 0, 0, 1),
    dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
    dt.datetime(2024, 1, 1, tzinfo=BERLIN), dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "CET")),
    dt.time(1, 2, 3, 4), dt.time(1, tzinfo=dt.UTC),
    dt.timedelta(days=-1, microseconds=1), Colour.RED, Colour.BLUE, Level.LOW, Right.READ, Right.READ | Right.WRITE,
    Right(0), Point(1, 2), Leaf(Colour.RED, Point(1, 2)),
    Tree([Leaf(Colour.BLUE, Point(0, 0))], dt.date(2020, 2, 29), Tree([], dt.date(1999, 1, 1))),
    Account(id=UUID(int=2)), Account(id=UUID(int=2), balance=Decimal(0)),
    Account.model_validate({"id": UUID(int=3), "theTree": Tree([], dt.date(2000, 1, 1)), "note": ["extra"]}),
]  # fmt: skip
IDS = [f"{type(value).__name__}-{place}" for place, value in enumerate(VALUES)]
CODEC = ValueCodec(Types([Colour, dict[str, list[Account]] | Right, Level]))


@pytest.mark.parametrize("value", VALUES, ids=IDS)
def test_a_value_comes_back_equal_and_of_the_same_type(value: Any) -> None:
    back = CODEC.decode(CODEC.encode(value))

    assert type(back) is type(value)
    assert repr(back) == repr(value)
    assert back == value or value != value  # noqa: PLR0124 - NaN


def test_no_two_different_values_are_one_key() -> None:
    keys = [encode_key(value) for value in VALUES]

    assert len(set(keys)) == len(VALUES)  # a model's field that was given its default is written by exclude_unset


def test_private_attributes_of_a_model_come_back() -> None:
    account = Account(id=UUID(int=2))
    account._checked = True

    assert CODEC.decode(CODEC.encode(account))._checked is True


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "same"


class Keyed:
    def __init__(self, number: int) -> None:
        self.number = number

    def __cache_key__(self) -> object:
        return self.number


class Zone(dt.tzinfo):
    def utcoffset(self, _when: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=2)

    def dst(self, _when: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(0)

    def tzname(self, _when: dt.datetime | None) -> str:
        return "Z2"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(Text("a"), "a", id="a class derived from str"),
        pytest.param(Text("a"), Text("b"), id="two of a derived class whose texts look alike"),
        pytest.param(defaultdict(int, {"a": 1}), {"a": 1}, id="a class derived from dict"),
        pytest.param(Keyed(1), Keyed(2), id="objects that say what they are keyed by"),
        pytest.param(Keyed(1), 1, id="an object and its key"),
        pytest.param({"a": 1, "b": 2}, {"b": 2, "a": 1}, id="dicts in another order"),
        pytest.param(dt.datetime(2024, 1, 1, tzinfo=Zone()), dt.datetime(2024, 1, 1), id="a time in a zone of its own"),
        pytest.param(["ab", "c"], ["a", "bc"], id="texts that are cut elsewhere"),
        pytest.param([[1], 2], [[1, 2]], id="lists that are cut elsewhere"),
    ],
)
def test_these_two_are_two_keys(one: Any, other: Any) -> None:
    assert encode_key(one) != encode_key(other)
    assert encode_key(one) == encode_key(one)


def test_the_order_of_a_set_makes_no_difference_to_its_key() -> None:
    words = [f"word-{number}" for number in range(100)]

    assert encode_key(set(words)) == encode_key(set(sorted(words, reverse=True)))  # noqa: C414 - another history


def test_no_two_of_100_000_different_arguments_share_a_key() -> None:
    """Values that Python takes for equal are drawn on purpose: 1, True, 1.0, Decimal(1), "1", b"1", (1,), [1] …."""
    draw = random.Random(8)
    atoms: list[Any] = [
        None, True, False, 0, 1, 2, -1, 1.0, 0.0, -0.0, 2.0, "", "1", "True", "None", b"1", b"", 2**70, Decimal(1),
        Decimal("1.0"), UUID(int=1), dt.date(2024, 1, 1), dt.datetime(2024, 1, 1), dt.timedelta(1), Colour.RED,
        Level.LOW,
        Right.READ, Point(1, 2), 1 + 0j,
    ]  # fmt: skip

    def drawn(depth: int) -> Any:
        kind = draw.randrange(9 if depth else 5)
        if kind < 3:
            return draw.choice(atoms)
        if kind == 3:
            return draw.randrange(100)
        if kind == 4:
            return str(draw.randrange(100))
        members = [drawn(depth - 1) for _ in range(draw.randrange(4))]
        if kind == 5:
            return members
        if kind == 6:
            return tuple(members)
        return dict(enumerate(members)) if kind == 7 else dict(zip("abc", members, strict=False))

    calls: dict[bytes, str] = {}
    while len(calls) < 100_000:
        call = drawn(3)
        said = calls.setdefault(encode_key(call), repr(call))
        assert said == repr(call)
    assert len(calls) == len(set(calls.values()))


@pytest.mark.parametrize(
    "value",
    [object(), int, bytearray(b"1"), [bytearray(b"1")], {"a": memoryview(b"1")}, (bytearray(b"1"),), lambda: 1],
    ids=_short,
)
def test_what_would_not_come_back_is_refused(value: Any) -> None:
    with pytest.raises(NotEncodable):
        CODEC.encode(value)
    with pytest.raises(NotEncodable):
        encode_key(value)


@pytest.mark.parametrize("value", [Text("a"), defaultdict(int), dt.datetime(2024, 1, 1, tzinfo=Zone())], ids=_short)
def test_what_would_come_back_as_something_else_is_refused(value: Any) -> None:
    with pytest.raises(NotEncodable, match="would not come back"):
        CODEC.encode(value)


def test_what_contains_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)

    for encode in (CODEC.encode, encode_key):
        with pytest.raises(NotEncodable):
            encode(circle)


def test_a_class_that_is_not_known_is_neither_written_nor_read() -> None:
    data = CODEC.encode(Point(1, 2))

    with pytest.raises(NotEncodable, match="name the class in the function's return annotation"):
        ValueCodec().encode(Point(1, 2))
    with pytest.raises(NotDecodable, match="not known here"):
        ValueCodec().decode(data)


def test_names_in_the_data_are_never_imported() -> None:
    """An attacker who can write to the store names any class; only registered ones are looked at."""
    for name in ("subprocess:Popen", "os:system", "builtins:eval"):
        for code in range(13, 18):
            data = msgpack.packb(msgpack.ExtType(code, msgpack.packb([name, ["id"]])))
            with pytest.raises(NotDecodable):
                CODEC.decode(data)


@dataclasses.dataclass
class Before:
    a: int


@dataclasses.dataclass
class After:
    a: int
    b: int = 2


def test_a_class_with_other_fields_than_before_is_a_miss() -> None:
    codec = ValueCodec(Types([After]))
    data = ValueCodec(Types([Before])).encode(Before(1)).replace(b"Before", b"After").replace(b"\xb9", b"\xb8")

    with pytest.raises(NotDecodable):
        codec.decode(data)


def test_a_registered_class_is_written_by_its_functions() -> None:
    types = Types()
    types.register(Keyed, encode=lambda keyed: keyed.number, decode=Keyed)
    codec = ValueCodec(types)

    assert codec.decode(codec.encode([Keyed(5)]))[0].number == 5


def test_arbitrary_bytes_are_never_more_than_not_decodable() -> None:
    draw = random.Random(1)
    whole = CODEC.encode(VALUES[-1])
    for _ in range(3_000):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            CODEC.decode(bytes(data))
        except NotDecodable:
            pass


@pytest.mark.parametrize("value", [value for value in VALUES if is_immutable(value)])
def test_what_is_called_immutable_has_no_part_that_can_be_changed(value: Any) -> None:
    assert not isinstance(value, list | dict | set | Tree | Account)
    hash(value)


@pytest.mark.parametrize(
    "value", [[1], {}, {1}, ([1],), Tree([], dt.date(2000, 1, 1)), Account(id=UUID(int=1))], ids=_short
)
def test_what_can_be_changed_is_not_called_immutable(value: Any) -> None:
    assert not is_immutable(value)
