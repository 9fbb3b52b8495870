"""The examples of docs/frameworks.md, taken from the page and run behind a server."""

import hashlib
import re
from collections.abc import Iterator

import httpx2
import pytest

from tests.frameworks.servers import ROOT, Server, Setup
from tests.ingest.batches import json_batch

PAGE = (ROOT / "docs" / "frameworks.md").read_text()
SECTIONS = dict(re.findall(r"^##+ ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLES = {
    re.sub(r"\W+", "_", title).strip("_").lower(): match[1]
    for title, text in SECTIONS.items()
    if (match := re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
}
KEY = {"x-api-key": "my-secret-key"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    directory = tmp_path_factory.mktemp("documentation")
    running = {}
    for name, code in EXAMPLES.items():
        (directory / f"example_{name}.py").write_text(code)
        running[name] = Server(
            Setup(name, "uvicorn-httptools"),
            directory,
            app=f"example_{name}:app",
            CACHE_API_KEYS=f"acme=sha256:{hashlib.sha256(b'my-secret-key').hexdigest()}",
        )
    yield running
    for server in running.values():
        server.terminate()
    for server in running.values():
        server.end()


def test_every_framework_has_an_example() -> None:
    assert set(EXAMPLES) == {"starlette", "fastapi", "authentication_by_depends", "litestar", "quart", "django"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs_as_it_is_printed(servers: dict[str, Server], name: str) -> None:
    url = servers[name].wait()

    def dashboard() -> str:
        answer = httpx2.get(f"{url}/api/v1/dashboard", headers=KEY)
        assert answer.json() == {"spans": 42}
        return answer.headers["cache-status"].partition("; ttl=")[0]

    assert [dashboard(), dashboard()] == ["NexCache; fwd=uri-miss; stored", "NexCache; hit"]
    spans = httpx2.post(f"{url}/v1/traces", headers=KEY, json=json_batch("cart"))
    assert spans.status_code == 200
    assert dashboard() == "NexCache; fwd=uri-miss; stored"
    assert httpx2.delete(f"{url}/api/v1/cache/invalidate", headers=KEY).json()["acknowledged"] is True
    assert dashboard() == "NexCache; fwd=uri-miss; stored"
    statistics = httpx2.get(f"{url}/api/v1/cache/stats", headers=KEY).json()
    assert (statistics["tenant"], statistics["hits"], statistics["misses"]) == ("acme", 1, 3)
    assert httpx2.get(f"{url}/api/v1/cache/stats").status_code == 401


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_starts_and_stops_without_an_error(servers: dict[str, Server], name: str) -> None:
    servers[name].wait()
    servers[name].terminate()
    servers[name].end()
    log = servers[name].log.read_text()
    assert "Finished server process" in log
    assert "Traceback" not in log
