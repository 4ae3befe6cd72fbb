"""Claims of quality judged on the same documents: who is ahead, where that changes with size, what is near a number.

Two models are told apart by the interval of their difference over documents, as in `pairing`. Different documents,
prompts, tokenizers or trainings are refused there, and give no verdict here. Nor do models that are told apart nowhere:
that no difference is shown is not that there is none.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from retbench.records.record import Record
from retbench.report.claim_types import (
    AheadRule,
    Claim,
    CrossesRule,
    Finding,
    NearRule,
    QualityRule,
    Scale,
    Verdict,
)
from retbench.report.document_comparisons import DocumentComparison, Folders, compare
from retbench.report.frames import ComparableSet, set_of, started
from retbench.report.points import (
    ModelInstance,
    TaskPoint,
    fact,
    instance_of,
    num_trained_tokens,
    task_point_of,
)
from retbench.report.selection import newest_evaluations
from retbench.units import format_count, format_percent, format_tokens


@dataclass(frozen=True)
class Reading:
    """Comparisons of one model with another, or readings of one, that stand for one row.

    Attributes:
        models: Their size or name, in words.
        training: Of the models, in words; empty where a claim names them.
        size: Of the models; None where a row spans sizes.
        num_tokens: That they were trained on; None where not known.
        records: That the row is made of.
        finding: What they say.
        seeds: Of the training; empty where it had none, or the row spans them.
        lacking: What its questions are short of the paper's, in words; empty where they are whole.
    """

    models: str
    training: str
    size: str | None
    num_tokens: int | None
    records: tuple[Record, ...]
    finding: Finding
    seeds: tuple[int, ...] = ()
    lacking: str = ""

    @property
    def words(self) -> str:
        """What a row is about: '25m seed 0, trained on 20.0 M tokens, 50 documents'."""
        seeds = ", ".join(map(str, self.seeds))
        seeds = seeds and f" seed{'s' if len(self.seeds) > 1 else ''} {seeds}"
        return ", ".join(part for part in (self.models + seeds, self.training, self.lacking) if part)


def judge_quality(
    claim: Claim, rule: QualityRule, records: Sequence[Record], folders: Folders
) -> list[Reading]:
    """What readings say of a claim, the newest first: a row a size and seed, or one for all where a claim spans them.

    Only readings under the same conditions, and short of the paper's questions by the same, meet in one row; of rows
    that read alike the newest stands.
    """
    groups: dict[tuple[ComparableSet, str], list[Record]] = {}
    for record in records:
        if record.status == "ok":
            key = set_of(record), _lacking(claim.scale, record)
            groups.setdefault(key, []).append(record)
    found: list[Reading] = []
    for (_, lacking), group in groups.items():
        made = _judge(claim, rule, newest_evaluations(group)[0], folders)
        found += [replace(reading, lacking=lacking) for reading in made]
    newest: dict[str, Reading] = {}
    for reading in sorted(found, key=lambda reading: max(map(started, reading.records)), reverse=True):
        newest.setdefault(reading.words, reading)
    return list(newest.values())


def join_seeds(readings: Iterable[Reading]) -> list[Reading]:
    """The same with one row for those that differ in the seed of the training alone."""
    alike: dict[tuple[str, bool], list[Reading]] = {}
    for reading in readings:
        key = replace(reading, seeds=()).words, bool(reading.seeds)
        alike.setdefault(key, []).append(reading)
    return [mine[0] if len(mine) == 1 else _joined(mine) for mine in alike.values()]


def _joined(readings: Sequence[Reading]) -> Reading:
    """One row of several seeds: what all of them say, or how many reproduce the claim."""
    ordered = sorted(readings, key=lambda reading: reading.seeds)
    verdicts = [reading.finding.verdict for reading in ordered]
    told = set(verdicts) - {"not_testable"}
    alike = verdicts[0] if len(set(verdicts)) == 1 else "partly"
    verdict: Verdict = "not_reproduced" if told == {"not_reproduced"} else alike
    text = "; ".join(f"seed {reading.seeds[0]}: {reading.finding.text}" for reading in ordered)
    return replace(
        ordered[0],
        seeds=tuple(seed for reading in ordered for seed in reading.seeds),
        records=tuple(record for reading in ordered for record in reading.records),
        finding=Finding(
            verdict, f"reproduced at {verdicts.count('reproduced')} of {len(ordered)} seeds; {text}"
        ),
    )


def _lacking(scale: Scale, record: Record) -> str:
    """What a reading is short of the paper's question: documents that a limit left out, or context."""
    limit, context_len = fact(record, "limit"), record.point.context_len
    parts = [] if limit is None else [f"{limit} documents"]
    if scale.context_len is not None and context_len < scale.context_len:
        parts.append(f"at {format_tokens(context_len)}")
    return " ".join(parts)


