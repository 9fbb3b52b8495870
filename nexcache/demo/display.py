"""The terminal: the live screen, the plain lines of a headless run, and the summary. Reads, changes nothing."""

from typing import Final

from rich import box
from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from nexcache.demo.board import Board
from nexcache.demo.figures import Kind
from nexcache.demo.verdict import LEAST_HIT_RATIO, Verdict

WIDTH: Final = 80
"""Columns that the screen needs; it takes up to half as many more."""

_SPARKS: Final = "▁▂▃▄▅▆▇█"
_SPARK_SECONDS: Final = 22
_ROWS_WITH_OPERATIONS: Final = 30


def screen(board: Board, now: float, width: int, height: int) -> RenderableType:
    """Draw the whole screen; in a low terminal without the table of operations."""
    width = min(width, WIDTH * 3 // 2)
    upper = Table.grid(expand=True, padding=0)
    upper.add_column(ratio=1)
    upper.add_column(ratio=1)
    upper.add_row(_readers(board, now), _latency(board))
    parts: list[RenderableType] = [_title(board, width), upper]
    if height >= _ROWS_WITH_OPERATIONS:
        parts.append(Panel(operations(board), title="[b]Operations", border_style="dim", box=box.ROUNDED))
    parts += [
        Panel(_ingest(board), title="[b]Ingest", border_style="dim", box=box.ROUNDED),
        _checks(board),
        Rule(style="dim"),
    ]
    parts += [Text(line, style="cyan", no_wrap=True, overflow="crop") for line in board.try_lines]
    parts += [Text(note, style="yellow", no_wrap=True, overflow="ellipsis") for note in board.notes]
    frame = Table.grid(expand=False)
    frame.add_column(width=width)
    frame.add_row(Group(*parts))
    return frame


def line(board: Board) -> str:
    """Say in one line how it goes."""
    figures, judgement = board.figures, board.judgement
    cached, uncached = (figures.durations(kind).percentile(50) for kind in (Kind.HIT, Kind.UNCACHED))
    batches = sum(board.ingested(tenant)[0] for tenant in board.keys)
    return (
        f"{_clock(board.seconds)}  {figures.reads / board.seconds:.0f} reads/s  {figures.hit_ratio:.1%} hits  "
        f"p50 {_ms(cached)} or {_ms(uncached)} without  "
        f"{batches:.1f} batches/s  {board.invalidations.total()} invalidations  "
        f"{judgement.answers + judgement.canaries:,} checked, {judgement.wrong.total()} wrong"
        + ("" if board.store_available else "  store away")
    )


def summary(board: Board, verdicts: list[Verdict]) -> RenderableType:
    """Draw the final figures and the verdicts."""
    figures = board.figures
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    facts.add_row("measured", f"{board.seconds:.1f} s, after every page had been read once")
    facts.add_row("store", board.store)
    facts.add_row("reads", f"{figures.reads / board.seconds:,.0f} per second, {len(figures.targets)} distinct URLs")
    for tenant in board.keys:
        batches, spans = board.ingested(tenant)
        queued = f", {board.queued[tenant]} of them queued" if board.queued[tenant] else ""
        invalidations = f"{board.invalidations[tenant]} invalidations{queued}"
        facts.add_row(tenant, f"{batches:.1f} batches and {spans:.1f} spans per second, {invalidations}")
    lines = [Text.assemble(("  ✓ ", "green") if each.kept else ("  ✗ ", "bold red"), each.text) for each in verdicts]
    lines += [Text(f"    {example}", style="red") for example in board.judgement.examples]
    lines += [Text(f"    {count}x {failure}", style="red") for failure, count in figures.failures.most_common(5)]
    return Group(Rule("NexCache demo", style="dim"), facts, Text(), operations(board), Text(), _HOW, Text(), *lines)


def operations(board: Board) -> Table:
    """Draw a row per operation: reads, hits, latency with and without the cache."""
    table = Table(box=None, expand=True, padding=(0, 1), header_style="dim")
    table.add_column("", no_wrap=True)
    for heading in ("reads", "hits", "hit p50", "miss p50", "without p50", "factor"):
        table.add_column(heading, justify="right", no_wrap=True)
    figures = board.figures
    for name in (*sorted(figures.operations), None):
        kinds = figures.kinds if name is None else figures.operations[name]
        hits, misses = kinds[Kind.HIT], kinds[Kind.MISS]
        hit = figures.durations(Kind.HIT, name)
        uncached = figures.durations(Kind.UNCACHED, name).percentile(50)
        table.add_row(
            name or "all",
            f"{hits + misses:,}",
            f"{hits / (hits + misses):.0%}" if hits + misses else "-",
            _ms(hit.percentile(50)),
            _ms(figures.durations(Kind.MISS, name).percentile(50)),
            _ms(uncached),
            _factor(uncached, hit.percentile(50)),
            style="bold" if name is None else "",
        )
    return table


_HOW: Final = Text(
    "hit, miss: what readers waited for, through the cache. without: the same pages\n"
    "of the same app, read at the same time below /direct, where no cache is mounted.",
    style="dim",
)


def _title(board: Board, width: int) -> RenderableType:
    clock = _clock(board.seconds) + ("" if board.duration is None else f" of {_clock(board.duration)}")
    first = Table.grid(expand=True)
    first.width = width
    first.add_column(no_wrap=True)
    first.add_column(justify="right", no_wrap=True)
    first.add_row(
        Text.assemble(("NexCache", "bold"), f"  http://{board.address}"), Text(f"{clock}, Ctrl-C ends it", style="dim")
    )
    up = board.store_available
    away = "" if up else " is away, answers come without it"
    store = Text.assemble(("● ", "green" if up else "bold red"), board.store, (away, "bold red"))
    store.no_wrap, store.overflow = True, "ellipsis"
    return Group(first, store)


def _readers(board: Board, now: float) -> Panel:
    figures = board.figures
    latest = figures.latest(_SPARK_SECONDS, now)
    rate = latest[-1] if latest else 0
    good = figures.hit_ratio > LEAST_HIT_RATIO
    rows = Table.grid(padding=(0, 1), expand=True)
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(justify="right", style="bold", no_wrap=True)
    rows.add_column(ratio=1, no_wrap=True)
    rows.add_row("requests/s", f"{rate}", Text(_spark(latest), style="cyan", overflow="crop"))
    rows.add_row(
        "hit ratio", f"{figures.hit_ratio:.1%}", Bar(1.0, 0.0, figures.hit_ratio, color="green" if good else "yellow")
    )
    rows.add_row("URLs", f"{len(figures.targets)}", Text("distinct", style="dim"))
    failed = figures.failures.total()
    rows.add_row("not 200", Text(f"{failed}", style="bold red" if failed else ""), "")
    return Panel(rows, title="[b]Readers", border_style="dim", box=box.ROUNDED)


def _latency(board: Board) -> Panel:
    cached, uncached = board.figures.durations(Kind.HIT), board.figures.durations(Kind.UNCACHED)
    rows = Table.grid(padding=(0, 1), expand=True)
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(justify="right", no_wrap=True)
    rows.add_column(justify="right", no_wrap=True)
    fast = (cached.percentile(50), cached.percentile(95))
    slow = (uncached.percentile(50), uncached.percentile(95))
    rows.add_row("", Text("p50", style="dim"), Text("p95", style="dim"))
    rows.add_row("with cache", *(Text(_ms(seconds), style="bold green") for seconds in fast))
    rows.add_row("without", *(Text(_ms(seconds), style="bold") for seconds in slow))
    rows.add_row("faster by", *(Text(_factor(*pair), style="green") for pair in zip(slow, fast, strict=True)))
    return Panel(rows, title="[b]Latency", border_style="dim", box=box.ROUNDED)


def _ingest(board: Board) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1), header_style="dim")
    table.add_column("tenant", no_wrap=True)
    for heading in ("batches/s", "spans/s", "invalidations/s", "invalidations", "queued"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tenant in board.keys:
        batches, spans = board.ingested(tenant)
        count = board.invalidations[tenant]
        table.add_row(
            tenant,
            f"{batches:.1f}",
            f"{spans:.1f}",
            f"{count / board.seconds:.1f}",
            f"{count:,}",
            f"{board.queued[tenant]:,}",
        )
    return table


def _checks(board: Board) -> Text:
    judgement = board.judgement
    wrong = judgement.wrong.total()
    return Text.assemble(
        ("  ✓ ", "green") if not wrong else ("  ✗ ", "bold red"),
        (f"{judgement.answers:,}", "bold"),
        " answers held every span acknowledged before; ",
        (f"{judgement.canaries:,}", "bold"),
        " canaries; ",
        (f"{wrong:,} wrong", "bold red" if wrong else "bold"),
        no_wrap=True,
        overflow="crop",
    )


def _spark(counts: list[int]) -> str:
    highest = max(counts, default=0) or 1
    return "".join(_SPARKS[min(len(_SPARKS) - 1, count * len(_SPARKS) // (highest + 1))] for count in counts)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    milliseconds = seconds * 1000
    return f"{milliseconds:.2f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"  # noqa: PLR2004 - two digits say enough


def _factor(slow: float | None, fast: float | None) -> str:
    return f"{slow / fast:.0f}x" if slow and fast else "-"
