import time
from io import StringIO

import pytest
from rich.console import Console

from nexcache.demo import display
from nexcache.demo.board import Board
from nexcache.demo.figures import Answered, Kind
from nexcache.demo.verdict import Verdict

TRY = (
    "curl -is -H X-API-Key:globex-c3a314610c2e 127.0.0.1:8080/api/v1/services/catalog",
    "kill 8602; sleep 10; sh /tmp/nexcache-valkey-vmyndpwc/start",
)


def board() -> Board:
    found = Board("127.0.0.1:8080", {"acme": "a", "globex": "g"}, "Valkey on 127.0.0.1:6379, process 1", TRY, 20.0)
    found.figures.started = time.monotonic() - 12
    for number in range(100):
        kind = Kind.HIT if number % 10 else Kind.MISS
        seconds = 0.001 if number % 10 else 0.08
        found.figures.answered(Answered("acme", "dashboard_overview", f"/{number % 7}", kind, seconds))
    found.figures.answered(Answered("acme", "dashboard_overview", "/0", Kind.UNCACHED, 0.05))
    found.acknowledgements.add("acme", {"service:cart": 24}, 24)
    found.invalidations["acme"] = 12
    found.judgement.answers = 99
    return found


def shown(renderable: object, width: int, height: int = 40) -> str:
    console = Console(file=StringIO(), width=width, height=height)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 40), (100, 50), (240, 60)])
def test_the_screen_fits_the_terminal(width: int, height: int) -> None:
    lines = shown(display.screen(board(), time.monotonic(), width, height), width, height).splitlines()
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= min(width, 120)


def test_the_screen_shows_what_matters() -> None:
    text = shown(display.screen(board(), time.monotonic(), 80, 40), 80)
    for part in (
        "90.0%",
        "50 ms",
        "dashboard_overview",
        "acme",
        "globex",
        "99 answers",
        "00:12 of 00:20",
    ):
        assert part in text


def test_the_lines_to_copy_stand_alone_and_whole() -> None:
    lines = [line.rstrip() for line in shown(display.screen(board(), time.monotonic(), 80, 24), 80).splitlines()]
    assert set(TRY) <= set(lines)


def test_a_store_that_is_away_is_shown() -> None:
    found = board()
    found.store_available = False
    found.notes.append("nexcache.backend_changed available=false")
    text = shown(display.screen(found, time.monotonic(), 80, 40), 80)
    assert "is away, answers come without it" in text
    assert "nexcache.backend_changed" in text
    assert display.line(found).endswith("store away")


def test_an_empty_board_can_be_shown() -> None:
    found = Board("127.0.0.1:8080", {"acme": "a"}, "in memory", (), None)
    assert "0.0%" in shown(display.screen(found, time.monotonic(), 80, 40), 80)
    assert "0.0% hits" in display.line(found)


def test_a_line_of_a_headless_run_fits_a_wide_terminal() -> None:
    assert len(display.line(board())) <= 120


def test_the_summary_tells_each_verdict_and_what_was_wrong() -> None:
    found = board()
    found.judgement.examples.append("dashboard: acme: 2 spans of service:cart were acknowledged, but only 1 were seen")
    found.figures.failed("dashboard", "503")
    text = shown(display.summary(found, [Verdict(kept=True, text="hits"), Verdict(kept=False, text="checks")]), 100)
    assert "✓ hits" in text
    assert "✗ checks" in text
    assert "only 1 were seen" in text
    assert "1x dashboard: 503" in text