def _judge(
    claim: Claim, rule: QualityRule, readings: Sequence[Record], folders: Folders
) -> Iterator[Reading]:
    """The same of readings under one set of conditions."""
    match rule:
        case AheadRule():
            return _judge_ahead(rule, readings, folders)
        case CrossesRule():
            return _judge_crossing(rule, readings, folders)
        case NearRule():
            return _judge_nearness(claim, rule, readings)


@dataclass(frozen=True)
class _Duel:
    """One comparison with what it was made of.

    Attributes:
        lead: Above 0 where the challenger is better.
        told_apart: Whether the interval of the lead leaves out 0; None where too few documents give none.
    """

    point: TaskPoint
    records: tuple[Record, Record]
    lead: float
    told_apart: bool | None


def _duels(
    rule: AheadRule | CrossesRule, readings: Sequence[Record], folders: Folders
) -> dict[ModelInstance, list[_Duel]]:
    """The comparisons of each size and seed that have a number."""
    found: dict[ModelInstance, list[_Duel]] = {}
    theirs = {
        (task_point_of(record), instance_of(record)): record
        for record in readings
        if rule.reference.has(record)
    }
    for record in readings:
        place = task_point_of(record), instance_of(record)
        if not rule.challenger.has(record) or place not in theirs or not _is_asked(rule, place[0]):
            continue
        made = _duel(compare(record, theirs[place], folders), (record, theirs[place]))
        if made is not None:
            found.setdefault(place[1], []).append(made)
    return found


def _is_asked(rule: AheadRule | CrossesRule, question: TaskPoint) -> bool:
    """Whether a rule is about a question."""
    if isinstance(rule, CrossesRule):
        within = question.protocol in rule.protocols and question.context_len <= rule.longest_context
        return question.workload == "perplexity" and within
    return (
        question.workload == rule.workload
        and (not rule.tasks or question.task in rule.tasks)
        and rule.protocol in (None, question.protocol)
        and (not rule.context_lens or question.context_len in rule.context_lens)
        and rule.num_fewshot in (None, question.num_fewshot)
    )


def _duel(comparison: DocumentComparison, records: tuple[Record, Record]) -> _Duel | None:
    """Who is ahead and whether that is told apart; None where the two may not be compared."""
    if comparison.ratio is not None:
        ratio = comparison.ratio
        apart = None
        if ratio.low is not None and ratio.high is not None:
            apart = not ratio.low <= 1 <= ratio.high
        return _Duel(comparison.point, records, 1 - ratio.value, apart)
    if "acc" in comparison.accuracies:
        pair = comparison.accuracies["acc"]
        return _Duel(comparison.point, records, pair.difference, not pair.low <= 0 <= pair.high)
    return None


def _judge_ahead(rule: AheadRule, readings: Sequence[Record], folders: Folders) -> Iterator[Reading]:
    """A row a size and seed; a part of what a claim is about is never all of it."""
    for subject, duels in _duels(rule, readings, folders).items():
        questions = [duel.point for duel in duels]
        complete = {question.task for question in questions} >= set(rule.tasks) and (
            {question.context_len for question in questions} >= set(rule.context_lens)
        )
        yield _reading(subject, duels, _ahead(duels, complete=complete))


