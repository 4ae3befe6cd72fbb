"""A verdict on a claim by one set of records, with its numbers, and as a row of the table of claims."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from retbench.papers.claims import Verdict
from retbench.records.record import Record
from retbench.report.frames import started

Scope = Literal["paper", "strong", "elsewhere"]
"""paper: the paper's own conditions. strong: the same with a strong baseline. elsewhere: any other conditions."""


class ClaimFinding(NamedTuple):
    """Verdict of one set of records with its numbers; `not_testable` where the records cannot decide the claim."""

    verdict: Verdict
    measured: str
    """Value with its interval and point; what is needed where there are no records."""
    notes: tuple[str, ...] = ()
    """The paper's number, points that failed, and the command that narrows the interval."""
    distance: tuple[float, ...] = ()
    """Doublings between the claim's point and the measured one; of a range, those that were not measured and those of
    the other coordinate. Empty where there is no value, and for rules without a point."""
    is_wide: bool = False
    """True where the interval is too wide for a verdict, which is an answer too: older records do not replace it."""

    @property
    def text(self) -> str:
        """All of it in one line."""
        return "; ".join((self.measured, *self.notes))

    @property
    def decides(self) -> bool:
        """True where the records were enough for a verdict."""
        return self.verdict != "not_testable"

    @property
    def answers(self) -> bool:
        """True where the records were enough for a verdict, or for an interval that is too wide for one."""
        return self.decides or self.is_wide


def decided(is_reproduced: bool, measured: str, *notes: str) -> ClaimFinding:
    """Return a finding that is reproduced or not."""
    return ClaimFinding("reproduced" if is_reproduced else "not_reproduced", measured, notes)


@dataclass(frozen=True)
class ClaimRow:
    """Verdict of one set of records, or a statement that there are none.

    Attributes:
        scope: Kind of the conditions.
        words: The conditions in words, but for seeds.
        short: Size and device of a cost; empty where `conditions` is short enough.
        finding: Verdict and numbers; what is needed where there are no records.
        records: The records in the order in which they were started.
        needed: Command that makes the records where there are none.
        features: Features of the baseline among the records.
        seeds: Seeds of the training; empty where it has none, or the row spans them.
        is_published: True of records that come with the project, false of the user's own.
        files: Files of the records, below the results folder.
    """

    scope: Scope
    words: str
    finding: ClaimFinding
    records: tuple[Record, ...] = ()
    needed: str | None = None
    features: frozenset[str] = frozenset()
    seeds: tuple[int, ...] = ()
    is_published: bool = False
    files: tuple[str, ...] = ()
    short: str = ""

    @property
    def conditions(self) -> str:
        """Conditions in words: '25M, trained on 20.0 M tokens, 50 documents, seed 0'."""
        return f"{self.words}, {self.seed_words}" if self.seeds else self.words

    @property
    def seed_words(self) -> str:
        """The seeds in words: 'seed 0', 'seeds 0, 1, 2'."""
        return f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"

    @property
    def num_records(self) -> int:
        """Number of records."""
        return len(self.records)

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Sorted identifiers of the runs that made the records."""
        return tuple(sorted({record.run_id for record in self.records}))

    @property
    def experiment(self) -> str | None:
        """Experiment of the newest record."""
        return self.records[-1].experiment if self.records else None

    @property
    def command(self) -> str | None:
        """Commands that made the records, or would make them."""
        return " && ".join(dict.fromkeys(record.command for record in self.records)) or self.needed


def in_order(records: Iterable[Record]) -> tuple[Record, ...]:
    """Return records in the order in which they were started."""
    return tuple(sorted(records, key=started))
