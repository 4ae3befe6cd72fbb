"""The pages in a real browser: the answer on the first screen, nothing fetched, no violation of WCAG.

Tables are sorted and filtered there, and figures show values, hide models and change their scale.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report.synthetic_records import CPU, Maker, write_results
from retbench.records.record import Metric, Record
from retbench.report.report import write_report
from retbench.report.results import load_results
from tests.browsing import SCREENS, check_light, open_page

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("_without_pictures")]


@pytest.fixture(scope="module")
def report(
    _without_pictures: None, tmp_path_factory: pytest.TempPathFactory, gpu_records: list[Record]
) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    write_report(write_results(folder / "results", gpu_records), folder / "out")
    return folder / "out" / "index.html"


WINDOWS = [(390, "light"), (1440, "dark")]


@pytest.fixture(params=WINDOWS, ids=str)
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    """The first page opened at one width and colour scheme."""
    width, scheme = request.param
    page = open_page(browser, report, (width, 900), scheme)
    yield page
    page.close()


@pytest.fixture(scope="module", params=WINDOWS, ids=str)
def untouched(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    """The first page for tests that only look at it: opening it takes longer than they do."""
    width, scheme = request.param
    page = open_page(browser, report, (width, 900), scheme)
    yield page
    page.close()


@pytest.fixture(scope="module", params=[390, 1440], ids=str)
def evidence(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    """The second page opened at one width, for tests that leave it as it was."""
    page = open_page(browser, report.with_name("evidence.html"), (request.param, 900))
    yield page
    page.close()


@pytest.fixture
def both(browser: Any, report: Path, page: Any) -> Iterator[tuple[Any, Any]]:
    """Both pages opened at one width."""
    evidence = open_page(browser, report.with_name("evidence.html"), (page.viewport_size["width"], 900))
    yield page, evidence
    evidence.close()


def test_it_opens_in_silence_fetches_nothing_and_does_not_scroll_sideways(both: tuple[Any, Any]) -> None:
    page, evidence = both
    assert page.title() == "RetNet compared with the Transformer: benchmark report"
    assert evidence.title() == "Evidence: RetNet compared with the Transformer"
    assert page.heard == evidence.heard == []
    for one in both:
        unfold(one)
        assert one.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.heard == evidence.heard == []


def test_every_figure_is_seen_as_wide_as_there_is_room(untouched: Any) -> None:
    boxes = untouched.evaluate(
        "[...document.querySelectorAll('figure svg:not([hidden])')].map(s => s.getBoundingClientRect().toJSON())"
    )
    assert len(boxes) == 5
    room = untouched.viewport_size["width"]
    for box in boxes:
        assert box["left"] >= 0
        assert box["right"] <= room
        assert box["width"] >= min(0.9 * room, 400)
        assert box["height"] > 200


def test_figures_have_words_that_stand_out_from_the_page(untouched: Any) -> None:
    """The brightness of the paper and of a model's label differ on the light page and on the dark one."""
    paper, label = untouched.evaluate(
        """() => {
            const bright = colour => colour.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0);
            const words = [...document.querySelectorAll('figure svg text')].find(
                g => (g.getAttribute('style') || '').includes('--text1'));
            return [bright(getComputedStyle(document.body).backgroundColor), bright(getComputedStyle(words).fill)];
        }"""
    )
    assert abs(paper - label) > 200


def test_type_in_figures_is_legible_on_a_phone(untouched: Any) -> None:
    """The smallest words of a figure that stand in the page are set in 6 points; they are at least 8 pixels here."""
    scale = untouched.evaluate(
        "(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width)(document.querySelector('figure svg'))"
    )
    assert 6.0 * scale >= 8.0


