import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry import metrics as metrics_api
from opentelemetry import trace
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from nexcache.errors import ConfigurationError
from nexcache.telemetry.configure import Telemetry, configure_telemetry
from nexcache.telemetry.counts import Counts
from nexcache.telemetry.events import Answered, Emitter
from nexcache.telemetry.metrics import OTelMetrics
from nexcache.telemetry.names import Result
from nexcache.telemetry.otel import OTelTracing

HIT = Answered(operation="dashboard", tenant="acme", result=Result.HIT)


def one_hit(telemetry: Telemetry) -> None:
    span = OTelTracing(telemetry.tracer_provider).get("dashboard")
    assert span is not None
    span.end(HIT)


def own(telemetry: Telemetry) -> TracerProvider:
    assert isinstance(telemetry.tracer_provider, TracerProvider)
    return telemetry.tracer_provider


def run(program: str, **environment: str) -> str:
    """Run a program in a process of its own, because a global provider can be set only once."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_spans_and_metrics_can_be_read_in_memory() -> None:
    emitter, counts = Emitter(), Counts()
    counts.of("acme", "dashboard").memory_hits = 1
    with configure_telemetry("memory", set_global=False) as telemetry:
        assert telemetry.configured
        assert telemetry.left_alone == ()
        metrics = OTelMetrics(emitter, counts, meter_provider=telemetry.meter_provider)
        one_hit(telemetry)
        assert [span.name for span in telemetry.spans.get_finished_spans()] == ["cache.hit dashboard"]
        data = telemetry.metrics()
        assert data is not None
        names = {metric.name for metric in data.resource_metrics[0].scope_metrics[0].metrics}
        assert "nexcache.requests" in names
        metrics.close()


def test_providers_of_ones_own_leave_the_global_ones_alone() -> None:
    before = trace.get_tracer_provider(), metrics_api.get_meter_provider()
    with configure_telemetry("memory", set_global=False) as telemetry:
        assert isinstance(telemetry.tracer_provider, TracerProvider)
        assert isinstance(telemetry.meter_provider, MeterProvider)
    assert (trace.get_tracer_provider(), metrics_api.get_meter_provider()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"exporter": "zipkin"}, "exporter must be", id="unknown exporter"),
        pytest.param({"exporter": None}, "exporter must be", id="no exporter"),
        pytest.param({"endpoint": "localhost:4318"}, "endpoint must be a URL", id="no scheme"),
        pytest.param({"endpoint": "grpc://localhost:4317"}, "endpoint must be a URL", id="another scheme"),
        pytest.param({"endpoint": "http://"}, "endpoint must be a URL", id="no host"),
        pytest.param({"endpoint": "http://host:99999"}, "endpoint must be a URL", id="no such port"),
        pytest.param({"endpoint": "http://host?key=secret"}, "endpoint must be a URL", id="query"),
        pytest.param({"headers": {"x-key": "secret\r\nx: y"}}, "headers must map", id="line break in a header"),
        pytest.param({"headers": {"": "secret"}}, "headers must map", id="header without name"),
        pytest.param({"exporter": "memory", "endpoint": "http://h"}, "need exporter='otlp'", id="endpoint"),
        pytest.param({"exporter": "console", "headers": {}}, "need exporter='otlp'", id="headers"),
        pytest.param({"sampler": 0.1}, "sampler must be", id="sampler"),
    ],
)
def test_arguments_that_cannot_work_are_refused_in_a_sentence_without_secrets(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        configure_telemetry(**({"set_global": False} | arguments))
    assert str(refused.value).endswith(".")
    assert "secret" not in str(refused.value)


def test_spans_and_metrics_are_read_only_in_memory() -> None:
    with configure_telemetry(InMemorySpanExporter(), set_global=False) as telemetry:
        with pytest.raises(ConfigurationError, match="Spans can be read"):
            _ = telemetry.spans
        with pytest.raises(ConfigurationError, match="Metrics can be read"):
            telemetry.metrics()


def test_an_exporter_of_ones_own_gets_the_spans_and_no_metrics_are_set_up() -> None:
    exporter = InMemorySpanExporter()
    with configure_telemetry(exporter, set_global=False) as telemetry:
        assert telemetry.meter_provider is None
        one_hit(telemetry)
        assert telemetry.flush()
        assert [span.name for span in exporter.get_finished_spans()] == ["cache.hit dashboard"]


def test_a_sampler_decides() -> None:
    with configure_telemetry("memory", set_global=False, sampler=ALWAYS_OFF, metrics=False) as telemetry:
        assert telemetry.meter_provider is None
        assert OTelTracing(telemetry.tracer_provider).get("dashboard") is None


@pytest.mark.parametrize(
    ("given", "environment", "name"),
    [
        pytest.param(None, None, "nexcache", id="nobody says"),
        pytest.param(None, "shop", "shop", id="the environment says"),
        pytest.param("backend", "shop", "backend", id="the argument says"),
    ],
)
def test_the_service_has_a_name(
    monkeypatch: pytest.MonkeyPatch, given: str | None, environment: str | None, name: str
) -> None:
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    if environment is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", environment)
    with configure_telemetry("memory", set_global=False, service_name=given) as telemetry:
        assert own(telemetry).resource.attributes["service.name"] == name


def test_on_the_console_spans_and_metrics_are_printed() -> None:
    program = """
        from nexcache.telemetry.configure import configure_telemetry
        from nexcache.telemetry.counts import Counts
        from nexcache.telemetry.events import Answered, Emitter
        from nexcache.telemetry.metrics import OTelMetrics
        from nexcache.telemetry.names import Result
        from nexcache.telemetry.otel import OTelTracing

        with configure_telemetry("console"):
            emitter = Emitter()
            metrics = OTelMetrics(emitter, Counts())
            OTelTracing().get("dashboard").end(Answered("dashboard", "acme", Result.HIT))
    """
    output = run(program)
    assert "cache.hit dashboard" in output
    assert "nexcache.bypasses" in output


class Receiver(ThreadingHTTPServer):
    """An OTLP receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.received: dict[str, tuple[str | None, bytes]] = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received[self.path] = (self.headers["x-key"], body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("suffix", ["", "/", "/v1/traces"])
def test_otlp_goes_over_http_to_the_endpoint_with_the_headers(receiver: Receiver, suffix: str) -> None:
    emitter = Emitter()
    with configure_telemetry(endpoint=receiver.url + suffix, headers={"x-key": "k1"}, set_global=False) as telemetry:
        metrics = OTelMetrics(emitter, Counts(), meter_provider=telemetry.meter_provider)
        one_hit(telemetry)
        assert telemetry.flush()
        metrics.close()
    assert set(receiver.received) == {"/v1/traces", "/v1/metrics"}
    assert {key for key, _ in receiver.received.values()} == {"k1"}
    spans = ExportTraceServiceRequest.FromString(receiver.received["/v1/traces"][1])
    [scope] = spans.resource_spans[0].scope_spans
    assert (scope.scope.name, scope.spans[0].name) == ("nexcache", "cache.hit dashboard")
    points = ExportMetricsServiceRequest.FromString(receiver.received["/v1/metrics"][1])
    assert points.resource_metrics[0].scope_metrics[0].scope.name == "nexcache"


class Hanging(SpanExporter):
    """An exporter whose receiver never answers, until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.entered = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.let_go.wait(30)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def test_an_exporter_that_hangs_holds_up_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    exporter = Hanging()
    telemetry = configure_telemetry(exporter, set_global=False)
    one_hit(telemetry)
    assert exporter.entered.wait(10)
    for _ in range(5_000):  # more than the queue holds
        one_hit(telemetry)
    assert not exporter.let_go.is_set()
    exporter.let_go.set()
    telemetry.shutdown()


class Failing(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise RuntimeError("export")

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        raise RuntimeError("flush")

    def shutdown(self) -> None:
        raise RuntimeError("shutdown")


def test_an_exporter_that_fails_fails_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = configure_telemetry(Failing(), set_global=False)
    one_hit(telemetry)
    telemetry.flush()
    telemetry.shutdown()
    telemetry.shutdown()
    own_lines = [record.getMessage() for record in caplog.records if record.name == "nexcache"]
    assert own_lines == ["nexcache.telemetry_shutdown_failed error=RuntimeError"]


def test_the_end_of_the_program_exports_the_rest(receiver: Receiver) -> None:
    program = f"""
        from opentelemetry import trace
        from nexcache.telemetry.configure import configure_telemetry

        configure_telemetry(endpoint="{receiver.url}")
        trace.get_tracer("app").start_span("GET /").end()
    """
    assert run(program) == ""
    assert b"GET /" in receiver.received["/v1/traces"][1]


def test_a_flush_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bool:
        raise RuntimeError("flush")

    with configure_telemetry("memory", set_global=False) as telemetry:
        assert telemetry.flush()
        monkeypatch.setattr(TracerProvider, "force_flush", broken)
        assert not telemetry.flush()


def test_the_global_providers_are_set_once_and_then_left_alone() -> None:
    program = """
        import logging
        from opentelemetry import metrics, trace
        from nexcache.telemetry.configure import configure_telemetry

        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
        first = configure_telemetry("memory")
        print(first.configured, first.tracer_provider is trace.get_tracer_provider())
        print(first.meter_provider is metrics.get_meter_provider())
        second = configure_telemetry("memory")
        print(second.configured, second.left_alone, second.tracer_provider is first.tracer_provider)
        second.shutdown()
        trace.get_tracer("app").start_span("GET /").end()
        print(len(first.spans.get_finished_spans()))
        first.shutdown()
    """
    assert run(program).splitlines() == [
        "True True",
        "True",
        "False ('traces', 'metrics') True",
        "1",
        "INFO nexcache.telemetry_left_alone signals=\"['traces', 'metrics']\"",
    ]


def test_an_application_that_set_up_traces_only_gets_metrics() -> None:
    program = """
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.trace import TracerProvider
        from nexcache.telemetry.configure import configure_telemetry

        installed = TracerProvider()
        trace.set_tracer_provider(installed)
        with configure_telemetry("memory") as telemetry:
            print(telemetry.left_alone, telemetry.tracer_provider is installed)
            print(metrics.get_meter_provider() is telemetry.meter_provider)
    """
    assert run(program).splitlines() == ["('traces',) True", "True"]


def test_a_provider_that_the_environment_names_is_found() -> None:
    program = """
        from opentelemetry import trace
        from nexcache.telemetry.otel import OTelTracing

        span = OTelTracing().get("dashboard")
        print(span is not None, type(trace.get_tracer_provider()).__module__)
    """
    assert run(program, OTEL_PYTHON_TRACER_PROVIDER="sdk_tracer_provider") == "True opentelemetry.sdk.trace\n"


def test_nothing_but_this_module_imports_the_sdk() -> None:
    program = """
        import sys
        import nexcache.telemetry.log, nexcache.telemetry.metrics, nexcache.telemetry.otel
        print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
        import nexcache.telemetry.configure
        print([name for name in sys.modules if name.startswith("opentelemetry.exporter")])
    """
    assert run(program).splitlines() == ["[]", "[]"]
