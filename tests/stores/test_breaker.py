import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache.stores.breaker import Breaker


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_it_opens_at_the_last_of_so_many_failures_in_a_row(failures: int) -> None:
    breaker = Breaker(failures)
    assert [breaker.failed() for _ in range(failures + 2)] == [False] * (failures - 1) + [True, False, False]
    assert breaker.is_open


def test_a_success_between_failures_begins_the_count_again() -> None:
    breaker = Breaker(2)
    assert [breaker.failed(), breaker.succeeded(), breaker.failed()] == [False, False, False]
    assert not breaker.is_open
    assert breaker.failed()


def test_one_success_closes_it_and_says_so_once() -> None:
    breaker = Breaker(1)
    breaker.failed()
    assert [breaker.succeeded(), breaker.succeeded()] == [True, False]
    assert not breaker.is_open
    assert breaker.failed()


def test_it_begins_closed_and_takes_five_failures() -> None:
    breaker = Breaker()
    assert not breaker.is_open
    assert [breaker.failed() for _ in range(5)] == [False] * 4 + [True]


@given(st.lists(st.booleans()), st.integers(1, 4))
def test_it_is_open_exactly_after_enough_failures_since_the_last_success(outcomes: list[bool], failures: int) -> None:
    breaker, in_a_row = Breaker(failures), 0
    for good in outcomes:
        was_open = breaker.is_open
        changed = breaker.succeeded() if good else breaker.failed()
        in_a_row = 0 if good else in_a_row + 1
        is_open = breaker.is_open
        assert is_open is (in_a_row >= failures)
        assert changed is (is_open != was_open)
