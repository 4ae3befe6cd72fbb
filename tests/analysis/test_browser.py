"""The page in a real browser: nothing fetched, nothing complained of, every figure seen, no sideways scrolling."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.synthetic_records import write_results
from retbench.analysis.report import write_report
from retbench.records import Record

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

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, gpu_records: list[Record]) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    write_report(write_results(folder / "results", gpu_records), folder / "out")
    return folder / "out" / "index.html"


@pytest.fixture(params=[(390, "light"), (390, "dark"), (1440, "light"), (1440, "dark")], ids=str)
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    """The report opened from the disk at one width and colour scheme; what it fetched and said is in `heard`."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.heard = []
    page.on("console", lambda message: page.heard.append(message.text))
    page.on("pageerror", lambda error: page.heard.append(str(error)))
    page.on("request", lambda asked: page.heard.append(asked.url) if asked.url != report.as_uri() else None)
    page.goto(report.as_uri())
    page.emulate_media(color_scheme=scheme)
    yield page
    page.close()


def test_it_opens_in_silence_and_fetches_nothing(page: Any) -> None:
    assert page.title() == "RetNet and a matched Transformer, measured"
    assert page.heard == []


def test_it_does_not_scroll_sideways(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_every_figure_is_seen_as_wide_as_there_is_room(page: Any) -> None:
    boxes = page.evaluate(
        "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().toJSON())"
    )
    assert len(boxes) == 4
    room = page.viewport_size["width"]
    for box in boxes:
        assert box["left"] >= 0
        assert box["right"] <= room
        assert box["width"] >= min(0.9 * room, 480)
        assert box["height"] > 200


def test_figures_have_words_that_stand_out_from_the_page(page: Any) -> None:
    """The brightness of the paper and of a model's label differ on the light page and on the dark one."""
    paper, label = page.evaluate(
        """() => {
            const bright = colour => colour.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0);
            const words = [...document.querySelectorAll('figure svg g')].find(
                g => (g.getAttribute('style') || '').includes('--text1'));
            return [bright(getComputedStyle(document.body).backgroundColor), bright(getComputedStyle(words).fill)];
        }"""
    )
    assert abs(paper - label) > 200


def test_type_in_figures_is_legible_on_a_phone(page: Any) -> None:
    """The smallest words of a figure that stand in the page are set in 6 points; they are at least 8 pixels here."""
    scale = page.evaluate(
        "(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width)(document.querySelector('figure svg'))"
    )
    assert 6.0 * scale >= 8.0


def test_it_prints_in_light_colours(page: Any) -> None:
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
