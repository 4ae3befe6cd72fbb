"""Judged claims as the rows of a short table, with all evidence, and as Markdown and JSON."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import pandas as pd

from retbench.architectures.sizes import find_size
from retbench.papers.claims import Claim, Verdict
from retbench.papers.papers import Number, find_number
from retbench.report.claim_rows import ClaimRow
from retbench.report.claim_rules import TOLERANCE
from retbench.report.claim_words import describe_need, describe_needed, describe_number, describe_paper
from retbench.report.claims import JudgedClaim
from retbench.report.comparisons import LEVEL_MARGIN
from retbench.report.formats import markdown_table

if TYPE_CHECKING:
    from retbench.report.drawing import Drawing  # imports matplotlib

LEGEND = (
    "Only records under a paper's own conditions decide a claim; records of other conditions are listed with it and "
    "decide nothing. An advantage is reproduced if its whole interval reaches "
    f"{100 * (1 - TOLERANCE):.0f} % of the printed one, and partly reproduced if the whole interval is an advantage, "
    "but a smaller one. It is not reproduced if its interval has 1 in it and leaves room for at most "
    f"{100 * TOLERANCE:.0f} % of the printed one. A cost is the same at every length if its 90 % interval lies within "
    f"{100 * LEVEL_MARGIN:.0f} %; all other intervals are of 95 %. A claim is undecided where the interval is too "
    "wide, or where the records say nothing about it. A perplexity at a longer context than the training's does not "
    "count."
)
"""Meaning of the verdicts."""
_SCOPE_WORDS = {"paper": "as in the paper", "strong": "strong Transformer", "elsewhere": "other conditions"}


class ClaimResult(NamedTuple):
    """Measurement that bears on a claim, under one kind of conditions."""

    verdict: str
    """Verdict of these records alone: 'partly'."""
    is_in_cell: bool
    """True of the result whose verdict is in the verdict's own cell."""
    measured: str
    """Value with its interval and point: '2.9× [2.35, 3.57] at batch 1, 8K'."""
    scope: str
    """Kind of the conditions: 'as in the paper', 'strong Transformer' or 'other conditions'."""
    conditions: str
    """Size and device: '25M, AMD EPYC'; of quality, size and training."""
    is_published: bool
    """True of records that come with the project, false of the user's own."""
    num_results: int
    """Number of results of the same kind, of which this is one."""

    @property
    def text(self) -> str:
        """The result in one line: '2.9× [2.35, 3.57] at batch 1, 8K (25M, AMD EPYC; published)'.

        Where its verdict is not in the verdict's own cell, it opens with its origin or kind of conditions and ends with
        its verdict: 'published: 2.9× [2.35, 3.57] at batch 1, 8K (25M, AMD EPYC; partly, other conditions)'.
        """
        where = [self.conditions]
        where += [f"one of {self.num_results} results"] if self.num_results > 1 else []
        if self.is_in_cell:
            where += ["published"] if self.is_published else []
            return f"{self.measured} ({'; '.join(where)})"
        lead = "published" if self.is_published else self.scope
        where += [f"{self.verdict}, {self.scope}" if self.is_published else self.verdict]
        return f"{lead}: {self.measured} ({'; '.join(where)})"


class EvidenceRow(NamedTuple):
    """One set of records in words; `found` says what is needed where there are none."""

    conditions: str
    verdict: str
    found: str
    command: str | None
    records: str
    """Number of records and their files below the results folder."""


@dataclass(frozen=True)
class ClaimEntry:
    """One claim as it is shown: first the cells of the short table, then the evidence.

    Attributes:
        name: Unique, fit for an anchor.
        statement: The claim.
        paper: The paper's number with its conditions: '15.6x at batch 8, 8K; 6.7B, one A100-80GB'.
        here: Results, the user's own before the published ones; of two with the same value and verdict, the first.
        verdict: Verdict under the paper's own conditions.
        source: Paper and table or figure.
        missing: What a verdict needs, or why none is possible; empty where there is a verdict.
        command: Command that makes what is missing.
        numbers: Numbers of the paper, and how they were obtained.
        doubts: What the paper does not state about them, and what is doubtful.
        rows: All evidence, one row per set of records.
        figures: Figures of the same experiments.
    """

    name: str
    statement: str
    paper: str
    here: tuple[ClaimResult, ...]
    verdict: str
    source: str
    missing: str
    command: str | None
    numbers: list[str]
    doubts: list[str]
    rows: list[EvidenceRow]
    figures: "list[Drawing]"

    @property
    def verdict_cell(self) -> str:
        """Verdict for the short table; that of the first result, marked, where no record decides."""
        if self.verdict != "not testable" or not self.here:
            return self.verdict
        return f"{self.here[0].verdict}, {self.here[0].scope}"


