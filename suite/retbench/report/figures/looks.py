"""The colours, marker and dash pattern of each model, which are those of its architecture in every figure.

The first colours are Okabe and Ito's, which colour-blind people can distinguish.
"""

from functools import cache
from itertools import count
from typing import Any, NamedTuple

from retbench.architectures.registry import architectures as registered
from retbench.architectures.registry import is_baseline
from retbench.report.figures.style import GRID, INK, MUTED, NEUTRAL, PAPER
from retbench.report.lineup import Lineup


class Colour(NamedTuple):
    """One hue: `line` for curves, `text` dark enough to be read, `tint` for lighter areas."""

    line: str
    text: str
    tint: str


_COLOURS = (
    (Colour("#0072b2", "#00629a", "#9ccbe8"), Colour("#56b4e9", "#7cc6f0", "#285873")),
    (Colour("#d55e00", "#ac4c00", "#f3b98f"), Colour("#e69f00", "#f0b840", "#7a5706")),
    (Colour("#009e73", "#007756", "#8fd6bf"), Colour("#2bbf93", "#5ad3ae", "#125c46")),
    (Colour("#cc79a7", "#a04b7a", "#e9c3d8"), Colour("#d991b8", "#e6b3cf", "#6e4159")),
    (Colour("#b58900", "#7d5f00", "#e8d69a"), Colour("#f0e442", "#f4ec7a", "#6b6412")),
    (Colour("#5e4fa2", "#51449a", "#c3bce0"), Colour("#a99de0", "#bdb3ea", "#443a7a")),
    (Colour("#8c564b", "#74443a", "#d3b8b1"), Colour("#c49a8f", "#d4b1a8", "#5c3a32")),
    (Colour("#4a4f57", "#3d4148", "#a9aeb5"), Colour("#c9ced6", "#d9dde3", "#4b525b")),
)
"""Every hue as in the files and, lighter, as on a dark page: Okabe and Ito's first."""
_NUM_RESERVED = 2
"""The first looks, which are of the first architecture and of the baseline alone."""

HOLLOW = {"o": "○", "s": "□", "^": "△", "D": "◇", "v": "▽", "<": "◁", ">": "▷", "p": "⬠", "*": "☆"}
"""Every marker, and the character that looks like it when it is not filled."""
FILLED = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "<": "◀", ">": "▶", "p": "⬟", "*": "★"}
"""The character that looks like each marker."""
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))


class Look(NamedTuple):
    """Colours, marker and dash pattern of one model."""

    line: str
    text: str
    tint: str
    marker: str
    dash: Any

    @property
    def marker_scale(self) -> float:
        """Size of the marker over that of the others: a star of their size is all edge."""
        return 1.7 if self.marker == "*" else 1.0


def look(number: int) -> Look:
    """Return the look of a number; 288 have different ones."""
    colour, _ = _COLOURS[number % len(_COLOURS)]
    dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    return Look(*colour, list(HOLLOW)[number % len(HOLLOW)], dash)


def look_of(models: Lineup, name: str) -> Look:
    """Return the look of a model among those that it is shown with."""
    return look(_numbers(tuple(models.architectures.items()))[name])


@cache
def _numbers(architectures: tuple[tuple[str, str], ...]) -> dict[str, int]:
    """Number the looks of models, whose names come with their architectures.

    The first model of an architecture has the look of that architecture, so that it is the same in all figures. There
    are more architectures than colours: where another model has its colour, it has the next one, as further models do.
    """
    first_kind, *_ = registered()
    kinds = sorted(registered(), key=lambda kind: (kind != first_kind, not is_baseline(kind)))
    numbers: dict[str, int] = {}

    def is_free(number: int) -> bool:
        used = {other % len(_COLOURS) for other in numbers.values()}
        return (
            number % len(_COLOURS) not in used
            if len(used) < len(_COLOURS)
            else number not in numbers.values()
        )

    for number, kind in enumerate(kinds):
        first = next((name for name, other in architectures if other == kind), None)
        if first is not None and is_free(number):
            numbers[first] = number
    for name, _ in architectures:
        if name not in numbers:
            numbers[name] = next(filter(is_free, count(_NUM_RESERVED)))
    return numbers


def repeats(num_models: int) -> bool:
    """Return whether some of as many models have the same colour."""
    return num_models > len(_COLOURS)


def css_colours() -> dict[str, tuple[str, str]]:
    """Return every colour by a name for style sheets: as in the files, and on a dark page."""
    colours = {
        "ink": (INK, "#e8eaed"),
        "muted": (MUTED, "#a2abb5"),
        "grid": (GRID, "#343a41"),
        "paper": (PAPER, "#14171a"),
        "neutral": (NEUTRAL, "#59616b"),
    }
    for number, (light, dark) in enumerate(_COLOURS):
        for part in Colour._fields:
            colours[f"{part}{number}"] = (getattr(light, part), getattr(dark, part))
    return colours


def colour_rules() -> dict[str, str]:
    """Return the CSS declarations of the colour variables for the light and the dark page."""
    colours = css_colours()
    return {
        "light": " ".join(f"--{name}: {light};" for name, (light, _) in colours.items()),
        "dark": " ".join(f"--{name}: {dark};" for name, (_, dark) in colours.items()),
    }
