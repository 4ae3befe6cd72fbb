"""Verdicts on the claims of papers, from records alone.

A claim is judged under the paper's own conditions; a claim that compares with a baseline is judged a second time with a
strong baseline. Records of other sizes and devices are judged by the same rule in rows of their own, and never decide.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from retbench.architectures.recorded import baseline_features, unusual_settings
from retbench.architectures.registry import is_baseline
from retbench.papers.claims import (
    Claim,
    GateRule,
    NearRule,
    QualityRule,
    RatioRule,
    Side,
    SlicesRule,
    Verdict,
    load_claims,
)
from retbench.records.record import Record
from retbench.report.claim_rules import Setup, judge_cost, largest_error
from retbench.report.claim_words import describe_missing
from retbench.report.frames import Results, keep_latest, set_of, started
from retbench.report.judged_claims import ClaimFinding, ClaimRow, JudgedClaim, Scope, in_order
from retbench.report.points import group, mismatch
from retbench.report.quality_claims import quality_rows
from retbench.report.selection import model_settings, shared_settings
from retbench.report.wording import device_name
from retbench.units import format_count, format_size, format_tokens

FEATURE_WORDS = {
    "products": ("attention by products", ""),
    "fused": ("fused attention", "plain attention"),
    "grouped": ("grouped-query attention", "multi-head attention"),
    "graphs": ("CUDA graphs or compiled", "no CUDA graphs"),
    "concatenated": ("concat cache", ""),
}
"""Words for a baseline with a feature, and for one without; empty where the latter is usual."""


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
        rows = quality_rows(claim, mine, results) if is_quality else _cost_rows(claim, mine)
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
    return ClaimRow(scope, _conditions(claim, is_strong=is_strong), finding, needed=command)


def _conditions(claim: Claim, *, is_strong: bool = False) -> str:
    """Describe the paper's conditions, or those with a strong baseline."""
    scale = claim.scale
    parts = [
        part
        for part in (format_size(scale.size or ""), " ".join(scale.hardware), " or ".join(scale.dtypes))
        if part
    ]
    if scale.chunk_size:
        parts.append(f"chunks of {scale.chunk_size}")
    if scale.num_kv_heads:
        parts.append(f"{scale.num_kv_heads} key-value heads")
    if scale.num_tokens:
        parts.append(f"trained on {format_count(scale.num_tokens)} tokens")
    if scale.context_len:
        parts.append(f"contexts of {format_tokens(scale.context_len)}")
    if scale.text:
        parts.append(f"on {scale.text}")
    parts += [FEATURE_WORDS[feature][0] for feature in (claim.strong if is_strong else scale.having)]
    parts += [FEATURE_WORDS[feature][1] for feature in (() if is_strong else scale.without)]
    return ", ".join(parts) or "any"


def _cost_rows(claim: Claim, records: Iterable[Record]) -> list[ClaimRow]:
    """Return a row per setup, the newest first; of setups with the same words, the newest that answers."""
    if claim.rule is None:
        return []
    assert not isinstance(claim.rule, NearRule | SlicesRule)
    reference = claim.rule.reference if isinstance(claim.rule, RatioRule) else None
    rows: dict[object, ClaimRow] = {}
    for setup in find_setups(records, claim.rule.challenger, reference):
        features = _features(setup.records) or frozenset()
        scope = _scope(claim, setup, features)
        finding = scope and judge_cost(claim, setup, at_scale=scope != "elsewhere")
        words = describe_setup(setup.records)
        key = setup.latest.experiment, words, setup.challenger[0].model.name
        if scope and finding and (key not in rows or finding.answers > rows[key].finding.answers):
            rows.pop(key, None)  # rows are ordered by their own records, not by those that they replace
            short = ", ".join(
                [format_size(setup.latest.model.size), device_name(setup.latest), *_step_words(claim, setup)]
            )
            finding = finding._replace(notes=(*finding.notes, *filter(None, [claim.note])))
            records = in_order(setup.records)
            rows[key] = ClaimRow(scope, words, finding, records, features=features, short=short)
    return list(rows.values())


def _step_words(claim: Claim, setup: Setup) -> list[str]:
    """Return how the decode steps ran, of a claim about them: 'eager', 'compiled' or 'CUDA graphs'."""
    if isinstance(claim.rule, GateRule) or setup.latest.workload != "decode":
        return []
    ran = next((record.backend for record in setup.records if record.status == "ok"), {})
    words = [word for name, word in (("compile", "compiled"), ("cuda_graph", "CUDA graphs")) if ran.get(name)]
    return words or ["eager"]


def _scope(claim: Claim, setup: Setup, features: frozenset[str]) -> Scope | None:
    """Return the scope of a setup; None where its baseline is not the one that the claim is about."""
    is_strong = bool(claim.strong) and features >= set(claim.strong) and "concatenated" not in features
    if not features >= set(claim.scale.having) and not is_strong:
        return None
    has_heads = all(claim.scale.has_kv_heads(side[0]) for side in setup if side)
    if not claim.scale.holds(setup.challenger[0]) or not has_heads:
        return "elsewhere"
    if not features & set(claim.scale.without):
        return "paper"
    return "strong" if is_strong else "elsewhere"


def find_setups(records: Iterable[Record], challenger: Side, reference: Side | None) -> list[Setup]:
    """Return each way of running the challenger with each way of running the reference, the newest first.

    Records of one setup share experiment, machine, dtype, code and settings.
    """
    setups = []
    for alike in group(
        keep_latest(records), lambda r: (set_of(r), r.experiment, shared_settings(r))
    ).values():
        ways = group(alike, lambda record: (record.model.name, model_settings(record))).values()
        for mine in (each for each in ways if challenger.has(each[0])):
            if reference is None:
                setups.append(Setup(tuple(mine)))
                continue
            others = (
                each
                for each in ways
                if each is not mine and reference.has(each[0]) and mismatch(mine[0], each[0]) is None
            )
            setups += [Setup(tuple(mine), tuple(theirs)) for theirs in others]
    return sorted(setups, key=lambda setup: started(setup.latest), reverse=True)


def _features(records: Iterable[Record]) -> frozenset[str] | None:
    """Return the features of the baseline as it ran; None without a baseline, or where it failed."""
    for record in records:
        if record.status == "ok" and is_baseline(record.model.architecture):
            return baseline_features(record.model.architecture, record.model.config, record.backend)
    return None


def describe_setup(records: Sequence[Record]) -> str:
    """Describe size, device, dtype, settings that differ from the defaults, and how the baseline ran."""
    record = records[0]
    model = record.model
    unusual = unusual_settings(model.architecture, model.config, record.settings)
    parts = [format_size(model.size), device_name(record), str(set_of(record).dtype), *unusual]
    features = _features(records)
    if features is not None:
        stated = FEATURE_WORDS.keys() - ({"fused"} if "products" in features else set())
        words = [
            has if name in features else lacks
            for name, (has, lacks) in FEATURE_WORDS.items()
            if name in stated
        ]
        parts.append(" + ".join(word for word in words if word not in ("", FEATURE_WORDS["graphs"][1])))
    return ", ".join(parts)
