"""The part of the report that is about the papers' claims: every verdict, then each claim with all that bears on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from retbench.papers.papers import KIND_WORDS, find_number
from retbench.report.claim_groups import Known, group_claims
from retbench.report.claim_table import (
    LEGEND,
    VERDICT_WORDS,
    count_verdicts,
    describe_scope,
    describe_verdict,
    telling_rows,
    unknowns,
    verdict_words,
)
from retbench.report.claims import Judged, Row, decides
from retbench.report.style import Drawing


@dataclass(frozen=True)
class Evidence:
    """What one set of records says of a claim, in words, or that there is none; its command and its runs."""

    conditions: str
    verdict: str
    found: str
    command: str | None
    records: str


@dataclass(frozen=True)
class Seen:
    """What records of one kind of conditions show, and how the claim fares there; empty where that is its verdict."""

    verdict: str
    text: str


@dataclass(frozen=True)
class ClaimEntry:
    """One claim as the report shows it.

    Attributes:
        name: Unique, fit for an anchor.
        statement: What the paper says.
        source: Paper and table or figure.
        verdict: Under the paper's own conditions, in words.
        seen: What the records show, one for each kind of conditions.
        missing: What a verdict would take, or why none is to be had; empty where there is one.
        command: That makes what is missing.
        numbers: Of the paper, and how it has them.
        doubts: What the paper does not state of them, and what is doubtful.
        rows: Everything that was found, one a set of records.
        figures: Of the same experiments.
    """

    name: str
    statement: str
    source: str
    verdict: str
    seen: list[Seen]
    missing: str
    command: str | None
    numbers: list[str]
    doubts: list[str]
    rows: list[Evidence]
    figures: list[Drawing]


@dataclass(frozen=True)
class ClaimGroup:
    """Claims of which as much is known, under a heading of their own."""

    known: Known
    title: str
    entries: list[ClaimEntry]


@dataclass(frozen=True)
class ClaimSection:
    """Everything that the report shows of the claims.

    Attributes:
        counts: How many have which verdict.
        legend: What the verdicts mean.
        groups: What was measured first.
    """

    counts: str
    legend: str
    groups: list[ClaimGroup]


def make_claim_section(judged: Sequence[Judged], drawings: Sequence[Drawing]) -> ClaimSection:
    """The part of the report that claims make.

    Args:
        judged: Every claim with its verdict.
        drawings: The figures of the report.
    """
    groups = [
        ClaimGroup(group.known, group.title, [_entry(each, drawings) for each in group.members])
        for group in group_claims(judged)
    ]
    return ClaimSection(count_verdicts(judged), LEGEND, groups)


def _entry(each: Judged, drawings: Sequence[Drawing]) -> ClaimEntry:
    """One claim."""
    lead, is_open = each.rows[0], each.verdict == "not_testable"
    return ClaimEntry(
        name=each.claim.name,
        statement=each.claim.statement,
        source=each.claim.source,
        verdict=VERDICT_WORDS[each.verdict],
        seen=_seen(each),
        missing=lead.finding.text if is_open and not lead.num_records else "",
        command=each.claim.command if is_open else None,
        numbers=[_describe_number(place) for place in each.claim.numbers],
        doubts=unknowns([each]),
        rows=[_evidence(row) for row in each.rows],
        figures=[drawing for drawing in drawings if set(drawing.experiments) & set(each.claim.experiments)],
    )


def _seen(each: Judged) -> list[Seen]:
    """What the records show, one for each kind of conditions; a verdict of the claim stands beside it already."""
    told = []
    for row, count in telling_rows(each):
        verdict = "" if row.scope == "paper" and decides(row.finding) else verdict_words(row)
        more = f" (one of {count})" if count > 1 else ""
        told.append(Seen(verdict, f"{describe_scope(row)}: {row.finding.text}{more}"))
    return told


def _describe_number(place: str) -> str:
    """A number of a paper with its place and how it came to be."""
    number = find_number(place)
    row, column = place.split("/")[2:]
    what = ", ".join(name.replace("_", " ") for name in (row, column) if name != "value")
    return f"{number.source}, {what}: {number.printed} ({KIND_WORDS[number.kind]})"


def _evidence(row: Row) -> Evidence:
    """One row in words."""
    runs = f"{row.num_records} in {', '.join(row.run_ids)}" if row.num_records else "none"
    return Evidence(describe_scope(row), describe_verdict(row), row.finding.text, row.command, runs)
