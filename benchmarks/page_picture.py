"""Draw the picture of the report in the README: its first screen, taken with headless Chromium.

The picture carries the answer of the report as the text `Description`, so that a test notices when it is out of date.
Exit codes: 0 written, 2 there is no report, 3 Chromium is not installed or does not draw the page.

Example: python -m benchmarks.page_picture .venv/page docs/page.png
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from retbench.errors import ConfigError, RetbenchError, UnsupportedError

WIDTH, HEIGHT = 1440, 900
NUM_COLOURS = 128
"""Colours of the picture: a third of the bytes of full colour, without a visible difference."""
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def answer_of(report: str) -> str:
    """Return the answer at the top of a report in Markdown: what stands between its title and the first figure."""
    return report.partition("\n")[2].partition("\n![")[0].strip()


def take_picture(folder: Path, target: Path) -> None:
    """Write a PNG of the first screen of a report, 1440 by 900 pixels.

    Args:
        folder: Folder of the report, with `index.html` and `report.md`.
        target: PNG to write.

    Raises:
        ConfigError: There is no report in the folder.
        UnsupportedError: Chromium is not installed, or does not draw the page.
    """
    report, page = folder / "report.md", (folder / "index.html").resolve()
    if not (report.is_file() and page.is_file()):
        raise ConfigError(f"{folder}: no report there. Write one: retbench report --out {folder}")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UnsupportedError(
            f"no browser: none of {', '.join(BROWSERS)} is on the PATH. Install Chromium: apt-get install chromium"
        )
    text = PngInfo()
    text.add_itxt("Description", answer_of(report.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "page.png"
        options = [f"--user-data-dir={scratch}", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}"]
        command = [browser, *FLAGS, *options, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not shot.exists():
            raise UnsupportedError(f"{browser} drew no picture of {page}: {done.stderr[-500:]}")
        with Image.open(shot) as picture:
            colours = picture.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
        colours.save(target, optimize=True, pnginfo=text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the picture that the arguments name, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page_picture",
        description="Draw the first screen of a report with headless Chromium.",
    )
    parser.add_argument("folder", type=Path, help="folder of the report")
    parser.add_argument("target", type=Path, help="PNG to write")
    options = parser.parse_args(arguments)
    try:
        take_picture(options.folder, options.target)
    except RetbenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
