"""The headline: sentences computed from the records, each led by its number.

A sentence is only as strong as its interval: where rounds disagree, or one round cannot tell, it says so.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from retbench.report.comparisons import (
    LEVEL_MARGIN,
    Line,
    find_crossover,
    find_peak,
    find_slope,
    fit_line,
    pair_ratios,
)
from retbench.report.points import MAIN_METRIC
from retbench.report.scenes import (
    Scene,
    by_workload,
    describe_absence,
    describe_status,
    format_length,
    rounds_disagree,
    swept_by_batch,
)
from retbench.stats.intervals import Crossover, Equivalence
from retbench.units import format_bytes, format_seconds, format_tokens


@dataclass(frozen=True)
class Finding:
    """One sentence of the headline.

    Attributes:
        lead: The number it is about, with its unit; or that there is none.
        text: The sentence.
    """

    lead: str
    text: str


def find(scenes: Sequence[Scene]) -> list[Finding]:
    """Every finding that the scenes allow, in the order of the scenes; empty where no two models were measured."""
    writers: dict[str, Callable[[Scene, str, str], list[Finding]]] = {
        "decode": _decode,
        "prefill": _prefill,
        "memory": _memory,
        "largest_batch": _largest_batch,
        "training": _training,
    }
    order = list(writers)
    known = sorted(
        (scene for scene in scenes if scene.workload in writers), key=lambda s: order.index(s.workload)
    )
    swept = [group for group in by_workload(known) if swept_by_batch(group) and group[0].workload == "decode"]
    of_swept = {scene.name for group in swept for scene in group}
    return [
        finding
        for scene in known
        if scene.name not in of_swept
        for model in scene.models.challengers
        for finding in writers[scene.workload](scene, model, str(scene.models.reference))
    ] + [
        finding
        for group in swept
        for model in group[0].models.challengers
        for finding in _peaks(group, model)
    ]


def _decode(scene: Scene, model: str, reference: str) -> list[Finding]:
    """Crossover, ratio at the deepest context, and whether the model's time is level in the context."""
    metric = MAIN_METRIC[scene.workload]
    label, other = scene.models.labels[model], scene.models.labels[reference]
    found = []
    crossing = find_crossover(scene.metrics, metric, model, reference)
    if crossing is not None:
        found.append(_crossover(*crossing, label, other, scene.batch_size))
    found += _deepest(scene, model, reference, f"a token takes {label}", format_seconds)
    slope = find_slope(scene.metrics, metric, model)
    if slope is not None:
        lengths, verdict = slope
        first, last = format_tokens(lengths[0]), format_tokens(lengths[-1])
        limits = f"[{1 - LEVEL_MARGIN:.2f}, {1 + LEVEL_MARGIN:.2f}]"
        text = f"{label}'s time per token at {last} is {verdict.ratio:.3f} of that at {first}, batch {scene.batch_size}"
        if verdict.low is None or verdict.high is None:
            text += f": one round, so no interval to hold against {limits}."
        else:
            text += (
                f" (90 % interval {verdict.low:.3f} to {verdict.high:.3f}, on a line through all lengths): "
                f"{_level_words(verdict, limits)}."
            )
        found.append(Finding(f"{verdict.ratio:.2f}×", text))
    return found


def _level_words(verdict: Equivalence, limits: str) -> str:
    """Whether a cost depends on the length, and how that was told."""
    if verdict.equivalent:
        return f"inside {limits}, so it does not depend on the context length"
    if verdict.apart is not None:
        length, ratio = verdict.apart
        return f"not level, at {format_tokens(length)} it is {ratio.value:.3f} of that at the first"
    return f"{'not' if verdict.differs else 'not shown to be'} level, which takes an interval inside {limits}"


def _crossover(
    lengths: Sequence[int], crossing: Crossover, label: str, other: str, batch_size: int
) -> Finding:
    """Where the model becomes the faster of the two."""
    reach = f"{format_tokens(lengths[0])} to {format_tokens(lengths[-1])}"
    if crossing.value is None:
        why = describe_absence(crossing, lengths, label)
        text = f"Crossover of the time per token, {reach}, batch {batch_size}: {why}."
        if rounds_disagree(crossing, lengths):
            return Finding("rounds disagree", f"{text} {crossing.note}".replace("the first model", label))
        return Finding("none in range", text)
    text = (
        f"{label} decodes faster than the {other} from a context of {format_length(crossing.value)} tokens on, "
        f"batch {batch_size}"
    )
    if crossing.low is not None and crossing.high is not None:
        text += f" (95 % interval {format_length(crossing.low)} to {format_length(crossing.high)})"
    return Finding(f"{format_length(crossing.value)} tokens", f"{text}. {crossing.note}".strip())


