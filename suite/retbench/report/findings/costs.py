"""Findings on cost: sentences computed from the records, each led by its number.

Every workload has the same sentence, made of its primary metric's quantity and direction. A sentence claims no more
than its interval shows: where rounds disagree, or there is only one, it says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from retbench.report.comparisons import (
    LEVEL_MARGIN,
    Comparison,
    Line,
    cost_ratio,
    find_primary_crossover,
    find_slope,
    fit_line,
    shared_rounds,
)
from retbench.report.findings.advantages import Advantage, advantage, lead_of_ends
from retbench.report.lineup import Lineup
from retbench.report.sweeps import CostSweep, by_workload, mean_of_rounds, swept_by_batch
from retbench.report.tables.cells import format_metric
from retbench.report.wording import (
    crossing_ends,
    describe_absence,
    describe_status,
    format_length,
    join_words,
)
from retbench.stats.intervals import Crossover, Equivalence
from retbench.units import format_bytes, format_items, format_tokens
from retbench.workloads.workload import WORKLOADS, MetricSpec

THROUGHPUT = MetricSpec("tokens_per_s", "tokens/s", lower_is_better=False, better="more throughput")


@dataclass(frozen=True)
class KeyFinding:
    """One sentence of the page's first section.

    Attributes:
        lead: Its number with the unit, or that there is none.
        text: The sentence.
    """

    lead: str
    text: str

    def of(self, model: str, models: Lineup) -> "KeyFinding":
        """Return the finding with the model in its lead, if several models are compared with the reference."""
        if len(models.challengers) < 2:
            return self
        return KeyFinding(f"{models.labels[model]}: {self.lead}", self.text)


class End(NamedTuple):
    """A model compared with the reference at one context length.

    Attributes:
        advantage: Its advantage.
        length: The context length.
        mine: Its value.
        theirs: The reference's value.
        rounds: Which rounds the values are of, to follow them: " in 3 common rounds"; empty where both have the
            same, and of one round, which the advantage states.
    """

    advantage: Advantage
    length: int
    mine: str
    theirs: str
    rounds: str


def find_ends(found: Comparison, model: str) -> list[End]:
    """Return one model's comparison at the shortest and at the longest context; one where they are the same.

    The values are of the rounds that the ratio compares: where a run was interrupted, a model has rounds alone.
    """
    metric, measured = found.workload.primary, found.sweep.metrics
    measured = measured[measured["metric"] == metric.name]
    rows = found.ratios[found.ratios["model"] == model].sort_values("context_len")
    ends = []
    for _, row in rows.iloc[[0, -1] if len(rows) > 1 else slice(None)].iterrows():
        length = int(row["context_len"])
        sides = (_at(measured, model, length), _at(measured, found.reference, length))
        values = _compared_values(metric, sides, row)
        ends.append(End(advantage(metric, row), length, *values))
    return ends


def _compared_values(
    metric: MetricSpec, sides: tuple[pd.DataFrame, pd.DataFrame], ratio: pd.Series
) -> tuple[str, str, str]:
    """Return the values of two models in the rounds that their ratio compares, and which rounds these are."""
    rounds = ""
    if not ratio["unpaired"]:
        count, most = int(ratio["num_rounds"]), max(map(len, sides))
        sides = shared_rounds(*sides)
        rounds = f" in {format_items(count, 'common round')}" if 1 < count < most else ""
    mine, theirs = (
        format_metric(metric.name, mean_of_rounds(list(side["value"])), metric.unit) for side in sides
    )
    return mine, theirs, rounds


def find_costs(sweeps: Sequence[CostSweep]) -> list[KeyFinding]:
    """Return every finding on cost, in the order of the workloads; none where no two models were measured."""
    order = list(WORKLOADS)
    known = sorted((s for s in sweeps if s.workload in WORKLOADS), key=lambda s: order.index(s.workload))
    groups = by_workload(known)
    swept = [of_one for of_one in groups if swept_by_batch(of_one) and len(of_one[0].rows("tokens_per_s"))]
    found = [
        finding.of(model, sweep.models)
        for of_one in groups
        if of_one not in swept
        for sweep in of_one
        for compared in [Comparison(sweep)]
        for model in sweep.models.challengers
        for finding in _findings(compared, model)
    ]
    return found + [
        finding.of(model, of_one[0].models)
        for of_one in swept
        for model in of_one[0].models.challengers
        for finding in _peaks(of_one, model)
    ]


def _findings(found: Comparison, model: str) -> list[KeyFinding]:
    """Return the ratios at both ends, the crossover, and the growth with the context length, as far as they apply."""
    sweep, workload = found.sweep, found.workload
    findings = _ends(found, model)
    crossing = find_primary_crossover(sweep, model)
    if crossing and (workload.starts_from_state or crossing[1].value is not None):
        findings.append(_crossover(found, model, *crossing))
    if workload.starts_from_state:
        slope = find_slope(sweep.metrics, workload.primary.name, model)
        findings += [_level(found, model, *slope)] if slope else []
    if any(spec.name == "peak_bytes" for spec in workload.metrics[1:]):
        line = fit_line(sweep.points, "peak_bytes", model)
        findings += [_growth(found, model, line)] if line else []
    return findings


def _ends(found: Comparison, model: str) -> list[KeyFinding]:
    """Compare the two models at the longest context that both reached, and at the shortest one."""
    sweep, ends = found.sweep, find_ends(found, model)
    if not ends:
        return []
    label, other = found.named(model), found.named(found.reference)
    last, length, mine, theirs, rounds = ends[-1]
    limits = sweep.rows("memory_limit_bytes")["value"]
    limit = f" in {format_bytes(limits.min())}" if len(limits) else ""
    text = (
        f"At {format_tokens(length)} the {found.workload.quantity}{limit} is {mine} for {label} and {theirs} "
        f"for {other}{rounds}{found.batch}: {last.clause(label, other)}."
    )
    if len(ends) > 1:
        text += f" At {format_tokens(ends[0].length)} {ends[0].advantage.clause(label, other)}."
    reason = sweep.reason_beyond((model, found.reference), length)
    text += f" {reason[0].upper()}{reason[1:]}." if reason else ""
    return [KeyFinding(lead_of_ends([end[:2] for end in ends]), text)]


def _at(rows: pd.DataFrame, model: str, length: int) -> pd.DataFrame:
    return rows[(rows["model"] == model) & (rows["context_len"] == length)]


def _value(rows: pd.DataFrame, model: str, length: int) -> float:
    return float(_at(rows, model, length)["value"].iloc[0])


def _limit(sweeps: Sequence[CostSweep]) -> str:
    """Return the memory that the experiment allows, where it is limited, as the end of a sentence."""
    limits = [record.settings.get("memory_limit_bytes") for sweep in sweeps for record in sweep.records]
    known = [limit for limit in limits if isinstance(limit, int)]
    return f", with a limit of {format_bytes(min(known))}" if known else ""


def _crossover(found: Comparison, model: str, lengths: Sequence[int], crossing: Crossover) -> KeyFinding:
    """State the context length from which on the model costs less."""
    label, other = found.named(model), found.named(found.reference)
    reach = f"{format_tokens(lengths[0])} to {format_tokens(lengths[-1])}"
    if crossing.value is None:
        where = describe_absence(crossing, lengths)
        text = f"Crossover of the {found.workload.quantity}, {reach}{found.batch}: {label} is {where}."
        note = crossing.note.replace("the first model", label)
        return KeyFinding(where, f"{text} {note}".strip())
    length = format_length(crossing.value)
    text = (
        f"The {found.workload.quantity} of {label} is below that of {other} from a context of about "
        f"{length} tokens on, interpolated between the measured lengths{found.batch}"
    )
    if ends := crossing_ends(crossing):
        text += f" (95 % CI [{', '.join(ends)}])"
    return KeyFinding(
        f"{found.workload.primary.better} from about {length} tokens on", f"{text}. {crossing.note}".strip()
    )


def _level(
    found: Comparison, model: str, lengths: Sequence[int], slope: Equivalence, left_out: str
) -> KeyFinding:
    """State whether the model's time is constant in context length, and which rounds were left out."""
    first, last = format_tokens(lengths[0]), format_tokens(lengths[-1])
    limits = f"[{1 - LEVEL_MARGIN:.2f}, {1 + LEVEL_MARGIN:.2f}]"
    value = slope.measured.value
    time = f"The {found.workload.quantity} of {found.named(model)}"
    text = f"{time} at {last} is {value:.3f} of that at {first}{found.batch}"
    if slope.low is None or slope.high is None:
        text += f": one round, so there is no interval to compare with {limits}."
    else:
        line = f"on a line through all lengths {slope.ratio:.3f}, 90 % CI [{slope.low:.3f}, {slope.high:.3f}]"
        text += f" ({line}): {_level_words(slope, limits)}."
    return KeyFinding(f"{value:.2f}× from {first} to {last}", f"{text} {left_out}".strip())


