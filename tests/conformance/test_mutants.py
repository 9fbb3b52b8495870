"""Each rule that docs/http.md names is changed, one expression at a time; an exchange of its line must notice.

A sample on every run: other mutants on other days, the same on one day. NEXCACHE_MUTANTS=all tries every one.
"""

import ast
import copy
import importlib
import inspect
import os
import random
import re
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Final

import pytest

from tests.conformance.cases import Case
from tests.conformance.details import ALL
from tests.conformance.stand import Stand
from tests.conformance.test_conformance import run

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "http.md"
LINES: Final = re.findall(r"^\| .+ \| `([a-z_]+)\.([a-z_]+)` \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)
SAMPLE: Final = 60
_FLIPPED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A function of which one node is another."""

    module: str
    name: str
    node: int
    line: int
    cases: tuple[Case, ...]

    @property
    def id(self) -> str:
        return f"{self.module}.{self.name}:{self.line}#{self.node}"


EQUIVALENT: Final = frozenset[str](())
"""Mutants that change nothing that can be seen, each with its reason."""


def function(module: str, name: str) -> FunctionType:
    found: FunctionType = getattr(importlib.import_module(f"nexcache.semantics.{module}"), name)
    return found


def tree_of(found: FunctionType) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(found)))


def is_changed(node: ast.AST) -> bool:
    match node:
        case ast.Compare(ops=[op]):
            return type(op) in _FLIPPED
        case ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
            return True
        case _:
            return False


def change(tree: ast.Module, number: int) -> ast.Module:
    """Change the node of this number: a comparison turned round, `and` for `or`, a `not` left out."""
    tree = copy.deepcopy(tree)
    node: Any = [node for node in ast.walk(tree) if is_changed(node)][number]
    match node:
        case ast.Compare():
            node.ops = [_FLIPPED[type(node.ops[0])]()]
        case ast.BoolOp():
            node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        case _:
            node.op = ast.UAdd()
            node.operand = ast.Call(ast.Name("bool", ast.Load()), [node.operand], [])
    return ast.fix_missing_locations(tree)


def mutants() -> Iterator[Mutant]:
    for module, name, exchanges in LINES:
        sections = {section.strip() for section in exchanges.split(",")}
        cases = tuple(case for case in ALL if case.section in sections)
        tree = tree_of(function(module, name))
        for number, node in enumerate(node for node in ast.walk(tree) if is_changed(node)):
            yield Mutant(module, name, number, getattr(node, "lineno", 0), cases)


def sample() -> list[Mutant]:
    found = [mutant for mutant in mutants() if mutant.id not in EQUIVALENT]
    if os.environ.get("NEXCACHE_MUTANTS") == "all":
        return found
    return random.Random(int(time.time() // 86_400)).sample(found, min(SAMPLE, len(found)))


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    stand = Stand()
    stand.start()
    yield stand
    stand.stop()


def test_every_line_of_the_document_names_a_function_and_exchanges() -> None:
    assert len(LINES) > 20
    sections = {case.section for case in ALL}
    for module, name, exchanges in LINES:
        function(module, name)
        named = {section.strip() for section in exchanges.split(",")}
        assert named <= sections, named - sections


@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=mutant.id) for mutant in sample()])
def test_a_changed_rule_is_noticed(stand: Stand, mutant: Mutant) -> None:
    original = function(mutant.module, mutant.name)
    space: dict[str, Any] = {}
    code = compile(change(tree_of(original), mutant.node), f"<{mutant.id}>", "exec")
    exec(code, original.__globals__ | {}, space)
    kept, original.__code__ = original.__code__, space[mutant.name].__code__
    try:
        for case in mutant.cases:
            try:
                run(stand, case)
            except Exception:  # noqa: BLE001 - however it shows, it has been noticed
                return
            except AssertionError:
                return
    finally:
        original.__code__ = kept
    pytest.fail(f"no exchange has noticed {mutant.id}")
