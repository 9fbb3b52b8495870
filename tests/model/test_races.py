"""Every race that was found on the way, scripted step by step; with its safeguard taken out, each is seen again."""

from typing import Final

import pytest

from tests.model.mutants import ALL, breaks
from tests.model.world import Step

RACES: Final = {
    # A node stood in a register that the server evicted, and answers from memory what somebody invalidates strictly,
    # who reads a register in which it does not stand.
    "a_lost_register_is_taken_for_whole": (
        Step("get_ready", (1, 0)),
        Step("lose_register", (1, 0, 3)),
    ),
    # A server without memory refuses the capture of a computation; who asks after an invalidation by another node
    # joins it, under generations of the process that know nothing of it.
    "a_refused_capture_is_joined": (
        Step("full", (1,)),
        Step("begin", (1, 0)),
        Step("invalidate", (0, 0, 0, 0, 1)),
        Step("tick", (5,)),
        Step("begin", (1, 0)),
        Step("end_fill", (0,)),
    ),
    # The registry is lost with an operation whose entry a node answers from memory, and restored for another one; a
    # glob finds that one only. The tenant's token was removed, and nobody told the memory.
    "a_restored_registry_is_not_told_of": (
        Step("get_ready", (0, 0)),
        Step("tick", (6,)),
        Step("get_ready", (0, 0)),
        Step("lose_registry", (0,)),
        Step("ask", (1, 2, 0)),
        Step("ask", (0, 0, 0)),
        Step("invalidate", (1, 0, 1, 0, 1)),
        Step("ask", (0, 0, 0)),
    ),
}


@pytest.mark.parametrize("race", RACES)
def test_a_race_that_was_found_is_won(race: str) -> None:
    assert breaks(None, RACES[race], nodes=2) is None


@pytest.mark.parametrize("race", RACES)
def test_without_its_safeguard_it_is_lost(race: str) -> None:
    assert breaks(ALL[race], RACES[race], nodes=2) is not None