def _level_words(slope: Equivalence, limits: str) -> str:
    if slope.equivalent:
        return f"inside {limits}, so it is constant in context length"
    if slope.apart is not None:
        length, ratio = slope.apart
        return f"not constant, at {format_tokens(length)} it is {ratio.value:.3f} of that at the first"
    return (
        f"{'not' if slope.differs else 'not shown to be'} constant, which needs an interval inside {limits}"
    )


def _growth(found: Comparison, model: str, line: Line) -> KeyFinding:
    """State whether the model's peak memory is linear in the length, with the line, and compare it at the last one."""
    last = line.lengths[-1]
    missed = max(0.01, 100 * line.largest_residual)
    text = (
        f"From {format_tokens(line.lengths[0])} to {format_tokens(last)} the peak memory "
        f"{found.workload.quantity.removeprefix('time ')} of {found.named(model)}{found.batch}, is"
    )
    peaks = found.sweep.rows("peak_bytes")
    compared = ""
    if last in set(peaks[peaks["model"] == found.reference]["context_len"]):
        mine, theirs = (format_bytes(_value(peaks, name, last)) for name in (model, found.reference))
        compared = (
            f" At {format_tokens(last)} it is {mine}, and that of {found.named(found.reference)} {theirs}."
        )
    if not line.fits:
        fit = f"a line misses a point by {missed:.2g} %, R² {line.r_squared:.4f}"
        return KeyFinding("not linear", f"{text} not linear in context length ({fit}).{compared}")
    fit = f"a line misses no point by more than {missed:.2g} %, R² {line.r_squared:.4f}"
    lead = f"{format_bytes(line.slope)} per token"
    formula = f"{lead} {'and' if line.intercept >= 0 else 'less'} {format_bytes(abs(line.intercept))}"
    return KeyFinding(lead, f"{text} linear in context length: {formula} ({fit}).{compared}")


