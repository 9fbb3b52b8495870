"""The example of the proxy: its two processes, and the curl lines of its README."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

EXAMPLE = Path(__file__).parents[2] / "examples" / "proxy"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=EXAMPLE, env=dict(os.environ))
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


async def answers(url: str) -> None:
    async with httpx2.AsyncClient() as http, asyncio.timeout(30):
        while True:
            try:
                await http.get(url)
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
            else:
                return


async def test_the_second_search_is_answered_by_the_proxy(tmp_path: Path) -> None:
    service, port = free_port(), free_port()
    config = tmp_path / "serve.toml"
    config.write_text((EXAMPLE / "serve.toml").read_text().replace(":3200", f":{service}"))
    serving = ("nexcache.cli", "serve", "--config", str(config), "--port", str(port))
    with running("uvicorn", "service:app", "--port", str(service), "--log-level", "warning"), running(*serving):
        await answers(f"http://127.0.0.1:{service}/")
        await answers(f"http://127.0.0.1:{port}/.nexcache/alive")
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            url = "/api/search?service=checkout"
            began = time.perf_counter()
            first = await http.get(url, headers={"x-scope-orgid": "acme"})
            took = time.perf_counter() - began
            again = await http.get(url + "&_=1", headers={"x-scope-orgid": "acme"})
            other = await http.get(url, headers={"x-scope-orgid": "globex"})
    assert took > 0.4, "the service was not slow"
    assert first.json() == {"tenant": "acme", "service": "checkout", "traces": [], "call": 1}
    assert again.json()["call"] == 1
    assert other.json() == {"tenant": "globex", "service": "checkout", "traces": [], "call": 2}
    readme = (EXAMPLE / "README.md").read_text()
    assert re.findall(r'"call":1\}', readme), "the README shows what happens"
