"""The platform as its README tells it: replicas in processes of their own, one of which is killed; and its command."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.servers import Valkey

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples/session_platform/README.md").read_text()
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "CACHE_", "SESSION_"))}
ENCRYPTION = {"CACHE_ENCRYPTION_KEYS": "k:" + "k" * 43 + "="}


class Replica:
    """A process that serves the platform."""

    def __init__(self, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = ["uvicorn", "examples.session_platform.app:app", "--port", str(port), "--log-level", "warning"]
        self.process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=CLEAN | environment)
        self.url = f"http://127.0.0.1:{port}"
        self._port = port

    def wait(self) -> None:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            assert self.process.poll() is None, "the example ended"
            time.sleep(0.05)
        raise AssertionError("the example does not serve")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)


@contextmanager
def replicas(count: int, **environment: str) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            started.append(Replica(CACHE_OP_TIMEOUT_MS="1000", **environment))
            stack.callback(started[-1].kill)
        for each in started:
            each.wait()
        yield started


@pytest.fixture(scope="module", autouse=True)
def http() -> Iterator[None]:
    with httpx2.Client(timeout=20) as Browser.http:
        yield


@pytest.fixture(scope="module")
def pair(valkey: Valkey) -> Iterator[list[Replica]]:
    """Two replicas behind the shared server, for as long as both live."""
    valkey.reset()
    with replicas(2, REDIS_URL=valkey.url, **ENCRYPTION) as both:
        yield both


class Browser:
    """Keeps its cookie as a browser would; the platform's cookies are for TLS, which stands in front of it."""

    http: httpx2.Client

    def __init__(self) -> None:
        self.cookie = ""

    def __call__(self, method: str, url: str, **options: Any) -> httpx2.Response:
        answer = self.http.request(method, url, headers={"cookie": self.cookie}, **options)
        self.http.cookies.clear()
        if "set-cookie" in answer.headers:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer


def test_values_are_the_users_own_and_shared_by_the_replicas(pair: list[Replica], valkey: Valkey) -> None:
    first, second = pair
    ann, bob = Browser(), Browser()
    ann("POST", f"{first.url}/login/ann")
    bob("POST", f"{first.url}/login/bob")
    assert ann("PUT", f"{first.url}/me/values/secret", json="a long sentence").status_code == 204
    assert ann("PUT", f"{first.url}/me/values/short?expiry=1h", json=1).status_code == 204

    assert ann("GET", f"{second.url}/me/values/secret").json() == "a long sentence"
    assert bob("GET", f"{second.url}/me/values/secret").status_code == 404
    assert [ann("POST", f"{each.url}/me/values/n/increment?by=2").json() for each in (first, second)] == [2, 4]
    assert ann("POST", f"{first.url}/me/values/secret/increment").status_code == 409
    batch = {"a": 1, "b": [2]}
    assert ann("POST", f"{first.url}/me/values", json=batch).json() == batch
    assert ann("POST", f"{first.url}/me/values/n/expire?expiry=60").json() is True
    assert ann("DELETE", f"{first.url}/me/values/a").json() == 1
    assert ann("GET", f"{second.url}/me/values/a").status_code == 404

    def left(name: str) -> int:
        return int(valkey.ask("PTTL", f"nexarch.value:ann:{name}"))

    assert (left("secret"), 3_500_000 < left("short") <= 3_600_000, 0 < left("n") <= 60_000) == (-1, True, True)
    stored = [valkey.ask("GET", name) for name in valkey.ask("KEYS", "nexarch.value:ann:*")]
    assert len(stored) == 4
    assert not any(b"sentence" in value for value in stored)


def test_above_100_requests_a_minute_a_user_waits_and_the_others_do_not(pair: list[Replica]) -> None:
    first, second = pair
    carl, dora = Browser(), Browser()
    carl("POST", f"{first.url}/login/carl")
    dora("POST", f"{first.url}/login/dora")
    refused = None
    for number in range(400):  # room for one comes back every 600 ms
        answer = carl("GET", f"{(first, second)[number % 2].url}/me")
        if answer.status_code == 429:
            refused = answer
            break
        assert answer.status_code == 200
    assert refused is not None
    assert number >= 100
    assert int(refused.headers["retry-after"]) >= 1
    assert dora("GET", f"{second.url}/me").status_code == 200


