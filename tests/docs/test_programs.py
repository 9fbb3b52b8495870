"""The programs of pages that only say how to call something: they run as they are shown, and do as they say."""

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from nexcache import NexCache, Policy, Settings, tenants
from nexcache.asgi import Receive, Scope, Send
from nexcache.forgetting import Forgotten

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "frameworks.md": "tests/frameworks/test_documentation.py",
    "functions.md": "tests/test_functions_docs.py",
    "ingest.md": "tests/docs/test_pages.py",
    "start.md": "tests/docs/test_pages.py",
    "testing.md": "tests/testing/test_plugin.py",
}
"""Where the programs of the other pages are run."""


def programs(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer nothing."""


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the pages take for given: an app, and a cache in memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)
    cache = NexCache(Settings(redis_url=None, redis_host=None))
    return {"app": app, "cache": cache, "keys": tenants.api_key(keys=())}


async def run(program: str, known: dict[str, Any]) -> dict[str, Any]:
    """Run a program with `await` at its top, and return the names that it has made."""
    written = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Name)]
    made = {node.id for node in written if isinstance(node.ctx, ast.Store)}
    given = "".join(f"    {name} = given[{name!r}]\n" for name in sorted(made & set(known)))
    body = textwrap.indent(program, "    ")
    names = {**known, "given": known}
    exec(compile(f"async def main():\n{given}{body}\n    return locals()", "shown", "exec"), names)
    found: dict[str, Any] = await names["main"]()
    return found


def test_every_page_with_programs_has_a_test_that_runs_them() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md") if programs(page.name)}
    here = {"sessions.md", "rate-limits.md", "quotas.md", "operations.md"}
    assert pages == here | set(ELSEWHERE)
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text(encoding="utf-8")


async def test_sessions(known: dict[str, Any]) -> None:
    mounting, within, by_hand = programs("sessions.md")
    mounted = await run(mounting, known)
    sessions = mounted["sessions"]
    began = await sessions.create(user="ann")
    inside: list[dict[str, Any]] = []

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        inside.append(await run(within, {"scope": scope, "sessions": sessions}))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    mounted["app"].app = asked
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    await mounted["app"](scope, receive, send)
    assert len(inside) == 1
    assert await sessions.get(began.id) is None  # revoked
    assert await run(by_hand, {"sessions": sessions})


async def test_rate_limits(known: dict[str, Any]) -> None:
    mounting, called = programs("rate-limits.md")
    assert (await run(mounting, known))["app"] is not app
    found = await run(called, known)
    assert (found["decision"].remaining, found["allowed"], found["count"]) == (999, True, 1)


async def test_a_tenant_is_forgotten(known: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    [program] = programs("quotas.md")
    await known["cache"].tenant("acme").set("a", 1)
    found = await run(program, known)
    assert found["done"] == Forgotten("acme", 1, done=True)
    assert "Forgotten(" in capsys.readouterr().out


async def test_tokens_and_shadow_checks(known: dict[str, Any]) -> None:
    tokens, shadowed = programs("operations.md")
    key = generate_private_key(SECP256R1()).public_key()
    assert "tokens" in await run(tokens, {**known, "public_key": key})
    policy = (await run(shadowed.replace("\nPolicy(", "\npolicy = Policy("), known))["policy"]
    assert isinstance(policy, Policy)
    assert policy.shadow is not None
