"""Findings on quality: sentences computed from the paired comparisons of documents, whichever model they favour.

Each is about one corpus or one group of tasks. Documents of several seeds are never pooled; `stats.paired` says from
how many trainings on the interval over them decides. A sentence claims no more than the interval or test shows.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from retbench.records.record import Record, Series
from retbench.report.document_comparisons import DocumentComparison
from retbench.report.evaluations import Evaluations
from retbench.report.findings.costs import KeyFinding
from retbench.report.findings.questions import find_answers, find_needles
from retbench.report.findings.recall import find_lengths, find_recall
from retbench.report.points import TaskPoint, group, num_trained_tokens
from retbench.report.wording import (
    describe_difference,
    describe_estimate,
    describe_interval,
    join_words,
    range_of,
    span,
)
from retbench.stats.intervals import Interval
from retbench.stats.paired import MIN_SEEDS, Estimate, ratio_over_seeds
from retbench.units import format_count, format_size, format_tokens


def find_quality(evaluations: Evaluations) -> list[KeyFinding]:
    """Return the findings on quality: per corpus and protocol at its longest context, of tasks and of recall."""
    found = []
    for model in evaluations.models.challengers:
        mine = []
        for point in evaluations.longest_texts():
            mine += _losses(evaluations, point, model)
            mine += _beyond_training(evaluations, point, model)
        for points in evaluations.groups("answers"):
            mine += find_answers(evaluations, points, model)
        for point in evaluations.scored("slices"):
            mine += _slices(evaluations, point, model)
        for points in evaluations.groups("needles"):
            mine += find_needles(evaluations, points, model)
        for points in evaluations.groups("recall"):
            mine += find_recall(evaluations, points, model)
        for points in evaluations.groups("lengths"):
            mine += find_lengths(evaluations, points, model)
        found += [finding.of(model, evaluations.models) for finding in mine]
    return found


def _losses(evaluations: Evaluations, point: TaskPoint, model: str) -> list[KeyFinding]:
    """State the ratio of bits per byte or token at every size and seed, and between which sizes the order changes."""
    made = [c for c in evaluations.compared(point, model) if c.ratio is not None]
    if not made:
        return []
    labels = evaluations.models.labels
    label, other = labels[model], labels[made[0].reference]
    by_size = group(made, lambda c: format_size(c.instance.size))
    at: list[str] = []
    for size, mine in by_size.items():
        ratios = [c.ratio for c in mine if c.ratio]
        names = join_words([str(c.instance.seed) for c in mine])
        seed = "" if mine[0].instance.seed is None else f", seed {names}"
        seeds = f" (seeds {names}{together_note(ratios)})" if len(mine) > 1 else seed
        reference = f" of the {other}'s" if not at else ""
        at.append(f"{join_words(list(map(describe_estimate, ratios)))}{reference} at {size}{seeds}")
    beyond = evaluations.extrapolation_note([side for c in made for side in evaluations.sides(c)])
    text = (
        f"{label}'s bits per {made[0].unit} on {point.title} are {'; '.join(at)}"
        f"{trained_note(evaluations, made)}{interval_note(made)}: {_verdict(by_size, label, other)}."
        f"{_crossing(by_size, label)}{_few_trainings(by_size)}{beyond}"
    )
    last = [c.ratio for c in by_size[format_size(made[-1].instance.size)] if c.ratio]
    where = " beyond the trained length" if beyond else ""
    return [KeyFinding(f"{advantage_of_losses(last, made[0].unit)}{where}", text)]


def advantage_of_losses(ratios: Sequence[Estimate], unit: str) -> str:
    """Return the ratios of one size, one per seed, as the model's: '32.4 % fewer bits per byte', '1.2 % more ...'."""
    sides = set(_sides(ratios))
    if sides == {"equal"}:
        return "no significant difference"
    if sides == {"unclear"}:
        return "undecided: too few documents"
    together = ratio_over_seeds(ratios)
    low, high = (end(ratio.value for ratio in ([together] if together else ratios)) for end in (min, max))
    if low < 1 < high:
        return f"{_percent(low)} fewer to {_percent(high)} more bits per {unit}"
    ends = (high, low) if high <= 1 else (low, high)
    words = span(*(_percent(end).removesuffix(" %") for end in ends))
    return f"{words} % {'fewer' if high <= 1 else 'more'} bits per {unit}"


def together_note(ratios: Sequence[Estimate]) -> str:
    """Return '; together 0.924 [0.890, 0.958], 95 % CI over seeds' of one size; nothing for too few trainings."""
    found = ratio_over_seeds(ratios)
    if found is None:
        return ""
    return f"; together {describe_interval(found)}, 95 % CI over seeds"


