from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from nexcache.errors import ConfigurationError
from nexcache.ingest.changes import MAX_TARGETS
from nexcache.ingest.rules import IngestRule, RuleSet
from nexcache.ingest.spans import Span
from nexcache.invalidation.targets import Targets
from tests.ingest.batches import span

BY_SERVICE = IngestRule(tags=["service:{service.name}"])


WHOLE_TENANT = Targets.of(["*"])


def targets(rules: Iterable[IngestRule], spans: Iterable[Span]) -> Targets:
    return RuleSet(rules).changes(spans).targets


def aimed(*rules: IngestRule, at: Span) -> Targets:
    return targets(rules, [at])


def test_operations_of_a_rule_without_match_are_aimed_at_by_every_span() -> None:
    rule = IngestRule(ops=["dashboard_*", "architecture_map"])
    assert aimed(rule, at=span()) == Targets.of(["dashboard_*", "architecture_map"])


def test_no_spans_aim_at_nothing() -> None:
    assert not targets([IngestRule(ops=["*"]), BY_SERVICE], [])


@pytest.mark.parametrize(
    ("template", "tags"),
    [
        ("service:{service.name}", {"service:cart"}),
        ("{service.name}", {"cart"}),
        ("all", {"all"}),
        ("{service.name}/{span.name}", {"cart/GET /cart"}),
        ("{service.name}{service.name}", {"cartcart"}),
        ("kind:{span.kind}", {"kind:server"}),
        ("status:{span.status}", {"status:error"}),
        ("scope:{scope.name}", {"scope:shop"}),
        ("route:{http.route}", {"route:/cart/{id}"}),
        ("code:{code}", {"code:200"}),
        ("ok:{ok}", {"ok:true"}),
        ("rate:{rate}", {"rate:0.5"}),
        ("empty:{empty}", {"empty:"}),
        ("both:{both}", {"both:span"}),
        ("host:{host.name}", {"host:node-1"}),
        ("missing:{missing}", set()),
        ("{service.name}:{missing}", set()),
        ("name:{name}", set()),
    ],
)
def test_a_template_is_filled_from_the_span_then_from_the_resource(template: str, tags: set[str]) -> None:
    arrived = span(
        {"http.route": "/cart/{id}", "code": 200, "ok": True, "rate": 0.5, "empty": "", "both": "span"},
        {"service.name": "cart", "both": "resource", "host.name": "node-1"},
        status=2,
    )
    assert aimed(IngestRule(tags=[template]), at=arrived) == Targets.of(tags=tags)


def test_kinds_and_statuses_without_a_name_are_numbers() -> None:
    rule = IngestRule(tags=["{span.kind}/{span.status}"])
    assert aimed(rule, at=span(kind=9, status=-1)) == Targets.of(tags=["9/-1"])


@pytest.mark.parametrize(
    ("match", "matches"),
    [
        ({"service.name": "cart"}, True),
        ({"service.name": "car"}, False),
        ({"service.name": "c*"}, True),
        ({"service.name": "c?rt"}, True),
        ({"service.name": "C*"}, False),
        ({"service.name": "*a*t*"}, True),
        ({"service.name": "[c]art"}, False),
        ({"service.name": "[c]*"}, False),
        ({"bracket": "[c]*"}, True),
        ({"lines": "a*c"}, True),
        ({"code": 200}, True),
        ({"code": "200"}, True),
        ({"code": "2*"}, True),
        ({"code": 500}, False),
        ({"ok": True}, True),
        ({"ok": "true"}, True),
        ({"ok": 1}, False),
        ({"rate": 0.5}, True),
        ({"list": "*"}, False),
        ({"missing": "*"}, False),
        ({"span.name": "GET *", "span.kind": "server"}, True),
        ({"span.name": "GET *", "span.kind": "client"}, False),
        ({}, True),
    ],
)
def test_a_rule_applies_to_the_spans_that_match_in_all(match: dict[str, Any], matches: bool) -> None:
    arrived = span(
        {"code": 200, "ok": True, "rate": 0.5, "list": ("x",), "lines": "a\nb\nc", "bracket": "[c]art"},
        {"service.name": "cart"},
    )
    expected = Targets.of(["overview"]) if matches else Targets()
    assert aimed(IngestRule(match=match, ops=["overview"]), at=arrived) == expected


def test_a_glob_over_a_long_value_takes_linear_time() -> None:
    rule = IngestRule(match={"q": "*" + "a*" * 20 + "b"}, ops=["overview"])
    assert not aimed(rule, at=span({"q": "a" * 1_000_000}))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("x" * 300, id="too long"),
        pytest.param("a\nb", id="control characters"),
        pytest.param("\ud800", id="half a character"),
        pytest.param(("a", "b"), id="array"),
        pytest.param({"a": 1}, id="map"),
        pytest.param(b"\xff", id="bytes"),
    ],
)
def test_a_value_that_cannot_be_part_of_a_tag_widens_to_the_whole_tenant(value: object) -> None:
    rule = IngestRule(ops=["overview"], tags=["service:{service.name}"])
    assert aimed(rule, at=span(resource={"service.name": value})) == WHOLE_TENANT


