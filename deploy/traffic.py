# ruff: noqa: INP001 - a program, not a package
"""Traffic for the dashboard: the services of each tenant send spans, its readers ask for pages.

python traffic.py http://app:8000 acme-demo-key globex-demo-key
"""

import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException
from threading import Thread
from typing import Final
from urllib.parse import urlsplit

SERVICES: Final = ("frontend", "cart", "catalog", "payment", "shipping")
PAGES: Final[Mapping[str, float]] = {
    "/api/v1/dashboard": 40,
    "/api/v1/dashboard?window=1h": 10,
    "/api/v1/architecture": 20,
    "/api/v1/services": 15,
    "/api/v1/graph?analysis=critical_path": 5,
    "/api/v1/metrics?service=all&metric=latency": 5,
    **{f"/api/v1/services/{service}": 4 for service in SERVICES},
    **{f"/api/v1/metrics?service={service}&metric=latency": 3 for service in SERVICES},
}
"""What readers ask for, and how often in proportion."""

_READERS: Final = 6
"""Of each tenant."""
_READS_PER_SECOND: Final = 2.0
"""Of each reader."""
_VISITS_PER_SECOND: Final = 0.4
"""Of each tenant's customers: between two of them, pages can be answered from the cache."""
_WITHOUT_KEY: Final = 0.02
"""How many of the reads forget their key, so that there is a bypass to see."""
_TIMEOUT_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 2.0
_MS: Final = 1_000_000


def visit(rng: random.Random, now_ns: int) -> bytes:
    """Write a visit as OTLP/JSON: the frontend calls some services, one after the other."""
    trace_id, root = rng.randbytes(16).hex(), rng.randbytes(8).hex()
    called = rng.sample(SERVICES[1:], rng.randint(1, len(SERVICES) - 1))
    took = [rng.randint(5, 80) * _MS for _ in called]
    start = now_ns - sum(took)
    spans = [(SERVICES[0], root, "", f"GET /{called[0]}", start, now_ns)]
    for service, nanoseconds in zip(called, took, strict=True):
        spans.append((service, rng.randbytes(8).hex(), root, f"{service}.get", start, start + nanoseconds))
        start += nanoseconds
    return json.dumps(
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]},
                    "scopeSpans": [
                        {
                            "spans": [
                                {
                                    "traceId": trace_id,
                                    "spanId": span_id,
                                    "parentSpanId": parent,
                                    "name": name,
                                    "kind": 2,
                                    "startTimeUnixNano": str(began),
                                    "endTimeUnixNano": str(ended),
                                    "status": {"code": 2 if rng.random() < 0.01 else 0},  # noqa: PLR2004
                                }
                            ]
                        }
                    ],
                }
                for service, span_id, parent, name, began, ended in spans
            ]
        }
    ).encode()


def send(connection: HTTPConnection, key: str, rng: random.Random) -> None:
    """Send one visit."""
    headers = {"Content-Type": "application/json", "X-API-Key": key}
    connection.request("POST", "/v1/traces", visit(rng, time.time_ns()), headers)
    connection.getresponse().read()


def read(connection: HTTPConnection, key: str, rng: random.Random) -> None:
    """Read one page."""
    page = rng.choices(list(PAGES), list(PAGES.values()))[0]
    connection.request("GET", page, headers={} if rng.random() < _WITHOUT_KEY else {"X-API-Key": key})
    connection.getresponse().read()


def repeat(
    act: Callable[[HTTPConnection, str, random.Random], None], address: str, key: str, per_second: float
) -> None:
    """Act again and again, at random moments; while the app is away, try every two seconds."""
    rng = random.Random()  # noqa: S311 - imagined traffic, no secret
    connection = HTTPConnection(address, timeout=_TIMEOUT_SECONDS)
    while True:
        time.sleep(rng.expovariate(per_second))
        try:
            act(connection, key, rng)
        except (OSError, HTTPException):
            connection.close()
            time.sleep(_RETRY_SECONDS)


def main(target: str, *keys: str) -> None:
    """Start everybody, and wait for an end that only a signal brings."""
    address = urlsplit(target).netloc
    everybody = [
        Thread(target=repeat, args=(act, address, key, rate), daemon=True)
        for key in keys
        for act, rate in ((send, _VISITS_PER_SECOND), *[(read, _READS_PER_SECOND)] * _READERS)
    ]
    for each in everybody:
        each.start()
    for each in everybody:
        each.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
