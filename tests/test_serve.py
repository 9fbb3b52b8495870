"""`nexcache serve`: its file, and the whole proxy as a process in front of a service."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from nexcache import ConfigurationError, NexCache, Policy, Settings, TimeWindow
from nexcache.cli import app as cli
from nexcache.policy import Shadow
from nexcache.serve import PolicyConfig, ServeConfig, build_app
from nexcache.tenants import ApiKey
from tests.servers import Valkey

FULL = """
mode = "policy"
credentials = ["authorization"]

[upstream]
url = "http://tempo:3200/base"
connect_timeout = "500ms"
read_timeout = 30
preserve_host = true

[listen]
host = "0.0.0.0"
port = 8090
workers = 2

[tenant]
from = "header"
name = "X-Scope-OrgID"
trusted = ["10.0.0.0/8"]

[principal]
from = "credential"
name = "Authorization"

[[policy]]
path = "/api/search"
op = "tempo_search"
ttl = "30s"
query_ignore = ["_"]
tags = ["service:{service}"]
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    return file


def test_the_file_says_everything(tmp_path: Path) -> None:
    config = ServeConfig.load(written(tmp_path, FULL))
    assert (config.mode, config.upstream.connect_timeout, config.upstream.read_timeout) == ("policy", 0.5, 30.0)
    assert (config.listen.port, config.listen.workers) == (8090, 2)
    assert config.policy[0].policy().op == "tempo_search"
    assert callable(build_app(config, NexCache(Settings(redis_url=None))))


def test_whatever_a_policy_says_in_code_it_can_say_in_the_file() -> None:
    said: dict[str, Any] = {
        "path": "/spans",
        "op": "spans",
        "ttl": "1m",
        "methods": ["GET", "POST"],
        "statuses": [200, 404],
        "vary": ["accept"],
        "query_allow": ["q", "from", "to"],
        "tags": ["a"],
        "max_body": "1KiB",
        "version": "2",
        "share_authenticated": True,
        "compress": True,
        "stale_while_revalidate": "5s",
        "stale_if_error": "1h",
        "early_refresh": False,
        "jitter": 0.2,
        "fill_soft_limit": "1s",
        "fill_hard_limit": 2,
        "window": {
            "start": "from",
            "end": "to",
            "step": "1m",
            "of": "t",
            "settled": "2h",
            "closed_ttl": "3h",
            "open_ttl": "4s",
        },
        "shadow": {"share": 0.01, "ignore": ["at"], "grace": "2s", "limit": 0.1, "after": 10, "bypass_for": "1m"},
    }
    made = PolicyConfig.model_validate(said).policy()
    plain = PolicyConfig.model_validate({"path": "/spans", "op": "spans"}).policy()
    same = [each.name for each in fields(Policy) if each.init and getattr(made, each.name) == getattr(plain, each.name)]
    assert same == ["path", "op"]
    for part, of in (("window", TimeWindow), ("shadow", Shadow)):
        assert set(said[part]) == {each.name for each in fields(of) if each.init}
    assert (made.window, made.shadow) == (TimeWindow(**said["window"]), Shadow(**said["shadow"]))


def test_the_command_line_counts_more_than_the_file(tmp_path: Path) -> None:
    config = ServeConfig.load(written(tmp_path, FULL), upstream__url="http://other", listen__port=1, mode=None)
    assert (config.upstream.url, config.listen.port, config.mode) == ("http://other", 1, "policy")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", r"--upstream URL", id="nothing"),
        pytest.param("[upstream]\n", r"upstream\.url: Field required", id="no url"),
        pytest.param('[upstream]\nurl = "x"\ncolour = 1', r"upstream\.colour: Extra inputs", id="unknown name"),
        pytest.param('[upstream]\nurl = "http://x"\nread_timeout = "soon"', r"read_timeout: .*seconds", id="no time"),
        pytest.param('[upstream\nurl = "x"', r"is not TOML", id="no TOML"),
        pytest.param('mode = "x"\n[upstream]\nurl = "http://x"', r"mode: Input should be 'policy' or 'rfc'", id="mode"),
        pytest.param('[upstream]\nurl = "http://x"\n[listen]\nport = 70000', r"listen\.port", id="port"),
    ],
)
def test_a_file_that_cannot_work_is_told_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigurationError, match=words) as caught:
        ServeConfig.load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        ({"from": "header"}, 'needs name = "…"'),
        ({"from": "header", "name": "X-Org"}, "trusted=True"),
        ({"from": "host"}, 'needs pattern = "…"'),
        ({"from": "fixed"}, 'needs value = "…"'),
        ({"from": "api-key"}, "CACHE_API_KEYS"),
    ],
)
def test_a_tenant_that_cannot_be_told_is_refused(identity: dict[str, Any], words: str) -> None:
    config = ServeConfig.model_validate({"upstream": {"url": "http://x"}, "mode": "policy", "tenant": identity})
    with pytest.raises(ConfigurationError, match=words):
        build_app(config, NexCache(Settings(redis_url=None, api_keys=())))


