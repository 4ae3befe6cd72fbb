"""One row a (model, workload, batch size, context length): value with interval, roofline, ratio to the Transformer.

`table_of` gives numbers in base units with the unit in each column's name, for csv and json; `render` also writes
them for people, in Markdown and LaTeX, with readable units. A point that has no value shows why.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import pandas as pd

from retbench.errors import unknown_name
from retbench.records.record import Record
from retbench.report.comparisons import pair_ratios
from retbench.report.formats import INTERVALS, to_json, to_latex, to_markdown
from retbench.report.pairing import Folders
from retbench.report.readings import without_quality
from retbench.report.scenes import Scene, by_workload, make_scenes, swept_by_batch
from retbench.report.score_frame import score_frame
from retbench.report.scores import Scores, make_scores
from retbench.report.selection import Selection, of_experiment, select

_WRITERS: dict[str, Callable[[pd.DataFrame], str]] = {
    "md": to_markdown,
    "csv": lambda table: table.to_csv(index=False, na_rep="NA", lineterminator="\n"),
    "json": to_json,
    "latex": to_latex,
}
FORMATS = tuple(_WRITERS)

_ENERGY = ("energy_per_token_j", "power_w")
"""Left out where no point has one: only some GPUs have a counter."""

_WORKLOAD_METRICS = {
    "decode": ("tpot_s", "tokens_per_s", "roofline_ratio", "bandwidth_ratio", "bytes_per_step", *_ENERGY),
    "prefill": ("ttft_s", "tokens_per_s", "roofline_ratio", *_ENERGY),
    "memory": (
        "peak_bytes",
        "weight_bytes",
        "state_bytes",
        "workspace_bytes",
        "expected_weight_bytes",
        "expected_state_bytes",
        "process_peak_bytes",
    ),
    "largest_batch": (
        "largest_batch",
        "largest_batch_step",
        "expected_largest_batch",
        "memory_limit_bytes",
        "available_bytes",
    ),
    "training": (
        "step_s",
        "tokens_per_s",
        "peak_bytes",
        "roofline_ratio",
        "weight_bytes",
        "gradient_bytes",
        "optimizer_bytes",
        "workspace_bytes",
        "process_peak_bytes",
    ),
}


@dataclass(frozen=True)
class Found:
    """What the newest comparable records of an experiment, or of all, are about.

    Attributes:
        costs: Records of cost; None where there are none.
        scores: Records of quality; None where there are none.
    """

    costs: Selection | None
    scores: Scores | None

    @property
    def left_out(self) -> tuple[str, ...]:
        """A sentence for everything that was found and is not shown."""
        return tuple(note for part in (self.costs, self.scores) if part for note in part.left_out)


def find_newest(
    records: Sequence[Record], experiment: str | None = None, folders: Folders = MappingProxyType({})
) -> Found:
    """The newest comparable records, of one experiment or of all.

    Args:
        records: Of any workload.
        experiment: Only this one; all when None.
        folders: Where the results of single documents lie; without them no model is compared in quality.

    Raises:
        RecordError: there are no records.
        ConfigError: there are none of that experiment; the nearest name is suggested.
    """
    mine = of_experiment(records, experiment)
    costs = without_quality(mine)
    return Found(select(costs) if costs else None, make_scores(mine, folders, records))


def table_of(found: Found, experiment: str) -> pd.DataFrame:
    """The table of one experiment.

    Returns:
        Columns model, workload, batch_size, context_len, status, rounds_ok, rounds, then metrics, each in the unit that
        its name ends in, with `_low` and `_high` (95 %) where it is measured anew each round. A ratio to the
        Transformer is of the workload's first metric, paired within rounds: below 1 where the model needs less, above
        it where it fits more sequences. NaN where a metric is not defined for the workload, or the status is not ok.
        Batch sizes follow each other at one length where there are more of them than lengths. Readings of quality have
        columns of their own, those of `score_frame.score_frame`.
    """
    frames = [
        *(
            [cost_frame(found.costs, experiment)]
            if found.costs and experiment in found.costs.experiments
            else []
        ),
        *(
            [score_frame(found.scores, experiment)]
            if found.scores and experiment in found.scores.experiments
            else []
        ),
    ]
    if len(frames) == 1:
        return frames[0]
    columns = list(dict.fromkeys(str(name) for frame in frames for name in frame.columns))
    rows = [row for frame in frames for row in frame.astype(object).to_dict(orient="records")]
    numbers = {name for frame in frames for name in frame.columns if frame[name].dtype == "float64"}
    table = pd.DataFrame([[row.get(name) for name in columns] for row in rows], columns=columns, dtype=object)
    return table.astype({name: "float64" for name in columns if name in numbers})


def cost_frame(selection: Selection, experiment: str) -> pd.DataFrame:
    """The part of a table that is about cost."""
    scenes = [scene for scene in make_scenes(selection) if scene.experiment == experiment]
    blocks = [
        _by_length(part) if swept_by_batch(group) else part
        for group in by_workload(scenes)
        for part in [pd.concat([_block(scene) for scene in group], ignore_index=True)]
    ]
    lead = ["model", "workload", "batch_size", "context_len", "status", "rounds_ok", "rounds"]
    metrics = list(
        dict.fromkeys(column for block in blocks for column in block.columns if column not in lead)
    )
    ratio = [column for column in metrics if column.startswith("ratio_to_transformer")]
    return pd.concat(blocks, ignore_index=True)[
        [*lead, *(column for column in metrics if column not in ratio), *ratio]
    ]


def _by_length(block: pd.DataFrame) -> pd.DataFrame:
    """The rows of a workload, of each model and length together."""
    models = list(dict.fromkeys(block["model"]))
    order = block.assign(model=block["model"].map(models.index))
    order = order.sort_values(["model", "context_len", "batch_size"])
    return block.loc[order.index]


def _block(scene: Scene) -> pd.DataFrame:
    """The rows of one scene: every model at every length, measured or not."""
    rows = [_outcome(scene, model, length) for model in scene.models.models for length in scene.lengths]
    block = pd.DataFrame(rows)
    key = ["model", "context_len"]
    for metric in _metrics_of(scene):
        part = scene.rows(metric)[[*key, "value", "low", "high"]]
        block = _join(block, part.rename(columns={"value": metric}), metric)
    ratios = pair_ratios(scene.metrics, scene.models)
    part = ratios[[*key, "ratio", "low", "high"]].rename(columns={"ratio": "ratio_to_transformer"})
    return _join(block, part, "ratio_to_transformer")


def _metrics_of(scene: Scene) -> Sequence[str]:
    """The metrics that a workload's table shows; all there are for one that is not known here."""
    found = sorted(str(metric) for metric in scene.points["metric"].unique())
    known = _WORKLOAD_METRICS.get(scene.workload, found)
    return [metric for metric in known if metric in found or metric not in _ENERGY]