def _ahead(duels: Sequence[_Duel], *, complete: bool) -> Finding:
    """Ahead everywhere, and told apart in half of the questions or more; not so where it is only told to be behind."""
    ahead = [duel for duel in duels if duel.lead > 0]
    sure = [duel for duel in ahead if duel.told_apart]
    behind = [duel for duel in duels if duel.lead < 0 and duel.told_apart]
    leads = [duel.lead for duel in duels]
    text = (
        f"ahead at {len(ahead)} of {len(duels)} questions, told apart at {len(sure)}, told to be behind at "
        f"{len(behind)}; lead {format_percent(min(leads))} to {format_percent(max(leads))}"
    )
    if all(duel.told_apart is None for duel in duels):
        return Finding("not_testable", f"{text}; too few documents for an interval")
    if not sure:
        return Finding("not_reproduced" if behind else "not_testable", text)
    whole = complete and len(ahead) == len(duels) and 2 * len(sure) >= len(duels)
    return Finding("reproduced" if whole else "partly", text)


def _judge_crossing(rule: CrossesRule, readings: Sequence[Record], folders: Folders) -> Iterator[Reading]:
    """One row over all sizes: those of the claim where they are there, else the smallest and the largest."""
    duels: dict[str, list[_Duel]] = {}
    for subject, made in _duels(rule, readings, folders).items():
        duels.setdefault(subject.size, []).extend(made)
    params = {record.model.size: record.model.num_params_nonembedding for record in readings}
    sizes = sorted(duels, key=lambda size: params[size])
    if len(sizes) < 2:
        return
    is_scale = {*rule.behind_at, *rule.ahead_at} <= set(sizes)
    small, large = (rule.behind_at, rule.ahead_at) if is_scale else ((sizes[0],), (sizes[-1],))
    behind = [duel for size in small for duel in duels[size]]
    ahead = [duel for size in large for duel in duels[size]]
    finding = Finding(
        _crossing_verdict(behind, ahead),
        f"mean lead {format_percent(_mean_lead(behind))} at {', '.join(small)}, "
        f"{format_percent(_mean_lead(ahead))} at {', '.join(large)}, told apart at "
        f"{sum(duel.told_apart is True for duel in (*behind, *ahead))} of {len(behind) + len(ahead)} questions",
    )
    records = tuple(record for duel in (*behind, *ahead) for record in duel.records)
    tokens = [num_trained_tokens(record) for record in records]
    known = [count for count in tokens if count is not None]
    least = min(known) if len(known) == len(tokens) else None
    yield Reading(
        f"{sizes[0]} to {sizes[-1]}",
        _tokens(least),
        rule.ahead_at[-1] if is_scale else None,
        least,
        records,
        finding,
    )


def _crossing_verdict(behind: Sequence[_Duel], ahead: Sequence[_Duel]) -> Verdict:
    """Whether the challenger is behind in the first and ahead in the others, as far as they are told apart."""
    as_claimed = [duel.lead < 0 for duel in behind if duel.told_apart]
    as_claimed += [duel.lead > 0 for duel in ahead if duel.told_apart]
    if not as_claimed:
        return "not_testable"
    if all(as_claimed):
        return "reproduced" if len(as_claimed) == len(behind) + len(ahead) else "partly"
    return "partly" if _mean_lead(behind) < 0 < _mean_lead(ahead) else "not_reproduced"


def _mean_lead(duels: Sequence[_Duel]) -> float:
    return sum(duel.lead for duel in duels) / len(duels)


def _judge_nearness(claim: Claim, rule: NearRule, readings: Sequence[Record]) -> Iterator[Reading]:
    """A row a model that has the metric."""
    for record in readings:
        weights = record.model.weights
        asked = (record.workload, record.point.task, weights and weights.source)
        if asked != (rule.workload, rule.task, rule.checkpoint) or rule.metric not in record.metrics:
            continue
        value = record.metrics[rule.metric].value
        near = abs(value / claim.printed - 1) <= rule.tolerance
        text = f"{value:.4g}; the paper {claim.printed:.4g}, within {format_percent(rule.tolerance)}"
        finding = Finding("reproduced" if near else "not_reproduced", text)
        yield Reading(rule.checkpoint, "", record.model.size, None, (record,), finding)


def _reading(subject: ModelInstance, duels: Sequence[_Duel], finding: Finding) -> Reading:
    """The row of one size and seed."""
    records = tuple(record for duel in duels for record in duel.records)
    tokens, seeds = num_trained_tokens(records[0]), () if subject.seed is None else (subject.seed,)
    return Reading(subject.size, _tokens(tokens), subject.size, tokens, records, finding, seeds)


def _tokens(count: int | None) -> str:
    return "trained elsewhere" if count is None else f"trained on {format_count(count)} tokens"
