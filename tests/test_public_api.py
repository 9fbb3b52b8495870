"""What `import nexcache` offers, and what it costs."""

import ast
import json
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

import nexcache

ROOT = Path(__file__).parent.parent
SOURCE = ast.parse((ROOT / "nexcache" / "__init__.py").read_text(encoding="utf-8"))


def loaded_by(statement: str) -> frozenset[str]:
    """Run a statement in a fresh interpreter; give the top-level packages that it loaded, and our own modules."""
    script = (
        f"import sys, json\nbefore = set(sys.modules)\n{statement}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    names: list[str] = json.loads(result.stdout)
    return frozenset(name if name.startswith("nexcache") else name.partition(".")[0] for name in names)


def foreign(names: frozenset[str]) -> set[str]:
    return {name for name in names if not name.startswith("nexcache") and name not in sys.stdlib_module_names}


def test_the_lazy_table_is_what_all_names() -> None:
    assert sorted(nexcache._HOME) == sorted(nexcache.__all__)
    assert list(nexcache.__all__) == sorted(nexcache.__all__)


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    block = next(node for node in SOURCE.body if isinstance(node, ast.If))
    seen: dict[str, str] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            home = f"nexcache.{alias.name}" if node.module == "nexcache" else node.module
            assert home is not None
            seen[alias.name] = home
    assert seen == nexcache._HOME


@pytest.mark.parametrize("name", nexcache.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    value = getattr(nexcache, name)
    assert getattr(value, "__module__", value.__name__).startswith("nexcache")
    assert value.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = nexcache.nothing


def test_dir_lists_what_is_public() -> None:
    assert dir(nexcache) == sorted(nexcache.__all__)


def test_importing_the_package_loads_nothing_but_the_standard_library() -> None:
    loaded = loaded_by("import nexcache")
    assert {name for name in loaded if name.startswith("nexcache")} == {"nexcache"}
    assert not foreign(loaded)


@pytest.mark.parametrize("name", ["Policy", "Query", "tenants", "principals", "ConfigurationError", "InvalidName"])
def test_a_pure_name_loads_nothing_but_the_standard_library(name: str) -> None:
    assert not foreign(loaded_by(f"from nexcache import {name}"))


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("CacheMiddleware", {"redis", "opentelemetry", "structlog", "pydantic", "starlette", "fastapi", "rich"}),
        ("Settings", {"redis", "opentelemetry", "structlog", "starlette", "rich"}),
        ("AdminApp", {"redis", "opentelemetry", "structlog", "pydantic", "starlette", "rich"}),
        ("IngestRule", {"redis", "structlog", "pydantic", "starlette", "rich"}),
        ("IngestHook", {"redis", "structlog", "pydantic", "starlette", "rich"}),
        ("NexCache", {"redis", "starlette", "fastapi", "typer"}),
    ],
)
def test_a_name_does_not_load_what_it_does_not_need(name: str, packages: set[str]) -> None:
    assert not foreign(loaded_by(f"from nexcache import {name}")) & packages


def test_the_command_line_loads_what_a_command_needs_when_it_is_called() -> None:
    needless = {"redis", "opentelemetry", "structlog", "pydantic", "pydantic_settings", "starlette", "msgpack"}
    assert not foreign(loaded_by("import nexcache.cli")) & needless


def test_a_cache_in_memory_does_not_load_the_redis_client() -> None:
    loaded = loaded_by("from nexcache import NexCache, Settings\nNexCache(Settings(_env_file=None))")
    assert not loaded & {"redis", "starlette", "fastapi"}


def test_the_package_says_that_it_is_typed() -> None:
    assert (files("nexcache") / "py.typed").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["nexcache"]
    assert not {"exclude", "only-include", "include"} & set(wheel)
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert not any(pattern in ignored for pattern in ("py.typed", "*.typed", "*.toml", "nexcache"))


def test_the_data_files_of_the_package_are_there() -> None:
    assert (files("nexcache") / "request_headers.toml").is_file()
