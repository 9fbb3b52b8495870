"""What a node may trust: one lease from the sending of a read, never across a barrier, never unregistered."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache.invalidation.view import REGISTERED_FOR, View

LEASE = 0.25


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def view(clock: Clock) -> View:
    made = View(lease=LEASE, clock=clock)
    made.registered(sent_at=clock.now)
    return made


def token_of(view: View, key: bytes) -> bytes | None:
    found = view.tokens((key,))
    return None if found is None else found[0]


def test_several_generations_are_trusted_together_or_not_at_all(view: View, clock: Clock) -> None:
    view.observe([b"a", b"b"], [b"1", b"2"], sent_at=clock.now)

    assert view.tokens((b"b", b"a")) == (b"2", b"1")
    assert view.tokens((b"a", b"never read")) is None


def test_a_generation_is_trusted_for_a_lease_from_the_sending_not_from_the_reply(view: View, clock: Clock) -> None:
    sent_at = clock.now
    clock.now += 0.2  # the reply comes late
    view.observe([b"k"], [b"token"], sent_at=sent_at)

    assert token_of(view, b"k") == b"token"
    clock.now = sent_at + LEASE - 0.001
    assert token_of(view, b"k") == b"token"
    clock.now = sent_at + LEASE
    assert token_of(view, b"k") is None


def test_a_reply_that_comes_after_its_lease_is_not_token_of(view: View, clock: Clock) -> None:
    sent_at = clock.now
    clock.now += LEASE

    view.observe([b"k"], [b"token"], sent_at=sent_at)

    assert token_of(view, b"k") is None


def test_suspension_ends_trust(view: View, clock: Clock) -> None:
    view.observe([b"k"], [b"token"], sent_at=clock.now)

    clock.now += 3600

    assert token_of(view, b"k") is None


def test_an_invalidation_ends_trust_at_once(view: View, clock: Clock) -> None:
    view.observe([b"k", b"other"], [b"token", b"token"], sent_at=clock.now)

    view.invalidated([b"k"])

    assert token_of(view, b"k") is None
    assert token_of(view, b"other") == b"token"


def test_a_read_sent_before_a_barrier_never_enters(view: View, clock: Clock) -> None:
    sent_at = clock.now
    clock.now += 0.01
    view.invalidated([b"k"])
    clock.now += 0.01

    view.observe([b"k"], [b"old"], sent_at=sent_at)

    assert token_of(view, b"k") is None


def test_a_read_sent_at_the_barriers_instant_never_enters(view: View, clock: Clock) -> None:
    view.invalidated([b"k"])

    view.observe([b"k"], [b"old"], sent_at=clock.now)

    assert token_of(view, b"k") is None


def test_a_read_sent_after_a_barrier_enters(view: View, clock: Clock) -> None:
    view.invalidated([b"k"])
    clock.now += 0.01

    view.observe([b"k"], [b"new"], sent_at=clock.now)

    assert token_of(view, b"k") == b"new"


def test_distrust_is_a_barrier_for_everything(view: View, clock: Clock) -> None:
    sent_at = clock.now
    view.observe([b"k"], [b"token"], sent_at=sent_at)
    clock.now += 0.01

    view.distrust()
    view.observe([b"other"], [b"old"], sent_at=sent_at)

    assert token_of(view, b"k") is None
    assert token_of(view, b"other") is None


def test_replies_out_of_order_leave_the_later_reads_word(view: View, clock: Clock) -> None:
    early = clock.now
    clock.now += 0.01
    view.observe([b"k"], [b"new"], sent_at=clock.now)

    view.observe([b"k"], [b"old"], sent_at=early)

    assert token_of(view, b"k") == b"new"


def test_a_missing_generation_ends_trust(view: View, clock: Clock) -> None:
    view.observe([b"k"], [b"token"], sent_at=clock.now)
    clock.now += 0.01

    view.observe([b"k"], [None], sent_at=clock.now)

    assert token_of(view, b"k") is None


def test_who_is_not_registered_trusts_nothing(clock: Clock) -> None:
    view = View(lease=LEASE, clock=clock)
    view.observe([b"k"], [b"token"], sent_at=clock.now)
    assert token_of(view, b"k") is None

    view.registered(sent_at=clock.now)
    clock.now += REGISTERED_FOR
    view.observe([b"k"], [b"token"], sent_at=clock.now)
    assert token_of(view, b"k") is None


def test_what_was_used_is_named_once_for_renewal(view: View, clock: Clock) -> None:
    view.observe([b"used", b"unused"], [b"token", b"token"], sent_at=clock.now)
    token_of(view, b"used")

    assert view.used() == (b"used",)
    assert view.used() == ()


def test_several_generations_may_be_relied_on_as_long_as_each(view: View, clock: Clock) -> None:
    view.observe([b"a"], [b"1"], sent_at=clock.now)
    clock.now += 0.2
    view.observe([b"b"], [b"2"], sent_at=clock.now)

    assert view.good_until([(b"b", b"2")]) == clock.now + LEASE / 4
    assert view.good_until([(b"a", b"1"), (b"b", b"2")]) == pytest.approx(clock.now + 0.05)
    assert view.good_until([(b"a", b"1"), (b"b", b"other")]) == 0
    assert view.good_until([(b"a", b"1"), (b"unknown", b"3")]) is None
    clock.now += 0.05
    assert view.good_until([(b"a", b"1"), (b"b", b"2")]) is None
    assert set(view.used()) == {b"a", b"b"}


def test_each_change_is_counted_and_a_renewal_is_none(view: View, clock: Clock) -> None:
    """Who looked at generations need not look again before the count rises."""
    view.observe([b"k"], [b"1"], sent_at=clock.now)
    seen = [view.changes]
    clock.now += 0.01
    view.observe([b"k"], [b"1"], sent_at=clock.now)
    assert view.changes == seen[0]
    changes: list[Callable[[], None]] = [
        lambda: view.observe([b"k"], [b"2"], sent_at=clock.now),
        lambda: view.observe([b"k"], [None], sent_at=clock.now),
        lambda: view.invalidated([b"k"]),
        view.distrust,
    ]
    for change in changes:
        change()
        seen.append(view.changes)
        clock.now += 0.01
        view.observe([b"k"], [b"3"], sent_at=clock.now)
    assert sorted(set(seen)) == seen


def test_it_does_not_grow_without_bound(clock: Clock) -> None:
    view = View(lease=LEASE, clock=clock, most=100)
    for number in range(10_000):
        clock.now += 0.01
        view.registered(sent_at=clock.now)
        view.observe([b"%d" % number], [b"token"], sent_at=clock.now)
        view.invalidated([b"barrier %d" % number])

    assert len(view) <= 101
    assert len(view._barriers) <= 2 * 5.0 / 0.01


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.floats(0, 0.3)),
            st.tuples(st.just("reply"), st.integers(0, 5)),
            st.tuples(st.just("change"), st.booleans()),
            st.tuples(st.just("tick"), st.floats(0.001, 0.3)),
        ),
        max_size=60,
    )
)
def test_no_history_of_reads_and_messages_makes_it_trust_what_changed_a_lease_ago(
    history: list[tuple[str, float | int | bool]],
) -> None:
    """Replies late, lost and out of order, messages lost: trust in an old token ends a lease after the change."""
    clock = Clock()
    view = View(lease=LEASE, clock=clock)
    current, changed_at = 0, {0: clock.now}
    pending: list[tuple[float, int]] = []
    for kind, argument in history:
        clock.now += 1e-6
        view.registered(sent_at=clock.now)
        match kind:
            case "send":
                pending.append((clock.now, current))
            case "reply" if pending:
                sent_at, token = pending.pop(int(argument) % len(pending))
                view.observe([b"k"], [b"%d" % token], sent_at=sent_at)
            case "change":
                current += 1
                changed_at[current] = clock.now
                if argument:  # the message arrives; otherwise it is lost
                    view.invalidated([b"k"])
            case "tick":
                clock.now += float(argument)
        trusted = token_of(view, b"k")
        if trusted is not None and int(trusted) < current:
            assert clock.now - changed_at[int(trusted) + 1] < LEASE
