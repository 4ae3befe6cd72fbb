"""Limitations of the results: what is missing, failed or noisy, and what disturbed the measurement."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from retbench.config.experiment_files import list_experiments, load_experiment
from retbench.records.environment import excessive_load
from retbench.records.record import FAULTY_CEILING, Record
from retbench.report.evaluations import Evaluations
from retbench.report.frames import faulty_shares
from retbench.report.points import fact, group, instance_of, scores_of, task_point_of
from retbench.report.sweeps import CostSweep
from retbench.report.tables.cells import TableCell, length_cell
from retbench.report.wording import describe_status, range_of, section_title
from retbench.units import format_percent, format_tokens
from retbench.workloads.workload import measures_cost

NOISY_RATIO = 0.10
"""A point is noisy where the half-width of its interval exceeds this share of its value."""


def missing_sentences(records: Sequence[Record], sweeps: Sequence[CostSweep]) -> list[str]:
    """Return one sentence per shipped experiment without records, and per model with points without all rounds."""
    present = {record.experiment for record in records}
    profiles = {record.profile for record in records}
    sentences = [
        f"{name}: not measured under these conditions. {_first_run(name, profiles)}"
        for name in list_experiments()
        if name not in present
    ]
    for sweep in sweeps:
        for model in sweep.models.models:
            counts = {
                length: len({record.round for record in sweep.cell(model, length)})
                for length in sweep.lengths
            }
            for count, lengths in group(counts, counts.__getitem__).items():
                if count < sweep.num_rounds:
                    sentences.append(
                        f"{sweep.experiment}: {sweep.models.labels[model]}, {sweep.workload} at "
                        f"{', '.join(map(format_tokens, lengths))}, batch {sweep.batch_size}: {count or 'none'} of "
                        f"{sweep.num_rounds} rounds {'is' if count == 1 else 'are'} measured. "
                        f"{_rerun(sweep.records[-1])}"
                    )
    return sentences


def _first_run(name: str, profiles: Collection[str]) -> str:
    """Return how to measure a shipped experiment, with the training that its models need in the profiles of others."""
    experiment = load_experiment(name)
    mine = [one for one in experiment.profiles if one in profiles] or [*experiment.profiles]
    trained = [f"`retbench train {origin}`" for origin in experiment.trained_in(mine)]
    models = [spec for one in mine for spec in experiment.of_profile(one).models.values()]
    hub = ", which downloads checkpoints from the hub" if any(spec.checkpoint for spec in models) else ""
    return f"Run {', then '.join([*trained, f'`retbench run {name}`'])}{hub}."


def _rerun(record: Record) -> str:
    return f"Run `{record.command}` again; it continues where it stopped."


def missing_evaluations(evaluations: Evaluations) -> list[str]:
    """Return one sentence per task point that some models or seeds lack, though others of the experiment have it."""
    sentences = []
    for point in evaluations.task_points():
        peers = [
            r for r in evaluations.records if (r.experiment, r.workload) == (point.experiment, point.workload)
        ]
        present = {(r.model.name, instance_of(r)) for r in peers if task_point_of(r) == point}
        expected = {(r.model.name, instance_of(r)) for r in peers}
        absent = [
            f"{evaluations.models.labels[model]} {instance.title}"
            for instance in evaluations.instances(peers)
            for model in evaluations.models.models
            if (model, instance) in expected - present
        ]
        if absent:
            sentences.append(
                f"{point.experiment}: {point.title} was not evaluated for {', '.join(absent)}. {_rerun(peers[-1])}"
            )
    return sentences


def noisy_sentences(sweeps: Sequence[CostSweep]) -> list[str]:
    """Return one sentence per sweep whose primary metric has wide intervals."""
    sentences = []
    for sweep in sweeps:
        if sweep.primary is None or not sweep.primary.has_interval:
            continue
        timed = sweep.rows(sweep.primary.name)
        wide = timed[(timed["high"] - timed["low"]) / 2 > NOISY_RATIO * timed["value"]]
        places = [
            f"{sweep.models.labels[model]} at {', '.join(format_tokens(int(n)) for n in rows['context_len'])}"
            for model, rows in ((name, wide[wide["model"] == name]) for name in sweep.models.models)
            if len(rows)
        ]
        if places:
            sentences.append(
                f"{section_title(sweep.experiment, sweep.workload)}, batch {sweep.batch_size}: the half-width of "
                f"the interval exceeds {100 * NOISY_RATIO:.0f} % of the value for {'; '.join(places)}. Use more "
                f"rounds (`--set rounds={2 * sweep.num_rounds}`) or a quieter machine."
            )
    return sentences


def disturbance_sentences(records: Sequence[Record]) -> list[str]:
    """Return one sentence per recorded disturbance of times: load, other processes, throttled clocks."""
    environments = [record.environment for record in records]
    loads = [load for load in map(excessive_load, environments) if load is not None]
    foreign = sum(map(has_company, environments))
    throttled = sum(map(was_held_down, environments))
    total = len(environments)
    sentences = []
    if loads:
        sentences.append(
            f"{len(loads)} of {total} records come from a machine that was busy when their worker started: load "
            f"average up to {max(loads):.1f}."
        )
    if foreign:
        sentences.append(f"{foreign} of {total} records were measured while other processes used the GPU.")
    if throttled:
        sentences.append(f"In {throttled} of {total} records the GPU reduced its clocks for power or heat.")
    return sentences


_REDUCED_CLOCKS = {
    "sw_power_cap",
    "hw_slowdown",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
}
"""Reasons by which a GPU's driver states that its clocks are reduced for power or heat."""


