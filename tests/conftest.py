"""What the whole suite shares: real Valkeys."""

import os
from collections.abc import Iterator

import pytest

from tests.servers import NoServer, Valkey, binary

pytest.register_assert_rewrite("nexcache.testing")
pytest_plugins = ["nexcache.testing.plugin"]


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One server for all tests that need no server of their own. It is not to be harmed."""
    _check()
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis_url(valkey: Valkey) -> str:
    """The URL of the shared server, emptied."""
    valkey.reset()
    return valkey.url


@pytest.fixture
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A server for one test, which may do to it what it likes."""
    _check()
    with Valkey(tmp_path_factory.mktemp("own-valkey")) as server:
        yield server


def _check() -> None:
    try:
        binary()
    except NoServer as reason:
        if "NEXCACHE_CI" in os.environ:
            raise
        pytest.skip(str(reason))
