"""The dashboard page in a real browser: what it shows, what can be done with it, and by whom."""

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2
import pytest
import pytest_asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from nexcache import AdminApp, CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.tenants import ApiKey
from tests.admin.browser import PATIENCE, NoBrowser, browsing, program, shoot
from tests.servers import Valkey

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.asyncio(loop_scope="module")

if "NEXCACHE_CI" not in os.environ:
    try:
        program()
        import playwright  # noqa: F401 - only whether it is there
    except NoBrowser as missing:
        pytest.skip(str(missing), allow_module_level=True)
    except ImportError:
        pytest.skip("no browser: playwright is not installed", allow_module_level=True)

ACME, GLOBEX, OPS = "the-key-of-acme", "the-key-of-globex", "the-key-of-ops"
MARKUP = '"><img src=x onerror=alert(1)><b id=planted>'
HEBREW = "לקוח <שלום>"
LONG = "o" * 60 + "<script>alert(2)</script>" + "w" * 60
KEYS = (
    ApiKey.of("acme", ACME),
    ApiKey.of("globex", GLOBEX),
    ApiKey.of(MARKUP, "the-key-of-markup"),
    ApiKey.of(HEBREW, "the-key-of-hebrew"),
    ApiKey.parse(f"{ApiKey.of('ops', OPS)};role=operator"),
)