def _peaks(sweeps: Sequence[CostSweep], model: str) -> list[KeyFinding]:
    """Compare the highest throughput of two models at the longest context, over all batch sizes."""
    models = sweeps[0].models
    names = (model, str(models.reference))
    for length in sorted({length for sweep in sweeps for length in sweep.lengths}, reverse=True):
        peaks = [peak for name in names if (peak := _peak(sweeps, name, length))]
        ratio = cost_ratio(peaks[0][1], peaks[1][1]) if len(peaks) == 2 else None
        if ratio is None:
            continue
        label, other = map(models.named, names)
        sizes = [str(n) for n in sorted({s.batch_size for s in sweeps if length in s.lengths})]
        compared = pd.Series(ratio._asdict())
        found = advantage(THROUGHPUT, compared)
        mine, theirs, rounds = _compared_values(THROUGHPUT, (peaks[0][1], peaks[1][1]), compared)
        text = (
            f"At {format_tokens(length)}, each model at the best of the batch sizes {join_words(sizes)}, the "
            f"throughput of {label} is {mine} tokens/s (batch {peaks[0][0]}) and that of {other} {theirs} tokens/s "
            f"(batch {peaks[1][0]}){rounds}: {found.clause(label, other)}."
        )
        return [
            KeyFinding(
                f"{found.lead} at {format_tokens(length)}", text + _larger_batches(sweeps, names, length)
            )
        ]
    return []


def _peak(sweeps: Sequence[CostSweep], model: str, length: int) -> tuple[int, pd.DataFrame] | None:
    """Return the batch size of a model's highest throughput at a context length, and its rounds; None without any."""
    at = {sweep.batch_size: _at(sweep.rows("tokens_per_s"), model, length)["value"] for sweep in sweeps}
    values = {batch_size: float(found.iloc[0]) for batch_size, found in at.items() if len(found)}
    if not values:
        return None
    best = max(values, key=values.__getitem__)
    metrics = next(sweep.metrics for sweep in sweeps if sweep.batch_size == best)
    return best, _at(metrics[metrics["metric"] == "tokens_per_s"], model, length)


def _larger_batches(sweeps: Sequence[CostSweep], models: Sequence[str], length: int) -> str:
    """Return why each model has no larger batch at a length; empty where it has."""
    failed = pd.concat([sweep.failed for sweep in sweeps])
    limit, text = _limit(sweeps), ""
    for model in models:
        mine = failed[(failed["model"] == model) & (failed["context_len"] == length)]
        if not mine.empty:
            first = mine.sort_values("batch_size").iloc[0]
            text += (
                f" At batch {int(first['batch_size'])} {sweeps[0].models.named(model)} has no value: "
                f"{describe_status(str(first['status']))}{limit}."
            )
    return text