def _prefill(scene: Scene, model: str, reference: str) -> list[Finding]:
    """Ratio at the longest prompt."""
    return _deepest(scene, model, reference, f"a prompt takes {scene.models.labels[model]}", format_seconds)


def _memory(scene: Scene, model: str, reference: str) -> list[Finding]:
    """Ratio at the deepest context."""
    label = scene.models.labels[model]
    return _deepest(scene, model, reference, f"weights, state and workspace take {label}", format_bytes)


def _largest_batch(scene: Scene, model: str, reference: str) -> list[Finding]:
    """How many sequences of the deepest context that both reached each model fits."""
    ratios = pair_ratios(scene.metrics, scene.models)
    ratios = ratios[ratios["model"] == model].sort_values("context_len")
    if ratios.empty:
        return []
    length, ratio = int(ratios["context_len"].iloc[-1]), float(ratios["ratio"].iloc[-1])
    largest, limits = scene.rows("largest_batch"), scene.rows("memory_limit_bytes")
    mine, theirs = (_value(largest, name, length) for name in (model, reference))
    memory, other = format_bytes(_value(limits, model, length)), scene.models.labels[reference]
    text = (
        f"At {format_tokens(length)} {scene.models.labels[model]} fits {mine:,.0f} sequences into {memory} and the "
        f"{other} {theirs:,.0f}: a ratio of {ratio:#.3g}."
    )
    return [Finding(f"{ratio:#.3g}×", text + _beyond(scene, (model, reference), length))]


def _peaks(scenes: Sequence[Scene], model: str) -> list[Finding]:
    """The most tokens/s at the deepest context that both models reached, each at the best of its batch sizes."""
    models, reference = scenes[0].models, str(scenes[0].models.reference)
    metrics = pd.concat([scene.metrics for scene in scenes])
    points = pd.concat([scene.points for scene in scenes], ignore_index=True)
    for length in sorted({length for scene in scenes for length in scene.lengths}, reverse=True):
        here, there = (frame[frame["context_len"] == length] for frame in (metrics, points))
        peak = find_peak(here, there, model, reference)
        if peak is None:
            continue
        ratio, low, high = peak.ratio
        mine, theirs = (
            f"{format_length(value)} tokens/s (batch {batch_size})"
            for value, batch_size in zip(peak.values, peak.batch_sizes, strict=True)
        )
        text = (
            f"At {format_tokens(length)}, each at the best of the batch sizes {_listed(_batches(scenes, length))}, "
            f"{models.labels[model]} decodes {mine} and the {models.labels[reference]} {theirs}: a ratio of "
            f"{ratio:#.3g}"
        )
        if low == low:
            text += f" (95 % interval {low:#.3g} to {high:#.3g})"
        return [Finding(f"{ratio:#.3g}×", f"{text}.{_larger_batches(scenes, (model, reference), length)}")]
    return []


def _batches(scenes: Sequence[Scene], length: int) -> list[str]:
    """The batch sizes that were tried at a length."""
    return [str(size) for size in sorted({scene.batch_size for scene in scenes if length in scene.lengths})]


def _larger_batches(scenes: Sequence[Scene], models: Sequence[str], length: int) -> str:
    """What kept each model from a larger batch at a length; empty where nothing did."""
    failed = pd.concat([scene.failed for scene in scenes])
    text = ""
    for model in models:
        mine = failed[(failed["model"] == model) & (failed["context_len"] == length)]
        if mine.empty:
            continue
        first = mine.sort_values("batch_size").iloc[0]
        text += (
            f" At batch {int(first['batch_size'])} the {scenes[0].models.labels[model]} has no value: "
            f"{describe_status(str(first['status']))}{_limit_words(scenes)}."
        )
    return text


def _limit_words(scenes: Sequence[Scene]) -> str:
    """How much memory the experiment allows, where it allows less than there is."""
    limits = {record.settings.get("memory_limit_bytes") for scene in scenes for record in scene.records}
    known = [limit for limit in limits if isinstance(limit, int)]
    return f", of {format_bytes(min(known))} that the experiment allows" if known else ""