class Site:
    """An app behind the cache, served on a port of its own, that can be taken away and come back there."""

    def __init__(self, **settings: Any) -> None:
        self.cache = NexCache(Settings(**{"redis_url": None, "redis_host": None, **settings}))
        self.keys = tenants.api_key(keys=KEYS)
        self.computed = 0
        self.slow = 0.004
        policies = [
            Policy("/overview", op="dashboard_overview"),
            Policy("/services/{name}", op="service_details", tags=["service:{name}"]),
            Policy("/markup", op=MARKUP),
            Policy("/long", op=LONG),
        ]
        self.app = Starlette(
            routes=[
                *(Route(policy.path, self._handler) for policy in policies),
                Mount("/cache", AdminApp(self.cache, authorize=self.keys)),
            ],
            middleware=[
                Middleware(CacheMiddleware, cache=self.cache, tenant=self.keys, principal=self.keys, policies=policies)
            ],
        )
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._listener.close()
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def _handler(self, request: Request) -> Response:
        self.computed += 1
        await asyncio.sleep(self.slow)
        return JSONResponse({"path": request.url.path, "number": self.computed})

    async def start(self) -> None:
        config = uvicorn.Config(
            self.app, host="127.0.0.1", port=self.port, log_config=None, lifespan="off", timeout_graceful_shutdown=1
        )
        server = self._server = uvicorn.Server(config)
        server.capture_signals = _nothing  # type: ignore[assignment, method-assign]
        self._task = asyncio.create_task(server.serve())
        async with asyncio.timeout(10):
            while not server.started and not self._task.done():  # noqa: ASYNC110 - uvicorn tells nobody
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Take the server away, and every connection with it."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = self._server.force_exit = True
            for connection in list(self._server.server_state.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            await self._task
            self._server = None

    async def ask(self, path: str, key: str = ACME) -> str:
        """Ask the app as a client; gives what the cache says of the answer."""
        async with httpx2.AsyncClient() as client:
            answer = await client.get(self.url + path, headers={"x-api-key": key})
        return str(answer.headers.get("cache-status", ""))

    def page(self, key: str | None = None) -> str:
        """Give the URL that signs in at once."""
        return f"{self.url}/cache/" + (f"#key={quote(key)}" if key else "")


class _nothing:  # noqa: N801 - stands in for a method
    """Leave the signals to pytest."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator["Browser"]:
    async with browsing() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def site() -> AsyncIterator[Site]:
    made = Site()
    await made.start()
    yield made
    await made.stop()
    await made.cache.aclose()


class Opened:
    """Opens pages, and holds against them what must never happen."""

    def __init__(self, browser: "Browser", stack: AsyncExitStack) -> None:
        self._browser = browser
        self._stack = stack
        self.faults: list[str] = []
        self.hosts: set[str] = set()

    async def __call__(self, url: str, *, width: int = 1280, height: int = 900, **options: Any) -> "Page":
        context: BrowserContext = await self._browser.new_context(
            viewport={"width": width, "height": height}, **options
        )
        self._stack.push_async_callback(context.close)
        page = await context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.faults.append(f"raised: {error}"))
        page.on("dialog", self._planted)
        page.on("console", self._said)
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        await page.goto(url)
        return page

    async def _planted(self, dialog: Any) -> None:
        self.faults.append(f"a script that was planted ran: {dialog.message}")
        await dialog.dismiss()

    def _said(self, message: Any) -> None:
        # what the network does is shown on the page, and tested there
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.faults.append(f"console: {message.text}")


@pytest_asyncio.fixture(loop_scope="module")
async def opened(browser: "Browser") -> AsyncIterator[Opened]:
    async with AsyncExitStack() as stack:
        opens = Opened(browser, stack)
        yield opens
    assert opens.faults == []
    assert len(opens.hosts) <= 1, "the page asked somebody else"


async def shows(page: "Page", selector: str, text: str | re.Pattern[str]) -> None:
    """Wait until an element shows a text."""
    from playwright.async_api import expect  # noqa: PLC0415 - may be missing

    await expect(page.locator(selector).first).to_contain_text(text, timeout=PATIENCE)


async def until(page: "Page", condition: str) -> None:
    """Wait until an expression holds. (The page's policy lets nobody evaluate text in it again and again.)"""
    async with asyncio.timeout(PATIENCE / 1000):
        while not await page.evaluate(condition):  # noqa: ASYNC110 - only the browser knows
            await asyncio.sleep(0.05)


async def row(page: "Page", operation: str) -> "dict[str, str]":
    """Give the cells of an operation by their labels."""
    found = page.locator("#operations tbody tr").filter(has=page.get_by_role("rowheader", name=operation))
    cells = await found.locator("td[data-label]").all()
    return {await cell.get_attribute("data-label") or "": await cell.inner_text() for cell in cells}


async def act_on(page: "Page", operation: str) -> None:
    await page.get_by_role("button", name=f"Act on {operation}").click()
    await page.locator("dialog[open]").wait_for()


# --- what is shown -----------------------------------------------------------------------------------------------


async def test_the_page_shows_what_happens_while_it_happens(site: Site, opened: Opened) -> None:
    page = await opened(site.page(ACME))
    await shows(page, "#link", "live")
    assert ACME not in page.url
    for _ in range(30):
        await site.ask("/overview")
    await site.ask("/services/cart")

    await shows(page, "#requests", "dashboard_overview")
    await shows(page, "#requests .badge.hit", "hit")
    await shows(page, "#operations", "96.7")
    await shows(page, ".tile .figure", re.compile(r"^\d"))
    cells = await row(page, "dashboard_overview")
    assert cells["Hit ratio"].startswith("96.7")
    assert re.search(r"\d\s(µs|ms)", cells["Hit p50"])
    assert re.search(r"\d\sms", cells["Miss p95"])
    await shows(page, "#operations", "1 · ")
    await shows(page, "#tiles", re.compile(r"Computations saved\s*29"))
    await shows(page, "#slowest", "dashboard_overview")
    await shows(page, "#savings", "29")
    await shows(page, "#memory", "1 entry")
    await shows(page, "#ladder .here", "OK")
    assert "hits" in (await page.locator("#plot-requests").get_attribute("aria-label") or "")
    assert await page.locator("#plot-requests canvas").count() == 1
    before = await page.locator("#requests li").count()
    async with asyncio.timeout(PATIENCE / 1000):
        while await page.locator("#requests li").count() <= before:  # of those that come together not all are shown
            await site.ask("/services/checkout")
            await asyncio.sleep(0.2)


async def test_memory_and_quota_are_shown_by_tenant_and_by_operation(opened: Opened) -> None:
    site = Site(quotas="acme bytes=64KiB entries=3 fills=500,globex fills=5")
    await site.start()
    try:
        for path in ("/overview", "/overview", *(f"/services/{name}" for name in ("cart", "checkout", "payment"))):
            await site.ask(path)
        await site.ask("/overview", GLOBEX)
        page = await opened(site.page(OPS))
        await shows(page, "#tenants", "globex")
        await page.locator("#tenant").select_option("acme")

        await shows(page, "#memory", "service_details")
        await shows(page, "#memory", re.compile(r"dashboard_overview\s*\d\.\d\sKiB\s*1 entry"))
        await shows(page, "#memory", "Quota of this tenant")
        await shows(page, "#memory", re.compile(r"bytes\s*\d\.\d\sKiB\s*of 64.0\sKiB"))
        await shows(page, "#memory", re.compile(r"entries\s*3\s*of 3"))
        await shows(
            page, "#memory", "At most 500 answers a second are kept. 1 not kept by this process for want of quota."
        )
        used = {
            await each.locator("th").inner_text(): await each.locator("td[data-label=Quota]").inner_text()
            for each in await page.locator("#tenants tbody tr").all()
        }
        assert used == {"acme": "100\u00a0%", "globex": "\u2013"}
        await shoot(page, "quota")
        tenants_page = await opened(site.page(ACME), width=360, color_scheme="dark", reduced_motion="reduce")
        await shows(tenants_page, "#memory", "Quota of this tenant")
        await shows(tenants_page, "#operations", "1 · ")
        assert await tenants_page.evaluate("document.documentElement.scrollWidth") == 360
        assert await tenants_page.evaluate(CONTRAST) == []
        assert await tenants_page.get_by_text("This process, all tenants").count() == 0
        await shoot(tenants_page, "quota-dark-360")
    finally:
        await site.stop()
        await site.cache.aclose()


async def test_requests_can_be_paused_so_that_no_hit_pays_for_them(site: Site, opened: Opened) -> None:
    page = await opened(site.page(ACME))
    await shows(page, "#link", "live")
    await site.ask("/overview")
    await shows(page, "#requests", "dashboard_overview")

    await page.get_by_role("button", name="Pause").click()
    from nexcache.telemetry.events import Answered, Invalidated  # noqa: PLC0415 - beside its only use

    async with asyncio.timeout(10):
        while site.cache.emitter.hears(Answered) or not site.cache.emitter.hears(Invalidated):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await page.get_by_role("button", name="Show again").click()
    async with asyncio.timeout(10):
        while not site.cache.emitter.hears(Answered):  # noqa: ASYNC110 - the server's side of it
            await asyncio.sleep(0.02)
    await page.evaluate("Object.defineProperty(document, 'hidden', { value: true })")
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    async with asyncio.timeout(10):
        while site.cache.emitter.hears(Answered):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)


# --- what can be done --------------------------------------------------------------------------------------------


async def test_invalidating_shows_first_what_it_would_reach(site: Site, opened: Opened) -> None:
    for path in ("/services/cart", "/services/checkout", "/overview"):
        await site.ask(path)
        await site.ask(path, GLOBEX)
    page, other = await opened(site.page(ACME)), await opened(site.page(GLOBEX))
    await shows(page, "#operations", "service_details")
    await shows(other, "#link", "live")

    await act_on(page, "service_details")
    await shows(page, ".reach", "2 entries would become misses.")
    await page.keyboard.press("Escape")
    assert "; hit" in await site.ask("/services/cart"), "looking has changed something"

    await act_on(page, "service_details")
    await shows(page, ".reach", "2 entries")
    await page.get_by_role("button", name="Invalidate", exact=True).click()
    await shows(page, "dialog .result", "no request that starts now is answered from before")
    await shows(page, ".reach", "0 entries would become misses.")
    await page.keyboard.press("Escape")
    assert "fwd=uri-miss" in await site.ask("/services/cart")
    assert "; hit" in await site.ask("/overview")
    assert "; hit" in await site.ask("/services/cart", GLOBEX)
    await shows(page, "#invalidations", re.compile(r"by hand\s*service_details\s*by\s*[0-9a-f]{8}"))
    assert await other.locator("#invalidations li").count() == 0


async def test_invalidating_by_tag_and_by_pattern(site: Site, opened: Opened) -> None:
    for path in ("/services/cart", "/services/checkout", "/overview"):
        await site.ask(path)
    page = await opened(site.page(ACME))
    await page.get_by_role("button", name="Invalidate…").click()
    button = page.locator("dialog button.danger")
    assert await button.is_disabled()

    await page.get_by_label("Name", exact=True).fill("nothing_*")
    await shows(page, ".reach", "No operation of this tenant has that name")
    assert await button.is_disabled()
    await page.get_by_label("Name", exact=True).fill("dashboard_*")
    await shows(page, ".reach", "1 entry would become a miss.")
    await page.get_by_label("all that carries a tag").check()
    await page.get_by_label("Name", exact=True).fill("service:cart")
    await shows(page, ".reach", "1 entry would become a miss.")
    await button.click()
    await shows(page, "dialog .result", "Done")

    assert "fwd=uri-miss" in await site.ask("/services/cart")
    assert "; hit" in await site.ask("/services/checkout")
    assert "; hit" in await site.ask("/overview")


async def test_warming_shows_its_progress_and_switching_off_sends_requests_to_the_app(
    site: Site, opened: Opened
) -> None:
    for path in ("/services/cart", "/services/checkout"):
        await site.ask(path)
    page = await opened(site.page(ACME))
    await shows(page, "#operations", "service_details")
    await act_on(page, "service_details")

    computed = site.computed
    await page.get_by_role("button", name="Warm").click()
    await shows(page, "dialog", "2 of 2 computed again")
    assert site.computed == computed + 2

    await page.get_by_role("button", name="Switch off").click()
    await shows(page, "dialog", "Off in this process.")
    assert "detail=disabled" in await site.ask("/services/cart")
    assert "detail=disabled" not in await site.ask("/services/cart", GLOBEX)
    await page.keyboard.press("Escape")
    await shows(page, "#operations tr.off", "service_details")
    await shows(page, "#invalidations", "service_details switched off by")

    await act_on(page, "service_details")
    await page.get_by_role("button", name="Switch on").click()
    await shows(page, "dialog", "On in this process.")
    assert "; hit" in await site.ask("/services/cart")


async def test_a_url_is_explained(site: Site, opened: Opened) -> None:
    await site.ask("/services/cart?a=1")
    page = await opened(site.page(ACME))
    await page.get_by_role("button", name="Explain a URL").click()
    await page.get_by_label("URL or path").fill(f"{site.url}/services/cart?a=1")
    await page.keyboard.press("Enter")
    await shows(page, "dialog .verdict", "It would be answered from the cache.")
    await shows(page, "dialog .explained", "tag service:cart")
    await shoot(page, "explain")
    await page.get_by_label("URL or path").fill("/services/cart?a=2")
    await page.keyboard.press("Enter")
    await shows(page, "dialog .verdict", "the app would compute it")


# --- what goes wrong ---------------------------------------------------------------------------------------------


async def test_a_store_that_dies_appears_as_an_alert_and_goes_again(own_valkey: Valkey, opened: Opened) -> None:
    site = Site(redis_url=own_valkey.url, op_timeout_ms=500, alert_interval_seconds=1)
    await site.start()
    try:
        await site.ask("/overview")
        page, tenants_page = await opened(site.page(OPS)), await opened(site.page(ACME))
        await shows(page, "#ladder .here", "OK")
        await shows(tenants_page, "#ladder .here", "OK")
        assert await page.locator("#alerts .banner").count() == 0

        own_valkey.kill()
        await site.ask("/services/cart")
        await shows(page, "#alerts", "Alert: breaker")
        await shows(page, "#ladder .here", "Down")
        await shows(tenants_page, "#alerts", "The store is away")
        assert await tenants_page.get_by_text("Alert:").count() == 0, "alerts of the process are for operators"
        await shows(tenants_page, "#operations", "dashboard_overview")  # still there, of this process
        await shoot(page, "alert")

        own_valkey.start()
        await until(page, "document.querySelectorAll('#alerts .banner').length === 0")
        await shows(page, "#ladder .here", re.compile("OK|Backplane lost"))
    finally:
        await site.stop()
        await site.cache.aclose()


async def test_a_lost_connection_is_told_and_comes_back_by_itself(site: Site, opened: Opened) -> None:
    await site.ask("/overview")
    page = await opened(site.page(ACME))
    await shows(page, "#link", "live")
    await shows(page, "#operations", "dashboard_overview")

    await site.stop()
    await shows(page, "#lost", "Connection lost. What is shown is of")
    await shows(page, "#link", "connection lost")
    await shows(page, "#operations", "dashboard_overview")  # what was known stays, greyed
    await shoot(page, "lost")

    await site.start()
    await page.locator("#lost").wait_for(state="hidden")
    await shows(page, "#link", "live")
    await site.ask("/services/back")
    await shows(page, "#requests", "service_details")


async def test_names_that_are_markup_are_text(site: Site, opened: Opened) -> None:
    for path in ("/markup", "/markup", "/long", "/services/%3Cimg%20src%3Dx%20onerror%3Dalert(3)%3E"):
        for key in ("the-key-of-markup", "the-key-of-hebrew"):
            await site.ask(path, key)
    page = await opened(site.page(OPS))
    await shows(page, "#tenants", MARKUP)
    await shows(page, "#tenants", HEBREW)
    await page.locator("#tenant").select_option(MARKUP)
    await shows(page, "#link", "live")
    await shows(page, "#operations", MARKUP)
    await shows(page, "#operations", LONG)
    await page.get_by_role("button", name=f"Act on {MARKUP}").click()
    await shows(page, "dialog h2", MARKUP)
    await shows(page, ".reach", "1 entry would become a miss.")
    await page.locator("dialog button.danger").first.click()
    await shows(page, "dialog .result", "Done")
    await page.keyboard.press("Escape")
    await site.ask("/markup", "the-key-of-markup")
    await site.cache.invalidate(MARKUP, tags=["<svg onload=alert(4)>"])
    await shows(page, "#invalidations", "<svg onload=alert(4)>")
    await shows(page, "#requests", MARKUP)
    await page.get_by_role("button", name="Explain a URL").click()
    await page.get_by_label("URL or path").fill("/services/<img src=x onerror=alert(3)>")
    await page.keyboard.press("Enter")
    await shows(page, "dialog .explained", "service:<img src=x onerror=alert(3)>")

    assert await page.locator("#planted, main img:not(#entrance img), script:not([src]), svg[onload]").count() == 0
    await page.keyboard.press("Escape")
    await page.set_viewport_size({"width": 360, "height": 740})
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    await shoot(page, "hostile-360")


# --- who may see what --------------------------------------------------------------------------------------------


async def test_a_tenant_sees_nothing_of_others_and_an_operator_everybody(site: Site, opened: Opened) -> None:
    await site.ask("/overview", GLOBEX)
    await site.ask("/services/secret", GLOBEX)
    await site.ask("/overview", ACME)
    page = await opened(site.page(ACME))
    await shows(page, "#operations", "dashboard_overview")
    await site.ask("/services/secret", GLOBEX)
    await site.cache.invalidate("globex", "*")
    await site.ask("/overview", ACME)
    await shows(page, "#requests", "dashboard_overview")
    content = await page.content()
    assert "globex" not in content
    assert "service:secret" not in content
    assert not await page.locator("#tenants-card").is_visible()
    assert await page.locator("#invalidations li").count() == 0

    operator = await opened(site.page(OPS))
    await shows(operator, "#tenants", "globex")
    await operator.get_by_role("button", name="globex").click()
    await site.ask("/services/secret", GLOBEX)
    await shows(operator, "#requests", "service_details")
    await shows(operator, "#operations", "service_details")
    await act_on(operator, "service_details")
    assert await operator.get_by_role("button", name="Warm").count() == 0, "a warm-up needs the tenant's permissions"
    await operator.get_by_role("button", name="Switch off").click()
    await shows(operator, "dialog", "Off in this process.")
    assert "detail=disabled" in await site.ask("/services/secret", GLOBEX)
    assert "detail=disabled" not in await site.ask("/services/secret", ACME)


async def test_a_key_that_is_not_known_opens_nothing_and_a_known_one_can_be_given_back(
    site: Site, opened: Opened
) -> None:
    page = await opened(site.page())
    await page.get_by_label("API key or bearer token").fill("wrong")
    await page.get_by_role("button", name="Open").click()
    await shows(page, "#refused", "An API key or token of a tenant is needed.")
    assert not await page.locator("#board").is_visible()
    await shoot(page, "entrance")

    await page.get_by_label("API key or bearer token").fill(ACME)
    await page.keyboard.press("Enter")
    await shows(page, "#tenant-name", "acme")
    await page.reload()
    await shows(page, "#tenant-name", "acme")
    await page.get_by_role("button", name="Sign out").click()
    await page.locator("#entrance").wait_for()
    assert "acme" not in await page.locator("body").inner_text()
    await page.reload()
    await page.locator("#entrance").wait_for()
    assert await page.evaluate("JSON.stringify(sessionStorage) + JSON.stringify(localStorage)") == "{}{}"


# --- for everybody -----------------------------------------------------------------------------------------------


async def test_everything_can_be_reached_with_the_keyboard(site: Site, opened: Opened) -> None:
    await site.ask("/overview")
    page = await opened(site.page(ACME))
    await shows(page, "#operations", "dashboard_overview")
    await page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    focused: list[str] = []
    for _ in range(14):
        await page.keyboard.press("Tab")
        focused.append(await page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent"))
        if focused[-1] == "Act on dashboard_overview":
            break
    assert focused[0] == "Skip to the figures"
    assert {"Dark theme", "Sign out", "Explain a URL", "Invalidate…"} <= set(focused)
    assert focused[-1] == "Act on dashboard_overview"

    await page.keyboard.press("Enter")
    await page.locator("dialog[open]").wait_for()
    assert await page.evaluate("document.querySelector('dialog').contains(document.activeElement)")
    await page.keyboard.press("Escape")
    await until(page, "document.activeElement.ariaLabel === 'Act on dashboard_overview'")
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "2px"


CONTRAST = """() => {
  const size = { width: 1, height: 1 };
  const canvas = Object.assign(document.createElement("canvas"), size).getContext("2d", { willReadFrequently: true });
  const paint = (layers) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (value) => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) => linear(value / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (text === "" || !element.checkVisibility()) continue;
    if (element.closest(".visually-hidden, .skip, canvas, :disabled")) continue;
    const layers = [];
    for (let each = element; each !== null; each = each.parentElement) {
      layers.unshift(getComputedStyle(each).backgroundColor);
    }
    const back = paint(layers), ink = paint([...layers, getComputedStyle(element).color]);
    const [low, high] = [luminance(back), luminance(ink)].sort((a, b) => a - b);
    const ratio = (high + .05) / (low + .05);
    if (ratio < 4.5) found.add(`${text.slice(0, 40)} ${ratio.toFixed(2)}`);
  }
  return [...found];
}"""
"""Finds texts whose contrast is below what WCAG 2.2 asks for (§1.4.3)."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
async def test_it_can_be_read_in_both_themes_wide_and_narrow(
    site: Site, opened: Opened, scheme: str, width: int
) -> None:
    for path in ("/overview", "/services/cart", "/overview", "/services/checkout", "/overview"):
        await site.ask(path)
        await site.ask(path, GLOBEX)
    page = await opened(site.page(OPS), width=width, color_scheme=scheme, reduced_motion="reduce")
    await shows(page, "#tenants", "globex")
    await shows(page, "#link", "live")
    await shows(page, "#operations", "1 · ")
    await site.ask("/overview")
    await site.cache.invalidate("acme", "dashboard_*")
    await shows(page, "#invalidations", "dashboard_*")
    await shows(page, "#requests", "dashboard_overview")
    await shoot(page, f"{scheme}-{width}")

    assert await page.evaluate("document.documentElement.dataset.theme") == scheme
    assert await page.evaluate("document.documentElement.scrollWidth") == width
    assert await page.evaluate(CONTRAST) == []
    assert await page.evaluate("document.getAnimations().length") == 0, "somebody asked for less motion"
    await act_on(page, "dashboard_overview")
    await shows(page, ".reach", re.compile(r"\d entr"))
    assert await page.evaluate(CONTRAST) == []


async def test_the_theme_can_be_chosen_and_stays(site: Site, opened: Opened) -> None:
    page = await opened(site.page(ACME), color_scheme="light")
    await page.get_by_role("button", name="Dark theme").click()
    await page.reload()
    assert await page.evaluate("document.documentElement.dataset.theme") == "dark"


async def test_every_part_has_a_name_for_those_who_cannot_see_it(site: Site, opened: Opened) -> None:
    await site.ask("/overview")
    page = await opened(site.page(OPS))
    await shows(page, "#operations", "dashboard_overview")
    nameless = await page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, section, [role=img], dialog")].filter((each) =>
          each.checkVisibility() && !(each.ariaLabel || each.labels?.length || each.textContent.trim()
            || document.getElementById(each.getAttribute("aria-labelledby"))?.textContent))
          .map((each) => each.outerHTML)"""
    )
    assert nameless == []
    headings = await page.evaluate("[...document.querySelectorAll('th')].filter((each) => !each.scope).length")
    assert headings == 0
