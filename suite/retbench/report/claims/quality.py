"""Rows of the claims on quality: one per size, and per seed where there are too few for an interval over them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from retbench.architectures.matching import MAX_MISMATCH
from retbench.architectures.sizes import find_size
from retbench.papers.claims import AheadRule, Claim, CrossesRule, NearRule, Scale, SlicesRule, Verdict
from retbench.records.dates import started
from retbench.records.record import Record
from retbench.report.claims.judged import ClaimFinding, ClaimRow, Scope, in_order
from retbench.report.claims.quality_rules import (
    QualityLead,
    Replicates,
    SlicesPair,
    find_leads,
    find_slice_pairs,
    judge_ahead,
    judge_crossing,
    judge_near,
    judge_slices,
)
from retbench.report.document_comparisons import Folders
from retbench.report.points import fact, group, is_final, num_trained_tokens
from retbench.report.results import Results, set_of
from retbench.report.selection import newest_evaluations
from retbench.stats.paired import MIN_SEEDS
from retbench.units import format_count, format_size, format_tokens
from retbench.workloads.workload import replicate_of


def quality_rows(claim: Claim, records: Iterable[Record], results: Results) -> list[ClaimRow]:
    """Return a row per size, the newest first; under other conditions than the paper's also one per seed of few."""
    trainings = [each for each in results.records if replicate_of(each) == "seed" and is_final(each)]
    measured = (record for record in records if record.status == "ok")
    found = [
        row
        for (_, lacking), alike in group(measured, lambda r: (set_of(r), _lacking(claim.scale, r))).items()
        for row in _judge_quality(claim, newest_evaluations(alike)[0], lacking, results.folders, trainings)
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
            for trained, leads in find_leads(rule, records, folders, trainings).items():
                yield _trained_row(claim, trained, lacking, judge_ahead(rule, leads), leads)
        case SlicesRule() as rule:
            for trained, pairs in find_slice_pairs(rule, records, folders).items():
                yield _trained_row(claim, trained, lacking, judge_slices(claim, pairs), pairs)
        case CrossesRule() as rule:
            by_size: dict[str, list[QualityLead]] = {}
            for trained, leads in find_leads(rule, records, folders, trainings).items():
                within = [lead for lead in leads if not lead.is_beyond]
                if within:
                    by_size.setdefault(trained.size, []).extend(within)
            if len(by_size) > 1:
                yield _crossing_row(claim, rule, by_size, lacking)


def _trained_row(
    claim: Claim,
    trained: Replicates,
    lacking: str,
    finding: ClaimFinding,
    pairs: Sequence[QualityLead | SlicesPair],
) -> ClaimRow:
    """Return the row of one size and its seeds that are judged together; a verdict on few says so."""
    if finding.decides and 0 < len(trained.seeds) < MIN_SEEDS:
        finding = finding._replace(measured=f"{finding.measured}; another seed may differ")
    records = [record for pair in pairs for record in pair.records]
    models = f"{format_size(trained.size)}, {_describe_training(records)}"
    return replace(_quality_row(claim, models, lacking, finding, records), seeds=trained.seeds)


def _crossing_row(
    claim: Claim, rule: CrossesRule, leads: Mapping[str, Sequence[QualityLead]], lacking: str
) -> ClaimRow:
    """Judge the sizes of the claim where all were measured, else the smallest and the largest size.

    These two show nothing unless they lie on either side of the crossing, within `MAX_MISMATCH`.
    """
    params = {size: leads[size][0].records[0].model.num_params_nonembedding for size in leads}
    sizes = sorted(leads, key=params.__getitem__)
    is_complete = {*rule.behind_at, *rule.ahead_at} <= set(sizes)
    small, large = (rule.behind_at, rule.ahead_at) if is_complete else (sizes[:1], sizes[-1:])
    finding = judge_crossing({size: leads[size] for size in small}, {size: leads[size] for size in large})
    before, after = rule.behind_at[-1], rule.ahead_at[0]
    highest, lowest = (
        (1 + MAX_MISMATCH) * find_size(before).budget,
        (1 - MAX_MISMATCH) * find_size(after).budget,
    )
    is_spanned = params[small[0]] <= highest and params[large[0]] >= lowest
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
    return ClaimRow(scope, f"{models}, {lacking}" if lacking else models, finding, in_order(records))


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
    alike = group(rows, lambda row: (row.words, bool(row.seeds)))
    return [mine[0] if len(mine) == 1 else _joined(mine) for mine in alike.values()]


def _joined(rows: Sequence[ClaimRow]) -> ClaimRow:
    """Return one row of several seeds; `partly` where the seeds do not agree."""
    ordered = sorted(rows, key=lambda row: row.seeds)
    verdicts = [row.finding.verdict for row in ordered]
    verdict: Verdict = verdicts[0] if len(set(verdicts)) == 1 else "partly"
    if set(verdicts) - {"not_testable"} == {"not_reproduced"}:
        verdict = "not_reproduced"
    reproduced = sum(len(row.seeds) for row in ordered if row.finding.verdict == "reproduced")
    counted = f"reproduced at {reproduced} of {sum(len(row.seeds) for row in ordered)} seeds"
    text = "; ".join([counted, *(f"{row.seed_words}: {row.finding.text}" for row in ordered)])
    return replace(
        ordered[0],
        finding=ClaimFinding(verdict, text),
        records=in_order(record for row in ordered for record in row.records),
        seeds=tuple(seed for row in ordered for seed in row.seeds),
    )
