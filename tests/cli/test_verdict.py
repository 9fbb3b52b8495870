"""What a monitor judges."""

from typing import Any

import pytest

from nexcache.cli.verdict import Figures, Targets, verdicts


def stats(
    *, hits: int = 0, misses: int = 0, hit_ms: float = 0.0, miss_ms: float = 0.0, **others: int
) -> dict[str, Any]:
    stale, bypasses, errors = (others.get(name, 0) for name in ("stale", "bypasses", "errors"))
    return {
        "requests": hits + misses + stale + bypasses + errors,
        "hits": hits,
        "misses": misses,
        "stale": stale,
        "bypasses": bypasses,
        "errors": errors,
        "latency": {"hit": {"mean": hit_ms}, "miss": {"mean": miss_ms}},
    }


GOOD = Figures.of(stats(hits=90, misses=10, hit_ms=0.5, miss_ms=200))


@pytest.mark.parametrize(
    ("figures", "kept"),
    [
        pytest.param(GOOD, (True, True, True), id="all kept"),
        pytest.param(Figures.of(stats(hits=80, misses=20)), (False, True, True), id="80 % is not more than 80 %"),
        pytest.param(Figures.of(stats(hits=801, misses=199)), (True, True, True), id="80.1 % is"),
        pytest.param(Figures.of(stats(hits=60, stale=30, misses=10)), (True, True, True), id="stale answers are hits"),
        pytest.param(Figures.of(stats(hits=90, misses=10, bypasses=900)), (True, True, True), id="bypasses do not ask"),
        pytest.param(Figures.of(stats(hits=90, misses=10, miss_ms=500)), (True, False, True), id="50 ms on average"),
        pytest.param(Figures.of(stats(hits=99, errors=1)), (True, True, False), id="1 % fails"),
        pytest.param(Figures.of(stats(hits=199, errors=1)), (True, True, True), id="0.5 % fails"),
        pytest.param(Figures.of(stats(bypasses=7)), (None, None, None), id="nothing was asked"),
    ],
)
def test_targets_are_kept_strictly(figures: Figures, kept: tuple[bool | None, ...]) -> None:
    assert tuple(each.kept for each in verdicts(figures, Targets())) == kept


def test_targets_can_be_set() -> None:
    assert not any(each.kept for each in verdicts(GOOD, Targets(hit_rate=95, mean_ms=1, error_rate=0)))


def test_the_mean_weighs_hits_and_misses() -> None:
    assert GOOD.mean_ms == pytest.approx((90 * 0.5 + 10 * 200) / 100)


def test_a_period_is_what_came_after_its_beginning() -> None:
    later = Figures.of(stats(hits=190, misses=10, hit_ms=0.5, miss_ms=200))
    period = later.since(GOOD)
    assert (period.requests, period.hits, period.misses) == (100, 100, 0)
    assert period.mean_ms == pytest.approx(0.5)


def test_a_process_that_began_anew_is_not_counted_backwards() -> None:
    anew = Figures.of(stats(hits=3, misses=1))
    assert anew.since(GOOD) == anew
