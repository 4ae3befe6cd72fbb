"""Verdicts on the claims of papers, from records alone.

A claim is judged under the paper's own conditions; a claim that compares with a baseline is judged a second time with a
strong baseline. Records of other sizes and devices are judged by the same rule in rows of their own, and never decide.

`costs` and `quality` find the records that are judged together, and `cost_rules` and `quality_rules` judge
each such set. Here their rows become one verdict, and `tables` groups and prints the judged claims.
"""

from collections.abc import Sequence
from dataclasses import replace

from retbench.papers.claims import Claim, GateRule, QualityRule, Verdict, load_claims
from retbench.report.claims.cost_rules import largest_error
from retbench.report.claims.costs import cost_rows
from retbench.report.claims.judged import ClaimFinding, ClaimRow, JudgedClaim, Scope
from retbench.report.claims.quality import quality_rows
from retbench.report.claims.words import describe_conditions, describe_missing
from retbench.report.results import Results


def judge_claims(results: Results) -> list[JudgedClaim]:
    """Judge every claim, in the order of their file."""
    return [judge(claim, results) for claim in load_claims()]


def judge(claim: Claim, results: Results) -> JudgedClaim:
    """Judge one claim: the user's own records first, and apart from them the published ones."""
    records = [record for record in results.records if claim.covers(record)]
    found: list[ClaimRow] = []
    for is_published in (False, True):
        mine = [record for record in records if results.source_of(record).is_published == is_published]
        is_quality = isinstance(claim.rule, QualityRule)
        rows = quality_rows(claim, mine, results) if is_quality else cost_rows(claim, mine)
        for row in rows:
            files = sorted({results.source_of(record).path for record in row.records})
            found.append(replace(row, is_published=is_published, files=tuple(files)))
    if isinstance(claim.rule, GateRule):  # the largest error stands for all
        found.sort(key=lambda row: (row.is_published, -largest_error(row.records)))
    return _judged(claim, found)


def _judged(claim: Claim, found: Sequence[ClaimRow]) -> JudgedClaim:
    """Return a claim with its rows by scope; a scope of the claim without records has a row that says so."""
    rows: list[ClaimRow] = []
    scopes: tuple[Scope, ...] = ("paper", "strong") if claim.strong else ("paper",)
    for scope in scopes:
        rows += [row for row in found if row.scope == scope] or [_missing_row(claim, scope)]
    rows += [row for row in found if row.scope == "elsewhere"]
    return JudgedClaim(claim, _verdict(claim, rows), tuple(rows))


def _verdict(claim: Claim, rows: Sequence[ClaimRow]) -> Verdict:
    """Return the verdict of the newest row under the paper's conditions that answers.

    One failed equivalence check is enough to refute equivalence.
    """
    verdicts = [row.finding.verdict for row in rows if row.scope == "paper" and row.finding.answers]
    if isinstance(claim.rule, GateRule) and "not_reproduced" in verdicts:
        return "not_reproduced"
    return verdicts[0] if verdicts else "not_testable"


def _missing_row(claim: Claim, scope: Scope) -> ClaimRow:
    is_strong = scope == "strong"
    command = claim.strong_command if is_strong else claim.command
    finding = ClaimFinding("not_testable", describe_missing(claim))
    return ClaimRow(scope, describe_conditions(claim, is_strong=is_strong), finding, needed=command)
