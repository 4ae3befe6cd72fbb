"""Judged claims as Markdown tables, as a short table of the headlines, as a section of the report, and as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from retbench.papers.claims import Claim, Verdict
from retbench.papers.papers import KIND_WORDS, Number, find_number
from retbench.report.claim_rules import TOLERANCE
from retbench.report.claims import ClaimRow, JudgedClaim
from retbench.report.comparisons import LEVEL_MARGIN
from retbench.report.formats import escape_markdown

if TYPE_CHECKING:
    from retbench.report.style import Drawing  # imports matplotlib

Known = Literal["decided", "measured", "open"]
"""decided: there is a verdict under the paper's conditions. measured: there are records, but none decides. open: there
are no records."""

LEGEND = (
    "Only records under a paper's own conditions decide a claim; records of other conditions are listed with it and "
    "decide nothing. An advantage is reproduced if its whole interval reaches "
    f"{100 * (1 - TOLERANCE):.0f} % of the printed one, and partly reproduced if an advantage is shown but a smaller "
    "one. A cost is the same at every length if its 90 % interval lies within "
    f"{100 * LEVEL_MARGIN:.0f} %; all other intervals are of 95 %. A claim is undecided where the interval is too wide."
)
"""Meaning of the verdicts."""
_SCOPE_WORDS = {"paper": "as in the paper", "strong": "strong Transformer", "elsewhere": "other conditions"}


def _rank(each: JudgedClaim) -> tuple[int, Known, str]:
    """Return position, state and title of the group of a claim."""
    scale = each.claim.scale
    if each.verdict != "not_testable":
        return 0, "decided", "Decided under the paper's conditions"
    if any(row.records for row in each.rows):
        return 1, "measured", "Measured, not decided"
    if each.claim.rule is None:
        return 5, "open", "Not measured: no run here can decide"
    if scale.hardware:
        return 2, "open", f"Not measured: a verdict needs the paper's hardware, {' '.join(scale.hardware)}"
    if scale.num_tokens:
        return 3, "open", "Not measured: a verdict needs models trained as in the paper"
    return 4, "open", "Not measured yet"


def _main_rows(each: JudgedClaim) -> list[tuple[ClaimRow, int]]:
    """Return one measured row per scope, with the number of measured rows of that scope.

    Under the paper's conditions it is the row of the verdict. Otherwise, a row that decides, with the paper's kind of
    baseline, of the experiment that the claim names first; of several the newest.
    """
    chosen = []
    measured = [row for row in each.rows if row.records]
    for scope in dict.fromkeys(row.scope for row in measured):
        mine = [row for row in measured if row.scope == scope]
        if scope == "paper":
            row = next(row for row in mine if row.finding.verdict == each.verdict)
        else:
            row = min(mine, key=lambda row: _distance(each.claim, row))
        chosen.append((row, len(mine)))
    return chosen


def _distance(claim: Claim, row: ClaimRow) -> tuple[bool, int, int]:
    """Return how far a row is from the subject of a claim; the least is the nearest."""
    unlike = row.features & set(claim.scale.without)
    named = claim.experiments.index(row.experiment) if row.experiment in claim.experiments else 0
    return not row.finding.decides, len(unlike), named


class EvidenceWords(NamedTuple):
    """One row of a claim in words; `found` says what is needed where there are no records."""

    conditions: str
    verdict: str
    found: str
    command: str | None
    records: str


def _describe(row: ClaimRow) -> EvidenceWords:
    verdict = _verdict_words(row)
    return EvidenceWords(
        f"{_SCOPE_WORDS[row.scope]}: {row.conditions}",
        f"({verdict} there)" if row.scope == "elsewhere" else verdict,
        row.finding.text,
        row.command,
        f"{row.num_records} in {', '.join(row.run_ids)}" if row.records else "none",
    )


def _verdict_words(row: ClaimRow) -> str:
    """Return the verdict of a row; measured rows that do not decide leave the claim undecided."""
    return _spell(row.finding.verdict) if row.finding.decides or not row.records else "undecided"


def _spell(verdict: Verdict) -> str:
    return verdict.replace("_", " ")


def _count_verdicts(judged: Sequence[JudgedClaim]) -> str:
    counts = Counter(each.verdict for each in judged)
    words = ", ".join(f"{counts[v]} {_spell(v)}" for v in get_args(Verdict) if counts[v])
    return f"{len(judged)} claims under the papers' own conditions: {words}."


def _limitations(judged: Sequence[JudgedClaim]) -> list[str]:
    """Return a line per source: what the papers do not state about the claims' numbers, and what is doubtful."""
    found: dict[str, dict[str, None]] = {}
    for number in (find_number(place) for each in judged for place in each.claim.numbers):
        words = found.setdefault(number.source, {})
        if number.conditions.not_stated:
            words[f"not stated: {', '.join(number.conditions.not_stated)}."] = None
        words |= dict.fromkeys(number.doubts)
    return [f"{source}: {' '.join(words)}" for source, words in found.items() if words]