def test_such_a_value_changes_nothing_where_no_tag_needs_it() -> None:
    arrived = span({"db.statement": "x" * 300, "list": ("a",)}, {"service.name": "cart"})
    assert aimed(BY_SERVICE, at=arrived) == Targets.of(tags=["service:cart"])
    other = IngestRule(match={"service.name": "payment"}, tags=["{db.statement}"])
    assert not aimed(other, at=arrived)


def test_targets_of_all_rules_and_spans_are_united() -> None:
    rules = [
        BY_SERVICE,
        IngestRule(ops=["overview"]),
        IngestRule(match={"span.status": "error"}, ops=["errors"], tags=["errors:{service.name}"]),
    ]
    spans = [span(resource={"service.name": "cart"}), span(resource={"service.name": "payment"}, status=2)]
    assert targets(rules, spans) == Targets.of(
        ["overview", "errors"], ["service:cart", "service:payment", "errors:payment"]
    )


def counting(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Record every application of a rule."""
    applied: list[object] = []
    apply: Callable[..., Any] = IngestRule.apply

    def counted(rule: IngestRule, texts: Any) -> Any:
        applied.append(rule)
        return apply(rule, texts)

    monkeypatch.setattr(IngestRule, "apply", counted)
    return applied


def test_many_spans_of_three_services_render_three_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = counting(monkeypatch)
    services = [{"service.name": name} for name in ("cart", "checkout", "payment")]
    found = targets([BY_SERVICE], [span(resource=services[index % 3]) for index in range(500)])
    assert found == Targets.of(tags=["service:cart", "service:checkout", "service:payment"])
    assert len(applied) == 3


def test_what_one_rule_reads_does_not_repeat_another(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = counting(monkeypatch)
    by_name = IngestRule(match={"span.name": "never"}, ops=["x"])
    targets([BY_SERVICE, by_name], [span(resource={"service.name": "cart"}, name=str(n)) for n in range(50)])
    assert (applied.count(BY_SERVICE), applied.count(by_name)) == (1, 50)


def endless(seen: list[int]) -> Iterator[Span]:
    number = 0
    while True:
        seen.append(number)
        yield span(resource={"service.name": f"service-{number}"})
        number += 1


def test_a_batch_with_too_many_tags_widens_to_the_whole_tenant_and_is_not_read_further() -> None:
    seen: list[int] = []
    assert targets([BY_SERVICE], endless(seen)) == WHOLE_TENANT
    assert len(seen) == MAX_TARGETS + 1


def test_once_the_whole_tenant_is_aimed_at_no_further_span_is_read() -> None:
    seen: list[int] = []
    assert targets([BY_SERVICE, IngestRule(ops=["*"])], endless(seen)) == WHOLE_TENANT
    assert len(seen) == 1


def test_rules_that_read_nothing_look_at_one_span_only() -> None:
    seen: list[int] = []
    assert targets([IngestRule(ops=["overview"], tags=["all"])], endless(seen)) == Targets.of(["overview"], ["all"])
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        pytest.param({}, "no targets", id="no targets"),
        pytest.param({"match": {"a": "b"}}, "no targets", id="match only"),
        pytest.param({"ops": "dashboard_*"}, "ops must be a list", id="ops a string"),
        pytest.param({"tags": "service:x"}, "tags must be a list", id="tags a string"),
        pytest.param({"tags": 5}, "tags must be a list", id="tags a number"),
        pytest.param({"tags": [5]}, "tags and windows must be strings", id="tag a number"),
        pytest.param({"ops": [""]}, "the operation must", id="empty operation"),
        pytest.param({"ops": [5]}, "the operation must", id="operation a number"),
        pytest.param({"ops": ["a\nb"]}, "control", id="control character in an operation"),
        pytest.param({"ops": ["x" * 300]}, "longer than", id="operation too long"),
        pytest.param({"tags": [""]}, "the tag must", id="empty tag"),
        pytest.param({"tags": ["a\nb:{x}"]}, "control", id="control character in a template"),
        pytest.param({"tags": ["x" * 300 + "{x}"]}, "longer than", id="template too long"),
        pytest.param({"tags": ["service:{service.name"]}, "brace without its partner", id="unclosed"),
        pytest.param({"tags": ["service:service.name}"]}, "brace without its partner", id="unopened"),
        pytest.param({"tags": ["{{service.name}}"]}, "brace without its partner", id="doubled"),
        pytest.param({"tags": ["service:{}"]}, "braces without a name", id="unnamed"),
        pytest.param({"ops": ["x"], "match": "service.name"}, "match must map", id="match a string"),
        pytest.param({"ops": ["x"], "match": {"": "x"}}, "non-empty strings", id="unnamed attribute"),
        pytest.param({"ops": ["x"], "match": {5: "x"}}, "non-empty strings", id="attribute a number"),
        pytest.param({"ops": ["x"], "match": {"a": None}}, r"match\['a'\] must be", id="value None"),
        pytest.param({"ops": ["x"], "match": {"a": ["b"]}}, r"match\['a'\] must be", id="value a list"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_where_it_is_written(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        IngestRule(**arguments)


def test_a_rule_is_a_value() -> None:
    match = {"a": "b"}
    rule = IngestRule(match=match, ops=["x"])
    match["a"] = "changed"
    assert rule == IngestRule(match={"a": "b"}, ops=("x",))
    assert hash(rule) == hash(IngestRule(match={"a": "b"}, ops=("x",)))
    assert rule.match == {"a": "b"}
    assert repr(rule).startswith("IngestRule(match=")
