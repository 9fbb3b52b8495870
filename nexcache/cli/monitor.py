"""`nexcache monitor`: one look at a cache, or many, and a verdict against targets."""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from nexcache.cli.administer import by_operation
from nexcache.cli.options import DEFAULT_KEY_HEADER, AsJson, KeyFile, KeyHeader, Tenant, Url, source
from nexcache.cli.output import (
    NOTHING,
    console,
    mark,
    milliseconds,
    name,
    percent,
    reporting,
    size,
    sparkline,
    table,
    write_json,
)
from nexcache.cli.saving import Saved
from nexcache.cli.source import Document, Failed, Source
from nexcache.cli.verdict import Figures, Targets, Verdict, verdicts

_GOOD: Final = Targets()
_REMEMBERED: Final = 240
_SPARKS: Final = 40
NOTHING_TO_JUDGE: Final = 3
"""The exit status where nothing was asked for, so that no target could be judged."""


class Mode(StrEnum):
    """How often to look."""

    SINGLE = "single"
    CONTINUOUS = "continuous"


@dataclass(frozen=True, slots=True)
class Sample:
    """One look."""

    at: float
    """Seconds since the epoch."""
    seconds: float
    """Since the look before; 0 for the first one."""
    whole: Figures
    """Since counting began."""
    change: Figures
    """Since the look before."""
    stats: Document
    health: Document

    def as_dict(self) -> dict[str, Any]:
        """Give what is saved and what `--json` writes: rates of the time since the look before, if there was one."""
        figures = self.change if self.seconds else self.whole
        return {
            "time": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds"),
            "tenant": self.stats["tenant"],
            "state": self.health["state"],
            "response_time_ms": self.health["response_time_ms"],
            **{key: self.stats[key] for key in ("requests", "hits", "stale", "misses", "bypasses", "errors")},
            "hit_rate": _rounded(figures.hit_rate),
            "mean_ms": _rounded(figures.mean_ms),
            "error_rate": _rounded(figures.error_rate),
            "requests_per_second": round(self.change.requests / self.seconds, 3) if self.seconds else None,
            "entries": self.stats["entries"],
            "bytes": self.stats["bytes"],
            "operations": self.stats["operations"],
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


@dataclass
class Watch:
    """Looks at a cache again and again."""

    cache: Source
    targets: Targets
    clock: Callable[[], float] = time.time
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    looks: int = 0
    failures: int = 0
    trouble: str | None = None
    """Why the latest look failed."""
    period: Figures = field(default_factory=Figures)
    """What happened between the first look and the latest."""

    def look(self) -> Sample | None:
        """Look once; None where the cache could not be asked. Raises Failed if it never could."""
        self.looks += 1
        try:
            stats, health = self.cache.stats(), self.cache.health()
        except Failed as failed:
            self.failures += 1
            self.trouble = str(failed)
            if self.looks == self.failures == 1:
                raise
            return None
        self.trouble = None
        at, whole = self.clock(), Figures.of(stats)
        if self.samples:
            before = self.samples[-1]
            change = whole.since(before.whole)
            sample = Sample(at, max(at - before.at, 1e-3), whole, change, stats, health)
            self.period = _sum(self.period, change)
        else:
            sample = Sample(at, 0.0, whole, Figures(), stats, health)
        self.samples.append(sample)
        return sample

    def judged(self, *, whole: bool) -> tuple[Verdict, ...]:
        """Judge all that was counted, or the time that was watched."""
        return verdicts(self.samples[-1].whole if whole else self.period, self.targets)


def _sum(one: Figures, other: Figures) -> Figures:
    return Figures(*(getattr(one, key) + getattr(other, key) for key in Figures.__slots__))


def monitor(
    *,
    mode: Annotated[Mode, typer.Option(help="Look once, or again and again.")] = Mode.SINGLE,
    interval: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Between two looks.")] = 5.0,
    duration: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="How long to watch. \\[default: until Ctrl+C]")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Add each look to FILE: .jsonl (JSON lines) or .csv.")
    ] = None,
    hit_rate: Annotated[
        float, typer.Option(min=0, max=100, envvar="NEXCACHE_TARGET_HIT_RATE", metavar="PERCENT", help="At least.")
    ] = _GOOD.hit_rate,
    mean_ms: Annotated[
        float, typer.Option(min=0, envvar="NEXCACHE_TARGET_MEAN_MS", metavar="MS", help="The mean time, at most.")
    ] = _GOOD.mean_ms,
    error_rate: Annotated[
        float, typer.Option(min=0, max=100, envvar="NEXCACHE_TARGET_ERROR_RATE", metavar="PERCENT", help="At most.")
    ] = _GOOD.error_rate,
    url: Url = None,
    key_file: KeyFile = None,
    key_header: KeyHeader = DEFAULT_KEY_HEADER,
    tenant: Tenant = None,
    json: AsJson = False,
) -> None:
    """Watch a tenant's cache and judge it: status 0 if every target was kept, 1 if one was not, 3 without requests.

    A single look judges all that was counted; a continuous one the time that it watched.
    """
    with reporting("monitor"):
        saved = Saved(save) if save is not None else None
        try:
            with source(url, key_file, key_header, tenant) as cache:
                watch = Watch(cache, Targets(hit_rate, mean_ms, error_rate))
                if mode is Mode.SINGLE:
                    judged = _once(watch, saved, json=json)
                else:
                    judged = _again_and_again(watch, saved, interval=interval, duration=duration, json=json)
        finally:
            if saved is not None:
                saved.close()
        if any(each.kept is False for each in judged):
            raise typer.Exit(1)
        if all(each.kept is None for each in judged):
            raise typer.Exit(NOTHING_TO_JUDGE)


