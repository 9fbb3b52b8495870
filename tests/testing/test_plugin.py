"""The fixtures, as somebody else's tests load them; and the example of the documentation."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.servers import Valkey

ROOT = Path(__file__).parents[2]
CONFTEST = """
import os
import pytest

@pytest.fixture
def redis_port():
    return int(os.environ["PORT"])
"""
MORE = """
import socket


def test_time_goes_by_when_it_is_told_to(nexcache_clock):
    before = nexcache_clock()
    nexcache_clock.advance(60)
    assert nexcache_clock() == before + 60


def test_a_plain_function_may_use_the_proxy(nexcache_fault_proxy, redis_port):
    proxy = nexcache_fault_proxy(redis_port)
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(b"PING\\r\\n")
        assert client.recv(100) == b"+PONG\\r\\n"
        proxy.reset()
        try:
            assert client.recv(100) == b""
        except ConnectionResetError:
            pass
    assert proxy.seen["reset"] == 1


async def test_a_store_fails(nexcache_faulty_store):
    nexcache_faulty_store.fail("read", times=1)
    try:
        await nexcache_faulty_store.read([b"x"])
    except ConnectionError:
        pass
    assert nexcache_faulty_store.seen["read failed"] == 1
"""


def test_the_example_of_the_documentation_and_every_fixture_run_elsewhere(valkey: Valkey, tmp_path: Path) -> None:
    [program] = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "testing.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "conftest.py").write_text(CONFTEST + 'pytest_plugins = ["nexcache.testing.plugin"]\n')
    (tmp_path / "test_example.py").write_text(program.replace("pytest_plugins =", "_ ="))
    (tmp_path / "test_more.py").write_text(MORE)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PORT": str(valkey.port)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "4 passed" in run.stdout


def test_nothing_but_the_fixtures_needs_pytest() -> None:
    program = "import sys; sys.modules['pytest'] = None; import nexcache.testing; nexcache.testing.FaultProxy(1)"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
