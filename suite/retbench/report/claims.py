"""Verdicts on the claims of papers, from records alone.

A claim is judged under the paper's own conditions; a claim that compares with a baseline is judged a second time with a
strong baseline. Records of other sizes and devices are judged by the same rule in rows of their own, and never decide.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from retbench.architectures.recorded import baseline_features, unusual_settings
from retbench.architectures.registry import is_baseline
from retbench.architectures.sizes import find_size
from retbench.papers.claims import (
    AheadRule,
    Claim,
    CrossesRule,
    GateRule,
    NearRule,
    QualityRule,
    RatioRule,
    Scale,
    Side,
    SlicesRule,
    Verdict,
    load_claims,
)
from retbench.records.record import Record
from retbench.report.claim_rules import ClaimFinding, Setup, judge_cost
from retbench.report.claim_words import describe_missing
from retbench.report.document_comparisons import Folders
from retbench.report.frames import ComparableSet, Results, keep_latest, set_of, started
from retbench.report.points import (
    ModelInstance,
    fact,
    is_final,
    mismatch,
    num_trained_tokens,
    replicate_of,
)
from retbench.report.quality_rules import (
    QualityLead,
    SlicesPair,
    find_leads,
    find_slice_pairs,
    judge_ahead,
    judge_crossing,
    judge_near,
    judge_slices,
)
from retbench.report.selection import model_settings, newest_evaluations, shared_settings
from retbench.report.wording import device_name
from retbench.units import format_count, format_size, format_tokens

Scope = Literal["paper", "strong", "elsewhere"]
"""paper: the paper's own conditions. strong: the same with a strong baseline. elsewhere: any other conditions."""

FEATURE_WORDS = {
    "products": ("attention by products", ""),
    "fused": ("fused attention", "plain attention"),
    "grouped": ("grouped-query attention", "multi-head attention"),
    "graphs": ("CUDA graphs or compiled", "no CUDA graphs"),
    "concatenated": ("concat cache", ""),
}
"""Words for a baseline with a feature, and for one without; empty where the latter is usual."""


@dataclass(frozen=True)
class ClaimRow:
    """Verdict of one set of records, or a statement that there are none.

    Attributes:
        scope: Kind of the conditions.
        words: The conditions in words, but for seeds.
        short: Size and device of a cost; empty where `conditions` is short enough.
        finding: Verdict and numbers; what is needed where there are no records.
        records: The records in the order in which they were started.
        needed: Command that makes the records where there are none.
        features: Features of the baseline among the records.
        seeds: Seeds of the training; empty where it has none, or the row spans them.
        is_published: True of records that come with the project, false of the user's own.
        files: Files of the records, below the results folder.
    """

    scope: Scope
    words: str
    finding: ClaimFinding
    records: tuple[Record, ...] = ()
    needed: str | None = None
    features: frozenset[str] = frozenset()
    seeds: tuple[int, ...] = ()
    is_published: bool = False
    files: tuple[str, ...] = ()
    short: str = ""

    @property
    def conditions(self) -> str:
        """Conditions in words: '25M, trained on 20.0 M tokens, 50 documents, seed 0'."""
        plural = "s" if len(self.seeds) > 1 else ""
        return f"{self.words}, seed{plural} {', '.join(map(str, self.seeds))}" if self.seeds else self.words

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


class JudgedClaim(NamedTuple):
    """A claim, its verdict under the paper's own conditions, and its rows in the order of their scopes."""

    claim: Claim
    verdict: Verdict
    rows: tuple[ClaimRow, ...]


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
        rows = _quality_rows(claim, mine, results) if is_quality else _cost_rows(claim, mine)
        for row in rows:
            files = sorted({results.source_of(record).path for record in row.records})
            found.append(replace(row, is_published=is_published, files=tuple(files)))
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


def _in_order(records: Iterable[Record]) -> tuple[Record, ...]:
    return tuple(sorted(records, key=started))


