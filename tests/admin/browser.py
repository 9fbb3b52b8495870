"""A real browser: Debian's chromium, driven by Playwright. Nothing is downloaded."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

SHOTS: Final = Path(__file__).parents[2] / "artefacts" / "dashboard"
"""Where screenshots are kept; not committed."""
PATIENCE: Final = 15_000
"""Milliseconds after which a test gives up; none waits that long for what it expects."""
_ARGUMENTS: Final = (
    "--no-sandbox",  # CI runs as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",  # nothing is to be asked of anybody but the page's own server
    "--disable-component-update",
    "--disable-sync",
)


class NoBrowser(Exception):  # noqa: N818 - reads as what it says
    """There is no browser to start on this machine."""


def program() -> str:
    """Return where the browser is; raises NoBrowser."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise NoBrowser("no browser: install chromium (Debian's package of that name), or set CHROMIUM to its path")
    return found


@asynccontextmanager
async def browsing() -> AsyncIterator["Browser"]:
    """Start the browser; raises NoBrowser."""
    path = program()
    try:
        from playwright.async_api import async_playwright  # noqa: PLC0415 - may be missing
    except ImportError:
        raise NoBrowser("no browser: playwright is not installed") from None
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


async def shoot(page: "Page", name: str) -> None:
    """Keep a picture of the whole page, for people to look at."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