def _percent(ratio: float) -> str:
    return f"{100 * abs(ratio - 1):.1f} %"


def interval_note(made: Sequence[DocumentComparison]) -> str:
    """Return the documents that the intervals are over; nothing without an interval."""
    counts = {c.ratio.num_documents for c in made if c.ratio and c.ratio.low is not None}
    if not counts:
        return ""
    count = counts.pop() if len(counts) == 1 else None
    return f" (95 % CI over {f'{count:,} documents' if count else 'documents'})"


def trained_note(evaluations: Evaluations, made: Sequence[DocumentComparison]) -> str:
    """Return the training tokens of the compared models, of one size also per parameter without embedding."""
    records = [evaluations.sides(c)[0] for c in made]
    counts = [count for record in records if (count := num_trained_tokens(record)) is not None]
    if len(counts) < len(records):
        return ""
    words = range_of(counts, format_count)
    params = records[0].model.num_params_nonembedding
    is_alone = len(set(counts)) == 1 and len({record.model.size for record in records}) == 1 and params
    return f", trained on {words} tokens" + (f", {counts[0] / params:.2g} per parameter" if is_alone else "")


def _few_trainings(by_size: Mapping[str, Sequence[DocumentComparison]]) -> str:
    """State which sizes have too few trainings for an interval over seeds, so that another seed may differ."""
    few = [
        size
        for size, mine in by_size.items()
        if len(mine) < MIN_SEEDS and any(c.instance.seed is not None for c in mine)
    ]
    return f" Another seed may differ: fewer than {MIN_SEEDS} trainings at {join_words(few)}." if few else ""


def _verdict(by_size: Mapping[str, Sequence[DocumentComparison]], label: str, other: str) -> str:
    """State the better model, as far as the intervals show it."""
    places: dict[str, list[str]] = {}
    for size, mine in by_size.items():
        sides = _sides([c.ratio for c in mine if c.ratio])
        if len(set(sides)) == 1:
            places.setdefault(sides[0], []).append(size)
        else:
            for side, c in zip(sides, mine, strict=True):
                places.setdefault(side, []).append(c.instance.title)
    words = {
        "better": f"{label} is better",
        "worse": f"the {other} is better",
        "equal": "the difference is not significant",
        "unclear": "there are too few documents for a verdict",
    }
    if len(places) == 1:
        side = next(iter(places))
        extent = "any" if side == "equal" else "every"
        return words[side] + (f" at {extent} size" if len(by_size) > 1 else "")
    return "; ".join(f"{words[side]} at {join_words(where)}" for side, where in places.items())


def _sides(ratios: Sequence[Estimate]) -> list[str]:
    """Return on which side of 1 the losses of a size lie: by the interval over its trainings, or else of each one."""
    together = ratio_over_seeds(ratios)
    return [_side(together)] if together else [_side(ratio) for ratio in ratios]


def _side(ratio: Estimate | Interval) -> str:
    """Return the side of 1 on which an interval of a loss lies; a lower loss is better."""
    if ratio.low is None or ratio.high is None:
        return "unclear"
    return "better" if ratio.high < 1 else "worse" if ratio.low > 1 else "equal"


def _crossing(by_size: Mapping[str, Sequence[DocumentComparison]], label: str) -> str:
    """State between which sizes, whose seeds agree, the better model changes; nothing with one size."""
    sizes = list(by_size)
    if len(sizes) < 2:
        return ""
    sides = {size: set(_sides([c.ratio for c in mine if c.ratio])) for size, mine in by_size.items()}
    clear = [(size, *sides[size]) for size in sizes if sides[size] in ({"better"}, {"worse"})]
    changes = [
        f"between {one} and {two}" for (one, before), (two, after) in pairwise(clear) if before != after
    ]
    if not changes:
        return f" No crossover is shown from {sizes[0]} to {sizes[-1]}."
    if len(changes) > 1:
        return f" The order changes {join_words(changes)}."
    return f" {label} becomes the {clear[-1][1]} one {changes[0]}."


