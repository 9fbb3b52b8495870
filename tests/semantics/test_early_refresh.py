"""When an answer is computed again early, and how much shorter it lives: tables, and the law behind the draws."""

import math
import random
import statistics

import pytest

from nexcache.message import StoredResponse
from nexcache.semantics.early_refresh import jittered, refresh_at


def stored(cost: float, ttl: float = 60.0) -> StoredResponse:
    return StoredResponse(200, (), b"x", b'"x"', 1_000.0, ttl, 0, cost)


@pytest.mark.parametrize(
    ("cost", "draw", "lead"),
    [
        pytest.param(2.0, 1.0, 2.0, id="the latest instant leaves the time to compute it"),
        pytest.param(2.0, 1 / math.e, 4.0, id="one more for each e"),
        pytest.param(2.0, math.exp(-2), 6.0, id="two more"),
        pytest.param(0.004, 1.0, 0.004, id="what costs little is refreshed late"),
        pytest.param(2.0, math.exp(-300), 30.0, id="never in the first half, whatever is drawn"),
        pytest.param(500.0, 1.0, 30.0, id="never in the first half, whatever it costs"),
    ],
)
def test_the_instant_follows_from_cost_and_draw(cost: float, draw: float, lead: float) -> None:
    assert refresh_at(stored(cost), draw) == pytest.approx(1_060.0 - lead)


def test_what_costs_nothing_known_is_never_refreshed_early() -> None:
    assert refresh_at(stored(0.0), 0.5) == math.inf


def test_the_instants_of_many_processes_are_those_of_xfetch_one_cost_earlier() -> None:
    """XFetch's test `now - cost * ln(draw) >= expiry` holds from an instant whose lead is exponential."""
    draws = random.Random(7)
    leads = [1_060.0 - refresh_at(stored(0.5), 1 - draws.random()) for _ in range(20_000)]
    assert min(leads) >= 0.5
    assert statistics.fmean(leads) == pytest.approx(0.5 + 0.5, rel=0.03)
    for multiple in (1, 2, 3):
        part = sum(lead - 0.5 > multiple * 0.5 for lead in leads) / len(leads)
        assert part == pytest.approx(math.exp(-multiple), abs=0.01)


@pytest.mark.parametrize(
    ("jitter", "draw", "ttl"),
    [
        pytest.param(0.1, 0.0, 60.0, id="at most the ttl"),
        pytest.param(0.1, 0.5, 57.0, id="half of the jitter"),
        pytest.param(0.1, 0.999999, 54.0, id="at least the ttl less the jitter"),
        pytest.param(0.0, 0.9, 60.0, id="none"),
    ],
)
def test_jitter_shortens_and_never_lengthens(jitter: float, draw: float, ttl: float) -> None:
    assert jittered(60.0, jitter, draw) == pytest.approx(ttl, abs=0.001)
