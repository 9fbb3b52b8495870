"""Several real servers as one: a cluster, and a set watched by a Sentinel."""

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import redis
from redis.crc import key_slot

from tests.servers import Valkey

_PATIENCE: Final = 20.0
SLOTS: Final = 16384
REPLICATION: Final = {"repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1", "repl-timeout": "5"}
"""By default a replica is empty for five seconds, and would be promoted like that."""


def until(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds, without end only if it never does."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            if holds():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < end, what
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def replicates(server: Valkey) -> bool:
    info = server.ask("INFO", "replication")
    return bool(info["role"] == "slave" and info["master_link_status"] == "up")


class Cluster:
    """Primaries with a replica each, or without."""

    def __init__(
        self, directory: Path, program: Path, *, primaries: int = 3, replicas: bool = False, password: str = ""
    ) -> None:
        self._program = program
        self.nodes: list[Valkey] = []
        try:
            for index in range(primaries * (2 if replicas else 1)):
                place = directory / str(index)
                place.mkdir()
                self.nodes.append(
                    Valkey(
                        place,
                        program=program,
                        **{
                            "cluster-enabled": "yes",
                            "cluster-port": str(free_port()),
                            "cluster-node-timeout": "1000",
                            "cluster-require-full-coverage": "no",
                            "cluster-allow-replica-migration": "no",
                            **REPLICATION,
                        },
                    )
                )
            self._form(primaries)
        except BaseException:
            self.close()
            raise

    def _form(self, primaries: int) -> None:
        first, *others = self.nodes
        share = SLOTS // primaries
        for index, node in enumerate(self.nodes[:primaries]):
            last = SLOTS - 1 if index == primaries - 1 else (index + 1) * share - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", index * share, last)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for node in others:
            _, bus = node.ask("CONFIG", "GET", "cluster-port")
            first.ask("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        for node in self.nodes:
            until(lambda node=node: len(node.ask("CLUSTER", "SHARDS")) == len(self.nodes), "the nodes meet")  # type: ignore[misc]
        for replica, node in zip(self.nodes[primaries:], self.nodes, strict=False):
            replica.ask("CLUSTER", "REPLICATE", self.identity(node))
            until(lambda replica=replica: replicates(replica), "the replica follows")  # type: ignore[misc]
        for node in self.nodes:
            until(lambda node=node: b"cluster_state:ok" in node.ask("CLUSTER", "INFO"), "the cluster is ok")  # type: ignore[misc]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def identity(self, node: Valkey) -> str:
        return str(node.ask("CLUSTER", "MYID"), "ascii")

    def of(self, tenant: str) -> Valkey:
        """Return the primary that has a tenant, as the first node that answers knows it."""
        slot = key_slot(b"{%b}" % tenant.encode())
        for node in self.nodes:
            try:
                ranges = node.ask("CLUSTER", "SLOTS")
            except redis.RedisError:
                continue
            for first, last, (_, port, *_), *_ in ranges:
                if first <= slot <= last:
                    return next(each for each in self.nodes if each.port == port)
        raise AssertionError("no node answers")

    def tenants(self, word: str = "t") -> list[str]:
        """Return a tenant on each primary, named by a word and a number."""
        found: dict[int, str] = {}
        for number in range(200):
            found.setdefault(self.of(f"{word}{number}").port, f"{word}{number}")
            if len(found) == 3:
                break
        return list(found.values())

    def move(self, slot: int, source: Valkey, goal: Valkey) -> None:
        """Move a slot, key by key, as the usual tools do."""
        here, there = self.identity(source), self.identity(goal)
        goal.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 2):
            source.ask("MIGRATE", "127.0.0.1", goal.port, "", 0, 5000, "REPLACE", "KEYS", *keys)
            time.sleep(0.002)
        for node in (goal, source, *self.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", there)

    def errors(self, name: str) -> int:
        """Count the errors of a kind that the nodes have answered."""
        return sum(
            int(node.ask("INFO", "errorstats").get(f"errorstat_{name}", {}).get("count", 0)) for node in self.nodes
        )

    def close(self) -> None:
        for node in self.nodes:
            node.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Watched:
    """A primary and its replica, watched by one Sentinel that decides alone."""

    def __init__(self, directory: Path, program: Path) -> None:
        for name in ("one", "two", "sentinel"):
            (directory / name).mkdir()
        self.primary = Valkey(directory / "one", program=program, **REPLICATION)
        self.replica = Valkey(directory / "two", program=program, **REPLICATION)
        self._sentinel: subprocess.Popen[bytes] | None = None
        try:
            self.replica.ask("REPLICAOF", "127.0.0.1", self.primary.port)
            until(lambda: replicates(self.replica), "the replica follows")
            self.port = free_port()
            file = directory / "sentinel" / "sentinel.conf"
            file.write_text(
                f"port {self.port}\nbind 127.0.0.1\ndir {directory / 'sentinel'}\n"
                f"sentinel monitor main 127.0.0.1 {self.primary.port} 1\n"
                "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 4000\n"
            )
            self._sentinel = subprocess.Popen(
                [program, str(file), "--sentinel"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            until(self._knows_a_replica, "the Sentinel finds the replica")
        except BaseException:
            self.close()
            raise

    def _knows_a_replica(self) -> bool:
        with redis.Redis(port=self.port, protocol=2, socket_timeout=5) as client:
            state = client.execute_command("SENTINEL", "MASTER", "main")
        return bool(dict(zip(state[::2], state[1::2], strict=True))[b"num-slaves"] == b"1")

    def named(self) -> int:
        """Return the port of the primary that the Sentinel names."""
        with redis.Redis(port=self.port, protocol=2, socket_timeout=5) as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])

    def close(self) -> None:
        for server in (self.primary, self.replica):
            server.kill()
        if self._sentinel is not None:
            self._sentinel.kill()
            self._sentinel.wait()
