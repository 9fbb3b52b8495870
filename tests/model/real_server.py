"""A real Valkey, in the place of the model: two servers, of which one is the replica, on virtual time.

Time is the world's: whenever it goes on, every key that expires is brought that much nearer to its end, and by what
has really gone by since, farther away from it.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import RedisError

from tests.model.server import Reply
from tests.servers import Valkey


class RealServer:
    """A primary and its replica; the replica has what the primary had at the last `replicate`."""

    def __init__(self, clock: Callable[[], float], primary: Valkey, other: Valkey) -> None:
        self._clock = clock
        self._primary, self._other = primary, other
        self._clients: dict[int, redis.Redis] = {}
        self._passed = 0.0
        self._aged_at = time.monotonic()
        self.on_message: Callable[[bytes, bytes], None] = lambda _channel, _payload: None
        for server in (primary, other):
            server.ask("REPLICAOF", "NO", "ONE")
            server.ask("CONFIG", "SET", "maxmemory", "0")
            server.ask("FLUSHALL")
        self.snapshot()

    def _client(self, server: Valkey) -> redis.Redis:
        client = self._clients.get(server.port)
        if client is None:
            client = self._clients[server.port] = redis.Redis(port=server.port, protocol=2, socket_timeout=5)
        return client

    def execute(self, command: Sequence[Any]) -> Reply:
        self._age()
        if command[0] == "PUBLISH":
            self.on_message(command[1], command[2])
            return 1
        if command[0] == "TIME":
            return [b"%d" % self._clock(), b"%d" % (self._clock() % 1 * 1_000_000)]
        if command[0] == "EVAL":
            time = b"{%d, %d}" % (self._clock(), self._clock() % 1 * 1_000_000)
            command = (command[0], command[1].replace(b"redis.call('TIME')", time), *command[2:])
        return self._ask(self._primary, command)

    def replica(self, command: Sequence[Any]) -> Reply:
        self._age()
        return self._ask(self._other, command)

    def _ask(self, server: Valkey, command: Sequence[Any]) -> Reply:
        connection = self._connection(server)
        connection.send_command(*command)
        try:
            return connection.read_response()
        except RedisError as error:
            return error

    def _connection(self, server: Valkey) -> Any:
        pool = self._client(server).connection_pool
        connection = pool.get_connection()
        pool.release(connection)
        return connection

    def keys(self) -> Sequence[bytes]:
        self._age()
        return sorted(map(bytes, self._ask(self._primary, ("KEYS", "*"))))

    def evict(self, key: bytes) -> None:
        self._client(self._primary).delete(key)

    def full(self, *, full: bool) -> None:
        self._client(self._primary).config_set("maxmemory", "1" if full else "0")

    def snapshot(self) -> None:
        self._age()
        self._client(self._primary).save()

    def restart(self, *, empty: bool) -> None:
        self._age()
        self._clients.pop(self._primary.port, redis.Redis()).close()
        self._primary.kill()
        self._primary.start()
        if empty:
            self._client(self._primary).flushall()

    def replicate(self) -> None:
        self._age()
        self._client(self._other).replicaof("127.0.0.1", str(self._primary.port))
        while True:
            state = self._client(self._other).info("replication")
            if state["master_link_status"] == "up" and not state["master_sync_in_progress"]:
                break
        wanted = self._client(self._primary).info("replication")["master_repl_offset"]
        while self._client(self._other).info("replication")["slave_repl_offset"] < wanted:
            pass
        self._client(self._other).replicaof("NO", "ONE")

    def failover(self) -> None:
        self._age()
        self._primary, self._other = self._other, self._primary
        self.full(full=False)
        self.replicate()

    def passed(self, seconds: float) -> None:
        self._passed += seconds

    def _age(self) -> None:
        """Let the keys of both servers have lived for the time that has gone by."""
        gone, self._passed = math.floor(self._passed * 1000), self._passed % 0.001
        if not gone:
            return
        now = time.monotonic()
        gone, self._aged_at = gone - round((now - self._aged_at) * 1000), now
        for server in (self._primary, self._other):
            client = self._client(server)
            keys = client.keys("*")
            with client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.pttl(key)
                left = dict(zip(keys, pipe.execute(), strict=True))
                for key, milliseconds in left.items():
                    if milliseconds > 0:
                        pipe.pexpire(key, milliseconds - gone)
                pipe.execute()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


def servers(directory: Path) -> tuple[Valkey, Valkey]:
    """Start a primary and a replica. Replication begins at once, and old data come back after a restart."""
    found = []
    for name in ("primary", "other"):
        (directory / name).mkdir()
        found.append(Valkey(directory / name, program=None, **{"repl-diskless-sync-delay": "0"}))
    return found[0], found[1]
