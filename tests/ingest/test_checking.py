import pytest

from nexcache.ingest.checking import faults, may_meet
from nexcache.ingest.rules import IngestRule
from nexcache.ingest.windows import TimeWindow
from nexcache.policy import Policy

POLICIES = (
    Policy("/d", op="dashboard_overview", window=TimeWindow("from", "to")),
    Policy("/s/{service}", op="service_details", tags=["service:{service}", "kind:all"]),
)
WINDOWED = IngestRule(windows=["spans"])


@pytest.mark.parametrize(
    "rule",
    [
        IngestRule(ops=["dashboard_*", "service_details", "*"]),
        IngestRule(tags=["service:{service.name}", "kind:all", "{anything}", "service:cart"]),
        WINDOWED,
    ],
)
def test_a_rule_that_can_meet_a_policy_is_no_fault(rule: IngestRule) -> None:
    assert faults([rule, WINDOWED], POLICIES) == []


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (IngestRule(ops=["dashboard"]), "ingest rule 1: no policy has the operation 'dashboard'; there are dashboard_"),
        (IngestRule(ops=["dashbord_*"]), "no policy has the operation 'dashbord_*'"),
        (IngestRule(tags=["svc:{service.name}"]), "the tag 'svc:{service.name}' can never be one of a policy"),
        (IngestRule(tags=["kind:some"]), "the tag 'kind:some' can never"),
        (IngestRule(windows=["service:{service.name}"]), "no policy has a window on the timeline 'service:"),
    ],
)
def test_a_rule_that_can_never_meet_a_policy_is_one_in_words(rule: IngestRule, fault: str) -> None:
    (found,) = faults([rule, WINDOWED], POLICIES)
    assert fault in found


def test_a_window_that_no_rule_reaches_is_a_fault_of_its_policy() -> None:
    rule = IngestRule(ops=["service_details"])
    (found,) = faults([rule], POLICIES)
    assert found.startswith("Policy('/d'): its window is on the timeline 'spans', which no ingest rule's windows reach")
    assert faults([IngestRule(ops=["dashboard_*"])], POLICIES) == []


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a:{x}", "a:{y}", True),
        ("a:{x}", "a:b:c", True),
        ("{x}:b", "a:{y}", True),
        ("{x}b", "a{y}", True),
        ("a{x}", "b{y}", False),
        ("{x}a", "{y}b", False),
        ("{x}", "", True),
        ("a{x}b{y}c", "a-b-c", True),
        ("a{x}b{y}c", "a-c", False),
        ("{x}/{y}", "{z}", True),
        ("ab", "{x}c", False),
    ],
)
def test_two_templates_meet_if_they_can_give_the_same_text(one: str, other: str, meet: bool) -> None:
    assert may_meet(one, other) is meet
    assert may_meet(other, one) is meet
