import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache.errors import ConfigurationError
from nexcache.ingest.windows import (
    COARSE,
    LONGEST_COVER,
    MINUTE,
    MOST_BUCKETS,
    SpanTimes,
    TimeWindow,
    cover,
    instant,
)
from nexcache.policy import Covered, TagsInvalid

NOW = 1_700_000_000.0
HOUR = 60
MINUTES = st.integers(min_value=28_000_000, max_value=28_000_000 + 60 * 24 * 400)
RANGES = st.tuples(MINUTES, st.one_of(st.integers(0, 120), st.integers(0, 60 * 24 * 60), st.integers(0, 60 * 24 * 300)))
SPANS = st.lists(
    st.tuples(MINUTES, st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 60 * 24 * 30))), min_size=1, max_size=80
)
CELLS = (1, *(1 << level for level in COARSE))


def times_of(spans: list[tuple[int, int]]) -> SpanTimes:
    times = SpanTimes()
    for low, length in spans:
        times.add(low * MINUTE, (low + length) * MINUTE)
    return times


def reached(low: int, length: int, times: SpanTimes) -> bool:
    tags = times.tags("spans")
    return tags is None or not tags.isdisjoint(cover(low * MINUTE, (low + length) * MINUTE).tags("spans"))


def overlaps(low: int, length: int, spans: list[tuple[int, int]], *, slack: int = 0) -> bool:
    return any(start - slack <= low + length and start + long + slack >= low for start, long in spans)


@given(RANGES, SPANS)
def test_no_span_in_a_window_is_ever_missed(window: tuple[int, int], spans: list[tuple[int, int]]) -> None:
    if overlaps(*window, spans):
        assert reached(*window, times_of(spans))


@given(RANGES, SPANS)
def test_a_window_is_reached_from_no_further_than_is_stated(
    window: tuple[int, int], spans: list[tuple[int, int]]
) -> None:
    times = times_of(spans)
    if times.tags("spans") is not None and reached(*window, times):
        edge, _ = times.cells
        slack = 1 + (window[1] + 1) // 20 + CELLS[edge]
        assert overlaps(*window, spans, slack=slack)