def _join(block: pd.DataFrame, part: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The block with a metric's column, and its ends where it has an interval."""
    ends = {"low": f"{metric}_low", "high": f"{metric}_high"}
    part = part.rename(columns=ends) if metric in INTERVALS else part.drop(columns=list(ends))
    part = part.astype({column: "float64" for column in part.columns if column.startswith(metric)})
    return block.merge(part, on=["model", "context_len"], how="left")


def _outcome(scene: Scene, model: str, length: int) -> dict[str, object]:
    """What came of one model at one length: 'ok' where any round gave a value."""
    statuses = [
        record.status
        for record in scene.records
        if (record.model.name, record.point.context_len) == (model, length)
    ]
    num_ok = statuses.count("ok")
    return {
        "model": model,
        "workload": scene.workload,
        "batch_size": scene.batch_size,
        "context_len": length,
        "status": "ok" if num_ok else statuses[-1] if statuses else "missing",
        "rounds_ok": num_ok,
        "rounds": scene.num_rounds,
    }


def render(frame: pd.DataFrame, format: str) -> str:
    """A table of `table_of` as text that ends in a newline.

    Args:
        frame: The table.
        format: One of `FORMATS`. csv and json keep base units; csv writes NA for what is not defined, json null.
            md and latex write readable units, a table a workload.

    Raises:
        ConfigError: the format is not known.
    """
    if format not in _WRITERS:
        raise unknown_name("table format", format, FORMATS, where="--format")
    return _WRITERS[format](frame)
