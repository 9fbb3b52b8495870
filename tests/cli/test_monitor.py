"""`nexcache monitor`."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from nexcache import Settings
from nexcache.cli import monitor as module
from nexcache.cli.monitor import Watch
from nexcache.cli.output import sparkline
from nexcache.cli.saving import COLUMNS
from nexcache.cli.source import Failed
from nexcache.cli.verdict import Targets
from tests.cli.conftest import CommandLine, Get, Served, application, asking
from tests.cli.test_verdict import stats


class Scripted:
    """A cache that gives prepared statistics; None: it cannot be asked."""

    name = "a cache"

    def __init__(self, *answers: dict[str, Any] | None) -> None:
        self._answers = list(answers)

    def stats(self) -> dict[str, Any]:
        answer = self._answers.pop(0)
        if answer is None:
            raise Failed("it is away")
        return {"tenant": "acme", "entries": 1, "bytes": 2, "operations": {}, "invalidations": 0} | answer

    def health(self) -> dict[str, Any]:
        return {"state": "ok", "response_time_ms": 0.25}


class Time:
    """A clock that moves while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def watched(*answers: dict[str, Any] | None, duration: float | None, interval: float = 5.0, **options: Any) -> Any:
    time = Time()
    watch = Watch(Scripted(*answers), Targets(), clock=time)  # type: ignore[arg-type] # it is asked for nothing else
    judged = module._again_and_again(
        watch, None, interval=interval, duration=duration, json=False, now=time, sleep=time.sleep, **options
    )
    return watch, [each.kept for each in judged], time


def test_a_period_is_judged_by_what_happened_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    _, judged, time = watched(stats(hits=1000), stats(hits=1010, misses=5), stats(hits=1020, misses=10), duration=10)
    assert judged == [False, True, True]  # 20 of 30 since the first look, though 1020 of 1030 in all
    assert time.slept == [5.0, 5.0]
    lines = capsys.readouterr().out.splitlines()
    assert "3.0 requests/s  hit rate 66.7 %" in lines[1]


def test_a_look_that_fails_is_told_and_is_not_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    watch, judged, _ = watched(stats(hits=10), None, stats(hits=30), duration=10)
    assert (watch.looks, watch.failures, judged) == (3, 1, [True, True, True])
    assert "cannot be asked: it is away" in capsys.readouterr().out


def test_a_cache_that_cannot_be_asked_at_first_is_an_error() -> None:
    with pytest.raises(Failed, match="it is away"):
        watched(None, duration=10)


def test_who_has_seen_enough_gets_the_verdict() -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    watch = Watch(Scripted(stats(hits=10)), Targets())  # type: ignore[arg-type] # it is asked for nothing else
    judged = module._again_and_again(watch, None, interval=1, duration=None, json=False, sleep=interrupt)
    assert [each.kept for each in judged] == [None, None, None]


def test_sparklines_show_the_last_values_from_nothing_to_the_most() -> None:
    assert sparkline([0.0, 0.5, 1.0], width=8, most=1.0) == "▁▅█"
    assert sparkline([1.0, None, 3.0], width=2) == " █"
    assert sparkline([0.0, None], width=8) == "▁ "


@pytest.mark.parametrize(
    ("hits", "words", "status"),
    [
        pytest.param(20, (), 0, id="kept"),
        pytest.param(20, ("--hit-rate", "99"), 1, id="missed"),
        pytest.param(0, (), 3, id="nothing to judge"),
    ],
)
def test_the_exit_status_is_the_verdict(nexcache: CommandLine, hits: int, words: tuple[str, ...], status: int) -> None:
    app, _ = application(Settings(redis_url=None, redis_host=None))
    with Served(app) as url:
        if hits:
            asked = asking(url)
            asked("/overview", times=hits)
        result = nexcache("monitor", "--url", f"{url}/admin", "--json", *words)
    assert result.exit_code == status, result.output
    verdicts = {each["name"]: each["kept"] for each in json.loads(result.stdout)["verdicts"]}
    assert verdicts["hit rate"] == {0: True, 1: False, 3: None}[status]


def test_one_look_shows_figures_operations_and_verdicts(nexcache: CommandLine, served: str, get: Get) -> None:
    get("/overview", times=30)
    shown = nexcache("monitor", "--url", f"{served}/admin").stdout
    for word in ("acme", "ok", "overview", "hit rate", "> 80 %", "< 50 ms", "< 1 %"):
        assert word in shown


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_looks_are_saved_line_by_line(nexcache: CommandLine, served: str, get: Get, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"looks.{kind}"
    words = ("monitor", "--mode", "continuous", "--interval", "0.1", "--duration", "0.1", "--url", f"{served}/admin")
    get("/overview")
    nexcache(*words, "--save", str(file))
    nexcache(*words, "--save", str(file))

    text = file.read_text(encoding="utf-8")
    rows: list[dict[str, Any]]
    rows = list(csv.DictReader(text.splitlines())) if kind == "csv" else list(map(json.loads, text.splitlines()))
    assert [row["tenant"] for row in rows] == ["acme"] * 4
    assert set(rows[0]) == {*COLUMNS} | ({"operations"} if kind == "jsonl" else set())


def test_a_file_of_something_else_is_left_alone(nexcache: CommandLine, served: str, tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("month,amount\n1,2\n", encoding="utf-8")
    for name, said in (
        ("sales.csv", "a CSV file with other columns"),
        ("looks.xlsx", "ends in .jsonl or .csv"),
        ("no/where.csv", "cannot be written"),
    ):
        result = nexcache("monitor", "--url", f"{served}/admin", "--save", str(tmp_path / name))
        assert result.exit_code == 2
        assert said in result.stderr
    assert (tmp_path / "sales.csv").read_text(encoding="utf-8") == "month,amount\n1,2\n"


def test_json_of_a_continuous_look_is_a_document_a_line(nexcache: CommandLine, served: str) -> None:
    words = ("monitor", "--mode", "continuous", "--interval", "0.1", "--duration", "0.2", "--url", f"{served}/admin")
    lines = [json.loads(line) for line in nexcache(*words, "--json").stdout.splitlines()]
    assert len(lines) == 4
    assert set(lines[-1]) == {"verdicts"}
