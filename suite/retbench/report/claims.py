"""Verdicts on the claims of papers, from records alone.

A claim is judged under the paper's own conditions; a claim that compares with a baseline is judged a second time with a
strong baseline. Records of other sizes and devices are judged by the same rule in rows of their own, and never decide.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from retbench.architectures.registry import baseline_features, is_baseline, unusual_settings
from retbench.papers.claims import (
    AheadRule,
    Claim,
    CrossesRule,
    GateRule,
    NearRule,
    RatioRule,
    Scale,
    Side,
    Verdict,
    load_claims,
)
from retbench.records.record import Record
from retbench.report.claim_rules import (
    ClaimFinding,
    QualityLead,
    Setup,
    judge_ahead,
    judge_cost,
    judge_crossing,
    judge_near,
)
from retbench.report.frames import ComparableSet, Results, keep_latest, set_of, started
from retbench.report.pairing import Folders, compare
from retbench.report.readings import (
    Subject,
    fact,
    num_trained_tokens,
    question_of,
    select_readings,
    subject_of,
)
from retbench.report.scenes import device_name
from retbench.report.selection import model_settings, shared_settings
from retbench.units import format_count, format_tokens

Scope = Literal["paper", "strong", "elsewhere"]
"""paper: the paper's own conditions. strong: the same with a strong baseline. elsewhere: any other conditions."""

FEATURE_WORDS = {
    "fused": ("fused attention", "plain attention"),
    "grouped": ("grouped-query attention", "multi-head attention"),
    "graphs": ("CUDA graphs or compiled", "no CUDA graphs"),
}
"""Words for a baseline with a feature, and for one without."""


@dataclass(frozen=True)
class ClaimRow:
    """Verdict of one set of records, or a statement that there are none.

    Attributes:
        scope: Kind of the conditions.
        conditions: The conditions in words.
        finding: Verdict and numbers; what is needed where there are no records.
        records: The records in the order in which they were started.
        needed: Command that makes the records where there are none.
        features: Features of the baseline among the records.
    """

    scope: Scope
    conditions: str
    finding: ClaimFinding
    records: tuple[Record, ...] = ()
    needed: str | None = None
    features: frozenset[str] = frozenset()

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


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdict.

    Attributes:
        claim: The claim.
        verdict: Verdict under the paper's own conditions.
        rows: Rows of the paper's conditions, then of the strong baseline, then of all others.
    """

    claim: Claim
    verdict: Verdict
    rows: tuple[ClaimRow, ...]


def judge_claims(results: Results) -> list[JudgedClaim]:
    """Judge every claim, in the order of their file."""
    return [judge(claim, results) for claim in load_claims()]


def judge(claim: Claim, results: Results) -> JudgedClaim:
    """Judge one claim."""
    if claim.rule is None:
        reason = ClaimFinding("not_testable", claim.untestable or "")
        return JudgedClaim(claim, "not_testable", (ClaimRow("paper", _conditions(claim), reason),))
    records = [record for record in results.records if claim.covers(record)]
    is_quality = isinstance(claim.rule, AheadRule | CrossesRule | NearRule)
    found = _quality_rows(claim, records, results.folders) if is_quality else _cost_rows(claim, records)
    rows: list[ClaimRow] = []
    for scope in _scopes(claim):
        mine = [row for row in found if row.scope == scope]
        rows += mine or ([_missing_row(claim, scope)] if scope != "elsewhere" else [])
    return JudgedClaim(claim, _verdict(claim, rows), tuple(rows))


def _scopes(claim: Claim) -> tuple[Scope, ...]:
    return ("paper", "strong", "elsewhere") if claim.strong else ("paper", "elsewhere")


def _verdict(claim: Claim, rows: Sequence[ClaimRow]) -> Verdict:
    """Return the verdict of the newest row under the paper's conditions that decides.

    One failed equivalence check is enough to refute equivalence.
    """
    verdicts = [row.finding.verdict for row in rows if row.scope == "paper" and row.finding.decides]
    if isinstance(claim.rule, GateRule) and "not_reproduced" in verdicts:
        return "not_reproduced"
    return verdicts[0] if verdicts else "not_testable"


def _missing_row(claim: Claim, scope: Scope) -> ClaimRow:
    is_strong = scope == "strong"
    command = claim.strong_command if is_strong else claim.command
    finding = ClaimFinding("not_testable", f"needs {claim.needs}")
    return ClaimRow(scope, _conditions(claim, is_strong=is_strong), finding, needed=command)


def _conditions(claim: Claim, *, is_strong: bool = False) -> str:
    """Describe the paper's conditions, or those with a strong baseline."""
    scale = claim.scale
    parts = [part for part in (scale.size, " ".join(scale.hardware), " or ".join(scale.dtypes)) if part]
    if scale.chunk_size:
        parts.append(f"chunks of {scale.chunk_size}")
    if scale.num_tokens:
        parts.append(f"trained on {format_count(scale.num_tokens)} tokens")
    if scale.context_len:
        parts.append(f"contexts of {format_tokens(scale.context_len)}")
    parts += [FEATURE_WORDS[feature][0] for feature in (claim.strong if is_strong else scale.having)]
    parts += [FEATURE_WORDS[feature][1] for feature in (() if is_strong else scale.without)]
    return ", ".join(parts) or "any"