def _beyond_training(evaluations: Evaluations, point: TaskPoint, model: str) -> list[KeyFinding]:
    """State how both losses change from the positions before the training length to the last ones measured."""
    reference = str(evaluations.models.reference)
    for size in reversed(evaluations.sizes(evaluations.at(point))):
        mine, theirs = (_with_positions(evaluations, point, name, size) for name in (model, reference))
        trained = evaluations.trained_length([*mine, *theirs]) if mine and theirs else None
        if trained is None:
            continue
        series = [[record.series["loss_by_position"] for record in side] for side in (mine, theirs)]
        if not all(trained in one.x and max(one.x) > trained for side in series for one in side):
            continue
        label, other = evaluations.models.labels[model], evaluations.models.labels[reference]
        start, end = format_tokens(trained), format_tokens(int(max(series[0][0].x)))
        (own, rise), (others, other_rise) = (_change(side, trained) for side in series)
        text = (
            f"Beyond the training length of {start} tokens the loss of the models of {format_size(size)} on "
            f"{point.title} changes, from the positions up to {start} to those up to {end}, "
            f"{own} nats per token for {label} and {others} for the {other}."
        )
        return [KeyFinding(f"loss {rise} vs {other_rise} nats per token from {start} to {end}", text)]
    return []


def _with_positions(evaluations: Evaluations, point: TaskPoint, model: str, size: str) -> list[Record]:
    """Return the records of a model of a size that have a loss by position."""
    empty = Series(unit="", x_name="", x=(), y=())
    return [
        record
        for record in evaluations.measured(point)
        if (record.model.name, record.model.size) == (model, size)
        and record.series.get("loss_by_position", empty).x
    ]


def _change(side: Sequence[Series], trained: int) -> tuple[str, str]:
    """Return both losses and their difference, over the seeds."""
    before = [one.y[one.x.index(trained)] for one in side]
    after = [one.y[one.x.index(max(one.x))] for one in side]
    changes = [late - early for early, late in zip(before, after, strict=True)]
    first, last = (range_of(losses, "{:.3f}".format, "–") for losses in (before, after))
    return f"from {first} to {last}", range_of(changes, "{:+z.2f}".format)


def _slices(evaluations: Evaluations, point: TaskPoint, model: str) -> list[KeyFinding]:
    """State per size and seed by how much a model's losses on repeated and on new pairs differ from the reference's."""
    found = []
    for made in evaluations.compared(point, model):
        if not {"hit_nats", "first_nats"} <= made.slices.keys():
            continue
        label, other = (evaluations.models.labels[name] for name in (model, made.reference))
        hits, new, gain = (made.slices[name] for name in ("hit_nats", "first_nats", "hit_gain_nats"))
        text = (
            f"On {point.title}, the loss of {label} of {made.instance.title} differs from that of the {other} by "
            f"{describe_difference(hits)} nats per word on words that complete a rare pair seen earlier in the "
            f"document, and by {describe_difference(new)} on those of new pairs (95 % CI over {hits.num_documents} "
            f"documents; below 0 {label} is ahead). Its gain of a repeated pair differs by "
            f"{describe_difference(gain)}: "
            f"{_no_verdict(evaluations, made) or _recall_verdict(made, label, f'the {other}')}."
        )
        if "second_copy_bits_per_byte" in made.slices:
            copy = describe_difference(made.slices["second_copy_bits_per_byte"])
            text += f" On the second copy of a text its loss differs by {copy} bits per byte."
        found.append(KeyFinding(f"{hits.value:+.2f} vs {new.value:+.2f} nats on repeated vs new pairs", text))
    return found


def _no_verdict(evaluations: Evaluations, made: DocumentComparison) -> str:
    """State that documents longer than those of the training allow no verdict; empty where that is not known."""
    records = [r for r in evaluations.sides(made) if "num_tokens" in r.metrics and r.documents]
    trained = evaluations.trained_length(records) if records else None
    lengths = [r.metrics["num_tokens"].value / r.documents.num_documents for r in records if r.documents]
    if trained is None or max(lengths) <= trained:
        return ""
    return (
        f"no verdict on recall, because the documents have more tokens than the {format_tokens(trained)} of the "
        "training, and beyond that models extrapolate"
    )


def _recall_verdict(made: DocumentComparison, label: str, other: str) -> str:
    """State which side recalls more; only a model whose own gain of a repeated pair is above 0 recalls."""
    gain = made.slices["hit_gain_nats"]
    if gain.low is None or gain.high is None:
        return "there are too few documents for a verdict"
    if gain.low <= 0 <= gain.high:
        return "the difference in recall is not significant"
    leader, own = (label, made.own_gain) if gain.low > 0 else (other, made.reference_gain)
    if own is not None and own.low is not None and own.low > 0:
        return f"{leader} recalls more"
    words = f", its own gain is {describe_difference(own)}" if own is not None else ""
    return f"no verdict on recall, because {leader} is not shown to recall{words}"
