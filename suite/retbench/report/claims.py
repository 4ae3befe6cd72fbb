"""Verdicts on the papers' claims, from records and nothing else.

A claim is judged under the paper's own conditions, and where it compares with a Transformer a second time with a strong
one. Records of other sizes and devices are judged by the same rule and stand in rows of their own: they say how the
claim fares there, and never decide it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from retbench.records.record import Record
from retbench.report.claim_types import (
    AheadRule,
    Claim,
    CostRule,
    CrossesRule,
    Feature,
    Finding,
    GateRule,
    NearRule,
    RatioRule,
    Rule,
    Verdict,
    load_claims,
)
from retbench.report.cost_judgements import judge_cost
from retbench.report.frames import Results, started
from retbench.report.quality_judgements import Reading, join_seeds, judge_quality
from retbench.report.setups import FEATURE_WORDS, Setup, find_setups
from retbench.units import format_count, format_tokens

Scope = Literal["paper", "strong", "elsewhere"]
"""paper: the paper's own conditions. strong: the same with a strong Transformer. elsewhere: any other."""


@dataclass(frozen=True)
class Row:
    """What one set of records says of a claim, or that there is none.

    Attributes:
        scope: Which conditions.
        conditions: In words.
        finding: The verdict and its numbers; what is missing where there are no records.
        command: That makes the records; of several runs all, in their order.
        num_records: That the finding is made of.
        run_ids: Of the runs that made them.
        experiment: That the newest of them belong to.
        features: Of the Transformer among them.
    """

    scope: Scope
    conditions: str
    finding: Finding
    command: str | None
    num_records: int = 0
    run_ids: tuple[str, ...] = ()
    experiment: str | None = None
    features: frozenset[Feature] = frozenset()


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict.

    Attributes:
        claim: The claim.
        verdict: Under the paper's own conditions.
        rows: The paper's conditions, then the strong Transformer, then all others.
    """

    claim: Claim
    verdict: Verdict
    rows: tuple[Row, ...]


def judge_claims(results: Results) -> list[Judged]:
    """Every claim, in the order of their file."""
    return [judge(claim, results) for claim in load_claims()]


def judge(claim: Claim, results: Results) -> Judged:
    """One claim."""
    if claim.rule is None:
        reason = Finding("not_testable", claim.untestable or "")
        return Judged(claim, "not_testable", (Row("paper", _conditions(claim), reason, None),))
    records = [
        record
        for record in results.records
        if not claim.experiments or record.experiment in claim.experiments
    ]
    found = (
        _quality_rows(claim, records, results)
        if isinstance(claim.rule, AheadRule | CrossesRule | NearRule)
        else _cost_rows(claim, claim.rule, records)
    )
    order: tuple[Scope, ...] = ("paper", "strong", "elsewhere") if claim.strong else ("paper", "elsewhere")
    rows = []
    for scope in order:
        mine = [row for row in found if row.scope == scope]
        rows += mine or ([_missing(claim, scope)] if scope != "elsewhere" else [])
    return Judged(claim, _verdict(claim.rule, rows), tuple(rows))


def _verdict(rule: Rule, rows: Sequence[Row]) -> Verdict:
    """That of the newest row under the paper's conditions that decides; forms that differ in any row are not equal."""
    found = [row.finding for row in rows if row.scope == "paper"]
    if isinstance(rule, GateRule) and any(finding.verdict == "not_reproduced" for finding in found):
        return "not_reproduced"
    return next((finding.verdict for finding in found if decides(finding)), "not_testable")


def _missing(claim: Claim, scope: Scope) -> Row:
    """That there are no records under some conditions, and how to make them."""
    command = claim.strong_command if scope == "strong" else claim.command
    words = _conditions(claim, strong=scope == "strong")
    return Row(scope, words, Finding("not_testable", f"needs {claim.needs}"), command)


