"""The packages that are published: what they hold, and that the wheel works where nothing else of the repository is."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling import build

import nexcache

ROOT = Path(__file__).parents[2]
WORK = """
import asyncio, nexcache
from nexcache.telemetry.events import Answered

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})

async def main():
    async with nexcache.NexCache(nexcache.Settings(redis_url=None, redis_host=None)) as cache:
        told = []
        cache.emitter.subscribe(told.append, Answered)
        cached = nexcache.CacheMiddleware(
            app, cache=cache, tenant=nexcache.tenants.fixed("acme"), policies=[nexcache.Policy("/", op="home")]
        )
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        async def receive():
            return {"type": "http.request"}
        async def send(message):
            pass
        for _ in range(2):
            await cached(dict(scope), receive, send)
        print(nexcache.__file__, *(each.result.value for each in told))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(built(tmp_path_factory.mktemp("wheel"), "build_wheel"))


def built(directory: Path, how: str) -> Path:
    """Build as any installer does, by the project's own build back end."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        return directory / str(getattr(build, how)(str(directory)))
    finally:
        os.chdir(before)


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "nexcache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == {name for name in tracked if (ROOT / name).is_file()}
    assert {"nexcache/py.typed", "nexcache/request_headers.toml"} <= held


def test_the_metadata_says_what_pyproject_says(wheel: zipfile.ZipFile) -> None:
    said = metadata(wheel)
    assert said["Name"] == "nexcache"
    assert said["Requires-Python"] == ">=3.11"
    assert said["License-Expression"] == "MIT"
    pythons = {word.rpartition(" ")[2] for word in said.get_all("Classifier", []) if " :: 3." in word}
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    tested = re.search(r"python: \[(.*)\]", workflow)
    assert tested is not None
    assert pythons == set(re.findall(r'"(.+?)"', tested[1]))


def test_the_wheel_works_by_itself(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "lib")
    path = [str(tmp_path / "lib"), sysconfig.get_path("purelib")]
    script = f"import sys; sys.path[:0] = {path!r}\n{WORK}"
    # isolated: neither the working directory nor PYTHONPATH, where the repository's own package is
    run = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    where, *results = run.stdout.split()
    assert Path(where).is_relative_to(tmp_path)
    assert results == ["miss", "hit"]


def test_the_sdist_holds_what_its_tests_read(tmp_path: Path) -> None:
    with tarfile.open(built(tmp_path, "build_sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ("tests/conftest.py", "docs/operations.md", "deploy/prometheus-rules.yml", ".env.example", "Makefile")
    assert {*wanted, "nexcache/__init__.py", "CHANGELOG.md", "LICENSE", ".github/workflows/ci.yml"} <= names
    assert not {name for name in names if name.startswith((".venv", ".git/", "dist/", "site/"))}


def test_every_public_name_is_documented() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^::: nexcache\.(\w+)$", reference, re.MULTILINE)) - {"testing"} == set(nexcache.__all__)
