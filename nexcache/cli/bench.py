"""`nexcache bench`: what the cache saves at a running app, page by page; without pages, what the store here costs."""

import http.client
import ssl
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean, quantiles
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from nexcache.cli.options import DEFAULT_KEY_HEADER, AsJson, KeyFile, KeyHeader, key_of
from nexcache.cli.output import console, milliseconds, name, percent, reporting, table, write_json
from nexcache.cli.source import Failed


@dataclass(frozen=True, slots=True)
class Measured:
    """How long answers took, in milliseconds, and how many came from the cache."""

    times: Sequence[float]
    hits: int
    failures: int
    """Answers that were no success."""

    def as_dict(self) -> dict[str, Any]:
        """Give the figures."""
        ordered = quantiles(self.times, n=100) if len(self.times) > 1 else [*self.times] * 99
        return {
            "requests": len(self.times),
            "hits": self.hits,
            "failures": self.failures,
            "mean": round(fmean(self.times), 3),
            "p50": round(ordered[49], 3),
            "p95": round(ordered[94], 3),
            "p99": round(ordered[98], 3),
        }


def bench(
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="[URL...]", help="Pages of a running app. \\[default: the store]")
    ] = None,
    *,
    requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="How often each is asked for.")] = 200,
    uncached: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="How often without the cache, which may take long.")
    ] = 20,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at a time.")] = 4,
    header: Annotated[list[str] | None, typer.Option(metavar="NAME:VALUE", help="A field to send.")] = None,
    key_file: KeyFile = None,
    key_header: KeyHeader = DEFAULT_KEY_HEADER,
    json: AsJson = False,
) -> None:
    """Measure pages with the cache and without (`Cache-Control: no-store`), and how many times faster they are.

    Each page is asked for once before, so that what is measured are hits if the page is cached. Without pages the store
    of the settings here is measured, for a tenant that nobody has: what a hit and a miss cost, and what to change.
    """
    with reporting("bench"):
        if not urls:
            return _store(as_json=json)
        fields = dict(_field(each) for each in header or ())
        key = key_of(key_file)
        if key is not None:
            fields.setdefault(key_header, key)
        found: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        for url in urls:
            past = measure(url, fields | {"Cache-Control": "no-store"}, uncached, concurrency)
            measure(url, fields, 1, 1)
            found.append((url, past.as_dict(), measure(url, fields, requests, concurrency).as_dict()))
        if json:
            return write_json([{"url": url, "without": without, "with": cached} for url, without, cached in found])
        rows = table("page", ">without: p50", ">p95", ">with: p50", ">p95", ">factor", ">hits", ">failed")
        for page, without, cached in found:
            rows.add_row(
                name(page),
                milliseconds(without["p50"]),
                milliseconds(without["p95"]),
                milliseconds(cached["p50"]),
                milliseconds(cached["p95"]),
                f"{without['p50'] / cached['p50']:,.1f}x" if cached["p50"] else "",
                percent(cached["hits"] / cached["requests"]),
                f"{without['failures'] + cached['failures']:,}",
            )
        return console().print(rows)


def _store(*, as_json: bool) -> None:
    from nexcache.cli import speed  # noqa: PLC0415 - only for this form

    found, settings = speed.measured()
    said = speed.advice(found, settings, uvloop=speed.has_uvloop())
    if as_json:
        return write_json(speed.as_dict(found, said))
    rows = table("", ">takes")
    for line, value in (
        ("round trip to the store", found.round_trip),
        ("hit in memory", found.memory),
        ("hit in the store", found.store),
        ("hit in the store, 64 at a time, each", found.together),
        ("miss, beside the handler", found.miss),
    ):
        rows.add_row(line, f"{value:,.1f} µs")
    screen = console()
    screen.print(rows)
    for line in said or ["nothing to change"]:
        screen.print(f"· {line}", highlight=False, markup=False)
    return None


def measure(url: str, fields: Mapping[str, str], requests: int, concurrency: int) -> Measured:
    """Ask for a page so often, over so many connections; raises Failed where it cannot be reached."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host or parts.username:
        raise Failed("a page is named by its URL, such as http://localhost:8000/api/v1/dashboard")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    shares = [requests // concurrency + (number < requests % concurrency) for number in range(concurrency)]

    def work(share: int) -> list[tuple[float, bool, bool]]:
        context = ssl.create_default_context() if parts.scheme == "https" else None
        connection = (
            http.client.HTTPSConnection(host, port, timeout=60, context=context)
            if context is not None
            else http.client.HTTPConnection(host, port, timeout=60)
        )
        answers = []
        try:
            for _ in range(share):
                started = time.perf_counter()
                connection.request("GET", target, headers=dict(fields))
                answer = connection.getresponse()
                answer.read()
                took = (time.perf_counter() - started) * 1000
                hit = "; hit" in (answer.getheader("cache-status") or "")
                answers.append((took, hit, not 200 <= answer.status < 300))  # noqa: PLR2004 - success
        finally:
            connection.close()
        return answers

    try:
        with ThreadPoolExecutor(concurrency) as pool:
            answers = [answer for some in pool.map(work, filter(None, shares)) for answer in some]
    except (OSError, http.client.HTTPException) as error:
        words = getattr(error, "strerror", None) or type(error).__name__
        raise Failed(f"{parts.scheme}://{parts.netloc} cannot be reached: {words}") from error
    return Measured(
        [took for took, _, _ in answers],
        sum(hit for _, hit, _ in answers),
        sum(failed for _, _, failed in answers),
    )


def _field(text: str) -> tuple[str, str]:
    field, found, value = text.partition(":")
    if not found or not field.strip() or not all(" " <= char <= "~" for char in text):
        raise Failed("--header is written NAME:VALUE, in printable ASCII")
    return field.strip(), value.strip()