def claims_markdown(judged: Sequence[JudgedClaim]) -> str:
    """Return the counts of the verdicts, then a table per group with a row per claim and conditions."""
    section = make_claim_section(judged)
    lines = [section.counts, "", section.legend]
    for group in section.groups:
        lines += ["", f"### {group.title}", ""]
        lines += _head("claim", "source", "conditions", "verdict", "measured, or needed")
        for claim in group.entries:
            lead = claim.statement, claim.source
            for row in claim.rows:
                needed = f": `{row.command}`" if row.command and row.records == "none" else ""
                lines.append(_line(*lead, row.conditions, row.verdict, row.found + needed))
                lead = "", ""
    if limitations := _limitations(judged):
        lines += ["", "### Not stated by the papers, or doubtful", "", *(f"- {line}" for line in limitations)]
    return "\n".join(lines) + "\n"


def headlines_markdown(judged: Sequence[JudgedClaim]) -> str:
    """Return a table of the headlines: claim, verdict, and what was measured under other conditions."""
    lines = _head("the paper's claim", "source", "under the paper's conditions", "under other conditions")
    for each in judged:
        if each.claim.headline:
            lines.append(_line(each.claim.statement, each.claim.source, *_headline(each)))
    return "\n".join(lines) + "\n"


def _headline(each: JudgedClaim) -> tuple[str, str]:
    """Return the result under the paper's conditions, with both baselines, and that under other conditions."""
    under_paper, under_others = _spell(each.verdict), "–"
    for row, count in _main_rows(each):
        words = _describe(row)
        found = words.found + _one_of(count)
        if row.scope == "paper":
            under_paper = f"{under_paper}: {found}"
        elif row.scope == "strong":
            under_paper = f"{under_paper}; {words.conditions}: {words.verdict}, {found}"
        else:
            under_others = f"{_verdict_words(row)} at {row.conditions}: {found}"
    return under_paper, under_others


def _one_of(count: int) -> str:
    return f" (one of {count})" if count > 1 else ""


def _head(*names: str) -> list[str]:
    return [_line(*names), _line(*(":--" for _ in names))]


def _line(*cells: str) -> str:
    return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"


class MeasuredWords(NamedTuple):
    """Result under one kind of conditions; `verdict` is empty where it is the verdict of the claim."""

    verdict: str
    text: str


@dataclass(frozen=True)
class ClaimEntry:
    """One claim as the report shows it.

    Attributes:
        name: Unique, fit for an anchor.
        verdict: Verdict under the paper's own conditions, in words.
        seen: Results, one per kind of conditions.
        missing: What a verdict needs, or why none is possible; empty where there is one.
        command: Command that makes what is missing.
        numbers: Numbers of the paper, and how they were obtained.
        doubts: What the paper does not state about them, and what is doubtful.
        rows: All evidence, one row per set of records.
        figures: Figures of the same experiments.
    """

    name: str
    statement: str
    source: str
    verdict: str
    seen: list[MeasuredWords]
    missing: str
    command: str | None
    numbers: list[str]
    doubts: list[str]
    rows: list[EvidenceWords]
    figures: "list[Drawing]"


class ClaimGroup(NamedTuple):
    """Claims in the same state of evidence, in the order of their file; the title has what a verdict needs."""

    known: Known
    title: str
    entries: list[ClaimEntry]


class ClaimSection(NamedTuple):
    """Everything that is shown about claims: counts of verdicts, their legend, and the claims by group."""

    counts: str
    legend: str
    groups: list[ClaimGroup]


def make_claim_section(judged: Sequence[JudgedClaim], drawings: "Sequence[Drawing]" = ()) -> ClaimSection:
    """Group the claims: decided ones, then measured ones, and then the others by what a verdict needs.

    Args:
        judged: The claims.
        drawings: The report's figures, to which the claims refer.
    """
    groups: dict[tuple[int, Known, str], list[ClaimEntry]] = {}
    for each in judged:
        groups.setdefault(_rank(each), []).append(_entry(each, drawings))
    found = [
        ClaimGroup(known, f"{title} ({len(entries)})", entries)
        for (_, known, title), entries in sorted(groups.items(), key=lambda item: item[0])
    ]
    return ClaimSection(_count_verdicts(judged), LEGEND, found)


def _entry(each: JudgedClaim, drawings: "Sequence[Drawing]") -> ClaimEntry:
    claim, lead, is_open = each.claim, each.rows[0], each.verdict == "not_testable"
    return ClaimEntry(
        name=claim.name,
        statement=claim.statement,
        source=claim.source,
        verdict=_spell(each.verdict),
        seen=[_measured_words(row, count) for row, count in _main_rows(each)],
        missing=lead.finding.text if is_open and not lead.records else "",
        command=claim.command if is_open else None,
        numbers=[_describe_number(place) for place in claim.numbers],
        doubts=_limitations([each]),
        rows=[_describe(row) for row in each.rows],
        figures=[drawing for drawing in drawings if set(drawing.experiments) & set(claim.experiments)],
    )


def _measured_words(row: ClaimRow, count: int) -> MeasuredWords:
    is_claims_own = row.scope == "paper" and row.finding.decides
    words = _describe(row)
    text = f"{words.conditions}: {words.found}{_one_of(count)}"
    return MeasuredWords("" if is_claims_own else _verdict_words(row), text)


def _describe_number(place: str) -> str:
    number = find_number(place)
    row, column = place.split("/")[2:]
    names = ", ".join(name.replace("_", " ") for name in (row, column) if name != "value")
    return f"{number.source}, {names}: {number.printed} ({KIND_WORDS[number.kind]})"


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