def _cost_rows(claim: Claim, records: Iterable[Record]) -> list[ClaimRow]:
    """Return a row per setup, the newest first; of setups with the same words, the newest that decides."""
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
        if scope and finding and (key not in rows or finding.decides > rows[key].finding.decides):
            short = ", ".join(
                [format_size(setup.latest.model.size), device_name(setup.latest), *_step_words(claim, setup)]
            )
            finding = finding._replace(notes=(*finding.notes, *filter(None, [claim.note])))
            records = _in_order(setup.records)
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
            others = (
                each
                for each in group.values()
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
        told = FEATURE_WORDS.keys() - ({"fused"} if "products" in features else set())
        words = [
            has if name in features else lacks for name, (has, lacks) in FEATURE_WORDS.items() if name in told
        ]
        parts.append(" + ".join(word for word in words if word not in ("", FEATURE_WORDS["graphs"][1])))
    return ", ".join(parts)


def _quality_rows(claim: Claim, records: Iterable[Record], results: Results) -> list[ClaimRow]:
    """Return a row per size, the newest first; under other conditions than the paper's, a row per size and seed."""
    trainings = [each for each in results.records if replicate_of(each) == "seed" and is_final(each)]
    groups: dict[tuple[ComparableSet, str], list[Record]] = {}
    for record in records:
        if record.status == "ok":
            key = set_of(record), _lacking(claim.scale, record)
            groups.setdefault(key, []).append(record)
    found = [
        row
        for (_, lacking), group in groups.items()
        for row in _judge_quality(claim, newest_evaluations(group)[0], lacking, results.folders, trainings)
    ]
    newest: dict[str, ClaimRow] = {}
    for row in sorted(found, key=lambda row: started(row.records[-1]), reverse=True):
        newest.setdefault(row.conditions, row)
    as_in_paper = [row for row in newest.values() if row.scope == "paper"]
    return [*_join_seeds(as_in_paper), *(row for row in newest.values() if row.scope != "paper")]


def _lacking(scale: Scale, record: Record) -> str:
    """Describe what a record lacks of the paper's evaluation: documents, a part of the context, or the text."""
    limit, context_len = fact(record, "limit"), record.point.context_len
    parts = [] if limit is None else [f"{limit} documents"]
    if scale.context_len is not None and context_len < scale.context_len:
        parts.append(f"at {format_tokens(context_len)}")
    text = [f"not on {scale.text}"] if scale.text else []
    return ", ".join(filter(None, [" ".join(parts), *text]))


def _judge_quality(
    claim: Claim, records: Sequence[Record], lacking: str, folders: Folders, trainings: Sequence[Record]
) -> Iterator[ClaimRow]:
    """Judge records under the same conditions: each model, each pair of models, or all sizes in one."""
    match claim.rule:
        case NearRule() as rule:
            for record in records:
                weights = record.model.weights
                if weights and weights.source == rule.checkpoint and rule.metric in record.metrics:
                    finding = judge_near(claim, rule, record.metrics[rule.metric].value)
                    yield _quality_row(claim, rule.checkpoint, lacking, finding, (record,))
        case AheadRule() as rule:
            for instance, leads in find_leads(rule, records, folders, trainings).items():
                yield _instance_row(claim, instance, lacking, judge_ahead(rule, leads), leads)
        case SlicesRule() as rule:
            for instance, pairs in find_slice_pairs(rule, records, folders).items():
                yield _instance_row(claim, instance, lacking, judge_slices(claim, pairs), pairs)
        case CrossesRule() as rule:
            by_size: dict[str, list[QualityLead]] = {}
            for instance, leads in find_leads(rule, records, folders, trainings).items():
                within = [lead for lead in leads if not lead.is_beyond]
                if within:
                    by_size.setdefault(instance.size, []).extend(within)
            if len(by_size) > 1:
                yield _crossing_row(claim, rule, by_size, lacking)


def _instance_row(
    claim: Claim,
    instance: ModelInstance,
    lacking: str,
    finding: ClaimFinding,
    pairs: Sequence[QualityLead | SlicesPair],
) -> ClaimRow:
    """Return the row of one size and seed."""
    records = [record for pair in pairs for record in pair.records]
    models = f"{format_size(instance.size)}, {_describe_training(records)}"
    row = _quality_row(claim, models, lacking, finding, records)
    return row if instance.seed is None else replace(row, seeds=(instance.seed,))


def _crossing_row(
    claim: Claim, rule: CrossesRule, leads: Mapping[str, Sequence[QualityLead]], lacking: str
) -> ClaimRow:
    """Judge the sizes of the claim where all were measured, else the smallest and the largest size.

    These two show nothing unless they lie on either side of the crossing, within 1 % as matched sizes do.
    """
    params = {size: leads[size][0].records[0].model.num_params_nonembedding for size in leads}
    sizes = sorted(leads, key=params.__getitem__)
    is_complete = {*rule.behind_at, *rule.ahead_at} <= set(sizes)
    small, large = (rule.behind_at, rule.ahead_at) if is_complete else (sizes[:1], sizes[-1:])
    finding = judge_crossing({size: leads[size] for size in small}, {size: leads[size] for size in large})
    before, after = rule.behind_at[-1], rule.ahead_at[0]
    lowest, highest = 1.01 * find_size(before).budget, 0.99 * find_size(after).budget
    is_spanned = params[small[0]] <= lowest and params[large[0]] >= highest
    if not is_complete and not is_spanned:
        reason = (
            f"these sizes do not span the crossing between {format_size(before)} and {format_size(after)}"
        )
        finding = ClaimFinding("not_testable", f"{finding.measured}; {reason}")
    records = [record for size in (*small, *large) for lead in leads[size] for record in lead.records]
    models = f"{format_size(sizes[0])} to {format_size(sizes[-1])}, {_describe_training(records)}"
    return _quality_row(claim, models, lacking, finding, records)


def _quality_row(
    claim: Claim, models: str, lacking: str, finding: ClaimFinding, records: Sequence[Record]
) -> ClaimRow:
    """Return a row, of the paper's conditions where sizes and training are the paper's, and nothing is `lacking`."""
    sizes = {record.model.size for record in records}
    wanted = {claim.scale.size} - {None}
    if isinstance(claim.rule, CrossesRule):
        wanted = {*claim.rule.behind_at, *claim.rule.ahead_at}
    has_tokens = (_num_tokens(records) or 0) >= (claim.scale.num_tokens or 0)
    scope: Scope = "paper" if wanted <= sizes and has_tokens and not lacking else "elsewhere"
    return ClaimRow(scope, f"{models}, {lacking}" if lacking else models, finding, _in_order(records))


def _num_tokens(records: Iterable[Record]) -> int | None:
    """Return the fewest tokens that a model was trained on; None where one is not recorded."""
    counts = [num_trained_tokens(record) for record in records]
    known = [count for count in counts if count is not None]
    return min(known) if len(known) == len(counts) else None


def _describe_training(records: Iterable[Record]) -> str:
    count = _num_tokens(records)
    return "training tokens not recorded" if count is None else f"trained on {format_count(count)} tokens"


def _join_seeds(rows: Iterable[ClaimRow]) -> list[ClaimRow]:
    """Join the rows that differ only in the seed of the training."""
    alike: dict[tuple[str, bool], list[ClaimRow]] = {}
    for row in rows:
        alike.setdefault((row.words, bool(row.seeds)), []).append(row)
    return [mine[0] if len(mine) == 1 else _joined(mine) for mine in alike.values()]


def _joined(rows: Sequence[ClaimRow]) -> ClaimRow:
    """Return one row of several seeds; `partly` where the seeds do not agree."""
    ordered = sorted(rows, key=lambda row: row.seeds)
    verdicts = [row.finding.verdict for row in ordered]
    verdict: Verdict = verdicts[0] if len(set(verdicts)) == 1 else "partly"
    if set(verdicts) - {"not_testable"} == {"not_reproduced"}:
        verdict = "not_reproduced"
    counted = f"reproduced at {verdicts.count('reproduced')} of {len(ordered)} seeds"
    text = "; ".join([counted, *(f"seed {row.seeds[0]}: {row.finding.text}" for row in ordered)])
    return replace(
        ordered[0],
        finding=ClaimFinding(verdict, text),
        records=_in_order(record for row in ordered for record in row.records),
        seeds=tuple(seed for row in ordered for seed in row.seeds),
    )
