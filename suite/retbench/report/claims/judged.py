"""A judged claim: its verdict, and a row for each set of records that bears on it.

A rule makes a `ClaimFinding` of one set of records. A `ClaimRow` is a finding with its records and their conditions,
and a `JudgedClaim` is a claim with its rows.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from retbench.architectures.sizes import find_size
from retbench.papers.claims import Claim, Verdict
from retbench.records.dates import started
from retbench.records.record import Record
from retbench.report.points import group

Scope = Literal["paper", "strong", "elsewhere"]
"""paper: the paper's own conditions. strong: the same with a strong baseline. elsewhere: any other conditions."""

SCOPE_WORDS = {"paper": "as in the paper", "strong": "strong Transformer", "elsewhere": "other conditions"}


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
    def scope_words(self) -> str:
        """Kind of the conditions: 'as in the paper', 'strong Transformer' or 'other conditions'."""
        return SCOPE_WORDS[self.scope]

    @property
    def conditions_cell(self) -> str:
        """Conditions for the table of evidence: 'as in the paper: 6.7B, NVIDIA A100-SXM4-80GB, bfloat16'."""
        return f"{self.scope_words}: {self.conditions}"

    @property
    def verdict_words(self) -> str:
        """Verdict of these records alone: 'partly', or 'undecided' of records that do not decide."""
        is_undecided = self.records and not self.finding.decides
        return "undecided" if is_undecided else spell(self.finding.verdict)

    @property
    def verdict_cell(self) -> str:
        """Verdict for the table of evidence, in brackets where it does not count: '(partly there)'."""
        return f"({self.verdict_words} there)" if self.scope == "elsewhere" else self.verdict_words

    @property
    def record_words(self) -> str:
        """Number of records and their files below the results folder; 'none' without records."""
        return f"{self.num_records} in {', '.join(self.files)}" if self.records else "none"

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


class JudgedClaim(NamedTuple):
    """A claim, its verdict under the paper's own conditions, and its rows in the order of their scopes."""

    claim: Claim
    verdict: Verdict
    rows: tuple[ClaimRow, ...]

    @property
    def is_decided(self) -> bool:
        """True where records under the paper's own conditions gave a verdict."""
        return self.verdict != "not_testable"

    @property
    def verdict_words(self) -> str:
        """Verdict under the paper's own conditions: 'not testable'."""
        return spell(self.verdict)

    @property
    def verdict_cell(self) -> str:
        """Verdict for the short table; that of the first result, marked, where no record decides."""
        if self.is_decided or not self.results:
            return self.verdict_words
        return f"{self.results[0].verdict_words}, {self.results[0].scope_words}"

    @property
    def results(self) -> list[ClaimRow]:
        """Measured rows for the short table: one per origin and scope, the user's own before the published ones.

        Of several rows it is that of the verdict under the paper's conditions, and otherwise the nearest to the claim;
        of several the newest. Of two under the same kind of conditions with the same value and verdict, only the first
        is returned.
        """
        found: dict[tuple[str, str, str], ClaimRow] = {}
        for alike in self._rows_by_origin_and_scope().values():
            deciding = [row for row in alike if self._is_deciding(row)]
            row = deciding[0] if deciding else min(alike, key=lambda row: _distance(self.claim, row))
            found.setdefault((row.scope, row.verdict_words, row.finding.measured), row)
        return list(found.values())

    @property
    def result_lines(self) -> list[str]:
        """The results, one line each: '2.9× [2.35, 3.57] at batch 1, 8K (25M, AMD EPYC; published)'.

        Where its verdict is not that of the verdict's own cell, a line opens with its origin or kind of conditions and
        ends with its verdict: 'published: 2.9× [2.35, 3.57] at batch 1, 8K (25M, AMD EPYC; partly, other conditions)'.
        """
        counts = {key: len(alike) for key, alike in self._rows_by_origin_and_scope().items()}
        lines = []
        for index, row in enumerate(self.results):
            count = counts[row.is_published, row.scope]
            where = [row.short or row.conditions, *([f"one of {count} results"] if count > 1 else [])]
            is_in_cell = self._is_deciding(row) if self.is_decided else index == 0
            if is_in_cell:
                lead, end = "", ["published"] if row.is_published else []
            elif row.is_published:
                lead, end = "published: ", [f"{row.verdict_words}, {row.scope_words}"]
            else:
                lead, end = f"{row.scope_words}: ", [row.verdict_words]
            lines.append(f"{lead}{row.finding.measured} ({'; '.join([*where, *end])})")
        return lines

    def _rows_by_origin_and_scope(self) -> dict[tuple[bool, Scope], list[ClaimRow]]:
        """Return the measured rows, the user's own first."""
        measured = sorted((row for row in self.rows if row.records), key=lambda row: row.is_published)
        return group(measured, lambda row: (row.is_published, row.scope))

    def _is_deciding(self, row: ClaimRow) -> bool:
        return row.scope == "paper" and row.finding.verdict == self.verdict


def _distance(claim: Claim, row: ClaimRow) -> tuple[object, ...]:
    """Return how far a row is from the subject of a claim; the least is the nearest.

    Another baseline is another subject. Then the point or range counts, then whether several seeds were trained, the
    size of the models, whether the row decides, whether the steps ran as in the paper, and the order of the claim's
    experiments.
    """
    distance, unlike = row.finding.distance, row.features & set(claim.scale.without)
    params = max((record.model.num_params_nonembedding for record in row.records), default=0)
    size = abs(math.log(find_size(claim.scale.size).budget / params)) if claim.scale.size and params else 0.0
    named = claim.experiments.index(row.experiment) if row.experiment in claim.experiments else 0
    point = len(unlike - {"graphs"}), not distance, distance
    return *point, len(row.seeds) == 1, size, not row.finding.decides, len(unlike), named


def spell(verdict: Verdict) -> str:
    """Return a verdict in words: 'not reproduced'."""
    return verdict.replace("_", " ")
