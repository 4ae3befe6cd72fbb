"""Judged claims in words: all as Markdown tables, the headlines as one, and all as plain data."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from retbench.papers.papers import Number, find_number
from retbench.report.claim_groups import group_claims
from retbench.report.claim_types import Claim, Verdict
from retbench.report.claims import Judged, Row, decides
from retbench.report.comparisons import LEVEL_MARGIN
from retbench.report.cost_judgements import TOLERANCE
from retbench.report.formats import escape_markdown

VERDICT_WORDS: dict[Verdict, str] = {
    "reproduced": "reproduced",
    "partly": "partly",
    "not_reproduced": "not reproduced",
    "not_testable": "not testable",
}
LEGEND = (
    "Only records under a paper's own conditions decide a claim; what others show stands beside it, and decides "
    f"nothing. An advantage is reproduced where its whole interval reaches {100 * (1 - TOLERANCE):.0f} % of the "
    "printed one, and partly where an advantage is shown and not that much. A cost is the same at every length where "
    f"its 90 % interval lies within {100 * LEVEL_MARGIN:.0f} %; all other intervals are of 95 %. What an interval is "
    "too wide to tell is undecided."
)
"""What the verdicts mean."""
_SCOPE_WORDS = {"paper": "as in the paper", "strong": "strong Transformer", "elsewhere": "elsewhere"}


def claims_markdown(judged: Sequence[Judged]) -> str:
    """How many claims have which verdict, then a row a claim and conditions, what was measured first."""
    lines = [count_verdicts(judged), "", LEGEND]
    for group in group_claims(judged):
        lines += [
            "",
            f"### {group.title}",
            "",
            *_head("claim", "source", "conditions", "verdict", "found, or missing"),
        ]
        for each in group.members:
            for number, row in enumerate(each.rows):
                lead = (each.claim.statement, each.claim.source) if number == 0 else ("", "")
                lines.append(_line(*lead, *_cells(row)))
    if said := unknowns(judged):
        lines += ["", "### Not stated by the papers, or doubtful", "", *(f"- {line}" for line in said)]
    return "\n".join(lines) + "\n"


def headlines_markdown(judged: Sequence[Judged]) -> str:
    """A row a headline of the paper: what it claims, its verdict there, and what was measured elsewhere."""
    lines = _head("the paper's claim", "source", "under the paper's conditions", "measured elsewhere")
    for each in judged:
        if each.claim.headline:
            lines.append(_line(each.claim.statement, each.claim.source, *_answers(each)))
    return "\n".join(lines) + "\n"


def _answers(each: Judged) -> tuple[str, str]:
    """What is known of a claim under the paper's conditions, with both Transformers, and under others."""
    known = VERDICT_WORDS[each.verdict]
    elsewhere = "–"
    for row, more in telling_rows(each):
        finding = row.finding.text + (f" (one of {more})" if more > 1 else "")
        if row.scope == "paper":
            known = f"{known}: {finding}"
        elif row.scope == "strong":
            known = f"{known}; {describe_scope(row)}: {describe_verdict(row)}, {finding}"
        else:
            elsewhere = f"{verdict_words(row)} at {row.conditions}: {finding}"
    return known, elsewhere


def telling_rows(each: Judged) -> list[tuple[Row, int]]:
    """Of the rows with records one of each kind of conditions, and how many there are of that kind.

    It is that of the verdict under the paper's conditions. Under all others it is one that decides, with a Transformer
    as the paper's, of the experiment that the claim names first; of several the newest.
    """
    told = []
    measured = [row for row in each.rows if row.num_records]
    for scope in dict.fromkeys(row.scope for row in measured):
        mine = [row for row in measured if row.scope == scope]
        if scope == "paper":
            shown = next(row for row in mine if row.finding.verdict == each.verdict)
        else:
            shown = min(mine, key=lambda row: _distance(each.claim, row))
        told.append((shown, len(mine)))
    return told


def _distance(claim: Claim, row: Row) -> tuple[bool, int, int]:
    """How far a row is from what a claim is about; the least is the nearest."""
    unlike = row.features & set(claim.scale.without)
    named = claim.experiments.index(row.experiment) if row.experiment in claim.experiments else 0
    return not decides(row.finding), len(unlike), named


def _head(*names: str) -> list[str]:
    """The first two lines of a table of words."""
    return [_line(*names), _line(*(":--" for _ in names))]


def _line(*cells: str) -> str:
    return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"


def count_verdicts(judged: Sequence[Judged]) -> str:
    """How many claims have which verdict, in a sentence."""
    counts = Counter(each.verdict for each in judged)
    said = ", ".join(f"{counts[v]} {VERDICT_WORDS[v]}" for v in get_args(Verdict) if counts[v])
    return f"{len(judged)} claims under the papers' own conditions: {said}."


def unknowns(judged: Sequence[Judged]) -> list[str]:
    """What the papers do not state about the numbers of the claims, and what is doubtful of them, a line a source."""
    said: dict[str, dict[str, None]] = {}
    for number in (find_number(place) for each in judged for place in each.claim.numbers):
        words = said.setdefault(number.source, {})
        if number.conditions.not_stated:
            words[f"not stated: {', '.join(number.conditions.not_stated)}."] = None
        words |= dict.fromkeys(number.doubts)
    return [f"{source}: {' '.join(words)}" for source, words in said.items() if words]


def _cells(row: Row) -> tuple[str, str, str]:
    """Conditions, verdict and finding of a row; of one without records the command that makes them."""
    finding = row.finding.text
    if not row.num_records and row.command:
        finding = f"{finding}: `{row.command}`"
    return describe_scope(row), describe_verdict(row), finding


def describe_scope(row: Row) -> str:
    """Under which conditions a row was found: 'elsewhere: 3m, NVIDIA L4, float32'."""
    return f"{_SCOPE_WORDS[row.scope]}: {row.conditions}"


def verdict_words(row: Row) -> str:
    """The verdict of a row in words; records that were not enough for one leave the claim undecided."""
    return VERDICT_WORDS[row.finding.verdict] if decides(row.finding) or not row.num_records else "undecided"


def describe_verdict(row: Row) -> str:
    """The verdict of a row; in brackets where it decides nothing: '(reproduced there)'."""
    verdict = verdict_words(row)
    return f"({verdict} there)" if row.scope == "elsewhere" else verdict


def claims_json(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Every claim with its numbers, verdict and rows, in base units."""
    return [
        {
            "name": each.claim.name,
            "statement": each.claim.statement,
            "source": each.claim.source,
            "verdict": each.verdict,
            "numbers": [_number(find_number(place)) for place in each.claim.numbers],
            "rows": [
                {
                    "scope": row.scope,
                    "conditions": row.conditions,
                    **asdict(row.finding),
                    "command": row.command,
                    "num_records": row.num_records,
                    "run_ids": list(row.run_ids),
                }
                for row in each.rows
            ],
        }
        for each in judged
    ]


def _number(number: Number) -> dict[str, Any]:
    """A number of a paper, with what is not stated about it."""
    return {
        "place": number.place,
        "value": number.value,
        "unit": number.unit,
        "kind": number.kind,
        "source": number.source,
        "not_stated": list(number.conditions.not_stated),
        "doubts": list(number.doubts),
    }
