import time

import pytest

from nexcache.demo.checks import Judgement
from nexcache.demo.figures import Answered, Durations, Figures, Kind
from nexcache.demo.verdict import verdicts


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        pytest.param("NexCache; hit; ttl=119; detail=redis", Kind.HIT, id="hit"),
        pytest.param("NexCache; fwd=uri-miss; stored", Kind.MISS, id="miss"),
        pytest.param("NexCache; fwd=uri-miss; collapsed", Kind.MISS, id="computed for another"),
        pytest.param("", Kind.MISS, id="no cache"),
    ],
)
def test_the_kind_of_an_answer_is_what_cache_status_says(field: str, kind: Kind) -> None:
    assert Kind.of(field) is kind


def test_percentiles_are_right_to_two_per_cent() -> None:
    durations = Durations()
    for milliseconds in range(1, 101):
        durations.add(milliseconds / 1000)
    assert durations.percentile(50) == pytest.approx(0.050, rel=0.02)
    assert durations.percentile(95) == pytest.approx(0.095, rel=0.02)
    assert Durations().percentile(50) is None


def measured(**kinds: int) -> Figures:
    figures = Figures(time.monotonic())
    for kind, count in kinds.items():
        for number in range(count):
            figures.answered(Answered("acme", "dashboard", f"/{number % 2}", Kind(kind), 0.01))
    return figures


def test_reads_below_the_uncached_path_count_neither_as_hits_nor_as_misses() -> None:
    figures = measured(hit=9, miss=1, uncached=10)
    assert (figures.reads, figures.hit_ratio, len(figures.targets)) == (10, 0.9, 2)
    assert figures.durations(Kind.UNCACHED, "dashboard").percentile(50) == pytest.approx(0.01, rel=0.02)
    assert figures.durations(Kind.HIT, "graph").percentile(50) is None


def kept(
    figures: Figures, *, invalidations: int = 20, wrong: int = 0, answers: int = 100, seconds: float = 20.0
) -> list[bool]:
    judgement = Judgement(answers=answers)
    judgement.wrong["dashboard"] += wrong
    return [each.kept for each in verdicts(figures, judgement, {"acme": invalidations}, seconds)]


def test_a_run_that_kept_every_promise_is_good() -> None:
    assert all(kept(measured(hit=9, miss=1)))


def test_each_broken_promise_is_told() -> None:
    assert kept(measured(hit=8, miss=2)) == [False, True, True, True]
    assert kept(measured(hit=9, miss=1), invalidations=10) == [True, False, True, True]
    assert kept(measured(hit=9, miss=1), wrong=1) == [True, True, False, True]
    assert kept(measured(hit=9, miss=1), answers=0) == [True, True, False, True]
    figures = measured(hit=9, miss=1)
    figures.failed("dashboard", "503")
    assert kept(figures) == [True, True, True, False]
