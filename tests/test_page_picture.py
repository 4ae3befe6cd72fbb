"""The picture of the report: the first screen with its answer, and messages where it cannot be taken."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.page_picture import BROWSERS, HEIGHT, WIDTH, answer_of, main

REPORT = "# Title\n\n**setting**\n\n- **Decode: 2× faster.** 1 vs 2 ms\n\n![Figure](figure.svg)\n\nCaption\n"


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A folder with a page that is red on its first screen and blue below, and its Markdown."""
    style = "margin:0;background:linear-gradient(red 900px, blue 900px) no-repeat;height:1800px"
    (tmp_path / "index.html").write_text(f"<html><body style='{style}'></body></html>", encoding="utf-8")
    (tmp_path / "report.md").write_text(REPORT, encoding="utf-8")
    return tmp_path


def test_the_answer_stands_between_the_title_and_the_first_figure() -> None:
    assert answer_of(REPORT) == "**setting**\n\n- **Decode: 2× faster.** 1 vs 2 ms"


@pytest.mark.browser
@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="needs Chromium: apt-get install chromium")
def test_the_picture_is_the_first_screen_with_the_answer(report: Path) -> None:
    target = report / "page.png"
    assert main([str(report), str(target)]) == 0
    with Image.open(target) as picture:
        assert picture.size == (WIDTH, HEIGHT)
        assert picture.info["Description"] == answer_of(REPORT)
        assert picture.convert("RGB").getpixel((700, 850)) == (255, 0, 0)


def test_a_folder_without_a_report_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "page.png")]) == 2
    assert f"{tmp_path}: no report there" in capsys.readouterr().err
    assert not (tmp_path / "page.png").exists()


def test_without_a_browser_the_message_says_what_to_install(
    report: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(report))
    assert main([str(report), str(report / "page.png")]) == 3
    assert "Install Chromium" in capsys.readouterr().err
