"""What lies between nodes and the server: it delivers, late or not at all, and messages also twice or out of order."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from hiredis import Reader, pack_command
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.model.server import Server

Role: TypeAlias = Literal["data", "background", "messages"]
Way: TypeAlias = Literal["up", "down"]
Fate: TypeAlias = Literal["arrive", "lost", "late", "twice"]
ROLES: Final[tuple[Role, ...]] = ("data", "background", "messages")


class Wire:
    """The cable of one node: which of its connections are held up, in which direction, and whether it is cut."""

    def __init__(self, network: "Network") -> None:
        self._network = network
        self.connections: list[Connection] = []
        self.held: set[tuple[Role, Way]] = set()
        self.cut = False
        self.disturbed_at = float("-inf")
        """When something on it was last held up, lost or closed."""

    @property
    def disturbed(self) -> bool:
        """Whether something is held up or lost now."""
        return self.cut or bool(self.held)

    def disturb(self) -> None:
        """Note that something is lost or held up at this instant."""
        self.disturbed_at = self._network.clock()

    def connect(self) -> "Connection":
        """Make a connection, not yet opened."""
        return Connection(self._network, self)

    def hold(self, role: Role, way: Way) -> None:
        """Deliver nothing of this kind until `release`."""
        self.held.add((role, way))

    def release(self, role: Role | None = None) -> None:
        """Deliver what was held up."""
        if self.held:
            self.disturb()
        self.held = {pair for pair in self.held if role is not None and pair[0] != role}
        for connection in list(self.connections):
            connection.flow()

    def sever(self, role: Role | None = None) -> None:
        """Close connections; what was on its way is lost."""
        self.disturb()
        for connection in list(self.connections):
            if role is None or connection.role == role:
                connection.lose()


_ROLES: Final[Mapping[str, Role]] = {"INFO": "data", "SUBSCRIBE": "messages"}
"""What a connection is for, by the command that only one of its kind sends."""


class Connection:
    """As much of redis-py's connection as NexCache uses."""

    def __init__(self, network: "Network", wire: Wire) -> None:
        self._network = network
        self._wire = wire
        self.role: Role = "background"
        self._open = False
        self._outbox: deque[Sequence[Any]] = deque()
        self._transit: deque[Any] = deque()
        self._inbox: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.channels: set[bytes] = set()

    async def connect(self) -> None:
        if self._wire.cut:
            raise RedisConnectionError("refused")
        self._open = True
        self._wire.connections.append(self)

    async def send_command(self, *command: Any, check_health: bool = True) -> None:
        await self.send_packed_command(pack_command(command), check_health=check_health)

    async def send_packed_command(self, packed: bytes, check_health: bool = True) -> None:
        del check_health
        if not self._open:
            raise RedisConnectionError("closed")
        reader = Reader()
        reader.feed(packed)
        while command := reader.gets():
            name = command[0].decode()
            self.role = _ROLES.get(name, self.role)
            self._outbox.append((name, *command[1:]))
        self.flow()

    async def read_response(self, **_: Any) -> Any:
        while not self._inbox:
            if not self._open:
                raise RedisConnectionError("closed")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        reply = self._inbox.popleft()
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def disconnect(self, *_: Any, **__: Any) -> None:
        """Close from the node's side: what has been sent may still arrive."""
        self._open = False
        self._transit.clear()
        self.channels.clear()
        if not self._outbox and self in self._wire.connections:
            self._wire.connections.remove(self)

    def lose(self) -> None:
        """Close from outside."""
        self._open = False
        self._outbox.clear()
        self._transit.clear()
        self.channels.clear()
        if self in self._wire.connections:
            self._wire.connections.remove(self)
        self._wake()

    def flow(self) -> None:
        """Deliver what is not held up."""
        held = self._wire.held
        if (self.role, "up") not in held:
            while self._outbox:
                self._transit.extend(self._network.carry_out(self, self._outbox.popleft()))
            if not self._open:
                self._transit.clear()
                if self in self._wire.connections:
                    self._wire.connections.remove(self)
        if self._transit and (self.role, "down") not in held:
            self._inbox.extend(self._transit)
            self._transit.clear()
            self._wake()

    def push(self, channel: bytes, payload: bytes) -> None:
        """Send a message down."""
        self._transit.append([b"message", channel, payload])
        self.flow()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Network:
    """All wires, the server at their end, and the fates of messages."""

    def __init__(self, server: Server, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.server = server
        server.on_message = self._publish
        self.wires: list[Wire] = []
        self.fate: Fate = "arrive"
        self.late: list[tuple[Connection, bytes, bytes]] = []
        self.fates: dict[Fate, int] = {"arrive": 0, "lost": 0, "late": 0, "twice": 0}

    def wire(self) -> Wire:
        """Lay a cable for one more node."""
        wire = Wire(self)
        self.wires.append(wire)
        return wire

    def sever(self) -> None:
        """Close every connection, as a server's end or a change of its role does."""
        for wire in self.wires:
            wire.sever()

    def deliver_late(self, which: int) -> None:
        """Deliver one of the late messages, whatever the order."""
        if self.late:
            connection, channel, payload = self.late.pop(which % len(self.late))
            if channel in connection.channels:
                connection.push(channel, payload)

    def carry_out(self, connection: Connection, command: Sequence[Any]) -> list[Any]:
        """Let the server do what a connection has sent; returns the replies."""
        if command[0] == "SUBSCRIBE":
            connection.channels.update(command[1:])
            return [[b"subscribe", channel, number] for number, channel in enumerate(command[1:], 1)]
        if command[0] == "PING" and connection.role == "messages":
            return [[b"pong", b""]]
        return [self.server.execute(command)]

    def _publish(self, channel: bytes, payload: bytes) -> None:
        for wire in self.wires:
            for connection in list(wire.connections):
                if channel not in connection.channels:
                    continue
                self.fates[self.fate] += 1
                match self.fate:
                    case "arrive":
                        connection.push(channel, payload)
                    case "twice":
                        connection.push(channel, payload)
                        connection.push(channel, payload)
                    case "late":
                        self.late.append((connection, channel, payload))
                    case "lost":
                        pass
