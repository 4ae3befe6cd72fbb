"""What one figure or one block of a table is about: a workload of an experiment at one batch size."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from retbench.records.record import Record
from retbench.report.frames import metric_frame, set_of, started, status_frame
from retbench.report.points import Lineup, failed_points, lineup, summarise
from retbench.report.selection import Selection
from retbench.stats.intervals import Crossover
from retbench.units import format_count, format_tokens

_STATUS_WORDS = {
    "oom": "out of memory",
    "timeout": "timed out",
    "failed": "failed",
    "gate_failed": "forms disagree",
    "unsupported": "not supported here",
    "missing": "not measured",
}

_NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=(?:%|[KMGTB]|[nµm]?s|[KMG]i?B|tokens|threads?)(?![A-Za-z]))")


def describe_status(status: str) -> str:
    """A status in words: 'oom' -> 'out of memory'."""
    return _STATUS_WORDS.get(status, status)


def scene_title(experiment: str, workload: str, join: str = ": ") -> str:
    """Experiment and workload in one; the name once where both are called the same."""
    return workload if experiment == workload else f"{experiment}{join}{workload}"


def file_stem(text: str) -> str:
    """A name as part of a file's: letters, digits, dashes and underscores only."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)


def describe_crossover(crossing: Crossover) -> str:
    """A crossover with its interval: '1,840 [1,620, 2,090] tokens'; three digits each."""
    if crossing.value is None:
        return "none in range"
    ends = (
        f" [{format_length(crossing.low)}, {format_length(crossing.high)}]"
        if crossing.low is not None and crossing.high is not None
        else ""
    )
    return f"{format_length(crossing.value)}{ends} tokens"


def rounds_disagree(crossing: Crossover, lengths: Sequence[int]) -> bool:
    """Whether a missing crossover is that of rounds that disagree, not of a range that all find too short."""
    return crossing.value is None and not {crossing.low, crossing.high} & {lengths[0], lengths[-1]}


def describe_absence(crossing: Crossover, lengths: Sequence[int], label: str) -> str:
    """Why there is no crossover in the range measured, in a few words."""
    if crossing.low is None and crossing.high == lengths[0]:
        return f"{label} ahead at every length"
    if crossing.high is None and crossing.low == lengths[-1]:
        return f"{label} not ahead up to {format_tokens(lengths[-1])}"
    if crossing.high is not None:
        return f"{label} ahead from {format_length(crossing.high)} on in every round"
    return f"{label} ahead in some rounds only"


def format_length(tokens: float) -> str:
    """A computed length with three digits: 2431.7 -> '2,430'."""
    return f"{float(f'{tokens:.3g}'):,.0f}"


@dataclass(frozen=True)
class Scene:
    """One workload of one experiment at one batch size.

    Attributes:
        models: Of the whole selection, so that a model looks the same everywhere.
        metrics: Its rows of a `frames.metric_frame`.
        points: Its rows of `points.summarise`.
        failed: Its rows of `points.failed_points`.
        records: Its records.
        conditions: Under which it was measured, in one line.
    """

    experiment: str
    workload: str
    batch_size: int
    models: Lineup
    metrics: pd.DataFrame
    points: pd.DataFrame
    failed: pd.DataFrame
    records: tuple[Record, ...]
    conditions: str

    @property
    def name(self) -> str:
        """Unique in a selection, fit for a file name."""
        return f"{file_stem(scene_title(self.experiment, self.workload, '_'))}_batch{self.batch_size}"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Every context length, measured or failed, in order."""
        return tuple(sorted({record.point.context_len for record in self.records}))

    @property
    def num_rounds(self) -> int:
        """Rounds of the cell that has most."""
        return len({record.round for record in self.records})

    def rows(self, metric: str) -> pd.DataFrame:
        """The points of one metric."""
        return self.points[self.points["metric"] == metric]

    def subtitle(self, metric: str) -> str:
        """Batch size, and what the bars stand for."""
        rounds = describe_rounds(self.rows(metric))
        return f"batch {self.batch_size}{'; ' if rounds.startswith('bars') else ', '}{rounds}"


def describe_rounds(rows: pd.DataFrame) -> str:
    """What the bars of points stand for, or that there are none."""
    if not rows["low"].notna().any():
        return "one round"
    return f"bars: 95 % interval of {int(rows['num_rounds'].max())} rounds"


def make_scenes(selection: Selection) -> list[Scene]:
    """Every scene of a selection, sorted by experiment, workload and batch size."""
    scenes = [scene for pair in selection.pairs() for scene in _scenes_of_pair(pair)]
    return sorted(scenes, key=lambda scene: (scene.experiment, scene.workload, scene.batch_size))


def _scenes_of_pair(selection: Selection) -> list[Scene]:
    """The scenes of models that were matched with each other."""
    metrics = metric_frame(selection.records)
    points = summarise(metrics)
    failed = failed_points(status_frame(selection.records))
    models = lineup(selection.records)
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in selection.records:
        key = (record.experiment, record.workload, record.point.batch_size)
        groups.setdefault(key, []).append(record)
    return [
        Scene(
            *key,
            models=models,
            metrics=_part(metrics, *key),
            points=_part(points, *key),
            failed=_part(failed, *key),
            records=tuple(records),
            conditions=describe_conditions(records, models),
        )
        for key, records in groups.items()
    ]


def by_workload(scenes: Sequence[Scene]) -> list[list[Scene]]:
    """Scenes of one experiment and workload together, one a batch size, in their order."""
    groups: dict[tuple[str, str], list[Scene]] = {}
    for scene in scenes:
        groups.setdefault((scene.experiment, scene.workload), []).append(scene)
    return list(groups.values())


def swept_by_batch(scenes: Sequence[Scene]) -> bool:
    """Whether scenes of one workload are about the batch size: there are more of those than context lengths."""
    return len(scenes) > len({length for scene in scenes for length in scene.lengths})


def _part(frame: pd.DataFrame, experiment: str, workload: str, batch_size: int) -> pd.DataFrame:
    """The rows of one scene."""
    mine = (frame["experiment"] == experiment) & (frame["workload"] == workload)
    return frame[mine & (frame["batch_size"] == batch_size)]


def describe_conditions(records: Sequence[Record], models: Lineup) -> str:
    """Device, dtype, threads, parameters, code and date of records that may be compared, in one line."""
    latest = max(records, key=started)
    key = set_of(latest)
    params = {record.model.name: record.model.num_params_nonembedding for record in records}
    on_gpu = "cuda" in str(key.device)
    parts = [
        device_name(latest),
        str(key.dtype),
        f"{key.threads} thread{'' if key.threads == 1 else 's'}",
        *([f"CUDA graph {'on' if latest.settings.get('cuda_graph') else 'off'}"] if on_gpu else []),
        "parameters without embedding: "
        + ", ".join(
            f"{models.labels[name]} {format_count(params[name])}" for name in models.models if name in params
        ),
        f"retbench {key.code_revision}",
        f"torch {key.torch_version}",
        started(latest).date().isoformat(),
    ]
    return bind_units(" · ".join(parts))


def bind_units(text: str) -> str:
    """Text in which a number is not parted from its unit at the end of a line."""
    return _NUMBER_AND_UNIT.sub("\u00a0", text)


def device_name(record: Record) -> str:
    """The device that a record was measured on, as its maker calls it, without the marks of a trade name."""
    gpu = record.environment.get("gpu")
    if isinstance(gpu, dict) and "name" in gpu:
        return str(gpu["name"])
    name = str(record.environment.get("cpu_model") or record.environment.get("machine"))
    return re.sub(r"\((?:R|TM)\)", "", name)