def _once(watch: Watch, saved: Saved | None, *, json: bool) -> tuple[Verdict, ...]:
    sample = watch.look()
    assert sample is not None  # noqa: S101 - the first look raises
    if saved is not None:
        saved.add(sample.as_dict())
    judged = watch.judged(whole=True)
    if json:
        write_json(sample.as_dict() | {"verdicts": [each.as_dict() for each in judged]})
    else:
        console().print(_screen(watch, judged))
    return judged


def _again_and_again(
    watch: Watch,
    saved: Saved | None,
    *,
    interval: float,
    duration: float | None,
    json: bool,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Verdict, ...]:
    """Look until the time is over or the user has seen enough; a look that fails is not the end."""
    live = sys.stdout.isatty() and not json
    screen = console()
    began = now()
    with Live(console=screen, auto_refresh=False) if live else nullcontext() as display:
        try:
            for number in range(1, 10**9):
                sample = watch.look()
                if sample is not None and saved is not None:
                    saved.add(sample.as_dict())
                if display is not None:
                    display.update(_screen(watch, watch.judged(whole=False)), refresh=True)
                elif sample is not None and json:
                    sys.stdout.write(_compact(sample) + "\n")
                    sys.stdout.flush()
                elif not json:
                    screen.print(_line(watch), highlight=False)
                following = began + number * interval
                if duration is not None and following > began + duration:
                    break
                sleep(max(0.0, following - now()))
        except KeyboardInterrupt:
            pass
    judged = watch.judged(whole=False)
    if json:
        sys.stdout.write(_compact_verdicts(judged) + "\n")
    elif not live:
        screen.print(_verdict_lines(judged))
    return judged


def _compact(sample: Sample) -> str:
    return _dumps(sample.as_dict())


def _compact_verdicts(judged: tuple[Verdict, ...]) -> str:
    return _dumps({"verdicts": [each.as_dict() for each in judged]})


def _dumps(document: Mapping[str, Any]) -> str:
    import json  # noqa: PLC0415 - `json` is the name of the option here

    return json.dumps(document, ensure_ascii=False)