class ClaimGroup(NamedTuple):
    """Claims that need the same for a verdict, the measured ones first."""

    title: str
    needed: str
    """Requirements that all of them share, in one line of Markdown; empty for decided claims."""
    entries: list[ClaimEntry]

    @property
    def shown(self) -> list[ClaimEntry]:
        """Claims that have a row in a short table: those that are decided or have results."""
        return [entry for entry in self.entries if entry.here or not self.needed]


class ClaimSection(NamedTuple):
    """Everything that is shown about claims: counts of verdicts, their legend, and the claims by group."""

    counts: str
    legend: str
    groups: list[ClaimGroup]


def make_claim_section(judged: Sequence[JudgedClaim], drawings: "Sequence[Drawing]" = ()) -> ClaimSection:
    """Group the claims: decided ones first, and then the others by what a verdict needs.

    Args:
        judged: The claims.
        drawings: The report's figures, to which the claims refer.
    """
    groups: dict[tuple[int, str], list[JudgedClaim]] = {}
    for each in judged:
        is_decided = each.verdict != "not_testable"
        key = (-1, "Decided under the paper's conditions") if is_decided else describe_need(each.claim)
        groups.setdefault(key, []).append(each)
    found = []
    for (rank, title), members in sorted(groups.items(), key=lambda item: item[0][0]):
        members = sorted(members, key=lambda each: not any(row.records for row in each.rows))
        entries = [_entry(each, drawings) for each in members]
        needed = describe_needed([each.claim for each in members]) if rank >= 0 else ""
        found.append(ClaimGroup(f"{title} ({len(entries)})", needed, entries))
    return ClaimSection(_count_verdicts(judged), LEGEND, found)


def _entry(each: JudgedClaim, drawings: "Sequence[Drawing]") -> ClaimEntry:
    claim, lead, is_open = each.claim, each.rows[0], each.verdict == "not_testable"
    return ClaimEntry(
        name=claim.name,
        statement=claim.statement,
        paper=describe_paper(claim),
        here=_results(each),
        verdict=_spell(each.verdict),
        source=claim.source,
        missing=lead.finding.text if is_open and not lead.records else "",
        command=claim.command if is_open else None,
        numbers=[describe_number(place) for place in claim.numbers],
        doubts=_limitations([each]),
        rows=[_evidence(row) for row in each.rows],
        figures=[drawing for drawing in drawings if set(drawing.experiments) & set(claim.experiments)],
    )


def _main_rows(each: JudgedClaim) -> list[tuple[ClaimRow, int]]:
    """Return one measured row per origin and scope, with the number of measured rows like it, the user's own first.

    Of several rows it is that of the verdict under the paper's conditions, and otherwise the nearest to the claim; of
    several the newest.
    """
    alike: dict[tuple[bool, str], list[ClaimRow]] = {}
    for row in each.rows:
        if row.records:
            alike.setdefault((row.is_published, row.scope), []).append(row)
    chosen = []
    for (_, scope), rows in sorted(alike.items(), key=lambda item: item[0][0]):
        verdicts = [row for row in rows if scope == "paper" and row.finding.verdict == each.verdict]
        row = verdicts[0] if verdicts else min(rows, key=lambda row: _distance(each.claim, row))
        chosen.append((row, len(rows)))
    return chosen


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


def _results(each: JudgedClaim) -> tuple[ClaimResult, ...]:
    """Return the results of a claim, of which one gives the verdict where records decide, and else the first.

    Of two results under the same kind of conditions with the same value and verdict, only the first is returned.
    """
    found: dict[tuple[str, str, str], ClaimResult] = {}
    for index, (row, count) in enumerate(_main_rows(each)):
        is_deciding = row.scope == "paper" and row.finding.verdict == each.verdict
        result = ClaimResult(
            verdict=_verdict_words(row),
            is_in_cell=index == 0 if each.verdict == "not_testable" else is_deciding,
            measured=row.finding.measured,
            scope=_SCOPE_WORDS[row.scope],
            conditions=row.short or row.conditions,
            is_published=row.is_published,
            num_results=count,
        )
        found.setdefault((result.scope, result.verdict, result.measured), result)
    return tuple(found.values())


def _evidence(row: ClaimRow) -> EvidenceRow:
    verdict = _verdict_words(row)
    return EvidenceRow(
        f"{_SCOPE_WORDS[row.scope]}: {row.conditions}",
        f"({verdict} there)" if row.scope == "elsewhere" else verdict,
        row.finding.text,
        row.command,
        f"{row.num_records} in {', '.join(row.files)}" if row.records else "none",
    )


