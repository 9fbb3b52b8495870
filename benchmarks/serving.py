"""Servers in processes of their own, and the load on them: wrk where it is installed, else a client of our own.

Run as a module it is one server: `python -m benchmarks.serving uvicorn NAME PORT`.
"""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import uvloop

from benchmarks.hit import BODY, HEADERS, URLS
from benchmarks.peers import PEERS, Contender, Origin, nexcache
from nexcache.asgi import ASGIApp, Receive, Scope, Send

CONNECTIONS = 64


def contender(name: str, url: str | None) -> Contender:
    """Build what a server runs: `bare`, or `nexcache` or a peer's name, and `memory` or `redis`."""
    if name == "bare":
        origin = Origin()
        return Contender(origin, origin)
    who, _, where = name.rpartition(" ")
    if who == "nexcache":
        # in memory as it is in production, in front of Redis; "redis" is the same without the memory
        return nexcache(url, l1_enabled=where == "memory")
    (peer,) = (peer for peer in PEERS if peer.name == who)
    return peer.build(url if where == "redis" else None)


class _Started:
    """Starts a peer on the server's event loop, with its first request."""

    def __init__(self, app: ASGIApp, start: Callable[[], Awaitable[None]]) -> None:
        self._app = app
        self._start = start
        self._starting: asyncio.Future[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        if not self._starting.done():
            await asyncio.shield(self._starting)
        await self._app(scope, receive, send)


def app() -> ASGIApp:
    """Make the app that the environment names."""
    name = os.environ["COMPARE_APP"]
    built = contender(name, os.environ.get("COMPARE_REDIS"))
    return built.app if name == "bare" or name.startswith("nexcache") else _Started(built.app, built.start)


def serve(server: str, port: int) -> None:
    """Be a server, with one process that answers."""
    if server == "uvicorn":
        import uvicorn  # noqa: PLC0415 - only in the server's process

        uvicorn.run(
            "benchmarks.serving:app",
            factory=True,
            port=port,
            log_level="error",
            access_log=False,
            loop="uvloop",
            http="httptools",
        )
        return
    import granian  # noqa: PLC0415
    from granian.constants import Interfaces, Loops  # noqa: PLC0415

    granian.Granian(
        "benchmarks.serving:app",
        port=port,
        interface=Interfaces.ASGI if os.environ["COMPARE_APP"] != "bare" else Interfaces.ASGINL,
        loop=Loops.uvloop,
        factory=True,
        log_enabled=False,
    ).serve()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(server: str, name: str, redis_url: str) -> Iterator[int]:
    """Run a server until the end of the block; gives its port."""
    port = free_port()
    environment = {**os.environ, "COMPARE_APP": name, "COMPARE_REDIS": redis_url}
    command = [sys.executable, "-m", "benchmarks.serving", server, str(port)]
    with _process(command, port, env=environment):
        yield port


@contextmanager
def _process(command: Sequence[str], port: int, **options: Any) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        wait_for(port, process)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait until somebody listens; raises RuntimeError if nobody will."""
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline or (process is not None and process.poll() is not None):
                raise RuntimeError(f"nobody listens on port {port}") from None
            time.sleep(0.05)
        else:
            return


@contextmanager
def nginx(origin: int) -> Iterator[int]:
    """Run nginx with proxy_cache in front of an origin; raises FileNotFoundError where it is not installed."""
    program = shutil.which("nginx") or _missing("nginx")
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "nginx.conf").write_text(
            f"""
            {"user root;" if os.geteuid() == 0 else ""} worker_processes 1; daemon off;
            pid {directory}/pid; error_log {directory}/errors; events {{ }}
            http {{
              access_log off; keepalive_requests 1000000000;
              proxy_cache_path {directory}/cache keys_zone=all:16m;
              client_body_temp_path {directory}/1; proxy_temp_path {directory}/2; fastcgi_temp_path {directory}/3;
              uwsgi_temp_path {directory}/4; scgi_temp_path {directory}/5;
              server {{
                listen 127.0.0.1:{port};
                location / {{
                  proxy_pass http://127.0.0.1:{origin}; proxy_cache all; proxy_cache_valid 200 1h;
                  proxy_cache_key "$http_x_api_key$request_uri";
                }}
              }}
            }}""",
            encoding="utf-8",
        )
        with _process([program, "-p", directory, "-c", f"{directory}/nginx.conf"], port):
            yield port


@contextmanager
def varnish(origin: int) -> Iterator[int]:
    """Run Varnish in front of an origin; raises FileNotFoundError where it is not installed."""
    program = shutil.which("varnishd") or _missing("varnishd")
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        vcl = Path(directory, "default.vcl")
        vcl.write_text(
            f"""vcl 4.1;
            backend default {{ .host = "127.0.0.1"; .port = "{origin}"; }}
            sub vcl_hash {{ hash_data(req.http.x-api-key); }}
            sub vcl_backend_response {{ set beresp.ttl = 1h; }}""",
            encoding="utf-8",
        )
        command = [
            program,
            "-j",
            "none",
            "-F",
            "-n",
            directory,
            "-a",
            f"127.0.0.1:{port}",
            "-f",
            str(vcl),
            "-s",
            "malloc,64m",
        ]
        with _process(command, port):
            yield port


def _missing(program: str) -> str:
    raise FileNotFoundError(f"{program} is not installed")


def request(number: int) -> bytes:
    """Write down one of the requests of every comparison, as a client sends it."""
    lines = b"".join(b"%b: %b\r\n" % (name, value) for name, value in HEADERS)
    url = b"/api/v1/services/checkout-%d?from=%d&to=now&step=60" % (number % 16, number % URLS)
    return b"GET " + url + b" HTTP/1.1\r\n" + lines + b"\r\n"


def check(port: int) -> None:
    """Ask for every URL, twice; raises RuntimeError for a wrong answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection, connection.makefile("rb") as answers:
        for number in (*range(URLS), *range(URLS)):
            connection.sendall(request(number))
            status, length = answers.readline(), 0
            while (line := answers.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            if not status.startswith(b"HTTP/1.1 200") or answers.read(length) != BODY:
                raise RuntimeError(f"a wrong answer: {status!r}")


_WRK = f"""
local paths, turn = {{}}, 0
for number = 0, {URLS - 1} do
  paths[number] = string.format("/api/v1/services/checkout-%d?from=%d&to=now&step=60", number % 16, number)
end
request = function()
  turn = (turn + 1) % {URLS}
  return wrk.format("GET", paths[turn])
end
"""


def load(port: int, seconds: float) -> float:
    """Return the requests per second over 64 connections that never wait between two requests."""
    program = shutil.which("wrk")
    if program is None:
        return uvloop.run(_load(port, seconds))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_WRK)
        script.flush()
        fields = [part for name, value in HEADERS[1:] for part in ("-H", f"{name.decode()}: {value.decode()}")]
        command = [program, "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", script.name]
        command += [*fields, f"http://127.0.0.1:{port}/"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"Requests/sec: +([\d.]+)", printed)
    if found is None or "Non-2xx" in printed:
        raise RuntimeError(f"wrk: {printed[-200:]}")
    return float(found[1])


class _Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, first: int) -> None:
        self.answers = 0
        self._turn = first
        self._left = 0
        self._head = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._ask()

    def data_received(self, data: bytes) -> None:
        if self._left == 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"a wrong answer: {self._head[:40]!r}")
            self._left, data, self._head = len(BODY), self._head[end + 4 :], b""
        self._left -= len(data)
        if self._left == 0:
            self.answers += 1
            self._ask()

    def _ask(self) -> None:
        assert self._transport is not None
        self._turn += 1
        self._transport.write(_REQUESTS[self._turn % URLS])

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


_REQUESTS = [request(number) for number in range(URLS)]


async def _load(port: int, seconds: float) -> float:
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda first=number * 4: _Client(first), "127.0.0.1", port))[1]  # type: ignore[misc]
        for number in range(CONNECTIONS)
    ]
    began, before = time.perf_counter(), sum(client.answers for client in clients)
    await asyncio.sleep(seconds)
    answers, took = sum(client.answers for client in clients) - before, time.perf_counter() - began
    for client in clients:
        client.close()
    if not answers:
        raise RuntimeError("no request was answered")
    return answers / took


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
