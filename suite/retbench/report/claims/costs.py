"""Rows of the claims on costs: one per setup, a way of running the challenger with a way of running the reference."""

from collections.abc import Iterable, Sequence

from retbench.architectures.recorded import baseline_features, unusual_settings
from retbench.architectures.registry import is_baseline
from retbench.papers.claims import Claim, GateRule, NearRule, RatioRule, Side, SlicesRule
from retbench.records.dates import started
from retbench.records.record import Record
from retbench.report.claims.cost_rules import Setup, judge_cost
from retbench.report.claims.judged import ClaimRow, Scope, in_order
from retbench.report.claims.words import FEATURE_WORDS
from retbench.report.latest import keep_latest
from retbench.report.lineup import mismatch
from retbench.report.points import group
from retbench.report.provenance import step_words
from retbench.report.results import set_of
from retbench.report.selection import model_settings, shared_settings
from retbench.report.wording import device_name
from retbench.units import format_size


def cost_rows(claim: Claim, records: Iterable[Record]) -> list[ClaimRow]:
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
    return step_words(next((record.backend for record in setup.records if record.status == "ok"), {}))


def _scope(claim: Claim, setup: Setup, features: frozenset[str]) -> Scope | None:
    """Return the scope of a setup; None where its baseline is not the one that the claim is about."""
    is_strong = bool(claim.strong) and features >= set(claim.strong) and "concatenated" not in features
    if not features >= set(claim.scale.having) and not is_strong:
        return None
    has_config = all(claim.scale.has_config(side[0]) for side in setup if side)
    if not claim.scale.holds(setup.challenger[0]) or not has_config:
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
            return baseline_features(record.model, record.backend)
    return None


def describe_setup(records: Sequence[Record]) -> str:
    """Describe size, device, dtype, settings that differ from the defaults, and how the baseline ran."""
    record = records[0]
    model = record.model
    unusual = unusual_settings(model, record.settings)
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
