"""What is not there, what failed and what is noisy: everything that a reader should know before trusting a number."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from retbench.config.experiment import list_experiments
from retbench.report.readings import QUALITY, question_of, subject_of
from retbench.report.scenes import Scene, describe_status, scene_title
from retbench.report.scores import describe_subject, question_title
from retbench.report.selection import Selection
from retbench.units import format_tokens

NOISY_RATIO = 0.10
"""Half-width of an interval, over its value, from which on a point is called noisy."""

BUSY_LOAD = 1.5
"""Load average over physical cores from which on a machine is called busy; the run itself keeps it near 1."""


def missing_sentences(selection: Selection, scenes: Sequence[Scene]) -> list[str]:
    """A sentence for each shipped experiment, point and round that other records lead one to expect."""
    present = set(selection.experiments)
    sentences = [
        f"{name}: not measured under these conditions. Run `retbench run {name}`."
        for name in list_experiments()
        if name not in present
    ]
    for scene in scenes:
        for model in scene.models.models:
            for length in scene.lengths:
                rounds = {
                    record.round
                    for record in scene.records
                    if (record.model.name, record.point.context_len) == (model, length)
                }
                if len(rounds) < scene.num_rounds:
                    sentences.append(
                        f"{_place(scene, model, length)}: {len(rounds) or 'none'} of {scene.num_rounds} rounds "
                        f"{'is' if len(rounds) == 1 else 'are'} there. Run `{scene.records[-1].command}` again; it "
                        "goes on where it stopped."
                    )
    return sentences


def noisy_sentences(scenes: Sequence[Scene]) -> list[str]:
    """A sentence for each scene with points whose intervals are wider than a reader would guess."""
    sentences = []
    for scene in scenes:
        timed = scene.points[scene.points["metric"].isin(["tpot_s", "ttft_s", "step_s"])]
        wide = timed[(timed["high"] - timed["low"]) / 2 > NOISY_RATIO * timed["value"]]
        places = [
            f"{scene.models.labels[model]} at {', '.join(format_tokens(int(n)) for n in rows['context_len'])}"
            for model, rows in ((name, wide[wide["model"] == name]) for name in scene.models.models)
            if len(rows)
        ]
        if places:
            sentences.append(
                f"{scene_title(scene.experiment, scene.workload)}, batch {scene.batch_size}: the interval reaches "
                f"more than {100 * NOISY_RATIO:.0f} % to either side of {'; '.join(places)}. More rounds "
                "(`--set rounds=10`) or a quieter machine would narrow it."
            )
    return sentences


def disturbance_sentences(selection: Selection) -> list[str]:
    """A sentence for each thing that the environment tells of and that moves times: load, others, held-down clocks."""
    environments = [record.environment for record in selection.records]
    loads = [load for load in map(excessive_load, environments) if load is not None]
    foreign = sum(map(has_company, environments))
    held = sum(map(was_held_down, environments))
    total = len(environments)
    sentences = []
    if loads:
        sentences.append(
            f"{len(loads)} of {total} records come from a machine that was busy when their worker started: load "
            f"average up to {max(loads):.1f}."
        )
    if foreign:
        sentences.append(f"{foreign} of {total} records were measured with other processes on the GPU.")
    if held:
        sentences.append(f"In {held} of {total} records the GPU held its clocks down for power or heat.")
    return sentences


def has_company(facts: Mapping[str, Any]) -> bool:
    """Whether other processes were on the GPU before or after a record was measured."""
    counts = (number_at(facts, "gpu_state", end, "num_foreign_processes") for end in ("before", "after"))
    return any((count or 0) > 0 for count in counts)


def was_held_down(facts: Mapping[str, Any]) -> bool:
    """Whether the GPU held its clocks down for power or heat while a record was measured."""
    causes = (number_at(facts, "gpu_state", "violation_s", cause) for cause in ("power", "thermal"))
    return any((seconds or 0) > 0 for seconds in causes)


def excessive_load(facts: Mapping[str, Any]) -> float | None:
    """The load average of the last minute where it is too much for the machine's cores."""
    loads = facts.get("load_average")
    load = number_at({"latest": loads[0]}, "latest") if isinstance(loads, list) and loads else None
    cores = number_at(facts, "physical_cores")
    return load if load is not None and cores is not None and load > BUSY_LOAD * cores else None


def number_at(facts: object, *names: str) -> float | None:
    """The number at a path of nested facts; None where there is none."""
    for name in names:
        facts = facts.get(name) if isinstance(facts, Mapping) else None
    return float(facts) if isinstance(facts, int | float) else None


def absent_sentences(selection: Selection) -> list[str]:
    """A sentence for each metric that could not be had here, with the reason."""
    reasons = {
        f"{record.experiment}: {metric}: {reason}."
        for record in selection.records
        for metric, reason in record.absent.items()
    }
    return sorted(reasons)


def failure_table(selection: Selection) -> pd.DataFrame:
    """One row a cell and reason for which a round has no value: what, where and why."""
    rounds: dict[tuple[str, ...], list[int]] = {}
    for record in selection.records:
        if record.status != "ok":
            point = (str(record.point.batch_size), format_tokens(record.point.context_len))
            reason = (describe_status(record.status), record.error or "no reason was recorded")
            model, workload = record.model.name, record.workload
            if workload in QUALITY:
                model = f"{model} {describe_subject(subject_of(record))}"
                workload = f"{workload}: {question_title(question_of(record))}"
            key = (record.experiment, model, workload, *point, *reason)
            rounds.setdefault(key, []).append(record.round)
    rows = [[*key[:-2], ", ".join(map(str, sorted(found))), *key[-2:]] for key, found in rounds.items()]
    columns = ["experiment", "model", "workload", "batch", "context", "rounds", "what", "why"]
    return pd.DataFrame(rows, columns=columns)


def _place(scene: Scene, model: str, length: int) -> str:
    """Where a point is, in words."""
    label = scene.models.labels[model]
    return (
        f"{scene.experiment}: {label}, {scene.workload} at {format_tokens(length)}, batch {scene.batch_size}"
    )
