"""Which metrics and labels a PromQL expression names, read from its syntax tree."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import promql_parser as promql

_INTERVALS: Final = re.compile(r"\$__(rate_interval|interval|range)\b")
_VARIABLE_QUERY: Final = re.compile(r"label_values\((?:(?P<selector>.+), *)?(?P<label>\w+)\)")


@dataclass(frozen=True)
class Match:
    """One label matcher of a selector."""

    label: str
    values: tuple[str, ...]
    """The words it is compared with; empty where a dashboard's variable fills it in."""


@dataclass(frozen=True)
class Selector:
    metric: str
    matches: tuple[Match, ...]


def parse(expression: str) -> promql.Expr:
    """Parse what Grafana or a rule file holds; raises ValueError."""
    expr: promql.Expr = promql.parse(_INTERVALS.sub("5m", expression))
    return expr


def selectors(expr: promql.Expr) -> list[Selector]:
    found = []

    def visit(each: promql.Expr) -> None:
        # the selector of a range is no child of its own
        selector = each.vector_selector if isinstance(each, promql.MatrixSelector) else each
        if isinstance(selector, promql.VectorSelector):
            if selector.name is None:
                raise ValueError(f"a selector without a metric's name: {selector.prettify()}")
            found.append(Selector(selector.name, tuple(_match(each) for each in selector.matchers.matchers)))

    promql.walk(expr, visit)
    return list(dict.fromkeys(found))


def grouped_by(expr: promql.Expr) -> set[str]:
    """Give every label that a `by`, `without`, `on`, `ignoring` or `group_left` names."""
    found: set[str] = set()

    def visit(each: promql.Expr) -> None:
        if isinstance(each, promql.AggregateExpr) and each.modifier is not None:
            found.update(each.modifier.labels)
        if isinstance(each, promql.BinaryExpr) and each.modifier is not None:
            found.update(each.modifier.group_labels or ())
            if each.modifier.matching is not None:
                found.update(each.modifier.matching.labels)

    promql.walk(expr, visit)
    return found


def output_labels(expr: promql.Expr, emitted: Mapping[str, set[str]]) -> set[str]:
    """Give the labels that a result may carry, if its metrics carry those of `emitted`."""
    match expr:
        case promql.VectorSelector():
            return set(emitted[expr.name or ""])
        case promql.MatrixSelector():
            return output_labels(expr.vector_selector, emitted)
        case promql.AggregateExpr():
            inner = output_labels(expr.expr, emitted)
            if expr.modifier is None:
                return set()
            by = expr.modifier.type == promql.AggModifierType.By
            return inner & set(expr.modifier.labels) if by else inner - set(expr.modifier.labels)
        case promql.Call():
            inner = set().union(*(output_labels(each, emitted) for each in expr.args))
            return inner - {"le"} if expr.func.name == "histogram_quantile" else inner
        case promql.BinaryExpr():
            return output_labels(expr.lhs, emitted) or output_labels(expr.rhs, emitted)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return output_labels(expr.expr, emitted)
        case _:
            return set()


def variable(query: str) -> tuple[list[Selector], str]:
    """Read a variable's `label_values(selector, label)`."""
    match = _VARIABLE_QUERY.fullmatch(query)
    if match is None:
        raise ValueError(f"not label_values(selector, label): {query}")
    return selectors(parse(match["selector"])) if match["selector"] else [], match["label"]


def _match(matcher: promql.Matcher) -> Match:
    if "$" in matcher.value:
        return Match(matcher.name, ())
    return Match(matcher.name, tuple(matcher.value.split("|")) if matcher.value else ())
