from random import Random

from nexcache.demo import shop
from nexcache.demo.database import RETENTION_US
from nexcache.demo.history import history


def test_a_call_lasts_at_least_as_long_as_the_calls_that_it_makes_and_contains_them() -> None:
    rng = Random(1)
    for _ in range(200):
        for done in shop.visit(rng, 1_000_000)[1].walk():
            assert done.duration_us >= sum(child.duration_us for child in done.made)
            for child in done.made:
                assert done.start_us <= child.start_us
                assert child.start_us + child.duration_us <= done.start_us + done.duration_us


def test_a_call_fails_with_the_call_that_it_depends_on_and_makes_no_more() -> None:
    broken = shop.Call("b", "x", 1, failure=1.0)
    done = shop.happen(shop.Call("a", "x", 1, calls=(broken, shop.Call("c", "x", 1))), Random(1), 0)
    assert done.failed
    assert [child.call.service for child in done.made] == ["b"]


def test_the_same_seed_gives_the_same_history() -> None:
    now = 1_800_000_000_000_000
    assert list(history(Random(7), now, 0.1)) == list(history(Random(7), now, 0.1))


def test_the_history_has_about_as_many_visits_per_second_as_asked_for() -> None:
    spans = list(history(Random(7), 1_800_000_000_000_000, 0.5))
    visits = sum(span.parent_id is None for span in spans)
    assert 0.9 < visits / (RETENTION_US / 1_000_000 * 0.5) < 1.1
    assert len({span.span_id for span in spans}) == len(spans)
