"""Nobody is answered from before an acknowledged invalidation: searched, over everything that can happen."""

from hypothesis import HealthCheck, Phase, settings

from tests.model.machine import Machine

TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),  # what it finds is shortened by `tests.model.programs`, and kept
    suppress_health_check=list(HealthCheck),
)