def _conditions(claim: Claim, *, strong: bool = False) -> str:
    """The paper's conditions, or those of the second answer, in words."""
    scale = claim.scale
    parts = [*([scale.size] if scale.size else []), *([" ".join(scale.hardware)] if scale.hardware else [])]
    if scale.dtypes:
        parts.append(" or ".join(scale.dtypes))
    if scale.chunk_size:
        parts.append(f"chunks of {scale.chunk_size}")
    if scale.num_tokens:
        parts.append(f"trained on {format_count(scale.num_tokens)} tokens")
    if scale.context_len:
        parts.append(f"contexts of {format_tokens(scale.context_len)}")
    having = claim.strong if strong else scale.having
    without = () if strong else scale.without
    parts += [FEATURE_WORDS[feature][0] for feature in having]
    parts += [FEATURE_WORDS[feature][1] for feature in without]
    return ", ".join(parts) or "any"


def _cost_rows(claim: Claim, rule: CostRule, records: Sequence[Record]) -> list[Row]:
    """A row a setup that bears on a claim, the newest first; of those that read alike the newest that decides."""
    reference = rule.reference if isinstance(rule, RatioRule) else None
    rows: dict[object, Row] = {}
    mine = [each for each in records if isinstance(rule, GateRule) or each.workload == rule.workload]
    for setup in find_setups(mine, rule.challenger, reference):
        scope = _scope(claim, setup)
        if scope is None:
            continue
        finding = judge_cost(claim, rule, setup, at_scale=scope != "elsewhere")
        key = setup.latest.experiment, setup.words, setup.challenger[0].model.name
        if finding is not None and (key not in rows or decides(finding) > decides(rows[key].finding)):
            row = _row(scope, setup.words, finding, setup.records)
            rows[key] = replace(row, features=setup.features)
    return list(rows.values())


def decides(finding: Finding) -> bool:
    """Whether records were enough for a verdict."""
    return finding.verdict != "not_testable"


def _scope(claim: Claim, setup: Setup) -> Scope | None:
    """Under which conditions a setup was measured; None where its Transformer is not the one that a claim is about."""
    scale, features = claim.scale, setup.features
    is_strong = bool(claim.strong) and features >= set(claim.strong)
    if not features >= set(scale.having) and not is_strong:
        return None
    if not scale.holds(setup.challenger[0]):
        return "elsewhere"
    if not features & set(scale.without):
        return "paper"
    return "strong" if is_strong else "elsewhere"


def _quality_rows(claim: Claim, records: Sequence[Record], results: Results) -> list[Row]:
    """A row a size that bears on a claim, of all its seeds; away from the paper's conditions a row a seed."""
    assert isinstance(claim.rule, AheadRule | CrossesRule | NearRule)
    found: dict[Scope, list[Reading]] = {"paper": [], "elsewhere": []}
    for reading in judge_quality(claim, claim.rule, records, results.folders):
        found["paper" if _is_as_in_the_paper(claim, reading) else "elsewhere"].append(reading)
    found["paper"] = join_seeds(found["paper"])
    return [
        _row(scope, reading.words, reading.finding, reading.records)
        for scope, readings in found.items()
        for reading in readings
    ]


def _is_as_in_the_paper(claim: Claim, reading: Reading) -> bool:
    """Whether models and questions are the paper's, as far as records tell."""
    scale = claim.scale
    return (
        scale.size in (None, reading.size)
        and (scale.num_tokens is None or (reading.num_tokens or 0) >= scale.num_tokens)
        and not reading.lacking
    )


def _row(scope: Scope, words: str, finding: Finding, records: Sequence[Record]) -> Row:
    """A row with where it comes from."""
    in_order = sorted(records, key=started)
    commands = dict.fromkeys(record.command for record in in_order)
    run_ids = tuple(sorted({record.run_id for record in records}))
    return Row(scope, words, finding, " && ".join(commands), len(records), run_ids, in_order[-1].experiment)
