"""The answer of a report in a few lines: decode, prefill, memory and quality, each compared with the reference.

A line states the advantage at the longest context, and at the shortest one where that is different, with intervals.
Of several models it names the best one. What was not measured says so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from retbench.records.dates import started
from retbench.records.environment import excessive_load
from retbench.records.record import Record
from retbench.report.comparisons import Comparison, cost_ratio, find_primary_crossover
from retbench.report.contents import Contents
from retbench.report.document_comparisons import DocumentComparison
from retbench.report.evaluations import Evaluations
from retbench.report.findings.advantages import lead_of_ends, superlative
from retbench.report.findings.costs import End, find_ends
from retbench.report.findings.quality import (
    advantage_of_losses,
    find_quality,
    interval_note,
    trained_note,
)
from retbench.report.lineup import Lineup, is_matched
from retbench.report.points import group
from retbench.report.provenance import describe_steps
from retbench.report.results import set_of
from retbench.report.sweeps import CostSweep
from retbench.report.wording import (
    describe_estimate,
    describe_interval,
    describe_status,
    device_name,
    format_length,
    join_words,
    range_of,
)
from retbench.stats.paired import ratio_over_seeds
from retbench.units import format_count, format_tokens
from retbench.workloads.workload import WORKLOADS, measures_cost, replicate_of

HEADLINES = ("decode", "memory", "prefill")
"""Workloads that always have a line, in this order; others have one where none of these was measured."""
NOT_MEASURED = "not measured in this run"
NOT_COMPARED = "measured, but of no two models that are compared"
TRAINED_ONLY = "validation loss of the trainings only: see its figure"
OTHER_CONDITIONS = "measured, but under conditions that may not be compared with these: see Limitations"
_MOST_NAMES = 3
"""Models that a heading names; of more it says how many there are."""


@dataclass(frozen=True)
class AnswerLine:
    """One line of the answer.

    Attributes:
        topic: What is compared: "Decode".
        lead: The result: "7.63× faster at 32K".
        text: Values, interval, and the other end of the range; empty where nothing was measured.
    """

    topic: str
    lead: str
    text: str

    @property
    def sentence(self) -> str:
        """The text as it follows a full stop."""
        return self.text[:1].upper() + self.text[1:]


@dataclass(frozen=True)
class Answer:
    """The answer of a report.

    Attributes:
        models: The models that are compared: "RetNet compared with the Transformer".
        setting: Device, dtype, parameters and batch size.
        lines: One per topic.
        caveat: What the lines do not show.
    """

    models: str
    setting: str
    lines: tuple[AnswerLine, ...]
    caveat: str


def find_answer(contents: Contents) -> Answer:
    """Return the answer that the records of a selection give."""
    made = [Comparison(sweep) for sweep in contents.sweeps if sweep.primary]
    compared = [one for one in made if not one.ratios.empty]
    measured = [name for name in WORKLOADS if any(one.sweep.workload == name for one in compared)]
    topics = HEADLINES if not measured or {*HEADLINES} & {*measured} else tuple(measured)
    main = next((_farthest(compared, name) for name in topics if name in measured), None)
    alone = {one.workload for one in contents.sweeps} - set(measured)
    lines = [
        _not_compared(name, contents.sweeps)
        if name in alone
        else AnswerLine(_topic(name), OTHER_CONDITIONS, "")
        if name in contents.selection.workloads_left_out
        else _cost_line(name, _farthest(compared, name, main), main)
        for name in topics
    ]
    evaluations = contents.evaluations
    sweep = main.sweep if main else next(iter(contents.sweeps), None)
    models = sweep.models if sweep else evaluations.models if evaluations else None
    records = main.sweep.records if main else contents.selection.records
    return Answer(
        models=_models_words(models) if models else "",
        setting=_setting(records, main),
        lines=(*lines, _quality_line(evaluations, records)),
        caveat=_caveat(records),
    )


def _farthest(
    compared: Sequence[Comparison], workload: str, main: Comparison | None = None
) -> Comparison | None:
    """Return the comparison of a workload that reaches farthest, if possible of the models and batch of `main`."""

    def rank(one: Comparison) -> tuple[object, ...]:
        same_models = main is not None and _lineup(one) == _lineup(main)
        same_batch = main is not None and one.sweep.batch_size == main.sweep.batch_size
        return same_models, same_batch, one.deepest, len(one.sweep.lengths), -one.sweep.batch_size

    return max((one for one in compared if one.sweep.workload == workload), key=rank, default=None)


def _lineup(found: Comparison) -> tuple[object, ...]:
    """Return the models of a comparison and their size."""
    return found.sweep.models.models, found.sweep.records[0].model.size


def _cost_line(name: str, found: Comparison | None, main: Comparison | None) -> AnswerLine:
    """Return the line of one workload."""
    topic = _topic(name)
    if found is None:
        return AnswerLine(topic, NOT_MEASURED, "")
    best, sweep = found.ranking[0], found.sweep
    ends = find_ends(found, best)
    last, several = ends[-1], len(sweep.models.challengers) > 1
    ties = _ties(found)
    lead = _lead_of_best(found, last, len(ties)) if several else lead_of_ends([end[:2] for end in ends])
    steps = "".join(f", {words}," for words in describe_steps(sweep.records))
    parts = [
        f"{found.workload.quantity}{steps} {_values(last)}{_notes(last)}",
        *(_other_end(ends[0], lead) if len(ends) > 1 else []),
        *_crossing(found, best, ends),
        *([f"not significantly different from {found.named(best)}: {join_words(ties)}"] if ties else []),
        *([_range_of_others(found)] if len(found.ranking) > 1 else []),
        *_without_value(found),
        *filter(None, [sweep.reason_beyond((best, found.reference), last.length)]),
        *_other_setting(found, main),
    ]
    return AnswerLine(topic, lead, "; ".join(parts))


def _not_compared(workload: str, sweeps: Sequence[CostSweep]) -> AnswerLine:
    """Return the line of a workload without a ratio: the models that have no value, and why."""
    mine = [sweep for sweep in sweeps if sweep.workload == workload]
    valued = {model for sweep in mine for model in sweep.metrics["model"]}
    failed = pd.concat([sweep.failed for sweep in mine])
    missing = failed[~failed["model"].isin(valued)]
    if missing.empty:
        return AnswerLine(_topic(workload), NOT_COMPARED, "")
    reasons = _no_value(missing["status"].unique())
    if not valued:
        return AnswerLine(_topic(workload), reasons, "")
    labels = {model: label for sweep in mine for model, label in sweep.models.labels.items()}
    names = join_words([labels[model] for model in missing["model"].unique()])
    return AnswerLine(_topic(workload), NOT_COMPARED, f"{names}: {reasons}")


def _no_value(statuses: Iterable[str]) -> str:
    """Return why there is no value: 'no value: out of memory'."""
    return f"no value: {join_words([describe_status(status) for status in statuses])}"


def _topic(workload: str) -> str:
    return workload.replace("_", " ").capitalize()


def _lead_of_best(found: Comparison, last: End, num_ties: int) -> str:
    """Return the lead of several models: the best one, and its advantage over the reference."""
    best, reference = found.named(found.ranking[0]), found.named(found.reference)
    first, at = superlative(found.workload.primary), f"at {format_tokens(last.length)}"
    if num_ties:
        best += f" ({num_ties} other{'s' if num_ties > 1 else ''} not significantly different)"
    if last.advantage.outcome == "worse":
        return f"{first}: {reference}; next {best}, {last.advantage.lead} {at}"
    than = "from" if last.advantage.outcome == "equal" else "than"
    return f"{first}: {best}, {last.advantage.lead} {than} {reference} {at}"


def _ties(found: Comparison) -> list[str]:
    """Return the models that do not differ significantly from the best one at the longest context."""
    rows = found.sweep.metrics
    at_end = rows[(rows["metric"] == found.workload.primary.name) & (rows["context_len"] == found.deepest)]
    sides = {model: at_end[at_end["model"] == model] for model in found.ranking}
    tied = []
    for model in found.ranking[1:]:
        ratio = cost_ratio(sides[found.ranking[0]], sides[model])
        if ratio and ratio.low <= 1 <= ratio.high:
            tied.append(found.named(model))
    return tied


def _values(end: End) -> str:
    """Return both values, the unit once where it is the same: '6.42 vs 49.0 ms'."""
    number, _, unit = end.mine.partition(" ")
    same = unit and end.theirs.endswith(f" {unit}")
    return f"{number if same else end.mine} vs {end.theirs}{end.rounds}"


def _notes(end: End) -> str:
    return "".join(f", {note}" for note in end.advantage.notes)


def _other_end(first: End, lead: str) -> list[str]:
    """Return the result at the shortest context, with values where the lead already states its size."""
    at = format_tokens(first.length)
    if f"{first.advantage.lead} at {at}" in lead or first.advantage.outcome == "equal":
        return [f"at {at} {_values(first)}{_notes(first)}"]
    return [f"{first.advantage.lead} at {at}{_notes(first)}"]


def _crossing(found: Comparison, model: str, ends: Sequence[End]) -> list[str]:
    """Return where the curves cross, if the better model is not the same at both ends."""
    if len({end.advantage.outcome for end in ends}) == 1:
        return []
    crossing = find_primary_crossover(found.sweep, model)
    if crossing is None or crossing[1].value is None:
        return []
    return [f"crossover at about {format_length(crossing[1].value)} tokens (interpolated)"]


def _range_of_others(found: Comparison) -> str:
    """Return the advantages of all models but the best one at the longest context."""
    second, last = (
        find_ends(found, model)[-1].advantage.lead for model in (found.ranking[1], found.ranking[-1])
    )
    count = len(found.ranking) - 1
    if count == 1:
        return f"{found.named(found.ranking[1])} {second}"
    return f"the other {count} models {second} to {last}"


def _without_value(found: Comparison) -> list[str]:
    """Return which of the models that are compared have no value at the longest context."""
    models = found.sweep.models
    missing = [models.labels[model] for model in models.challengers if model not in found.ranking]
    at = f"at {format_tokens(found.deepest)}"
    return [f"no value {at}: {join_words(missing)}"] if missing else []


def _other_setting(found: Comparison, main: Comparison | None) -> list[str]:
    """Return size and batch size of a sweep where they are not those of the answer's setting."""
    if main is None or found.workload.finds_batch:
        return []
    mine, theirs = found.sweep, main.sweep
    size = [_parameters(mine.records)] if mine.records[0].model.size != theirs.records[0].model.size else []
    return [*size, *([f"batch {mine.batch_size}"] if mine.batch_size != theirs.batch_size else [])]


