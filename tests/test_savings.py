"""What caching an operation saves, and whether it pays."""

import pytest

from nexcache.savings import Verdict, saving
from nexcache.telemetry.counts import OperationCounts


def counted(
    *, hits: int = 0, misses: int = 0, coalesced: int = 0, hit: float = 0.001, miss: float = 0.1
) -> OperationCounts:
    counts = OperationCounts()
    counts.redis_hits, counts.misses, counts.coalesced = hits, misses, coalesced
    for _ in range(hits):
        counts.hit_latency.add(hit)
    for _ in range(misses):
        counts.miss_latency.add(miss)
    return counts


def test_a_hit_saves_a_computation_and_what_a_miss_takes_longer() -> None:
    found = saving(counted(hits=100, misses=10, coalesced=4))
    assert found.computations == 104
    assert found.seconds == pytest.approx(9.9)


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        pytest.param(counted(), Verdict.TOO_FEW, id="nothing"),
        pytest.param(counted(hits=9, misses=10), Verdict.TOO_FEW, id="too few to tell"),
        pytest.param(counted(hits=100), Verdict.TOO_FEW, id="nobody knows what a miss takes"),
        pytest.param(counted(hits=19, misses=81), Verdict.SELDOM_HIT, id="a hit in five is the least"),
        pytest.param(counted(hits=20, misses=80), Verdict.PAYS, id="a hit in five"),
        pytest.param(counted(misses=30), Verdict.SELDOM_HIT, id="never hit"),
        pytest.param(counted(hits=80, misses=20, hit=0.001, miss=0.0019), Verdict.CHEAP, id="hardly slower"),
        pytest.param(counted(hits=80, misses=20, hit=0.1, miss=0.05), Verdict.CHEAP, id="a hit takes longer"),
        pytest.param(counted(hits=80, misses=20, hit=0.001, miss=0.0021), Verdict.PAYS, id="a millisecond"),
    ],
)
def test_where_caching_pays(counts: OperationCounts, verdict: Verdict) -> None:
    assert saving(counts).verdict is verdict


def test_a_hit_that_takes_longer_saves_no_time_and_costs_none() -> None:
    assert saving(counted(hits=80, misses=20, hit=0.1, miss=0.05)).seconds == 0.0
