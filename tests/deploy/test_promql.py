import pytest

from tests.deploy.promql import Match, Selector, grouped_by, output_labels, parse, selectors, variable

EMITTED = {"a_total": {"job", "x", "y"}, "b_bucket": {"job", "le", "x"}}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        pytest.param("a_total", [Selector("a_total", ())], id="instant"),
        pytest.param("rate(a_total[$__rate_interval])", [Selector("a_total", ())], id="range"),
        pytest.param(
            'a_total{x="1"} / on (x) b_bucket{y!~"2|3"}',
            [Selector("a_total", (Match("x", ("1",)),)), Selector("b_bucket", (Match("y", ("2", "3")),))],
            id="both-sides",
        ),
        pytest.param('a_total{x=~"$x"}', [Selector("a_total", (Match("x", ()),))], id="variable"),
        pytest.param("max_over_time(rate(a_total[1m])[10m:])", [Selector("a_total", ())], id="subquery"),
        pytest.param("absent(a_total) or vector(0)", [Selector("a_total", ())], id="functions"),
        pytest.param(
            "sum(rate(a_total[5m])) + topk(3, b_bucket)", [Selector("a_total", ()), Selector("b_bucket", ())], id="sum"
        ),
    ],
)
def test_every_selector_of_an_expression_is_found(expression: str, expected: list[Selector]) -> None:
    assert selectors(parse(expression)) == expected


@pytest.mark.parametrize(
    "expression", ["sum(rate(a_total)", "rate(a_total)", "a_total{x=1}", "sum by x (a_total)", "avg(", "1 +"]
)
def test_what_is_no_promql_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(expression)


def test_a_selector_must_name_its_metric() -> None:
    with pytest.raises(ValueError, match="without a metric's name"):
        selectors(parse('{x="1"}'))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("sum by (x, y) (a_total)", {"x", "y"}),
        ("a_total * on (x) group_left (y) b_bucket", {"x", "y"}),
        ("sum without (x) (a_total) / ignoring (y) a_total", {"x", "y"}),
        ("sum(a_total)", set()),
    ],
)
def test_every_label_that_groups_is_found(expression: str, expected: set[str]) -> None:
    assert grouped_by(parse(expression)) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a_total", {"job", "x", "y"}),
        ("rate(a_total[5m]) > 0", {"job", "x", "y"}),
        ("sum(a_total)", set()),
        ("sum by (x, z) (a_total)", {"x"}),
        ("sum without (x) (a_total)", {"job", "y"}),
        ("histogram_quantile(0.9, sum by (le, x) (rate(b_bucket[5m])))", {"x"}),
        ("sum by (x) (a_total) / sum by (x) (a_total)", {"x"}),
        ("1 - (sum by (x) (a_total))", {"x"}),
        ("vector(0)", set()),
    ],
)
def test_the_labels_of_a_result_follow_from_those_of_its_metrics(expression: str, expected: set[str]) -> None:
    assert output_labels(parse(expression), EMITTED) == expected


def test_a_variable_reads_the_values_of_a_label() -> None:
    assert variable('label_values(a_total{x=~"$x"}, y)') == ([Selector("a_total", (Match("x", ()),))], "y")
    assert variable("label_values(job)") == ([], "job")
    with pytest.raises(ValueError, match="not label_values"):
        variable("query_result(a_total)")
