"""The RetNet paper's own values for a figure, where nothing that it states contradicts the records beside them.

What it states is the size, the device and a key for every query (its attention has 4 d^2 parameters); the batch is
derived from Figure 6(a). What it does not state (the dtype, the attention kernel, ...) contradicts nothing, and is
named beside the figure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from retbench.architectures.registry import baseline_features
from retbench.papers.claims import Scale, load_claims
from retbench.papers.papers import KIND_WORDS, Number, find_number, load_papers
from retbench.records.record import Record

_PAPER = "retnet"
_BATCH = f"{_PAPER}/figure6a_batch/batch_size/value"


@dataclass(frozen=True)
class PaperPoint:
    """A value that the paper's figure has at a point, of a model of an architecture.

    Attributes:
        batch: Where the batch size is from; None where the figure has it.
    """

    architecture: str
    batch_size: int
    context_len: int
    number: Number
    batch: Number | None = None


def figure6a() -> list[PaperPoint]:
    """Bytes of inference by context length."""
    return _by_length("figure6a")


def figure6b() -> list[PaperPoint]:
    """Tokens a second by context length."""
    return _by_length("figure6b")


def figure6c() -> list[PaperPoint]:
    """Seconds a token by batch size and context length; two at a point are the ends of what others read off."""
    return [*_by_batch("figure6c_transformer", "transformer"), *_by_batch("figure6c_retnet", "retnet")]


def _by_length(sheet: str) -> list[PaperPoint]:
    """A row an architecture, a column a length; the batch of 6(a), and for want of another of 6(b), is derived."""
    batch = find_number(_BATCH)
    return [
        PaperPoint(
            row,
            round(batch.value),
            int(column),
            find_number(f"{_PAPER}/{sheet}/{row}/{column}"),
            batch,
        )
        for row, column in _cells(sheet)
    ]


def _by_batch(sheet: str, architecture: str) -> list[PaperPoint]:
    """A row a length, or one of the two ends of it ('8192_from'); a column a batch size."""
    return [
        PaperPoint(
            architecture,
            int(column),
            int(row.partition("_")[0]),
            find_number(f"{_PAPER}/{sheet}/{row}/{column}"),
        )
        for row, column in _cells(sheet)
    ]


def _cells(name: str) -> list[tuple[str, str]]:
    sheet = load_papers()[_PAPER].sheets[name]
    return [(row, column) for row in sheet.rows for column in sheet.columns]


def keep_comparable(points: Iterable[PaperPoint], records: Iterable[Record]) -> list[PaperPoint]:
    """The points whose stated conditions are those of some model's records.

    Args:
        points: Of a figure.
        records: What is drawn beside them.
    """
    by_model: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.status == "ok":
            by_model.setdefault((record.model.architecture, record.model.name), []).append(record)
    return [
        point
        for point in points
        if any(
            architecture == point.architecture
            and all(_holds(_sheet(point.number.place), each) for each in mine)
            for (architecture, _), mine in by_model.items()
        )
    ]


def _holds(sheet: str, record: Record) -> bool:
    """Whether nothing stated about a sheet contradicts a record."""
    features = baseline_features(record.model.architecture, record.model.config, record.backend)
    return _scale(sheet).holds(record) and "grouped" not in features


@cache
def _scale(sheet: str) -> Scale:
    """Size and device of a sheet, as the claims that rest on it have them."""
    return next(
        claim.scale for claim in load_claims() if any(_sheet(place) == sheet for place in claim.numbers)
    )


def _sheet(place: str) -> str:
    """PAPER/SHEET of the place of a number."""
    return place.rsplit("/", 2)[0]


def describe_kinds(points: Iterable[PaperPoint]) -> str:
    """How values came to be, in a word or two: 'read off', by whomever."""
    return ", ".join(dict.fromkeys(KIND_WORDS[point.number.kind].partition(" by ")[0] for point in points))


def describe_points(points: Sequence[PaperPoint]) -> str:
    """What the paper does not state about its values, and what is doubtful of them, in sentences."""
    numbers = [number for point in points for number in (point.number, point.batch) if number is not None]
    unknown = dict.fromkeys(item for number in numbers for item in number.conditions.not_stated)
    doubts: dict[str, dict[str, None]] = {}
    for number in numbers:
        doubts.setdefault(number.source.split()[-1], {}).update(dict.fromkeys(number.doubts))
    said = [f"{source}: {' '.join(words)}" for source, words in doubts.items() if words]
    return " ".join([f"Not stated there: {', '.join(unknown)}.", *said])