def _verdict_words(row: ClaimRow) -> str:
    """Return the verdict of a row; measured rows that do not decide leave the claim undecided."""
    return _spell(row.finding.verdict) if row.finding.decides or not row.records else "undecided"


def _spell(verdict: Verdict) -> str:
    return verdict.replace("_", " ")


def _count_verdicts(judged: Sequence[JudgedClaim]) -> str:
    """Return how many claims have each verdict under the papers' conditions, and how many others under other ones."""
    decided = Counter(_spell(each.verdict) for each in judged)
    undecided = [each for each in judged if each.verdict == "not_testable"]
    elsewhere = Counter(results[0].verdict for each in undecided if (results := _results(each)))
    line = f"{len(judged)} claims under the papers' own conditions: {_list_counts(decided)}."
    if elsewhere:
        some = f"{sum(elsewhere.values())} of the {len(undecided)} that these do not decide"
        line += f" {some} have results under other conditions: {_list_counts(elsewhere)}."
    return line


def _list_counts(counts: Counter[str]) -> str:
    verdicts = [*map(_spell, get_args(Verdict)), "undecided"]
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in verdicts if counts[verdict])


def _limitations(judged: Sequence[JudgedClaim]) -> list[str]:
    """Return a line per source: what the papers do not state about the claims' numbers, and what is doubtful."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for number in (find_number(place) for each in judged for place in each.claim.numbers):
        unstated, doubts = found.setdefault(number.source, ({}, {}))
        unstated |= dict.fromkeys(number.conditions.not_stated)
        doubts |= dict.fromkeys(number.doubts)
    lines = []
    for source, (unstated, doubts) in found.items():
        words = [*([f"not stated: {', '.join(unstated)}."] if unstated else []), *doubts]
        lines += [f"{source}: {' '.join(words)}"] if words else []
    return lines


def claim_table(group: ClaimGroup) -> pd.DataFrame:
    """Return the claims of a group as text: claim, paper, here, verdict."""
    rows = [
        [entry.statement, entry.paper, "; ".join(one.text for one in entry.here), entry.verdict_cell]
        for entry in group.entries
    ]
    return pd.DataFrame(rows, columns=["claim", "paper", "here", "verdict"])


def claims_markdown(judged: Sequence[JudgedClaim]) -> str:
    """Return the counts of the verdicts, a short table per group, and then all evidence."""
    section = make_claim_section(judged)
    lines = [section.counts, "", section.legend]
    for group in section.groups:
        lines += ["", f"### {group.title}", ""]
        lines += [group.needed, ""] if group.needed else []
        lines.append(markdown_table(claim_table(group)))
    lines += ["", "### Evidence", ""]
    lines.append(markdown_table(_evidence_table(section)))
    if limitations := _limitations(judged):
        lines += ["", "### Not stated by the papers, or doubtful", "", *(f"- {line}" for line in limitations)]
    return "\n".join(lines) + "\n"


def _evidence_table(section: ClaimSection) -> pd.DataFrame:
    """Return a row per claim and conditions; the claim and its source are in its first row."""
    found = []
    for entry in (entry for group in section.groups for entry in group.entries):
        lead = entry.statement, entry.source
        for row in entry.rows:
            needed = f": `{row.command}`" if row.command and row.records == "none" else ""
            found.append([*lead, row.conditions, row.verdict, row.found + needed, row.records])
            lead = "", ""
    columns = ["claim", "source", "conditions", "verdict", "measured, or needed", "records"]
    return pd.DataFrame(found, columns=columns)


def headlines_markdown(judged: Sequence[JudgedClaim]) -> str:
    """Return a table of the headlines: claim, the paper's number, what was measured, verdict."""
    entries = [_entry(each, ()) for each in judged if each.claim.headline]
    return markdown_table(claim_table(ClaimGroup("", "", entries))) + "\n"


def claims_json(judged: Sequence[JudgedClaim]) -> list[dict[str, Any]]:
    """Return every claim with its numbers, verdict and rows, in base units."""
    return [
        {
            **each.claim.model_dump(include={"name", "statement", "source"}),
            "verdict": each.verdict,
            "numbers": [_number_json(find_number(place)) for place in each.claim.numbers],
            "rows": [
                {
                    "scope": row.scope,
                    "conditions": row.conditions,
                    **row.finding._asdict(),
                    "command": row.command,
                    "num_records": row.num_records,
                    "run_ids": list(row.run_ids),
                }
                for row in each.rows
            ],
        }
        for each in judged
    ]


def _number_json(number: Number) -> dict[str, Any]:
    fields = {name: getattr(number, name) for name in ("place", "value", "unit", "kind", "source")}
    return fields | {"not_stated": list(number.conditions.not_stated), "doubts": list(number.doubts)}
