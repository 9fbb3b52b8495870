"""Which requests are asked for most: bounded, and right about those that matter."""

import random
from collections import Counter

from nexcache.refresh import Hottest, Recent, Target


def request(number: int) -> Target:
    path = f"/{number}"
    return Target("GET", path, path.encode(), b"", "", "http", (), b"")


def test_what_is_asked_for_most_is_found_in_bounded_memory() -> None:
    """By Zipf over far more requests than there are counters."""
    chance, hottest, truth = random.Random(1), Hottest(), Counter[int]()
    weights = [1 / (rank + 1) for rank in range(5_000)]
    for number in chance.choices(range(5_000), weights, k=50_000):
        truth[number] += 1
        hottest.add("dashboard", request(number))
    found = [int(target.path[1:]) for _, target in hottest.of(None, 10)]
    assert len(hottest._counts) <= 128
    assert set(found[:5]) == {number for number, _ in truth.most_common(5)}


def test_what_was_hot_yesterday_gives_way() -> None:
    hottest = Hottest()
    for _ in range(4_000):
        hottest.add("dashboard", request(1))
    for _ in range(12_000):
        hottest.add("dashboard", request(2))
    assert next(iter(hottest.of(None, 1)))[1] == request(2)


def test_the_hottest_of_some_operations_are_asked_for_by_tenant() -> None:
    recent = Recent()
    recent.note("acme", "dashboard", request(1))
    assert recent.hottest("acme", None, 5) == (), "nobody wants to know"
    recent.watched = True
    recent.note("acme", "dashboard", request(1))
    recent.hit("acme", "other", request(2))
    recent.note("globex", "dashboard", request(3))
    assert recent.hottest("acme", None, 5) == (("other", request(2)), ("dashboard", request(1)))
    assert recent.hottest("acme", {"dashboard"}, 5) == (("dashboard", request(1)),)
    assert recent.hottest("nobody", None, 5) == ()


def test_one_hit_in_sixteen_is_counted() -> None:
    recent = Recent()
    assert sum(recent.samples() for _ in range(1_600)) == 100