def has_company(facts: Mapping[str, Any]) -> bool:
    """Return whether other processes used the GPU before or after a record was measured."""
    counts = (number_at(facts, "gpu_state", end, "num_foreign_processes") for end in ("before", "after"))
    return any((count or 0) > 0 for count in counts)


def was_held_down(facts: Mapping[str, Any]) -> bool:
    """Return whether the GPU reduced its clocks for power or heat while a record was measured."""
    causes = (number_at(facts, "gpu_state", "violation_s", cause) for cause in ("power", "thermal"))
    state = facts.get("gpu_state")
    during = state.get("during") if isinstance(state, Mapping) else None
    reasons = during.get("clocks_event_reasons") if isinstance(during, Mapping) else None
    sampled = {one for one in reasons if isinstance(one, str)} if isinstance(reasons, list) else set()
    return any((seconds or 0) > 0 for seconds in causes) or bool(sampled & _REDUCED_CLOCKS)


def number_at(facts: object, *names: str) -> float | None:
    """Return the number at a path of nested facts; None where there is none."""
    for name in names:
        facts = facts.get(name) if isinstance(facts, Mapping) else None
    return float(facts) if isinstance(facts, int | float) else None


def absent_sentences(records: Sequence[Record]) -> list[str]:
    """Return one sentence per metric that is not available here, with the reason."""
    reasons = {
        (record.experiment, metric, reason)
        for record in records
        for metric, reason in {
            **record.absent,
            **dict.fromkeys(faulty_shares(record), FAULTY_CEILING),
        }.items()
    }
    return sorted(f"{experiment}: {metric}: {reason}." for experiment, metric, reason in reasons)


def failure_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row per cell and reason for which a round has no value."""
    rounds: dict[tuple[str, ...], list[int]] = {}
    for record in records:
        if record.status != "ok":
            model, workload = record.model.name, record.workload
            if not measures_cost(record):
                model = f"{model} {instance_of(record).title}"
                workload = f"{workload}: {task_point_of(record).title}"
            batch, length = record.point.batch_size, record.point.context_len
            point = (TableCell(str(batch), batch), length_cell(length))
            reason = (describe_status(record.status), record.error or "no reason was recorded")
            rounds.setdefault((record.experiment, model, workload, *point, *reason), []).append(record.round)
    rows = [[*key[:-2], ", ".join(map(str, sorted(found))), *key[-2:]] for key, found in rounds.items()]
    columns = ["experiment", "model", "workload", "batch", "context", "rounds", "status", "reason"]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def truncation_sentences(scores: Evaluations) -> list[str]:
    """Return one sentence per task with prompts that did not fit in the context, so that their beginning was cut."""
    sentences = []
    for point in scores.scored("answers"):
        shares = [
            record.metrics["num_truncated"].value / max(1.0, record.metrics["num_requests"].value)
            for record in scores.measured(point)
            if {"num_truncated", "num_requests"} <= record.metrics.keys()
        ]
        if any(shares):
            sentences.append(
                f"{point.experiment}: {point.title}: {range_of(shares, format_percent)} of the continuations follow a "
                f"prompt that did not fit in {format_tokens(point.context_len)} tokens, so its beginning was cut. Use "
                "a larger `context_len`."
            )
    return sentences


_LEARNED_FROM = frozenset({"train", "all"})
"""Splits that hold training text; `validation` decides between learning rates, `test` is unseen."""


def overlap_sentences(scores: Evaluations) -> list[str]:
    """Return a sentence for each evaluation on a corpus that models were trained on, or on another state of it.

    Corpora are identified by name and fingerprint. Records do not show whether two different corpora share a passage.
    """
    places: dict[tuple[str, str], list[str]] = {}
    for record in scores.records:
        is_text = scores_of(record.workload) in {"text", "slices"}
        doubt = _doubt(record, scores) if is_text and record.status == "ok" else None
        if doubt is not None:
            task_point = task_point_of(record)
            where = f"{task_point.experiment}: {task_point.title}"
            name = f"{scores.models.labels[record.model.name]} {instance_of(record).title}"
            places.setdefault((where, doubt), []).append(name)
    return [
        f"{where}, evaluated with {', '.join(names)}: {doubt}." for (where, doubt), names in places.items()
    ]


def _doubt(record: Record, scores: Evaluations) -> str | None:
    """Return what may be wrong with the text that a record was evaluated on; None if nothing is known."""
    weights, split = record.model.weights, fact(record, "split")
    if weights is None or weights.corpus is None:
        return None
    then, now = _training_fingerprint(record, scores), fact(record, "corpus_fingerprint")
    is_same_name = weights.corpus == record.point.task
    if then != now and None not in (then, now) and is_same_name:
        return (
            f"'{weights.corpus}' has changed since the training (fingerprint {then} then, {now} now), so text that is "
            "held out now may have been training text"
        )
    if split in _LEARNED_FROM and (is_same_name or (then is not None and then == now)):
        return (
            f"its split '{split}' holds the training text, so the loss measures how well that is remembered, not how "
            "well language is predicted"
        )
    return None


def _training_fingerprint(record: Record, scores: Evaluations) -> object:
    """Return the fingerprint of the corpus that the weights were trained on; None if no training record shows it."""
    assert record.model.weights is not None
    found = {
        fact(training, "corpus_fingerprint")
        for training in scores.trainings
        if training.model.weights and training.model.weights.fingerprint == record.model.weights.fingerprint
    }
    return found.pop() if len(found) == 1 else None