def _line(watch: Watch) -> str:
    """Say in one line how it goes."""
    if watch.trouble is not None:
        return f"cannot be asked: {watch.trouble}"
    sample = watch.samples[-1]
    clock = datetime.fromtimestamp(sample.at, UTC).strftime("%H:%M:%S")
    figures = sample.change if sample.seconds else sample.whole
    rate = f"{sample.change.requests / sample.seconds:,.1f} requests/s" if sample.seconds else "since counting began"
    return (
        f"{clock}  {sample.health['state']}  {rate}  hit rate {percent(figures.hit_rate)}  "
        f"mean {milliseconds(figures.mean_ms)}  errors {percent(figures.error_rate)}  "
        f"store {milliseconds(sample.health['response_time_ms'])}"
    )


def _screen(watch: Watch, judged: tuple[Verdict, ...]) -> RenderableType:
    sample = watch.samples[-1]
    health, stats = sample.health, sample.stats
    good = health["state"] in ("ok", "backplane-lost")
    head = Text.assemble(
        ("NexCache  ", "bold"),
        name(stats["tenant"]),
        ("  at  ", "dim"),
        watch.cache.name,
        "  ",
        (str(health["state"]), "green" if good else "bold red"),
        (f"  {milliseconds(health['response_time_ms'])}", "dim"),
    )
    parts: list[RenderableType] = [head]
    if watch.trouble is not None:
        parts.append(Text(f"cannot be asked: {watch.trouble}", style="bold red"))
    parts.append(Text())
    parts.append(_trends(watch) if len(watch.samples) > 1 else _totals(sample))
    if stats["operations"]:
        parts += [Text(), by_operation(stats["operations"])]
    return Group(*parts, Text(), _verdict_lines(judged))


def _totals(sample: Sample) -> RenderableType:
    rows = table("requests", "hit rate", "mean", "hit", "miss", "errors", "stored")
    figures = sample.whole
    entries = sample.stats["entries"]
    rows.add_row(
        f"{figures.requests:,}",
        percent(figures.hit_rate),
        milliseconds(figures.mean_ms),
        milliseconds(figures.mean_hit_ms),
        milliseconds(figures.mean_miss_ms),
        percent(figures.error_rate),
        f"{NOTHING if entries is None else f'{entries:,}'} entries, {size(sample.stats['bytes'])}",
    )
    return rows


def _trends(watch: Watch) -> RenderableType:
    """Draw how figures went, a bar for each look."""
    changes = [sample for sample in watch.samples if sample.seconds]
    last = changes[-1]
    rows = table("", "", ">now", ">watched")
    rows.show_header = True
    lines: tuple[tuple[str, list[float | None], float | None, str, str], ...] = (
        (
            "requests/s",
            [each.change.requests / each.seconds for each in changes],
            None,
            f"{last.change.requests / last.seconds:,.1f}",
            f"{watch.period.requests:,} in all",
        ),
        (
            "hit rate",
            [each.change.hit_rate for each in changes],
            1.0,
            percent(last.change.hit_rate),
            percent(watch.period.hit_rate),
        ),
        (
            "mean",
            [each.change.mean_ms for each in changes],
            None,
            milliseconds(last.change.mean_ms),
            milliseconds(watch.period.mean_ms),
        ),
        (
            "errors",
            [each.change.error_rate for each in changes],
            None,
            percent(last.change.error_rate),
            percent(watch.period.error_rate),
        ),
        (
            "store",
            [each.health["response_time_ms"] for each in changes],
            None,
            milliseconds(last.health["response_time_ms"]),
            "",
        ),
    )
    for label, values, most, now, whole in lines:
        rows.add_row(label, Text(sparkline(values, width=_SPARKS, most=most), style="cyan"), now, whole)
    return rows


def _verdict_lines(judged: tuple[Verdict, ...]) -> RenderableType:
    rows = table("", "", ">", "")
    rows.show_header = False
    for each in judged:
        value = "nothing to judge" if each.value is None else f"{each.value:,.2f} {each.unit}"
        rows.add_row(mark(each.kept), each.name, value, Text(each.target, style="dim"))
    return rows
