"""The README says what is true: its program runs, and its curl lines give the answers that stand below them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from nexcache.tenants import ApiKey

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text()
CONSOLE = re.findall(r"^\$ (.+)\n((?:(?!\$ |```).*\n)*)", TEXT[TEXT.index("```console") :], re.MULTILINE)


def test_the_ten_lines_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    digest = "f" * 64
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("CACHE_API_KEYS", f"acme=sha256:{digest}")
    [program] = re.findall(r"## Ten lines\n\n```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}

    exec(compile(program, str(README), "exec"), names)

    assert names["cache"].settings.api_keys[0].tenant == "acme"  # type: ignore[attr-defined]


async def test_the_ten_lines_answer_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)
    key = "a-key"
    monkeypatch.setenv("CACHE_API_KEYS", str(ApiKey.of("acme", key)))
    [program] = re.findall(r"## Ten lines\n\n```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(program, str(README), "exec"), names)

    transport = httpx2.ASGITransport(app=names["app"])  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://app", headers={"x-api-key": key}) as client:
        first = await client.get("/api/v1/dashboard")
        second = await client.get("/api/v1/dashboard")
        spans = await client.post("/v1/traces", content=b"", headers={"content-type": "application/x-protobuf"})

    assert first.headers["cache-status"] == "NexCache; fwd=uri-miss; stored"
    hit = re.fullmatch(r"NexCache; hit; ttl=(\d+); detail=memory", second.headers["cache-status"])
    assert hit is not None
    assert 108 <= int(hit[1]) <= 120  # two minutes, with the jitter of a tenth
    assert spans.status_code == 200


@pytest.fixture(scope="module")
def demo() -> Iterator[tuple[str, int]]:
    """Run the demo; gives the key of a tenant, as it prints it, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "nexcache.cli", "demo", "--headless", "--port", str(port), "--duration", "120"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        key = None
        for line in process.stdout:
            if match := re.search(r"X-API-Key: ?(acme-\w+)", line):
                key = match[1]
            if re.match(r"00:0\d", line):  # the readers are at work
                break
        assert key is not None, "the demo printed no key"
        yield key, port
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_there_are_curl_lines_for_every_endpoint() -> None:
    commands = " ".join(command for command, _ in CONSOLE)

    for endpoint in ("/health", "/stats", "/invalidate ", "/invalidate/", "/warm/"):
        assert endpoint in commands + " "


@pytest.mark.parametrize(("command", "expected"), CONSOLE, ids=[command[-50:] for command, _ in CONSOLE])
def test_a_curl_line_gives_the_answer_below_it(demo: tuple[str, int], command: str, expected: str) -> None:
    key, port = demo
    pattern = re.escape(expected.strip()).replace("…", ".+?").replace(r"\ ", r"\s*")

    def asked() -> str:
        return subprocess.run(
            ["bash", "-c", command.replace("127.0.0.1:8080", f"127.0.0.1:{port}")],
            env={**os.environ, "KEY": key},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout

    answer, until = asked(), time.monotonic() + 10
    while '"slow"' in answer and time.monotonic() < until:  # the machine is busy with other tests, and health says so
        answer = asked()

    assert re.fullmatch(pattern, answer.strip(), re.DOTALL), answer