def test_when_one_replica_is_killed_the_sessions_go_on(pair: list[Replica]) -> None:
    first, second = pair
    eve, fay = Browser(), Browser()
    for browser, name in ((eve, "eve"), (fay, "fay")):
        assert browser("POST", f"{first.url}/login/{name}").status_code == 200
        assert browser.cookie.startswith("__Host-session=")
        assert browser("PUT", f"{first.url}/me", json={"cart": [name]}).json() == {"cart": [name]}
    first.kill()

    for browser, name in ((eve, "eve"), (fay, "fay")):
        assert browser("GET", f"{second.url}/me").json() == {"user": name, "data": {"cart": [name]}}
        assert browser("PUT", f"{second.url}/me", json={"more": 1}).status_code == 200
    ready = Browser.http.get(f"{second.url}/ready").json()
    assert (ready["status"], ready["mode"]) == ("healthy", "redis")
    assert ready["connections"] >= 1
    assert ready["commands"] >= 1

    elsewhere = Browser()
    elsewhere("POST", f"{second.url}/login/eve")
    assert eve("POST", f"{second.url}/logout/everywhere").status_code == 204
    assert elsewhere("GET", f"{second.url}/me").status_code == 401
    assert fay("GET", f"{second.url}/me").status_code == 200
    assert fay("POST", f"{second.url}/logout").status_code == 204
    assert fay("GET", f"{second.url}/me").status_code == 401


def test_who_has_not_logged_in_has_nothing_and_everything_works_without_redis() -> None:
    with replicas(1, SESSION_SECURE="false", SESSION_TTL="2h") as (replica,), httpx2.Client() as http:
        for path in ("/me", "/me/values/a"):
            assert http.get(f"{replica.url}{path}").status_code == 401
        assert "Secure" not in http.post(f"{replica.url}/login/ann").headers["set-cookie"]
        assert http.get(f"{replica.url}/me").json() == {"user": "ann", "data": {}}
        assert http.get(f"{replica.url}/ready").json()["mode"] == "memory"


def test_from_memory_to_redis_while_running(own_valkey: Valkey) -> None:
    own_valkey.kill()
    with replicas(1, REDIS_URL=own_valkey.url) as (replica,):
        ready = Browser.http.get(f"{replica.url}/ready")
        assert (ready.status_code, ready.json()["status"], ready.json()["mode"]) == (200, "healthy", "memory")
        ann = Browser()
        assert ann("POST", f"{replica.url}/login/ann").status_code == 200
        assert ann("PUT", f"{replica.url}/me", json={"begun": "in memory"}).status_code == 200
        assert ann("GET", f"{replica.url}/me").json()["data"] == {"begun": "in memory"}

        own_valkey.start()
        for _ in range(200):
            if Browser.http.get(f"{replica.url}/ready").json()["mode"] == "redis":
                break
            time.sleep(0.05)
        assert own_valkey.ask("KEYS", "nexarch.session:*") == []

        assert ann("GET", f"{replica.url}/me").json()["data"] == {"begun": "in memory"}
        assert len(own_valkey.ask("KEYS", "nexarch.session:platform:*")) == 2  # the session, and what it depends on
        with replicas(1, REDIS_URL=own_valkey.url) as (another,):
            replica.kill()
            assert ann("GET", f"{another.url}/me").json() == {"user": "ann", "data": {"begun": "in memory"}}
            bob = Browser()
            bob("POST", f"{another.url}/login/bob")
            assert len(own_valkey.ask("KEYS", "nexarch.session:platform:*")) == 4


def test_the_command_prints_what_the_readme_shows(valkey: Valkey, redis_url: str) -> None:
    [command] = re.findall(r"python -m ([\w.]+)", README)
    printed = subprocess.run(
        [sys.executable, "-m", command],
        cwd=ROOT,
        env=CLEAN | {"REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout

    [shown] = re.findall(r"```\n(the first replica.*?)```", README, re.DOTALL)

    def plain(text: str) -> str:
        return re.sub(r"\d+\.\d|\d+ answered, \d+ told|'\w+': \d+", "…", text)

    assert plain(printed) == plain(shown)
