"""No path that everything is arranged for costs more than its budget, in operations counted.

A budget is raised on purpose only: `python -m tests.cost --write`, with the reason in the commit.
"""

import json
from typing import Any

import pytest

from nexcache.middleware import CacheMiddleware
from nexcache.telemetry.counts import Latency
from tests import cost

_BUDGET: dict[str, dict[str, Any]] = json.loads(cost.BUDGET.read_text())


async def test_no_path_costs_more_than_its_budget(redis_url: str) -> None:
    found = await cost.measure(redis_url)

    assert found.keys() == _BUDGET.keys()
    grown = {path: said for path, each in found.items() if (said := cost.grown(each, _BUDGET[path]))}
    assert not grown, "\n".join(f"{path}: {line}" for path, said in grown.items() for line in said)


async def test_a_call_that_is_added_to_the_path_of_a_hit_is_noticed_and_named(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = CacheMiddleware._messages

    def twice(*given: Any) -> Any:
        found(*given)
        return found(*given)

    monkeypatch.setattr(CacheMiddleware, "_messages", staticmethod(twice))
    said = cost.grown((await cost.measure(redis_url))["hit in memory"], _BUDGET["hit in memory"])

    assert any("middleware.CacheMiddleware._messages 1 more" in line for line in said)


async def test_instructions_that_are_added_are_noticed_without_a_call(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cost.VERSION not in _BUDGET["hit in memory"]["instructions"]:
        pytest.skip("instructions are those of another version of Python")
    hidden: dict[str, Any] = {}
    source = (
        "def add(self, seconds):\n"
        "    for index in range(100):\n        self.total += 0.0\n"
        "    self.buckets[0] += 1\n    self.total += seconds\n"
    )
    exec(compile(source, cost._OURS + "/telemetry/counts.py", "exec"), hidden)
    monkeypatch.setattr(Latency, "add", hidden["add"])
    said = cost.grown((await cost.measure(redis_url))["hit in memory"], _BUDGET["hit in memory"])

    assert any("instructions instead of" in line for line in said)