def _row(
    scope: Scope,
    conditions: str,
    finding: ClaimFinding,
    records: Iterable[Record],
    features: frozenset[str] = frozenset(),
) -> ClaimRow:
    return ClaimRow(scope, conditions, finding, tuple(sorted(records, key=started)), features=features)


# ---- cost ------------------------------------------------------------------------------------------------------------


def _cost_rows(claim: Claim, records: Iterable[Record]) -> list[ClaimRow]:
    """Return a row per setup, the newest first; of setups with the same words, the newest that decides."""
    assert claim.rule is not None
    assert not isinstance(claim.rule, NearRule)
    reference = claim.rule.reference if isinstance(claim.rule, RatioRule) else None
    rows: dict[object, ClaimRow] = {}
    for setup in find_setups(records, claim.rule.challenger, reference):
        features = features_of(setup.records)
        scope = _scope(claim, setup.challenger[0], features)
        finding = scope and judge_cost(claim, setup, at_scale=scope != "elsewhere")
        words = describe_setup(setup.records)
        key = setup.latest.experiment, words, setup.challenger[0].model.name
        if scope and finding and (key not in rows or finding.decides > rows[key].finding.decides):
            rows[key] = _row(scope, words, finding, setup.records, features)
    return list(rows.values())


def _scope(claim: Claim, record: Record, features: frozenset[str]) -> Scope | None:
    """Return the scope of a setup; None where its baseline is not the one that the claim is about."""
    is_strong = bool(claim.strong) and features >= set(claim.strong)
    if not features >= set(claim.scale.having) and not is_strong:
        return None
    if not claim.scale.holds(record):
        return "elsewhere"
    if not features & set(claim.scale.without):
        return "paper"
    return "strong" if is_strong else "elsewhere"


def find_setups(records: Iterable[Record], challenger: Side, reference: Side | None) -> list[Setup]:
    """Return every way of running the challenger beside every way of running the reference, the newest first.

    Records of one setup share experiment, machine, dtype, code and settings.
    """
    groups: dict[object, dict[object, list[Record]]] = {}
    for record in keep_latest(records):
        conditions = (set_of(record), record.experiment, shared_settings(record))
        way = (record.model.name, model_settings(record))
        groups.setdefault(conditions, {}).setdefault(way, []).append(record)
    setups = []
    for group in groups.values():
        for mine in (each for each in group.values() if challenger.has(each[0])):
            if reference is None:
                setups.append(Setup(tuple(mine)))
                continue
            others = (each for each in group.values() if each is not mine and reference.has(each[0]))
            setups += [Setup(tuple(mine), tuple(theirs)) for theirs in others]
    return sorted(setups, key=lambda setup: started(setup.latest), reverse=True)


def _measured_baseline(records: Iterable[Record]) -> Record | None:
    """Return a record that shows how the baseline ran; a failed one does not."""
    measured = (record for record in records if record.status == "ok")
    return next((record for record in measured if is_baseline(record.model.architecture)), None)


def features_of(records: Iterable[Record]) -> frozenset[str]:
    """Return the features of the baseline among some records, as it ran."""
    record = _measured_baseline(records)
    if record is None:
        return frozenset()
    return baseline_features(record.model.architecture, record.model.config, record.backend)


