"""Programs that once broke the guarantee, or do where a safeguard is missing: on the model and on a real server."""

from collections.abc import Iterator

import pytest

from tests.model.mutants import ALL, breaks
from tests.model.programs import Kept, corpus, program_of, run
from tests.model.real_server import RealServer, servers
from tests.model.test_races import RACES
from tests.model.world import replay, stage
from tests.servers import Valkey

KEPT = corpus()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[tuple[Valkey, Valkey]]:
    del valkey  # says what is to be said where there is no server
    primary, other = servers(tmp_path_factory.mktemp("model"))
    with primary, other:
        yield primary, other


def test_every_mutant_has_a_program_that_kills_it() -> None:
    assert {each.name for each in KEPT} == ALL.keys()


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.name)
def test_a_missing_safeguard_is_noticed_by_its_program_and_by_nothing_else(kept: Kept) -> None:
    assert breaks(ALL[kept.name], kept.steps, nodes=kept.nodes) is not None
    assert breaks(None, kept.steps, nodes=kept.nodes) is None


@pytest.mark.parametrize(
    "kept", [*KEPT, *(Kept(name, 2, steps) for name, steps in RACES.items())], ids=lambda k: k.name
)
def test_the_guarantee_holds_on_a_real_server(pair: tuple[Valkey, Valkey], kept: Kept) -> None:
    """The same program, judged in the same way; only the server is no model."""
    with stage() as clock:
        world = replay(clock, kept.steps, nodes=kept.nodes, server=lambda: RealServer(clock, *pair))

    model = run(kept.steps, nodes=kept.nodes)
    assert (world.checked, world.covered) == (model.checked, model.covered)


@pytest.mark.parametrize("seed", range(5))
def test_drawn_programs_break_nothing_on_a_real_server(pair: tuple[Valkey, Valkey], seed: int) -> None:
    program, nodes = program_of(seed)
    with stage() as clock:
        world = replay(clock, program, nodes=nodes, server=lambda: RealServer(clock, *pair))

    assert world.checked == run(program, nodes=nodes).checked


@pytest.mark.parametrize("seed", range(40))
def test_drawn_programs_break_nothing(seed: int) -> None:
    program, nodes = program_of(1_000 + seed)

    world = run(program, nodes=nodes)

    assert world.checked
