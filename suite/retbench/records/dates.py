"""Start times of records: their order, and the dates that are shown."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from retbench.errors import shown
from retbench.records.record import Record
from retbench.records.store import visible

_NEVER = datetime.min.replace(tzinfo=UTC)
_CLOCK_SKEW = timedelta(days=1)
"""By how much the clocks of two machines may differ."""


def started(record: Record) -> datetime:
    """Return the start of a record for an order of records; see `recorded_start` for what is shown.

    Where its text is no time, or one in the future, this is the earliest time that there is.
    """
    moment = recorded_start(record)
    return _NEVER if moment is None or _is_future(moment) else moment


def recorded_start(record: Record) -> datetime | None:
    """Return the start of a record in UTC as recorded; None where its text is no time."""
    return _moment(record.started_at)


def dates_of(records: Iterable[Record]) -> str:
    """Return the first and the last recorded date, such as "2026-01-02 to 2026-01-05" or "an unknown date"."""
    dates = sorted(moment.date().isoformat() for record in records if (moment := recorded_start(record)))
    return " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "an unknown date"


@cache
def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):  # an hour before the year 1
        return None


def _is_future(moment: datetime) -> bool:
    return moment > datetime.now(UTC) + _CLOCK_SKEW


def date_sentences(path: Path, records: Iterable[Record]) -> list[str]:
    """Return a sentence on the records of a file that are dated in the future, and one on those without a date."""
    later: list[datetime] = []
    undated: list[str] = []
    for record in records:
        moment = recorded_start(record)
        if moment is None:
            undated.append(record.started_at)
        elif _is_future(moment):
            later.append(moment)
    sentences = []
    if later:
        sentences.append(
            f"{len(later)} of its records are dated in the future, up to {max(later):%Y-%m-%d}: they count as the "
            "oldest. Set the clock of the machine that measured them, and measure again."
        )
    if undated:
        sentences.append(
            f"{len(undated)} of its records have a started_at that is no time, such as {shown(undated[0])}: they count "
            "as the oldest. Measure them again."
        )
    return [f"{visible(str(path))}: {sentence}" for sentence in sentences]
