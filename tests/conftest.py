"""What the whole suite shares: a real Valkey."""

import socket
from collections.abc import Iterator

import pytest

from nexcache.demo.valkey import EmbeddedValkey, ValkeyUnavailable


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedValkey]:
    """One server for all tests that need no server of their own."""
    try:
        server = EmbeddedValkey()
    except ValkeyUnavailable as reason:
        pytest.skip(f"no Valkey: {reason}")
    with server:
        yield server


@pytest.fixture
def redis_url(valkey: EmbeddedValkey) -> str:
    """The URL of the shared server, emptied."""
    with socket.create_connection(("127.0.0.1", valkey.port), timeout=5) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(16) == b"+OK\r\n"
    return valkey.url
