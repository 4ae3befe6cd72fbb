"""The page in a real browser: nothing fetched, nothing complained of, every figure seen, no sideways scrolling.

Its tables are sorted and filtered there, and its words stand out from their background as WCAG 2.2 asks (AA, 1.4.3).
"""

import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from report.synthetic_records import CPU, Maker, write_results
from retbench.records.record import Record
from retbench.report.report import write_report

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


@pytest.fixture(params=[(390, "light"), (1440, "dark")], ids=str)
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
    assert page.title() == "RetNet, Transformer: benchmark report"
    assert page.heard == []


def test_it_does_not_scroll_sideways(page: Any) -> None:
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_every_figure_is_seen_as_wide_as_there_is_room(page: Any) -> None:
    boxes = page.evaluate(
        "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().toJSON())"
    )
    assert len(boxes) == 5
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


CONTRASTS = """() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = parts => {
        const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = parts.slice(0, 3).map(c => linear(c / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = node => {
        for (; node; node = node.parentElement) {
            const parts = rgb(getComputedStyle(node).backgroundColor);
            if (parts.length === 3 || parts[3] > 0) return parts;
        }
        return [255, 255, 255];
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || node.closest("svg, script, style") || !node.checkVisibility()) continue;
        const [one, two] = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
        found.push([(Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05), walker.currentNode.data.trim()]);
    }
    return found;
}"""


@pytest.mark.parametrize("page", list(product((390, 1440), ("light", "dark"))), indirect=True, ids=str)
def test_every_word_stands_out_from_its_background(page: Any) -> None:
    unfold(page)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 800
    assert [words for contrast, words in found if contrast < 4.5] == []


def column_of(table: Any, column: int) -> list[str]:
    return table.evaluate(f"table => [...table.tBodies[0].rows].map(row => row.cells[{column}].textContent)")


@pytest.mark.parametrize("heading", ["time to first token", "weights + state + workspace"])
def test_a_table_is_sorted_by_its_values_up_down_and_back(page: Any, heading: str) -> None:
    """Times of different units, and sizes of which some are missing: those come last either way."""
    table = page.locator("#tables table", has_text=heading)
    button = table.get_by_role("button", name=heading)
    column = table.locator("thead button").all_text_contents().index(heading)
    before = column_of(table, column)
    button.click()
    rising = column_of(table, column)
    button.press("Enter")
    falling = column_of(table, column)
    assert table.locator("th[aria-sort=descending]").text_content() == heading
    numbers = [text for text in before if text != "out of memory"]
    failed = ["out of memory"] * (len(before) - len(numbers))
    assert rising == [*sorted(numbers, key=value_of), *failed]
    assert falling == [*sorted(numbers, key=value_of, reverse=True), *failed]
    button.click()
    assert column_of(table, column) == before


def value_of(text: str) -> float:
    return float(text.split()[0]) * {"ms": 1e-3, "s": 1, "GiB": 2**30}[text.split()[-1]]


def seen(nodes: Any) -> list[bool]:
    """Which of some nodes a reader sees; one call for all of them."""
    found: list[bool] = nodes.evaluate_all("nodes => nodes.map(node => node.checkVisibility())")
    return found


def unfold(page: Any) -> None:
    """Open every group that is folded."""
    page.locator("details").evaluate_all("folds => folds.forEach(fold => { fold.open = true; })")


def test_verdicts_are_filtered_by_words(page: Any) -> None:
    """By one box over all groups: a fold with a match opens, a group without one goes, and all is undone with it."""
    section = page.locator("#verdicts")
    rows, groups = section.locator("tbody tr"), section.locator(".group")
    box, count = section.get_by_role("searchbox"), section.locator("output")
    before = seen(rows)
    assert len(before) == 32
    box.fill("without GROUPNORM")
    shown = seen(rows)
    assert shown.count(True) == 1
    assert "Without GroupNorm RetNet is worse" in rows.nth(shown.index(True)).inner_text()
    assert seen(groups).count(True) == 1
    assert count.text_content() == "1 of 32 rows"
    box.fill("")
    assert seen(rows) == before
    assert all(seen(groups))
    assert count.text_content() == ""


def test_what_was_measured_is_open_and_the_rest_folded(page: Any) -> None:
    for part in ("#verdicts", "#claims"):
        titles = page.locator(f"{part} h3").all_inner_texts()
        folded = seen(page.locator(f"{part} details table"))
        folds = page.locator(f"{part} details").count()
        assert titles[0].startswith("Decided under the paper's conditions (")
        assert [title for title in titles if title.startswith("Not measured")] == titles[-folds:]
        assert folds >= 3
        assert len(folded) >= folds
        assert not any(folded)
        assert all(seen(page.locator(f"{part} div.group table")))
    unfold(page)
    assert all(seen(page.locator("#verdicts tbody tr, #claims article")))


def test_what_is_folded_is_printed(page: Any) -> None:
    page.emulate_media(media="print")
    assert all(seen(page.locator("details *")))


def test_a_verdict_leads_to_its_claim(page: Any) -> None:
    page.get_by_role("link", name="At 8K RetNet decodes in 3.4").click()
    assert page.evaluate("document.querySelector(':target').id") == "claim-memory_ratio"
    assert page.locator(":target").is_visible()


def test_a_link_into_a_fold_opens_it(page: Any) -> None:
    page.locator("#verdicts details").evaluate_all("folds => folds.forEach(fold => { fold.open = true; })")
    assert not any(seen(page.locator("#claim-ablation_head_norm")))
    page.get_by_role("link", name="Without GroupNorm RetNet is worse").click()
    assert page.evaluate("document.querySelector(':target').id") == "claim-ablation_head_norm"
    assert all(seen(page.locator(":target")))


def test_without_scripts_everything_is_there_to_read(browser: Any, report: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 900}, java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#verdicts tbody tr").count() == 32
    for summary in page.locator("#verdicts summary").all():
        summary.click()
    assert all(seen(page.locator("#verdicts tbody tr")))
    assert page.locator("button, input").count() == 0
    context.close()


def test_no_verdict_of_elsewhere_reaches_into_the_next_column(browser: Any, report: Path) -> None:
    wide = browser.new_page()
    wide.goto(report.as_uri())
    unfold(wide)
    for width in (390, 900, 1100, 1440, 1920):
        wide.set_viewport_size({"width": width, "height": 900})
        inside = "all => all.every(cell => cell.scrollWidth <= cell.clientWidth)"
        assert wide.locator("td.term").evaluate_all(inside), width
    wide.close()


def test_a_page_of_failures_does_not_scroll_sideways_either(browser: Any, tmp_path: Path) -> None:
    def fail(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"status": "failed", "metrics": {}, "error": "word" * 80}

    records = [*Maker(CPU, change=fail).latency((1024, 2048)), *Maker(CPU).memory()]
    write_report(write_results(tmp_path / "results", records), tmp_path / "out")
    page = browser.new_page()
    page.goto((tmp_path / "out" / "index.html").as_uri())
    for width in (320, 390, 641, 768, 1024):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    unfold(page)
    page.set_viewport_size({"width": 320, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.locator("#limitations").get_by_text("wordword").first.is_visible()
    page.close()