def test_it_prints_in_light_colours(page: Any) -> None:
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.fixture(scope="module")
def clone(_without_pictures: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a fresh clone after `make report`: published records, and latency and memory measured here.

    Of the published ones only those of the experiments that the answer is from: all together take ten seconds to draw.
    """
    folder = tmp_path_factory.mktemp("clone")
    root = folder / "results"
    for path in (one for name in ("latency", "memory", "quality") for one in PUBLISHED.glob(f"*/{name}")):
        shutil.copytree(path, root / "published" / path.relative_to(PUBLISHED))
    published = [one for name in ("latency", "memory") for one in PUBLISHED.glob(f"*/{name}")]
    here = {"machine": "here", "cpu_model": "Intel(R) Xeon(R) Processor"}
    own = [
        record.model_copy(update={"run_id": "mine", "environment": record.environment | here})
        for path in published
        for record in load_results(path).records
    ]
    write_report(write_results(root, own), folder / "out")
    return folder / "out" / "index.html"


def first_screen(page: Any) -> str:
    """The words of the answer that end above the lower edge of the window."""
    words: str = page.locator("h1, #answer p, #answer li strong").evaluate_all(
        "all => all.filter(one => one.getBoundingClientRect().bottom <= innerHeight)"
        ".map(one => one.textContent).join('\\n')"
    )
    return words.replace("\u00a0", " ")


@pytest.mark.parametrize("size", SCREENS, ids=str)
def test_the_first_screen_of_a_fresh_clone_answers(browser: Any, clone: Path, size: tuple[int, int]) -> None:
    page = open_page(browser, clone, size)
    words = first_screen(page)
    assert "RetNet compared with the Transformer" in words
    assert re.search(r"Intel Xeon.*, float32, 18.9M .* batch 1\n", words)
    assert re.search(r"Decode: .*[\d.]+× faster at 32K", words)
    assert re.search(r"Memory: .*[\d.]+× less memory at 32K", words)
    assert "on an A100" in words
    page.close()


@pytest.mark.parametrize("size", SCREENS, ids=str)
def test_the_page_of_a_fresh_clone_is_short_and_light(
    browser: Any, clone: Path, size: tuple[int, int]
) -> None:
    assert check_light(browser, clone, size) <= (8_000 if size[0] == 1440 else 18_000)


def many_models(records: list[Record], count: int) -> list[Record]:
    """Records of as many models, each a little slower than the one before it, and the reference."""
    made = [record for record in records if record.model.name == "transformer"]
    for number, record in ((n, r) for n in range(count - 1) for r in records if r.model.name == "retnet"):
        model = record.model.model_copy(
            update={"name": f"model_{number}", "architecture": f"architecture_{number}"}
        )
        metrics = {
            name: Metric(unit=metric.unit, value=metric.value * (1 + number / 10))
            for name, metric in record.metrics.items()
        }
        own = {"model": model, "metrics": metrics, "cell_id": f"{record.cell_id}-{number}"}
        made.append(record.model_copy(update=own))
    return made


@pytest.fixture(scope="module")
def ten_models(
    _without_pictures: None, tmp_path_factory: pytest.TempPathFactory, cpu_records: list[Record]
) -> Path:
    """The report on ten models."""
    folder = tmp_path_factory.mktemp("ten")
    write_report(write_results(folder / "results", many_models(cpu_records, 10)), folder / "out")
    return folder / "out" / "index.html"


@pytest.mark.parametrize("size", SCREENS, ids=str)
def test_with_ten_models_the_first_screen_still_answers(
    browser: Any, ten_models: Path, size: tuple[int, int]
) -> None:
    page = open_page(browser, ten_models, size)
    words = first_screen(page)
    assert re.search(r"Decode: fastest: architecture_0, 4\.49× faster than the Transformer at 32K", words)
    assert re.search(
        r"Memory: least memory: architecture_0, 7\.94× less memory than the Transformer at 32K", words
    )
    assert page.locator("#tables tbody").first.locator("tr").count() == 10
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.heard == []
    page.close()


@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [
        ("index.html", SCREENS[0], "light"),
        pytest.param("index.html", SCREENS[1], "dark", marks=pytest.mark.slow),
        pytest.param("evidence.html", SCREENS[0], "light", marks=pytest.mark.slow),
        ("evidence.html", SCREENS[1], "dark"),
    ],
)
def test_no_rule_of_wcag_is_violated(
    browser: Any, report: Path, name: str, size: tuple[int, int], scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = open_page(browser, report.with_name(name), size, scheme)
    unfold(page)
    # Of the rules that hold one place each is enough: to describe all places takes longer than the rules themselves.
    found = axe.Axe().run(page, options={"runOnly": WCAG, "resultTypes": ["violations"]}).response
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]] == []
    assert {"color-contrast", "link-name"} <= {rule["id"] for rule in found["passes"]}
    page.close()


def test_values_are_shown_under_the_pointer_and_by_arrow_keys(page: Any) -> None:
    plot = page.locator("#latency_decode_batch8 .plot")
    hint, spots = page.locator(".hint"), plot.locator("svg:not([hidden]) circle")
    assert not hint.is_visible()
    spots.nth(1).hover(force=True)
    assert re.fullmatch(r"RetNet, 2K: [\d.]+ \[[\d.]+, [\d.]+\] ms", hint.text_content())
    page.mouse.move(0, 0)
    assert not hint.is_visible()
    plot.focus()
    plot.press("ArrowRight")
    assert hint.text_content().startswith("RetNet, 1K: ")
    plot.press("ArrowLeft")
    assert hint.text_content().startswith("Transformer, ")
    assert page.locator("#latency_decode_batch8 output").text_content() == hint.text_content()
    plot.press("Escape")
    assert not hint.is_visible()


def test_a_figure_switches_to_linear_axes_and_back(page: Any) -> None:
    figure = page.locator("#latency_decode_batch8")
    scales = figure.locator("svg")
    assert scales.evaluate_all("all => all.map(one => one.dataset.scale)") == ["logarithmic", "linear"]
    assert drawn(scales) == [True, False]
    assert "(log scales)" in scales.nth(0).text_content()
    figure.get_by_role("button", name="linear axes").click()
    assert drawn(scales) == [False, True]
    assert "(log scale" not in scales.nth(1).text_content()
    figure.locator(".plot").press("ArrowRight")
    assert page.locator(".hint").text_content().startswith("RetNet, 1K: ")
    figure.get_by_role("button", name="logarithmic axes").press("Enter")
    assert drawn(scales) == [True, False]


def test_a_model_is_hidden_in_every_figure_and_table_and_comes_back(page: Any) -> None:
    parts = page.locator("[data-model=transformer]")
    curves = page.locator("figure svg:not([hidden]) [data-model=transformer]:not(circle)")
    cells = page.locator("td[data-model=transformer]")
    assert curves.count() > 10
    assert cells.count() > 10
    box = page.get_by_role("checkbox", name="Transformer")
    box.uncheck()
    assert not any(drawn(parts))
    assert all(drawn(page.locator("td[data-model=retnet]")))
    box.check()
    assert all(drawn(cells))
    assert all(drawn(curves))


def test_every_control_is_large_enough_to_touch(untouched: Any) -> None:
    small = untouched.locator("button, [type=search], nav a, summary, .models label").evaluate_all(
        "all => all.map(one => [one.getBoundingClientRect(), one]).filter(([box]) => box.height && box.height < 24)"
        ".map(([box, one]) => one.outerHTML)"
    )
    assert small == []


def test_no_button_covers_the_words_of_its_figure_on_a_phone(
    browser: Any, swept_records: list[Record], tmp_path: Path
) -> None:
    write_report(write_results(tmp_path / "results", swept_records), tmp_path / "out")
    page = open_page(browser, tmp_path / "out" / "index.html", (360, 800))
    boxes = "all => all.map(one => one.getBoundingClientRect()).map(b => [b.left, b.right, b.top, b.bottom])"
    figure = page.locator("figure", has=page.locator("button.scale")).first
    (button,) = figure.locator("button.scale").evaluate_all(boxes)
    words = figure.locator("svg:not([hidden]) text").evaluate_all(boxes)
    page.close()
    assert len(words) > 5
    left, right, top, bottom = button
    assert [
        box for box in words if left < box[1] and box[0] < right and top < box[3] and box[2] < bottom
    ] == []


def test_the_first_key_leads_past_the_heading(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    page.wait_for_url("**#main")


def test_every_table_has_a_caption_and_every_figure_its_result_in_words(untouched: Any) -> None:
    assert untouched.locator("table").count() == untouched.locator("table > caption").count()
    for label in untouched.locator("figure svg").evaluate_all(
        "all => all.map(one => one.getAttribute('aria-label'))"
    ):
        assert re.search(r"RetNet, .*\d", label)
        assert re.search(r"Transformer, .*\d", label)


def column_of(table: Any, column: int) -> list[str]:
    return table.evaluate(f"table => [...table.tBodies[0].rows].map(row => row.cells[{column}].textContent)")


@pytest.mark.parametrize("heading", ["time to first token", "weights + state + workspace"])
def test_a_table_is_sorted_by_its_values_up_down_and_back(evidence: Any, heading: str) -> None:
    """Times of different units, and sizes of which some are missing: those come last either way."""
    table = evidence.locator("#all-tables table", has_text=heading)
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


def drawn(nodes: Any) -> list[bool]:
    """Which of some nodes take room, parts of figures included."""
    found: list[bool] = nodes.evaluate_all("nodes => nodes.map(node => node.getClientRects().length > 0)")
    return found


def unfold(page: Any) -> None:
    """Open every group that is folded."""
    page.locator("details").evaluate_all("folds => folds.forEach(fold => { fold.open = true; })")


def test_claims_are_filtered_by_words_and_the_counts_follow(clone_page: Any) -> None:
    """A group without a match goes, and all is undone with the words."""
    section = clone_page.locator("#claims")
    rows, groups, counts = (
        section.locator("tbody tr:not(.group)"),
        section.locator("tbody"),
        section.locator(".count"),
    )
    box, count = section.get_by_role("searchbox"), section.locator("output")
    before, numbers = seen(rows), counts.all_text_contents()
    box.fill("constant STATE")
    assert not any(seen(groups))
    assert count.text_content() == f"0 of {len(before)} rows"
    box.fill("recurrent STATE")
    shown = seen(rows)
    assert shown.count(True) == 1
    assert "recurrent state is O(1)" in rows.nth(shown.index(True)).inner_text()
    assert [
        text for text, is_seen in zip(counts.all_text_contents(), seen(groups), strict=True) if is_seen
    ] == ["1"]
    box.fill("")
    assert seen(rows) == before
    assert all(seen(groups))
    assert counts.all_text_contents() == numbers
    assert count.text_content() == ""


@pytest.fixture
def clone_page(browser: Any, clone: Path) -> Iterator[Any]:
    page = open_page(browser, clone, SCREENS[0])
    yield page
    page.close()


def test_each_claim_leads_to_its_evidence(page: Any) -> None:
    page.get_by_role("link", name="At 8K RetNet decodes in 3.4").click()
    page.wait_for_url("**/evidence.html#claim-memory_ratio")
    page.locator(":target").wait_for()
    page.get_by_role("link", name="Results", exact=True).click()
    page.wait_for_url("**/index.html")


def test_without_scripts_everything_is_there_to_read(browser: Any, report: Path) -> None:
    page = open_page(browser, report, SCREENS[1], java_script_enabled=False)
    assert all(seen(page.locator("#answer li, figure svg:not([hidden]), tbody tr")))
    assert page.locator("circle > title").first.text_content().startswith("RetNet, ")
    assert page.locator("button, input").count() == 0
    assert not page.locator(".hint").count()
    page.close()


def test_what_is_folded_is_printed(page: Any) -> None:
    page.emulate_media(media="print")
    assert all(seen(page.locator("details > p")))
    assert not any(seen(page.locator("nav, .filter, .models, .scale")))


def test_a_page_of_failures_does_not_scroll_sideways_either(browser: Any, tmp_path: Path) -> None:
    def fail(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"status": "failed", "metrics": {}, "error": "word" * 80}

    records = [*Maker(CPU, change=fail).latency((1024, 2048)), *Maker(CPU).memory()]
    write_report(write_results(tmp_path / "results", records), tmp_path / "out")
    for name in ("index.html", "evidence.html"):
        page = open_page(browser, tmp_path / "out" / name, SCREENS[0])
        for width in (320, 390, 641, 768, 1024):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert name == "index.html" or page.locator("#limitations").get_by_text("wordword").first.is_visible()
        page.close()