def describe_setup(records: Sequence[Record]) -> str:
    """Describe size, device, dtype, settings that differ from the defaults, and how the baseline ran."""
    record = records[0]
    model = record.model
    unusual = unusual_settings(model.architecture, model.config, record.settings)
    parts = [model.size, device_name(record), str(set_of(record).dtype), *unusual]
    if _measured_baseline(records) is not None:
        features = features_of(records)
        words = {name: has if name in features else lacks for name, (has, lacks) in FEATURE_WORDS.items()}
        if "graphs" not in features:
            del words["graphs"]
        parts.append(" + ".join(words.values()))
    return ", ".join(parts)


# ---- quality ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QualityEvidence:
    """Comparisons of one model with another, or metric values of one model, that make one row.

    Attributes:
        models: Size or name of the models.
        training: Training of the models, in words; empty where the claim names them.
        size: Size of the models; None where the row spans sizes.
        num_tokens: Tokens that the models were trained on; None where not recorded.
        records: The records.
        finding: Their verdict.
        seeds: Seeds of the training; empty where there is none, or the row spans them.
        lacking: Documents or context that the paper's evaluation has more of, in words.
    """

    models: str
    training: str
    size: str | None
    num_tokens: int | None
    records: tuple[Record, ...]
    finding: ClaimFinding
    seeds: tuple[int, ...] = ()
    lacking: str = ""

    @property
    def words(self) -> str:
        """The models in words: '25m seed 0, trained on 20.0 M tokens, 50 documents'."""
        seeds = ", ".join(map(str, self.seeds))
        seeds = seeds and f" seed{'s' if len(self.seeds) > 1 else ''} {seeds}"
        return ", ".join(part for part in (self.models + seeds, self.training, self.lacking) if part)

    def meets(self, scale: Scale) -> bool:
        """Return whether models and evaluations are the paper's, as far as records show."""
        has_tokens = scale.num_tokens is None or (self.num_tokens or 0) >= scale.num_tokens
        return scale.size in (None, self.size) and has_tokens and not self.lacking


def _quality_rows(claim: Claim, records: Iterable[Record], folders: Folders) -> list[ClaimRow]:
    """Return a row per size, the newest first; under other conditions than the paper's, a row per size and seed."""
    newest: dict[str, QualityEvidence] = {}
    found = _find_evidence(claim, records, folders)
    for each in sorted(found, key=lambda each: max(map(started, each.records)), reverse=True):
        newest.setdefault(each.words, each)
    as_in_paper = [each for each in newest.values() if each.meets(claim.scale)]
    others = [each for each in newest.values() if not each.meets(claim.scale)]
    by_scope: tuple[tuple[Scope, list[QualityEvidence]], ...] = (
        ("paper", _join_seeds(as_in_paper)),
        ("elsewhere", others),
    )
    return [
        _row(scope, each.words, each.finding, each.records)
        for scope, evidence in by_scope
        for each in evidence
    ]


def _find_evidence(claim: Claim, records: Iterable[Record], folders: Folders) -> Iterator[QualityEvidence]:
    """Judge the records of each set of conditions, and of each shortfall against the paper's evaluations."""
    groups: dict[tuple[ComparableSet, str], list[Record]] = {}
    for record in records:
        if record.status == "ok":
            key = replace(set_of(record), pair_id=""), _lacking(claim.scale, record)
            groups.setdefault(key, []).append(record)
    for (_, lacking), group in groups.items():
        values = select_readings(group).records
        match claim.rule:
            case AheadRule() as rule:
                found = _ahead_evidence(rule, _leads(rule, values, folders))
            case CrossesRule() as rule:
                found = _crossing_evidence(rule, _leads(rule, values, folders))
            case NearRule() as rule:
                found = _near_evidence(claim, rule, values)
        yield from (replace(each, lacking=lacking) for each in found)


def _lacking(scale: Scale, record: Record) -> str:
    """Describe the shortfall of a record against the paper's evaluation: fewer documents, or a shorter context."""
    limit, context_len = fact(record, "limit"), record.point.context_len
    parts = [] if limit is None else [f"{limit} documents"]
    if scale.context_len is not None and context_len < scale.context_len:
        parts.append(f"at {format_tokens(context_len)}")
    return " ".join(parts)


def _leads(
    rule: AheadRule | CrossesRule, records: Sequence[Record], folders: Folders
) -> dict[Subject, list[QualityLead]]:
    """Compare both sides wherever they may be compared; by size and seed."""
    found: dict[Subject, list[QualityLead]] = {}
    references = {
        (question_of(record), subject_of(record)): record for record in records if rule.reference.has(record)
    }
    for record in records:
        theirs = references.get((question_of(record), subject_of(record)))
        lead = _lead(record, theirs, folders) if theirs and rule.challenger.has(record) else None
        if lead is not None:
            found.setdefault(subject_of(record), []).append(lead)
    return found


