"""What the pages say is so: their programs run, their tables hold what there is, their links lead somewhere."""

import ast
import dataclasses
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest

import nexcache
from nexcache import Policy, Settings
from nexcache.cli.masked import variable_of
from nexcache.tenants import ApiKey

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def programs() -> list[Any]:
    return [
        pytest.param(found[1], id=f"{page.name} {number}")
        for page in PAGES
        for number, found in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")), 1)
    ]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / ".ci" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("program", programs())
def test_a_program_is_one_and_takes_from_nexcache_what_there_is(program: str) -> None:
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.ImportFrom) and node.module == "nexcache":
            assert {alias.name for alias in node.names} <= set(nexcache.__all__)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Policy":
            names = {field.name for field in dataclasses.fields(Policy) if field.init}
            assert {keyword.arg for keyword in node.keywords} <= names


async def test_the_first_program_stores_and_hits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [program] = BLOCK.findall((ROOT / "docs" / "start.md").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("CACHE_API_KEYS", str(ApiKey.of("acme", "secret")))
    names: dict[str, Any] = {}
    exec(compile(program.replace("asyncio.sleep(1)", "asyncio.sleep(0)"), "main.py", "exec"), names)

    transport = httpx2.ASGITransport(app=names["app"])
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://app", headers={"x-api-key": "secret"}
    ) as client:
        answers = [await client.get("/api/v1/services/cart") for _ in range(2)]
        done = await client.delete("/api/v1/cache/invalidate/tags/service:cart")
        after = await client.get("/api/v1/services/cart")
        stranger = await client.get("/api/v1/services/cart", headers={"x-api-key": "guessed"})
    await names["cache"].aclose()

    assert [answer.headers["cache-status"].split(";")[1].strip() for answer in answers] == ["fwd=uri-miss", "hit"]
    assert (done.status_code, "uri-miss" in after.headers["cache-status"]) == (200, True)
    assert stranger.headers["cache-status"] == "NexCache; fwd=bypass; detail=no-tenant"


def test_the_program_of_ingest_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [program] = BLOCK.findall((ROOT / "docs" / "ingest.md").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)
    names: dict[str, Any] = {}
    exec(compile(program, "ingest.py", "exec"), names)
    assert names["hook"].staleness_bound == 10.0


def test_the_table_of_settings_has_every_setting(site: ModuleType) -> None:
    table = site.settings()
    wanted = {variable_of(name) for name in Settings.model_fields if name != "operation_ttls"}
    assert {name for name in wanted if f"| `{name}` |" not in table} == set()


def test_the_tables_of_options_have_every_option(site: ModuleType) -> None:
    policy = site.TABLES["policy"]()
    assert all(f"| `{field.name}` |" in policy for field in dataclasses.fields(Policy) if field.init)
    assert "| `op` | required |" in policy
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- ([a-z]+) -->", page)) == set(site.TABLES)
    assert "<!--" not in site.on_page_markdown(page)
    commands = site.TABLES["commands"]()
    assert all(f"| `{name}` |" in commands for name in ("monitor", "doctor", "invalidate", "demo", "key"))


def test_pages_are_in_order_and_none_is_forgotten(site: ModuleType) -> None:
    nav = site.on_config({"docs_dir": str(ROOT / "docs")})["nav"]
    named = [name for section in nav for pages in section.values() for page in pages for name in _names(page)]
    assert sorted(named) == sorted(page.name for page in PAGES)


def _names(page: Any) -> Iterator[str]:
    yield from page.values() if isinstance(page, dict) else (page,)


def test_a_file_outside_of_the_site_is_named_and_not_linked_to(site: ModuleType) -> None:
    assert site.on_page_markdown("see [`deploy/x.yml`](../deploy/x.yml).") == "see `deploy/x.yml`."
    assert site.on_page_markdown("see [the file](../deploy/x.yml#a).") == "see the file (`deploy/x.yml`)."


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_out_of_the_site_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\((\.\./[^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_codes_of_doctor_that_pages_name_exist() -> None:
    known = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    sizing = (ROOT / "docs" / "sizing.md").read_text(encoding="utf-8")
    for code in ("failover-bounded", "failover-unbounded", "info-hidden"):
        assert f"`{code}`" in sizing
        assert f"`{code}`" in known