@given(RANGES, MINUTES)
def test_one_span_alone_reaches_a_window_from_no_further_than_a_minute_and_a_twentieth_of_its_range(
    window: tuple[int, int], at: int
) -> None:
    times = times_of([(at, 0)])
    assert times.cells[0] == 0
    if reached(*window, times):
        assert overlaps(*window, [(at, 0)], slack=1 + (window[1] + 1) // 20)


@given(RANGES)
def test_a_cover_holds_its_range_in_at_most_eight_buckets(window: tuple[int, int]) -> None:
    low, length = window
    found = cover(low * MINUTE, (low + length) * MINUTE + MINUTE - 1)
    assert 1 <= len(found.buckets) <= LONGEST_COVER
    assert len(found.tags("spans")) <= TimeWindow("from", "to").most_tags
    ends = [((index << level), ((index + 1) << level) - 1) for level, index in found.buckets]
    assert ends[0][0] <= low
    assert ends[-1][1] >= low + length
    assert all(after == before + 1 for (_, before), (after, _) in pairwise(ends))
    wider = max(low - ends[0][0], ends[-1][1] - (low + length))
    assert wider <= (length + 1) / 20 + 1


@given(SPANS)
def test_a_batch_reaches_at_most_sixty_four_buckets_or_everything(spans: list[tuple[int, int]]) -> None:
    tags = times_of(spans).tags("spans")
    assert tags is None or len(tags) <= MOST_BUCKETS


@given(SPANS, SPANS, RANGES)
def test_merged_times_reach_what_either_reaches(
    some: list[tuple[int, int]], more: list[tuple[int, int]], window: tuple[int, int]
) -> None:
    times = times_of(some)
    times.merge(times_of(more))
    if overlaps(*window, some + more):
        assert reached(*window, times)


def test_spans_of_the_last_hour_are_looked_at_in_cells_of_eight_minutes() -> None:
    """So that a window that closed more than eight minutes before the latest of them stays."""
    chance = random.Random(1)
    now = 28_400_000
    late = times_of([(now - chance.randrange(HOUR), 0) for _ in range(500)])
    assert late.tags("spans") is not None
    assert late.cells[0] == 1
    closed = [(now - HOUR - 9 - length, length) for length in range(300)]
    assert not any(reached(low, length, late) for low, length in closed)
    assert reached(now - HOUR - 300, 301, late)


def test_times_over_centuries_reach_everything_in_bounded_memory() -> None:
    times = SpanTimes()
    for number in range(10_000):
        times.add(number * 10**15, number * 10**15)
    assert times.everything
    assert list(times.cells[1]) == []
    times.add(0, 5)
    assert times.tags("spans") is None


def test_a_span_over_centuries_costs_no_more_than_another() -> None:
    times = SpanTimes()
    times.add(0, (1 << 64) - 1)
    assert times.everything


def test_a_span_that_ends_before_it_starts_is_at_its_start() -> None:
    times = SpanTimes()
    times.add(28_000_000 * MINUTE, 0)
    assert list(times.cells[1]) == [28_000_000]


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1700000000", 1_700_000_000 * 10**9),
        ("1700000000.25", 1_700_000_000 * 10**9 + 250_000_000),
        ("1700000000123", 1_700_000_000_123 * 10**6),
        ("1700000000123456", 1_700_000_000_123_456 * 10**3),
        ("1700000000123456789", 1_700_000_000_123_456_789),
        ("0", 0),
        ("2023-11-14T22:13:20Z", 1_700_000_000 * 10**9),
        ("2023-11-14t22:13:20.5z", 1_700_000_000 * 10**9 + 500_000_000),
        ("2023-11-15T00:13:20+02:00", 1_700_000_000 * 10**9),
        ("2023-11-14T20:13:20-02:00", 1_700_000_000 * 10**9),
        ("now", 1_700_000_000 * 10**9),
        ("now-1h", 1_699_996_400 * 10**9),
        ("now+5m", 1_700_000_300 * 10**9),
        (" now - 2d ", (1_700_000_000 - 172_800) * 10**9),
    ],
)
def test_a_point_in_time_is_read_in_every_common_form(text: str, ns: int) -> None:
    found = instant(text, now=NOW)
    assert found is not None
    assert found.ns == ns
    assert found.relative is ("now" in text)


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "-5", "1e9", "2023-02-29T00:00:00Z", "2023-13-01T00:00:00Z", "2023-11-14T24:00:00Z",
     "2023-11-14T22:13:20", "0000-01-01T00:00:00Z", "1960-01-01T00:00:00Z", "now-1y", "now-", "99999999999999999999",
     "now-9999999w", "\uff11\uff17\uff10\uff10"],
)  # fmt: skip
def test_what_is_no_point_in_time_is_none(text: str) -> None:
    assert instant(text, now=NOW) is None


@pytest.mark.parametrize(
    "text", ["1700000000", "1700000000123", "1700000000123456", "1700000000123456789", "2024-02-29T23:59:59Z"]
)
def test_a_point_in_time_is_written_as_it_was_read(text: str) -> None:
    found = instant(text, now=NOW)
    assert found is not None
    assert found.written(found.ns) == text


def covered(window: TimeWindow, query: bytes, *, ttl: float = 120.0, now: float = NOW) -> Covered:
    found = window.covered(query, {}, "spans", ttl=ttl, now=now)
    assert isinstance(found, Covered)
    return found


def test_a_window_that_closed_long_ago_is_kept_for_hours_and_an_open_one_for_its_ttl() -> None:
    window = TimeWindow("from", "to")
    assert covered(window, b"from=1699980000&to=1699990000").ttl == 6 * 3600
    assert covered(window, b"from=1699980000&to=1699999000").ttl == 120
    assert covered(window, b"from=now-1h&to=now").ttl == 120
    assert covered(window, b"from=now-1d&to=1699990000").ttl == 120, "its start moves on"
    assert covered(TimeWindow("from", "to", open_ttl="15s"), b"from=now-1h&to=now").ttl == 15
    assert covered(TimeWindow("from", "to", settled="5m", closed_ttl="1d"), b"from=1&to=1699999000").ttl == 86_400