def _quality_line(evaluations: Evaluations | None, setting: Sequence[Record]) -> AnswerLine:
    """Return the line of quality: bits per byte of the largest models on the first corpus, else the first finding.

    It names the device of its records where the records of the answer's setting have another one.
    """
    for point in evaluations.longest_texts() if evaluations else []:
        assert evaluations is not None
        made = [c for c in evaluations.compared(point) if c.ratio is not None]
        if made:
            size = made[-1].instance.size
            return _loss_line(evaluations, [c for c in made if c.instance.size == size], setting)
    found = find_quality(evaluations) if evaluations else []
    if found:
        return AnswerLine("Quality", found[0].lead, found[0].text)
    return AnswerLine("Quality", _quality_without_finding(evaluations), "")


def _quality_without_finding(evaluations: Evaluations | None) -> str:
    """Return what is known of quality that no two models are compared by."""
    if evaluations is None:
        return NOT_MEASURED
    statuses = list(dict.fromkeys(record.status for record in evaluations.records))
    if "ok" not in statuses:
        return _no_value(statuses)
    of_trainings = all(replicate_of(one) == "seed" for one in evaluations.records if one.status == "ok")
    return TRAINED_ONLY if of_trainings else NOT_COMPARED


def _loss_line(
    evaluations: Evaluations, made: Sequence[DocumentComparison], setting: Sequence[Record]
) -> AnswerLine:
    """Return the line of models of one size on one corpus; of several it names the best."""
    labels, by_model = evaluations.models.labels, group(made, lambda c: c.model)
    ratios = {model: [c.ratio for c in mine if c.ratio] for model, mine in by_model.items()}
    best = min(ratios, key=lambda model: sum(ratio.value for ratio in ratios[model]) / len(ratios[model]))
    mine, other = by_model[best], f"the {labels[made[0].reference]}"
    lead = advantage_of_losses(ratios[best], made[0].unit)
    if len(evaluations.models.challengers) > 1:
        is_worse = min(ratio.value for ratio in ratios[best]) > 1
        lead = f"best: {other}; next {labels[best]}, {lead}" if is_worse else f"best: {labels[best]}, {lead}"
    seeds = [str(c.instance.seed) for c in mine if c.instance.seed is not None]
    words = (
        f", {len(seeds)} seeds" if len(seeds) > 1 else f", one training (seed {seeds[0]})" if seeds else ""
    )
    records, together = [evaluations.sides(c)[0] for c in mine], ratio_over_seeds(ratios[best])
    if together:
        values, note = describe_interval(together), " (95 % CI over seeds)"
    else:
        values, note = join_words(list(map(describe_estimate, ratios[best]))), interval_note(mine)
    text = (
        f"bits per {made[0].unit} on {made[0].point.title}, {_parameters(records)}{words}: {values} of {other}'s{note}"
        f"{trained_note(evaluations, mine)}{_other_device(records, setting)}"
    )
    return AnswerLine("Quality", lead, text)


