"""Programs to start: Valkey, and Debian's Redis."""

import os
from pathlib import Path

import pytest

from tests.servers import NoServer, binary, redis_binary


@pytest.fixture(params=["valkey", "redis"], scope="module")
def program(request: pytest.FixtureRequest) -> Path:
    """Where a server's program is: of each kind in turn."""
    try:
        return binary() if request.param == "valkey" else redis_binary()
    except NoServer as reason:
        if "NEXCACHE_CI" in os.environ:
            raise
        pytest.skip(str(reason))