def test_an_end_that_is_now_covers_what_arrives_while_the_response_is_kept() -> None:
    found = covered(TimeWindow("from", "to"), b"from=now-1h&to=now", ttl=600)
    for seconds in (-3599, 0, 599, 899):
        at = SpanTimes()
        at.add(int((NOW + seconds) * 1e9), 0)
        assert not (at.tags("spans") or frozenset()).isdisjoint(found.tags), seconds


@pytest.mark.parametrize(
    "query", [b"from=tomorrow&to=now", b"from=1&to=never", b"from=1&from=2&to=3", b"from=1&to=2&to=3"]
)
def test_a_range_that_cannot_be_read_is_all_time(query: bytes) -> None:
    found = covered(TimeWindow("from", "to"), query)
    assert found.tags == ("window:spans:all",)
    assert found.ttl == 120
    any_time = SpanTimes()
    any_time.add(5, 5)
    assert set(found.tags) <= (any_time.tags("spans") or set())


def test_a_missing_start_is_the_beginning_and_a_missing_end_is_now() -> None:
    found = covered(TimeWindow("from", "to"), b"")
    for ns in (0, int(NOW * 1e9)):
        at = SpanTimes()
        at.add(ns, ns)
        assert not (at.tags("spans") or frozenset()).isdisjoint(found.tags)


def test_path_parameters_give_a_range_too() -> None:
    window = TimeWindow("start", "end")
    by_path = window.covered(b"", {"start": "1699980000", "end": "1699990000"}, "spans", ttl=1, now=NOW)
    assert by_path == Covered(b"", covered(window, b"start=1699980000&end=1699990000").tags, 6 * 3600)


def test_nothing_is_rounded_unless_a_step_is_asked_for() -> None:
    query = b"from=1699980001&to=1699990001&x=1"
    assert covered(TimeWindow("from", "to"), query).query is query
    assert covered(TimeWindow("from", "to", step=60), query).query == b"from=1699980000&to=1699990020&x=1"


@pytest.mark.parametrize(
    ("query", "rounded"),
    [
        (b"from=1699980001500&to=1699990001", b"from=1699980000000&to=1699990020"),
        (b"to=2023-11-14T22:13:21%2B00:00&from=now-1h", b"to=2023-11-14T22:14:00Z&from=now-1h"),
        (b"from=now-1h&to=now", b"from=now-1h&to=now"),
        (b"a=from&from=1699980000&to=1699990020&from_=1", b"a=from&from=1699980000&to=1699990020&from_=1"),
    ],
)
def test_a_step_rounds_absolute_times_outward_in_the_form_they_have(query: bytes, rounded: bytes) -> None:
    assert covered(TimeWindow("from", "to", step="1m"), query).query == rounded


def test_a_timeline_that_cannot_be_part_of_a_tag_is_refused() -> None:
    assert isinstance(TimeWindow("a", "b").covered(b"", {}, "x" * 200, ttl=1, now=NOW), TagsInvalid)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"start": "", "end": "to"}, "name two parameters"),
        ({"start": "t", "end": "t"}, "two parameters, not one"),
        ({"start": "a", "end": "b", "step": 0}, "step must be at least"),
        ({"start": "a", "end": "b", "step": "often"}, "step must be seconds"),
        ({"start": "a", "end": "b", "closed_ttl": 0}, "closed_ttl must be more"),
        ({"start": "a", "end": "b", "open_ttl": "31d"}, "open_ttl must be more"),
        ({"start": "a", "end": "b", "settled": -1}, "settled must be"),
    ],
)
def test_a_window_that_cannot_work_is_refused(arguments: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        TimeWindow(**arguments)
