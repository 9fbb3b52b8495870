"""Where servers are, and what the client is told when it connects to one."""

import asyncio
import os
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.maint_notifications import MaintNotificationsConfig

__all__ = [
    "Address",
    "AnyTarget",
    "ClusterTarget",
    "CredentialProvider",
    "PasswordFile",
    "SentinelTarget",
    "Target",
    "named",
    "target_of",
]

TLS_HANDSHAKE: Final = 1.0
"""Seconds for a TLS connection to come about; requests do not wait for it, but for their own limit."""
_GREETING: Final = 0.4
"""Seconds for what is to be agreed on a connection before its first use."""
_KEEPALIVE: Final = {
    getattr(socket, name): seconds
    for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}
"""A connection that nobody uses is noticed to be dead after about 16 seconds; one in use by its deadlines."""
TCP: Final[Mapping[str, Any]] = {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
"""What the client is told of TCP connections."""
_ASK_SENTINEL: Final = 0.2
"""Seconds for any step of asking one Sentinel; a silent one is passed over."""

Address = tuple[str, int]


class PasswordFile(CredentialProvider):
    """Reads the password anew for every connection: one that was rotated is used without a restart."""

    def __init__(self, path: Path, username: str | None = None) -> None:
        self._path = path
        self._username = username

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return (password,) or (user, password)."""
        password = self._path.read_text(encoding="utf-8").strip("\r\n")
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Do the same without holding up the event loop."""
        return await asyncio.to_thread(self.get_credentials)


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server is. Shown without its password."""

    host: str = "localhost"
    port: int = 6379
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_certs: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    unix_socket: str | None = None
    credentials: CredentialProvider | None = field(default=None, repr=False)
    """Asked for user and password at every new connection, in place of those above."""

    def __str__(self) -> str:
        """Name the server for people: no credentials."""
        if self.unix_socket:
            return f"unix://{self.unix_socket}?db={self.db}"
        return f"{'rediss' if self.tls else 'redis'}://{named(self.host, self.port)}/{self.db}"

    @property
    def opening(self) -> float:
        """Seconds that a connection may take to come about, behind the requests."""
        return _GREETING + (TLS_HANDSHAKE if self.tls else 0.0)

    def at(self, address: Address) -> "Target":
        """Return the same, at another address."""
        return replace(self, host=address[0], port=address[1])

    def connection(self, timeout: float) -> AbstractConnection:
        """Make a connection, not yet opened, that tries once and leaves all waiting to its lane."""
        options = self.options(timeout)
        if self.unix_socket:
            return UnixDomainSocketConnection(path=self.unix_socket, **options)
        options |= {"host": self.host, "port": self.port, **TCP}
        if self.tls:
            return SSLConnection(**options, **self.tls_options())
        return Connection(**options)

    def options(self, timeout: float) -> dict[str, Any]:
        """Return what the client is told, whatever the server; none of its own defaults is relied on."""
        options: dict[str, Any] = {
            "db": self.db,
            "socket_timeout": None,  # the lane bounds every wait; a timer per call would cost more than the call
            # the client counts the TLS handshake as connecting
            "socket_connect_timeout": max(timeout, TLS_HANDSHAKE) if self.tls else timeout,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "retry_on_error": [],
            "health_check_interval": 0,
            "decode_responses": False,
            "protocol": 2,
            "client_name": f"nexcache-{os.getpid()}",
            "driver_info": None,  # a greeting that Redis 7.0 does not know, and a right that nobody else needs
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if self.credentials is not None:
            return options | {"credential_provider": self.credentials}
        return options | {"username": self.username, "password": self.password}

    def tls_options(self) -> dict[str, Any]:
        """Return what the client is told of TLS: the server's name and chain are always verified."""
        return {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": self.ca_certs,
            "ssl_certfile": self.client_cert,
            "ssl_keyfile": self.client_key,
        }


@dataclass(frozen=True, slots=True)
class SentinelTarget:
    """The primary of a set of servers that Sentinels watch: asked for at every new connection."""

    server: Target
    """What all servers of the set have in common; its address is not used."""
    name: str
    sentinels: tuple[Address, ...]
    username: str | None = None
    """The Sentinels' user; the servers have their own."""
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Name the set for people: no credentials."""
        scheme = "rediss+sentinel" if self.server.tls else "redis+sentinel"
        return f"{scheme}://{','.join(named(*each) for each in self.sentinels)}/{self.name}/{self.server.db}"

    @property
    def opening(self) -> float:
        """Seconds that a connection may take to come about, with all Sentinels but one silent."""
        return self.server.opening + _ASK_SENTINEL * len(self.sentinels) * (3 if self.server.tls else 1)

    def connection(self, timeout: float) -> AbstractConnection:
        """Make a connection that looks for the primary when it is opened."""
        options = self.server.options(timeout) | {**TCP, "found_by": self}
        return _FoundTls(**options, **self.server.tls_options()) if self.server.tls else _Found(**options)

    async def primary(self) -> Address:
        """Ask the Sentinels, in any order, where the primary is; raises the client's ConnectionError."""
        asked = random.sample(self.sentinels, len(self.sentinels))
        options: dict[str, Any] = {
            "socket_timeout": _ASK_SENTINEL,
            "socket_connect_timeout": _ASK_SENTINEL * (3 if self.server.tls else 1),
            **TCP,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "health_check_interval": 0,
            "protocol": 2,
            "username": self.username,
            "password": self.password,
            "client_name": f"nexcache-{os.getpid()}",
            "driver_info": None,  # a greeting that Redis 7.0 does not know, and a right that nobody else needs
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if self.server.tls:
            options |= {"ssl": True} | self.server.tls_options()
        # made anew each time: its sockets belong to this event loop, and nobody needs them until the next failover
        async with Sentinel(asked, sentinel_kwargs=options) as sentinel:  # type: ignore[no-untyped-call]
            host, port = await sentinel.discover_master(self.name)
        return str(host), int(port)


class _Found(Connection):
    """A connection to the primary that the Sentinels name."""

    def __init__(self, *, found_by: SentinelTarget, **options: Any) -> None:
        super().__init__(**options)
        self._found_by = found_by

    async def connect(self) -> None:
        """Look for the primary, then connect to it."""
        self.host, self.port = await self._found_by.primary()
        await super().connect()  # type: ignore[no-untyped-call]


class _FoundTls(_Found, SSLConnection):
    """The same over TLS."""


@dataclass(frozen=True, slots=True)
class ClusterTarget:
    """A cluster, known by some of its nodes; the others, and who has what, are learnt from them."""

    server: Target
    """What all nodes have in common; its address is not used."""
    nodes: tuple[Address, ...]

    def __str__(self) -> str:
        """Name the cluster for people: no credentials."""
        scheme = "rediss+cluster" if self.server.tls else "redis+cluster"
        return f"{scheme}://{','.join(named(*each) for each in self.nodes)}"


AnyTarget = Target | SentinelTarget | ClusterTarget


def target_of(
    place: Mapping[str, Any],
    *,
    ca_certs: str | None = None,
    client_cert: str | None = None,
    client_key: str | None = None,
    credentials: CredentialProvider | None = None,
) -> AnyTarget:
    """Make a target of a URL's parts, as the settings take it apart."""
    rest = dict(place)
    master, nodes = rest.pop("master", None), rest.pop("nodes", None)
    username, password = rest.pop("sentinel_username", None), rest.pop("sentinel_password", None)
    server = Target(**rest, ca_certs=ca_certs, client_cert=client_cert, client_key=client_key, credentials=credentials)
    if nodes is None:
        return server
    if master is None:
        return ClusterTarget(server, tuple(nodes))
    return SentinelTarget(server, master, tuple(nodes), username, password)


def named(host: str, port: int) -> str:
    """Write an address down as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