def test_the_command_ends_with_the_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["serve", "--config", str(tmp_path / "missing.toml")])
    assert result.exit_code == 2
    assert "cannot be read" in result.output


# --- as a process --------------------------------------------------------------------------------------------------


class Service:
    """A service that counts, over a real socket."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                target = head.split(" ", 2)[1]
                org = re.search(r"x-scope-orgid: (\S+)", head)
                self.calls.append(target)
                body = f"{org[1] if org else '-'} {target} {len(self.calls)}".encode()
                slow = "slow" in target
                if slow:
                    await asyncio.sleep(0.3)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@contextmanager
def proxy(config: Path, service: Service, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "error", "-m", "nexcache.cli", "serve", "--config", str(config)]
    command += ["--upstream", f"http://127.0.0.1:{service.port}", "--port", str(port)]
    process = subprocess.Popen(
        command, env={**os.environ, "CACHE_OP_TIMEOUT_MS": "1000", **environment}, stderr=subprocess.PIPE
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


async def alive(http: httpx2.AsyncClient, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(30):
        while process.poll() is None:
            try:
                if (await http.get("/.nexcache/alive")).json() == {"status": "ok"}:
                    return
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
    assert process.stderr is not None
    raise AssertionError(process.stderr.read().decode())


TEMPO = """
mode = "policy"
[tenant]
from = "header"
name = "X-Scope-OrgID"
trusted = true
[[policy]]
path = "/api/{rest:path}"
op = "tempo"
ttl = "1m"
"""


_OF_ACME = {"x-scope-orgid": "acme", "host": "tempo.example"}


async def test_it_caches_a_service_per_tenant(service: Service, tmp_path: Path, redis_url: str) -> None:
    secret = "a key of acme, long enough"
    environment = {"REDIS_URL": redis_url, "CACHE_API_KEYS": str(ApiKey.of("acme", secret))}
    with proxy(written(tmp_path, TEMPO), service, **environment) as (process, url):
        async with httpx2.AsyncClient(base_url=url) as http:
            await alive(http, process)
            answers = [
                await http.get("/api/search?q=1", headers={"x-scope-orgid": tenant})
                for tenant in ("acme", "acme", "globex", "acme")
            ]
            assert [answer.text for answer in answers] == [
                *("acme /api/search?q=1 1", "acme /api/search?q=1 1"),
                *("globex /api/search?q=1 2", "acme /api/search?q=1 1"),
            ]
            assert "hit" in answers[3].headers["cache-status"]
            other = await http.get("/metrics")
            assert other.text == "- /metrics 3"
            assert "cache-status" not in other.headers
            stats = await http.get("/.nexcache/stats", headers={"x-api-key": secret})
            assert stats.json()["hits"] >= 1
            await http.delete("/.nexcache/invalidate/tempo", headers={"x-api-key": secret})
            assert (await http.get("/api/search?q=1", headers={"x-scope-orgid": "acme"})).text.endswith(" 4")
            assert (await http.get("/.nexcache/stats")).status_code == 401


async def test_it_finishes_what_is_under_way_before_it_ends(service: Service, tmp_path: Path) -> None:
    with proxy(written(tmp_path, TEMPO), service) as (process, url):
        async with httpx2.AsyncClient(base_url=url) as http:
            await alive(http, process)
            asking = asyncio.create_task(http.get("/api/slow", headers={"x-scope-orgid": "acme"}))
            async with asyncio.timeout(10):
                while not service.calls:  # noqa: ASYNC110 - a list tells nobody
                    await asyncio.sleep(0.001)
            process.send_signal(signal.SIGTERM)
            assert (await asking).text == "acme /api/slow 1"
        assert await asyncio.to_thread(process.wait, 20) in (0, -signal.SIGTERM)
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


async def test_without_its_service_it_says_so_and_serves_what_it_holds(
    service: Service, tmp_path: Path, own_valkey: Valkey
) -> None:
    with proxy(written(tmp_path, TEMPO), service, REDIS_URL=own_valkey.url) as (process, url):
        async with httpx2.AsyncClient(base_url=url, headers=_OF_ACME) as http:
            await alive(http, process)
            held = await http.get("/api/held")
            while "hit" not in held.headers["cache-status"]:
                held = await http.get("/api/held")
    service.port = 9
    with proxy(written(tmp_path, TEMPO), service, REDIS_URL=own_valkey.url) as (process, url):
        async with httpx2.AsyncClient(base_url=url, headers=_OF_ACME) as http:
            await alive(http, process)
            assert (await http.get("/api/held")).text == held.text
            missing = await http.get("/api/missing")
    assert missing.status_code == 502
    assert missing.json()["title"] == "Bad Gateway"
