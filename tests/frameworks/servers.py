"""Real servers on loopback, each in a process of its own."""

import os
import random
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2

ROOT: Final = Path(__file__).parents[2]
FRAMEWORKS: Final = ("starlette", "fastapi", "litestar", "quart", "django")
COMMANDS: Final = {
    "uvicorn-h11": ("uvicorn", "--http", "h11", "--no-access-log"),
    "uvicorn-httptools": ("uvicorn", "--http", "httptools", "--no-access-log"),
    "uvicorn-no-lifespan": ("uvicorn", "--lifespan", "off", "--no-access-log"),
    "granian": ("granian", "--interface", "asgi", "--no-access-log"),
    "granian-no-lifespan": ("granian", "--interface", "asginl", "--no-access-log"),
}
SERVERS: Final = ("uvicorn-h11", "uvicorn-httptools", "granian")
_PATIENCE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Setup:
    """A framework behind a server."""

    framework: str
    server: str

    @property
    def lifespan(self) -> bool:
        """Whether the server sends lifespan events."""
        return not self.server.endswith("no-lifespan")

    def __str__(self) -> str:
        """Name the setup in the ids of tests."""
        return f"{self.framework}-{self.server}"


class Server:
    """A server process; its output goes to a file."""

    def __init__(self, setup: Setup, directory: Path, *, app: str = "", **environment: str) -> None:
        self.log = directory / f"{setup}.log"
        self._setup = setup
        self._directory = directory
        self._app = app or f"tests.frameworks.apps.on_{setup.framework}:app"
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._environment = {
            **inherited,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(directory))),
            "PYTHONWARNINGS": "error:::nexcache",
            **environment,
        }
        self._start()

    def _start(self) -> None:
        self.port = _free_port()
        server, *options = COMMANDS[self._setup.server]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", server, *options, "--host", "127.0.0.1", "--port", str(self.port), self._app],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> str:
        """Return the base URL once the app answers; a server that could not have its port gets another one."""
        deadline = time.monotonic() + _PATIENCE
        attempts = 3
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                attempts -= 1
                if not attempts:
                    break
                self._start()
            try:
                httpx2.get(f"http://127.0.0.1:{self.port}/state")
            except httpx2.TransportError:
                time.sleep(0.05)
            else:
                return f"http://127.0.0.1:{self.port}"
        raise AssertionError(f"{self._setup} does not answer:\n{self.log.read_text()}")

    def terminate(self) -> None:
        """Ask the process to end."""
        self._process.terminate()

    def end(self) -> None:
        """Wait until it has."""
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_given: set[int] = set()


def _free_port() -> int:
    """Find a port that nobody listens on, below those that the system gives to clients, and never twice."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
