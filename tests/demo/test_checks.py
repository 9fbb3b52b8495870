from typing import Any

import pytest

from nexcache.demo.checks import CANARY, Acknowledgements, Expected, Judgement, violations

TRACE = "aa" * 16
SERVICE = f"service:{CANARY}"


def answer(**spans: int) -> dict[str, Any]:
    return {
        "tenant": "acme",
        "seen": {f"service:{service}": {"spans": count, "last_trace": TRACE} for service, count in spans.items()},
    }


def test_an_answer_that_has_seen_what_was_acknowledged_is_right() -> None:
    assert list(violations(answer(cart=3, email=9), Expected("acme", {"service:cart": 3, "service:email": 7}))) == []


def test_an_answer_that_misses_an_acknowledged_span_is_wrong() -> None:
    (found,) = violations(answer(cart=2, email=9), Expected("acme", {"service:cart": 3, "service:email": 7}))
    assert found == "acme: 3 spans of service:cart were acknowledged, but only 2 were seen"


def test_an_answer_that_does_not_know_the_service_at_all_is_wrong() -> None:
    assert len(list(violations(answer(), Expected("acme", {"service:cart": 1})))) == 1


def test_an_answer_about_one_service_is_held_to_that_service_only() -> None:
    promised = {"service:cart": 3, "service:email": 7}
    assert list(violations(answer(cart=3), Expected("acme", promised, subject="service:cart"))) == []
    assert len(list(violations(answer(cart=2), Expected("acme", promised, subject="service:cart")))) == 1


def test_an_answer_about_all_services_is_not_held_to_journeys() -> None:
    assert list(violations(answer(cart=3), Expected("acme", {"service:cart": 3, "journey:home": 9}))) == []
    found = violations(answer(), Expected("acme", {"journey:home": 9}, subject="journey:home"))
    assert len(list(found)) == 1


def test_the_data_of_another_tenant_is_wrong_whatever_it_has_seen() -> None:
    assert list(violations(answer(cart=3), Expected("globex", {}))) == ["globex was answered with the data of acme"]


@pytest.mark.parametrize(
    ("seen", "wrong"),
    [
        pytest.param({"spans": 4, "last_trace": TRACE}, 0, id="it is there"),
        pytest.param({"spans": 4, "last_trace": "bb" * 16}, 1, id="another is there"),
        pytest.param({"spans": 5, "last_trace": "bb" * 16}, 0, id="a later one came after it"),
        pytest.param({"spans": 3, "last_trace": "bb" * 16}, 1, id="only earlier ones are there"),
    ],
)
def test_the_canary_is_looked_for_by_its_trace(seen: dict[str, Any], wrong: int) -> None:
    found = violations({"tenant": "acme", "seen": {SERVICE: seen}}, Expected("acme", {SERVICE: 4}, last_trace=TRACE))
    assert len(list(found)) == wrong


def test_a_promise_that_was_taken_does_not_change_with_later_acknowledgements() -> None:
    acknowledgements = Acknowledgements()
    acknowledgements.start("acme", {"cart": 10})
    before = acknowledgements.promised("acme")
    acknowledgements.add("acme", {"cart": 2}, 2)
    assert (before["cart"], acknowledgements.promised("acme")["cart"]) == (10, 12)
    assert acknowledgements.promised("globex") == {}


def test_a_refused_batch_promises_nothing() -> None:
    acknowledgements = Acknowledgements()
    acknowledgements.refuse("acme")
    assert acknowledgements.promised("acme") == {}
    assert acknowledgements.refused["acme"] == 1


def test_a_judgement_counts_answers_canaries_and_what_was_wrong() -> None:
    judgement = Judgement()
    judgement.judge("dashboard", answer(cart=1), Expected("acme", {"service:cart": 1}))
    judgement.judge("dashboard", answer(cart=1), Expected("acme", {"service:cart": 2}))
    judgement.judge("graph", answer(canary=1), Expected("acme", {SERVICE: 1}, last_trace=TRACE))
    assert (judgement.answers, judgement.canaries) == (2, 1)
    assert judgement.wrong == {"dashboard": 1}
    assert judgement.examples == ["dashboard: acme: 2 spans of service:cart were acknowledged, but only 1 were seen"]
