"""Judged claims in words: as one Markdown table, and as plain data."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from retbench.analysis.claim_types import Verdict
from retbench.analysis.claims import Judged, Row
from retbench.analysis.formats import escape_markdown
from retbench.paper.papers import Number, find_number

VERDICT_WORDS: dict[Verdict, str] = {
    "reproduced": "reproduced",
    "partly": "partly",
    "not_reproduced": "not reproduced",
    "not_testable": "not testable",
}
_SCOPE_WORDS = {"paper": "as in the paper", "strong": "strong Transformer", "elsewhere": "elsewhere"}


def claims_markdown(judged: Sequence[Judged]) -> str:
    """How many claims have which verdict, then a row a claim and conditions; those of the paper come first."""
    lines = [
        count_verdicts(judged),
        "",
        "| claim | source | conditions | verdict | found, or missing |",
        "| :-- | :-- | :-- | :-- | :-- |",
    ]
    for each in judged:
        for number, row in enumerate(each.rows):
            lead = (each.claim.statement, each.claim.source) if number == 0 else ("", "")
            lines.append("| " + " | ".join(escape_markdown(cell) for cell in (*lead, *_cells(row))) + " |")
    return "\n".join([*lines, "", *(f"- {line}" for line in unknowns(judged))]) + "\n"


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


def describe_verdict(row: Row) -> str:
    """The verdict of a row; in brackets where it decides nothing: '(reproduced there)'."""
    verdict = VERDICT_WORDS[row.finding.verdict]
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
