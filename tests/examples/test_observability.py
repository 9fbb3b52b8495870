"""The example as its README tells it: started by uvicorn, spans and dashboards by curl."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples/observability/README.md").read_text()
KEY = {"X-API-Key": "acme-demo-key"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "CACHE_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "examples.observability.app:app", "--port", str(port)],
        cwd=ROOT,
        env=environment | {"SPANS_DB": str(tmp_path_factory.mktemp("example") / "spans.db")},
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the example ended"
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def test_the_readme_shows_a_miss_then_a_hit_then_a_miss_with_the_new_span(address: str) -> None:
    [script] = [block for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "send()" in block]
    shown = subprocess.run(
        ["bash", "-c", script.replace("127.0.0.1:8000", address)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    looks = re.findall(r'cache-status: NexCache; (hit|fwd=uri-miss; stored).*\s+"visits":(\d+)', shown)
    assert looks == [("fwd=uri-miss; stored", "1"), ("hit", "1"), ("fwd=uri-miss; stored", "2")], shown


@pytest.mark.parametrize("page", ["dashboard", "architecture", "services", "metrics?service=all", "graph?journey=all"])
def test_every_page_wants_a_key_and_is_kept(address: str, page: str) -> None:
    url = f"http://{address}/api/v1/{page}"
    assert httpx2.get(url).status_code == 401
    answers = [httpx2.get(url, headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert "; hit;" in answers[1].headers["cache-status"]
    assert httpx2.get(url, headers={"X-API-Key": "globex-demo-key"}).json()["tenant"] == "globex"
    assert httpx2.get(url).status_code == 401


def test_the_admin_endpoints_are_mounted(address: str) -> None:
    health = httpx2.get(f"http://{address}/api/v1/cache/health", headers=KEY)
    assert (health.status_code, health.json()["mode"]) == (200, "memory")
