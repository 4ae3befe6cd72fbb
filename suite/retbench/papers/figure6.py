"""The values of the RetNet paper's Figure 6, and the records beside which they may be shown.

They may stand beside records of the size and device that the paper states, with as many key-value heads as query heads
(its attention has 4 d^2 parameters). What the paper does not state (the dtype, the attention kernel, ...) contradicts
nothing. The batch size of (a) and (b) is derived from the values of (a).
"""

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from retbench.architectures import recorded
from retbench.papers.claims import Scale, load_claims
from retbench.papers.papers import RETNET_PAPER, Number, find_number, load_papers
from retbench.records.record import Record

BATCH = f"{RETNET_PAPER}/figure6a_batch/batch_size/value"
"""Place of the batch size of (a) and (b)."""


class PaperPoint(NamedTuple):
    """A value of the paper's figure, for a model of one architecture."""

    architecture: str
    batch_size: int
    context_len: int
    number: Number


def paper_points(letter: str) -> list[PaperPoint]:
    """Return the paper's values of a panel."""
    points = []
    for name, sheet in load_papers()[RETNET_PAPER].sheets.items():
        for row, column in ((row, column) for row in sheet.rows for column in sheet.columns):
            place = f"{RETNET_PAPER}/{name}/{row}/{column}"
            if letter == "c" and name.startswith("figure6c_") and sheet.kind != "derived":
                model = name.removeprefix("figure6c_")
                points.append(PaperPoint(model, int(column), int(row), find_number(place)))
            elif letter != "c" and name == f"figure6{letter}":
                batch_size = round(find_number(BATCH).value)
                points.append(PaperPoint(row, batch_size, int(column), find_number(place)))
    return points


def keep_comparable(points: Iterable[PaperPoint], records: Iterable[Record]) -> list[PaperPoint]:
    """Return the points whose stated conditions hold for all records of some model."""
    by_model: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.status == "ok":
            by_model.setdefault((record.model.architecture, record.model.name), []).append(record)
    return [
        point
        for point in points
        if any(
            architecture == point.architecture and all(_holds(point.number.place, record) for record in mine)
            for (architecture, _), mine in by_model.items()
        )
    ]


def _holds(place: str, record: Record) -> bool:
    """Return whether nothing stated about a number contradicts a record."""
    model = record.model
    features = recorded.baseline_features(model, record.backend)
    return _scale(_sheet(place)).holds(record) and "grouped" not in features


@cache
def _scale(sheet: str) -> Scale:
    """Return the size and device of a sheet, according to the claims that use it."""
    return next(claim.scale for claim in load_claims() if sheet in map(_sheet, claim.numbers))


def _sheet(place: str) -> str:
    """Return PAPER/SHEET of the place of a number."""
    return place.rsplit("/", 2)[0]
