"""The state machine that Hypothesis searches: every kind of step is a rule, and every answer is judged."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.model.programs import LARGEST, RULES
from tests.model.world import Step, World, stage

_NUMBER: Final = st.integers(0, LARGEST)


class Machine(RuleBasedStateMachine):
    """Two or three nodes, the model of the server, and everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self._stage = ExitStack()
        self.world: World | None = None

    @initialize(nodes=st.sampled_from((2, 3)))
    def begin_world(self, nodes: int) -> None:
        self.world = World(self._stage.enter_context(stage()), nodes=nodes)

    def teardown(self) -> None:
        with self._stage:
            if self.world is not None:
                self.world.end()


def _rule(name: str, arguments: int) -> Callable[..., Any]:
    def happens(self: Machine, numbers: tuple[int, ...]) -> None:
        assert self.world is not None
        self.world.do(Step(name, numbers))

    happens.__name__ = name
    return rule(numbers=st.tuples(*[_NUMBER] * arguments))(happens)


for _name, _each in RULES.items():
    setattr(Machine, _name, _rule(_name, _each.arguments))
