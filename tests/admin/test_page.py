"""The dashboard page as it is served: anybody may have it, it says nothing, and it brings nothing from elsewhere."""

import re
from importlib.resources import files

import pytest

from nexcache.admin.endpoints import ENDPOINTS
from nexcache.asgi import Message
from tests.admin.conftest import Site

FOLDER = files("nexcache.admin") / "dashboard"
KINDS = (".html", ".js", ".css", ".svg")
TEXTS = {each.name: each.read_text() for each in FOLDER.iterdir() if each.name.endswith(KINDS)}
OWN = {name: text for name, text in TEXTS.items() if not name.startswith("uplot")}


async def test_the_shell_is_for_everybody_and_the_figures_are_not(site: Site) -> None:
    shell = await site.ask("/admin/", headers={"x-api-key": ""})
    figures = await site.ask("/admin/stats", headers={"x-api-key": ""})
    assert shell.status_code == 200
    assert shell.headers["content-type"] == "text/html; charset=utf-8"
    assert figures.status_code == 401
    for tenant in ("acme", "globex"):
        assert tenant not in shell.text


async def test_the_policy_permits_nothing_from_outside_and_nothing_inline(site: Site) -> None:
    answer = await site.ask("/admin/")
    policy = dict(part.partition(" ")[::2] for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {value for name, value in policy.items() if name.endswith("-src")} == {"'none'", "'self'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "prefix"), [("/admin/", "page/"), ("/admin", "admin/page/")], ids=["with a slash", "without one"]
)
async def test_the_files_are_found_from_wherever_the_page_is(site: Site, path: str, prefix: str) -> None:
    transport_path = path
    status, _, body = await asked(site, transport_path)
    assert status == 200
    links = re.findall(r'(?:src|href)="([^#"]+)"', body.decode())
    assert links
    assert all(link.startswith(prefix) for link in links)
    for link in links:
        found, headers, _ = await asked(site, "/admin/" + link.removeprefix(prefix[: -len("page/")]))
        assert found == 200
        assert headers[b"content-security-policy"]


async def asked(site: Site, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[bytes, bytes], bytes]:
    """Ask the endpoints as mounted, without what a framework does about slashes."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "/admin",
        "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    await site.admin(scope, receive, send)
    start, *bodies = sent
    return start["status"], dict(start["headers"]), b"".join(each["body"] for each in bodies)


async def test_a_browser_that_has_a_file_is_told_so(site: Site) -> None:
    _, headers, body = await asked(site, "/admin/page/app.js")
    status, again, empty = await asked(site, "/admin/page/app.js", if_none_match=headers[b"etag"].decode())
    assert (status, empty) == (304, b"")
    assert headers[b"cache-control"] == again[b"cache-control"] == b"no-cache"
    assert headers[b"content-type"] == b"text/javascript; charset=utf-8"
    assert len(body) > 1000


@pytest.mark.parametrize(
    "path",
    [
        "/admin/page/",
        "/admin/page/nothing.js",
        "/admin/page/..%2fapp.py",
        "/admin/page/README.md",
        "/admin/page/a/x.js",
    ],
)
async def test_nothing_else_is_served(site: Site, path: str) -> None:
    assert (await asked(site, path))[0] == 401


async def test_a_change_is_never_the_shell(site: Site) -> None:
    for method in ("POST", "DELETE", "PUT"):
        assert (await asked(site, "/admin/", method))[0] == 401


@pytest.mark.parametrize("name", sorted(OWN))
def test_no_file_of_ours_makes_markup_from_text_or_knows_another_host(name: str) -> None:
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert word not in OWN[name]
    hosts = set(re.findall(r"https?://[^\s\"'`)]+", OWN[name])) - {"http://www.w3.org/2000/svg"}
    assert not hosts


def test_the_page_asks_only_what_there_is() -> None:
    asked = set(re.findall(r'api\.(?:ask|events|lines)\("([a-z]+)"', TEXTS["app.js"] + TEXTS["dialogs.js"]))
    assert asked >= {"stats", "trends", "health", "alerts", "operations", "tenants", "events", "explain", "whoami"}
    assert asked <= {each.segments[0] for each in ENDPOINTS}


def test_what_is_vendored_brings_its_licence() -> None:
    assert "MIT License" in (FOLDER / "UPLOT-LICENSE.txt").read_text()
    assert "uPlot (v1.6.32)" in TEXTS["uplot.js"]