def _training(scene: Scene, model: str, reference: str) -> list[Finding]:
    """Ratio of the times of a step at every length, and how the model's peak memory grows."""
    label, other = scene.models.labels[model], scene.models.labels[reference]
    ratios = pair_ratios(scene.metrics, scene.models)
    ratios = ratios[ratios["model"] == model].sort_values("context_len")
    found = []
    if not ratios.empty:
        first, *rest = (
            (f"{row['ratio']:#.3g}{_ends(row)}", f"at {format_tokens(int(row['context_len']))}")
            for row in ratios.to_dict(orient="records")
        )
        at = [f"{first[0]} times as long as the {other}'s {first[1]}", *(" ".join(item) for item in rest)]
        last = ratios.iloc[-1]
        what = " (95 % intervals)" if ratios["low"].notna().any() else ""
        text = f"A training step of the {label} takes {_listed(at)}, batch {scene.batch_size}{what}."
        beyond = _beyond(scene, (model, reference), int(last["context_len"]))
        found.append(Finding(f"{last['ratio']:#.3g}×", text + beyond))
    line = fit_line(scene.points, "peak_bytes", model)
    if line is not None:
        found.append(_growth(scene, line, model, reference))
    return found


def _ends(row: Mapping[Hashable, Any]) -> str:
    """The interval of a ratio, where it has one."""
    return f" [{row['low']:#.3g}, {row['high']:#.3g}]" if row["low"] == row["low"] else ""


def _listed(items: Sequence[str]) -> str:
    """Items as a sentence lists them: 'a, b and c'."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def _growth(scene: Scene, line: Line, model: str, reference: str) -> Finding:
    """Whether a model's peak memory of training is linear in the length, the line, and how it compares."""
    label, last = scene.models.labels[model], line.lengths[-1]
    reach = f"{format_tokens(line.lengths[0])} to {format_tokens(last)}"
    missed = max(0.01, 100 * line.largest_residual)
    fit = f"a line misses no point by more than {missed:.2g} %, R² {line.r_squared:.4f}"
    text = f"From {reach} the peak memory of a training step of the {label}, batch {scene.batch_size}, is"
    peaks = scene.rows("peak_bytes")
    beside = ""
    if last in set(peaks[peaks["model"] == reference]["context_len"]):
        mine, theirs = (format_bytes(_value(peaks, name, last)) for name in (model, reference))
        beside = (
            f" At {format_tokens(last)} it is {mine}, and the {scene.models.labels[reference]}'s {theirs}."
        )
    if not line.fits:
        fit = fit.replace("no point by more than", "a point by")
        return Finding("not linear", f"{text} not linear in the length ({fit}).{beside}")
    sign = "and" if line.intercept >= 0 else "less"
    lead = f"{format_bytes(line.slope)} a token"
    text += f" linear in the length: {lead} {sign} {format_bytes(abs(line.intercept))} ({fit}).{beside}"
    return Finding(lead, text)


def _deepest(
    scene: Scene, model: str, reference: str, begin: str, describe: Callable[[float], str]
) -> list[Finding]:
    """The two models at the deepest context that both reached, and what kept one of them from a deeper one."""
    ratios = pair_ratios(scene.metrics, scene.models)
    ratios = ratios[ratios["model"] == model].sort_values("context_len")
    if ratios.empty:
        return []
    last = ratios.iloc[-1]
    length = int(last["context_len"])
    values = scene.rows(MAIN_METRIC[scene.workload])
    mine, theirs = (_value(values, name, length) for name in (model, reference))
    text = (
        f"At {format_tokens(length)} {begin} {describe(mine)} and the {scene.models.labels[reference]} "
        f"{describe(theirs)}, batch {scene.batch_size}: a ratio of {last['ratio']:#.3g}"
    )
    if last["low"] == last["low"]:
        text += f" (95 % interval {last['low']:#.3g} to {last['high']:#.3g})"
    return [Finding(f"{last['ratio']:#.3g}×", f"{text}.{_beyond(scene, (model, reference), length)}")]


def _value(rows: pd.DataFrame, model: str, length: int) -> float:
    return float(rows[(rows["model"] == model) & (rows["context_len"] == length)]["value"].iloc[0])


def _beyond(scene: Scene, models: Sequence[str], length: int) -> str:
    """Why the comparison ends at `length` where the sweep goes deeper; empty where it does not."""
    failed = scene.failed[(scene.failed["context_len"] > length) & scene.failed["model"].isin(models)]
    if failed.empty:
        return ""
    first = failed.sort_values("context_len").iloc[0]
    return (
        f" At {format_tokens(int(first['context_len']))} the {scene.models.labels[str(first['model'])]} "
        f"has no value: {describe_status(str(first['status']))}."
    )
