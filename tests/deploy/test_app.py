"""The programs of the image, started as it starts them."""

import contextlib
import gzip
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TypeVar

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from deploy import traffic
from nexcache.tenants import ApiKey
from tests.deploy.files import DEPLOY, compose

T = TypeVar("T")
APP = compose()["services"]["app"]


class Collector(ThreadingHTTPServer):
    """Takes OTLP and keeps it, where there would be a collector."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.traces: list[ExportTraceServiceRequest] = []

    def metric_names(self) -> set[str]:
        return {
            metric.name
            for request in self.metrics
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def span_names(self) -> set[str]:
        return {
            span.name
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


class _Take(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/metrics":
            self.server.metrics.append(ExportMetricsServiceRequest.FromString(body))
        if self.path == "/v1/traces":
            self.server.traces.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(look: Callable[[], T], seconds: float = 60.0) -> T:
    end = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def healthy(port: int) -> bool:
    """Run the health check of the compose file."""
    how, program, option, code = APP["healthcheck"]["test"]
    assert (how, program, option) == ("CMD", "python", "-c")
    done = subprocess.run([sys.executable, "-c", code.replace("8000", str(port))], capture_output=True, check=False)
    return done.returncode == 0


@contextlib.contextmanager
def started(directory: Path, endpoint: str) -> Iterator[tuple[int, Path]]:
    """Start the app with the command of the Dockerfile; gives its port and what it printed."""
    command = next(
        json.loads(line.removeprefix("CMD "))
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("CMD ")
    )
    port = free_port()
    here = {"0.0.0.0": "127.0.0.1", "8000": str(port)}
    command = [sys.executable, "-m", *(here.get(word, word) for word in command)]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("CACHE_", "REDIS_", "OTEL_"))
    }
    environment |= {
        "CACHE_API_KEYS": str(ApiKey.of("acme", "secret")),
        "SPANS_DB": str(directory / "spans.db"),
        "OTEL_SERVICE_NAME": "nexcache-demo",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    printed = directory / "printed"
    with printed.open("wb") as output:
        process = subprocess.Popen(command, cwd=DEPLOY, env=environment, stdout=output, stderr=output)
        try:
            assert eventually(lambda: process.poll() is not None or healthy(port))
            assert process.poll() is None, printed.read_text()
            yield port, printed
        finally:
            process.terminate()
            process.wait(10)


def use(port: int) -> list[str]:
    """Send a visit and read the dashboard twice; gives what `Cache-Status` said."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    traffic.send(connection, "secret", random.Random(1))
    found = []
    for _ in range(2):
        connection.request("GET", "/api/v1/dashboard", headers={"X-API-Key": "secret"})
        answer = connection.getresponse()
        found.append(answer.headers["Cache-Status"])
        answer.read()
    connection.close()
    return found


def test_the_app_caches_and_sends_its_metrics_and_traces(tmp_path: Path, collector: Collector) -> None:
    with started(tmp_path, f"http://127.0.0.1:{collector.server_port}") as (port, _):
        miss, hit = use(port)
        assert "fwd=" in miss
        assert "; hit" in hit
        assert eventually(lambda: "nexcache.requests" in collector.metric_names())
        hit_and_miss = {
            "cache.hit dashboard_overview",
            "cache.miss dashboard_overview",
            "cache.fill dashboard_overview",
        }
        assert eventually(lambda: hit_and_miss <= collector.span_names()), collector.span_names()


def test_the_app_answers_and_keeps_quiet_where_no_collector_listens(tmp_path: Path) -> None:
    with started(tmp_path, f"http://127.0.0.1:{free_port()}") as (port, printed):
        assert "; hit" in use(port)[1]
        time.sleep(1.0)  # five exports in vain
    assert "opentelemetry" not in printed.read_text().lower()
    assert "Traceback" not in printed.read_text()


def test_the_traffic_reads_every_page_and_sends_visits(tmp_path: Path, collector: Collector) -> None:
    with started(tmp_path, f"http://127.0.0.1:{collector.server_port}") as (port, printed):
        command = [sys.executable, "traffic.py", f"http://127.0.0.1:{port}", "secret"]
        process = subprocess.Popen(command, cwd=DEPLOY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            wanted = {"cache.invalidate", "cache.hit dashboard_overview", "cache.miss architecture_map"}
            assert eventually(lambda: wanted <= collector.span_names()), collector.span_names()
            assert process.poll() is None
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=10)
        assert errors == b""
    assert "Traceback" not in printed.read_text()


def test_a_visit_is_otlp_whose_spans_form_one_trace() -> None:
    batch = json.loads(traffic.visit(random.Random(7), 1_000_000_000_000))
    spans = [span for each in batch["resourceSpans"] for scope in each["scopeSpans"] for span in scope["spans"]]
    root, *calls = spans
    assert root["parentSpanId"] == ""
    assert {span["traceId"] for span in spans} == {root["traceId"]}
    assert {span["parentSpanId"] for span in calls} == {root["spanId"]}
    assert all(int(span["startTimeUnixNano"]) < int(span["endTimeUnixNano"]) <= 1_000_000_000_000 for span in spans)