def _other_device(records: Sequence[Record], setting: Sequence[Record]) -> str:
    """Return the devices of records where they are not those of the answer's setting."""
    mine, theirs = ({device_name(record) for record in one} for one in (records, setting))
    return f", on {join_words(sorted(mine))}" if mine - theirs else ""


def _models_words(models: Lineup) -> str:
    """Return the models that are compared, or how many there are."""
    if models.reference is None or not models.challengers:
        return _names(models, models.models)
    compared = f"{_names(models, models.challengers)} compared with the {models.labels[models.reference]}"
    return f"{compared}; {_names(models, [*models.refusals])} not compared" if models.refusals else compared


def _names(models: Lineup, names: Sequence[str]) -> str:
    """Return the labels of a few models, or how many models there are."""
    labels = [models.labels[name] for name in names]
    return join_words(labels) if len(labels) <= _MOST_NAMES else f"{len(labels)} models"


def _setting(records: Sequence[Record], main: Comparison | None) -> str:
    """Return device, dtype, parameters and batch size of records."""
    latest = max(records, key=started)
    cores = latest.environment.get("physical_cores")
    is_cpu = str(set_of(latest).device) == "cpu"
    device = device_name(latest).removesuffix(" Processor")
    parts = [f"{cores}-core {device}" if is_cpu and cores else device, str(set_of(latest).dtype)]
    if main:
        parts += [f"{_parameters(records)} per model", f"batch {main.sweep.batch_size}"]
    return ", ".join(parts)


def _parameters(records: Sequence[Record]) -> str:
    """Return the parameters without embedding of records' models: '18.9M non-embedding parameters'."""
    matched = [record for record in records if is_matched(record)] or records
    counts = [record.model.num_params_nonembedding for record in matched]
    return f"{range_of(counts, lambda count: format_count(count).replace(' ', ''))} non-embedding parameters"


def _caveat(records: Sequence[Record]) -> str:
    """Return what models of this size on this device do not show, after a disturbance of most of the costs."""
    costs = [record for record in records if measures_cost(record)]
    busy = sum(excessive_load(record.environment) is not None for record in costs)
    disturbed = "Other processes kept the machine busy: measure again without them. "
    latest = max(records, key=started)
    is_cpu = str(set_of(latest).device) == "cpu"
    text = (
        "Small models on a CPU say nothing about 6.7B parameters on an A100: see the claims of the papers."
        if is_cpu
        else "Other devices, sizes and dtypes may differ: the claims of the papers state their conditions."
    )
    return disturbed + text if 2 * busy > len(costs) else text
