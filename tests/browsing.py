"""Pages in headless Chromium, for tests of what a reader sees."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCREENS = [(1440, 900), (390, 844)]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def open_browser() -> Iterator[Any]:
    """Yield a browser and close it; skip the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


def open_page(browser: Any, path: Path, size: tuple[int, int], scheme: str = "light", **options: Any) -> Any:
    """A page opened from the disk; what it fetches and says is in `heard`."""
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
    page.heard = []
    page.on("console", lambda message: page.heard.append(message.text))
    page.on("pageerror", lambda error: page.heard.append(str(error)))
    page.on("request", lambda asked: page.heard.append(asked.url) if asked.url != path.as_uri() else None)
    page.goto(path.as_uri())
    return page


def check_light(browser: Any, path: Path, size: tuple[int, int]) -> int:
    """Check that a first page is a small file, as wide as its window and silent; return its height in pixels.

    On a wide screen no table is cut.
    """
    page = open_page(browser, path, size)
    height, width = page.evaluate("(e => [e.scrollHeight, e.scrollWidth])(document.documentElement)")
    assert width == size[0]
    assert path.stat().st_size <= 400_000
    cut = (
        "[...document.querySelectorAll('.tables .scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    )
    assert size[0] < 1440 or page.evaluate(cut) == 0
    assert page.heard == []
    page.close()
    return int(height)