def _lead(mine: Record, theirs: Record, folders: Folders) -> QualityLead | None:
    """Return the lead of one record over another; None where they may not be compared."""
    found = compare(mine, theirs, folders)
    if found.ratio is not None:
        low, high = found.ratio.low, found.ratio.high
        is_significant = None if low is None or high is None else not low <= 1 <= high
        return QualityLead((mine, theirs), 1 - found.ratio.value, is_significant)
    if "acc" in found.accuracies:
        pair = found.accuracies["acc"]
        return QualityLead((mine, theirs), pair.difference, not pair.low <= 0 <= pair.high)
    return None


def _ahead_evidence(
    rule: AheadRule, by_subject: dict[Subject, list[QualityLead]]
) -> Iterator[QualityEvidence]:
    for subject, leads in by_subject.items():
        records = tuple(record for lead in leads for record in lead.records)
        tokens, seeds = num_trained_tokens(records[0]), () if subject.seed is None else (subject.seed,)
        finding = judge_ahead(rule, leads)
        yield QualityEvidence(subject.size, _tokens(tokens), subject.size, tokens, records, finding, seeds)


def _crossing_evidence(
    rule: CrossesRule, by_subject: dict[Subject, list[QualityLead]]
) -> Iterator[QualityEvidence]:
    """Judge all sizes in one: those of the claim where they were measured, else the smallest and the largest."""
    leads: dict[str, list[QualityLead]] = {}
    for subject, made in by_subject.items():
        leads.setdefault(subject.size, []).extend(made)
    sizes = sorted(leads, key=lambda size: leads[size][0].records[0].model.num_params_nonembedding)
    if len(sizes) < 2:
        return
    is_scale = {*rule.behind_at, *rule.ahead_at} <= set(sizes)
    small, large = (rule.behind_at, rule.ahead_at) if is_scale else (sizes[:1], sizes[-1:])
    finding = judge_crossing({size: leads[size] for size in small}, {size: leads[size] for size in large})
    records = tuple(record for size in (*small, *large) for lead in leads[size] for record in lead.records)
    tokens = [num_trained_tokens(record) for record in records]
    known = [count for count in tokens if count is not None]
    least = min(known) if len(known) == len(tokens) else None
    size = rule.ahead_at[-1] if is_scale else None
    yield QualityEvidence(f"{sizes[0]} to {sizes[-1]}", _tokens(least), size, least, records, finding)


def _near_evidence(claim: Claim, rule: NearRule, records: Iterable[Record]) -> Iterator[QualityEvidence]:
    for record in records:
        weights = record.model.weights
        if weights and weights.source == rule.checkpoint and rule.metric in record.metrics:
            finding = judge_near(claim, rule, record.metrics[rule.metric].value)
            yield QualityEvidence(rule.checkpoint, "", record.model.size, None, (record,), finding)


def _tokens(count: int | None) -> str:
    return "training tokens not recorded" if count is None else f"trained on {format_count(count)} tokens"


def _join_seeds(found: Iterable[QualityEvidence]) -> list[QualityEvidence]:
    """Join evidence that differs only in the seed of the training."""
    alike: dict[tuple[str, bool], list[QualityEvidence]] = {}
    for each in found:
        alike.setdefault((replace(each, seeds=()).words, bool(each.seeds)), []).append(each)
    return [mine[0] if len(mine) == 1 else _joined(mine) for mine in alike.values()]


def _joined(found: Sequence[QualityEvidence]) -> QualityEvidence:
    """Return one row of several seeds; `partly` where the seeds do not agree."""
    ordered = sorted(found, key=lambda each: each.seeds)
    verdicts = [each.finding.verdict for each in ordered]
    verdict: Verdict = verdicts[0] if len(set(verdicts)) == 1 else "partly"
    if set(verdicts) - {"not_testable"} == {"not_reproduced"}:
        verdict = "not_reproduced"
    text = "; ".join(f"seed {each.seeds[0]}: {each.finding.text}" for each in ordered)
    return replace(
        ordered[0],
        seeds=tuple(seed for each in ordered for seed in each.seeds),
        records=tuple(record for each in ordered for record in each.records),
        finding=ClaimFinding(
            verdict, f"reproduced at {verdicts.count('reproduced')} of {len(ordered)} seeds; {text}"
        ),
    )
