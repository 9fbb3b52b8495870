"""What the whole suite shares: real Valkeys."""

import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import hypothesis
import pytest
import structlog

from tests.servers import NoServer, Valkey, binary

hypothesis.settings.register_profile("nexcache", deadline=None)  # no test judges by how fast the machine is
hypothesis.settings.load_profile("nexcache")

_TOLD: Final = "told"

pytest.register_assert_rewrite("nexcache.testing")
pytest_plugins = ["nexcache.testing.plugin"]


@pytest.fixture(autouse=True)
def _nobody_listens() -> None:
    """Single requests are not logged unless a test wants them to be, whatever earlier tests have set up."""
    structlog.reset_defaults()
    logging.getLogger("nexcache").setLevel(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One server for all tests that need no server of their own. It is not to be harmed."""
    _check()
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis_url(valkey: Valkey) -> str:
    """The URL of the shared server, emptied of all but a register of nodes that is known for long."""
    valkey.reset()
    valkey.vouch()
    return valkey.url


@pytest.fixture
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A server for one test, which may do to it what it likes."""
    _check()
    with Valkey(tmp_path_factory.mktemp("own-valkey")) as server:
        yield server


@pytest.fixture
def told(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say what was measured, to be read at the end of the run, beside what is promised."""
    return partial(record_property, _TOLD)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have told, from whichever process they ran in."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    lines = [str(line) for report in reports for name, line in report.user_properties if name == _TOLD]
    if lines:
        terminalreporter.section("measured, and promised")
        for line in lines:
            terminalreporter.line(line)


def _check() -> None:
    try:
        binary()
    except NoServer as reason:
        if "NEXCACHE_CI" in os.environ:
            raise
        pytest.skip(str(reason))
