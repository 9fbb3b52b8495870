"""Several processes at once: nobody is answered from before an acknowledged invalidation, whatever is done to them."""

import pytest

from tests.model.history import Acknowledged, Answers, Part, violations
from tests.model.processes import Faults, run
from tests.servers import Valkey


def test_nobody_is_answered_from_before_with_the_backplane_cut_and_processes_suspended(own_valkey: Valkey) -> None:
    outcome = run(own_valkey, requests=1_000_000, seconds=6.0, faults=Faults(cut=True, suspend=True), every=100)

    assert outcome.violations == []
    assert outcome.total("foreign") == outcome.total("failed") == 0
    # and the run was one that could have gone wrong
    assert outcome.total("deaf") > 2
    assert outcome.total("suspended") > 0
    assert outcome.total("memory") > 100
    assert outcome.total("computed") > 20
    assert outcome.acknowledged > 20


def test_the_check_can_fail(own_valkey: Valkey) -> None:
    outcome = run(own_valkey, requests=3_000, seconds=3.0, mutant="generations_not_compared", every=100)

    assert outcome.violations


def _part(node: int, *answers: tuple[float, int, int, bool], acknowledged: tuple[Acknowledged, ...] = ()) -> Part:
    part = Part(node, Answers(), list(acknowledged))
    for started, key, version, memory in answers:
        part.answers.add(started, key, version, memory=memory)
    return part


@pytest.mark.parametrize(
    ("node", "answer", "strict", "wrong"),
    [
        pytest.param(0, (9.9, 7, 4, True), False, False, id="asked before"),
        pytest.param(0, (10.1, 7, 4, True), False, True, id="from the memory of the node that invalidated"),
        pytest.param(1, (10.1, 7, 4, True), False, False, id="from another's memory, within its lease"),
        pytest.param(1, (10.1, 7, 4, True), True, True, id="from another's memory, after a strict one"),
        pytest.param(1, (10.1, 7, 4, False), False, True, id="not from memory"),
        pytest.param(1, (10.3, 7, 4, True), False, True, id="from another's memory, after its lease"),
        pytest.param(1, (10.3, 7, 5, True), False, False, id="new enough"),
        pytest.param(1, (10.3, 8, 4, True), False, False, id="of another key"),
    ],
)
def test_what_is_a_violation(node: int, answer: tuple[float, int, int, bool], strict: bool, wrong: bool) -> None:
    invalidated = _part(0, acknowledged=(Acknowledged(7, 5, 10.0, 0, strict), Acknowledged(7, 3, 10.05, 0, strict)))

    found = violations([invalidated, _part(node, answer)], lease=0.25)

    assert bool(found) is wrong
