"""The figures: which are drawn from which workload.

A figure is one function that takes what it shows and gives a matplotlib Figure (`curves`, `stacks`,
`training_curves`); here it gets its name, its caption and the data behind it.
Those of quality are made in `score_figures`, the paper's Figure 6 in `inference`. To add one, write the function and
its `Drawing`, and list it in `make_drawings`.
"""

from collections.abc import Sequence

import pandas as pd

from retbench.report import curves, stacks, style, training_curves
from retbench.report.comparisons import LINEAR_MARGIN, Line, find_crossover, fit_line
from retbench.report.drawings import Drawing
from retbench.report.inference import draw_figure6
from retbench.report.selection import Selection
from retbench.report.sweeps import CostSweep, by_workload, make_sweeps, swept_by_batch
from retbench.report.wording import file_stem, section_title
from retbench.stats.intervals import Crossover
from retbench.workloads.workload import find_workload

_TIME_TITLES = {"decode": "Time per output token", "prefill": "Time to first token"}
_DATA_COLUMNS = ["model", "context_len", "metric", "unit", "value", "low", "high", "num_rounds", "status"]


def make_drawings(selection: Selection) -> list[Drawing]:
    """Every figure that the records of a selection allow, in the order of the report."""
    scenes = make_sweeps(selection)
    with style.house_style():
        decoding = by_workload([scene for scene in scenes if scene.workload == "decode"])
        times = [_times(scene) for group in decoding if not swept_by_batch(group) for scene in group]
        times += [_throughput(group) for group in decoding if swept_by_batch(group)]
        memory = [_memory(scene) for scene in scenes if scene.workload == "memory"]
        prompts = [_times(scene) for scene in scenes if scene.workload == "prefill"]
        training = [_training(scene) for scene in scenes if scene.workload == "training"]
        return times + memory + draw_figure6(scenes) + prompts + training + _rooflines(scenes)


def _times(scene: CostSweep) -> Drawing:
    """Time against context length, with the crossover."""
    metric = find_workload(scene.workload).primary.name
    crossings: dict[str, Crossover] = {}
    for model in scene.models.challengers:
        found = find_crossover(scene.metrics, metric, model, str(scene.models.reference))
        if found is not None:
            crossings[model] = found[1]
    title = _TIME_TITLES[scene.workload]
    at = "after a context" if scene.workload == "decode" else "for a prompt"
    return Drawing(
        name=scene.name,
        experiments=(scene.experiment,),
        title=title,
        caption=f"{title} {at} of each length, batch {scene.batch_size}. Points are geometric means of the "
        "rounds' medians, bars their 95 % intervals (often narrower than the marker; cut where they leave the plot).",
        conditions=scene.conditions,
        figure=curves.draw_times(scene, metric, title, crossings),
        data=_with_crossings(_data(scene, [metric]), crossings),
    )


def _throughput(scenes: Sequence[CostSweep]) -> Drawing:
    """Tokens/s against batch size, of one experiment."""
    first, title = scenes[0], "Decode throughput"
    return Drawing(
        name=f"{file_stem(section_title(first.experiment, first.workload, '_'))}_throughput",
        experiments=(first.experiment,),
        title=title,
        caption="Tokens/s of all sequences of a batch together against the batch size, after contexts of each length. "
        "Points are geometric means of the rounds' medians, bars their 95 % intervals (often narrower than the marker; "
        "cut where they leave the plot).",
        conditions=first.conditions,
        figure=curves.draw_throughput(scenes, title),
        data=pd.concat(
            [_data(scene, ["tokens_per_s"]).assign(batch_size=scene.batch_size) for scene in scenes],
            ignore_index=True,
        ),
    )


def _memory(scene: CostSweep) -> Drawing:
    """Memory by part."""
    title = "Memory of inference"
    rows = stacks.memory_rows(scene)
    return Drawing(
        name=scene.name,
        experiments=(scene.experiment,),
        title=title,
        caption=f"Bytes held by weights, by the recurrent state or the key-value cache, and needed as workspace by "
        f"one decode step at each context length, batch {scene.batch_size}. The thin line is the closed form of "
        "weights and state.",
        conditions=scene.conditions,
        figure=stacks.draw_memory(scene, title),
        data=_with_failures(rows, scene, list(stacks.PARTS)),
    )


def _training(scene: CostSweep) -> Drawing:
    """Speed and peak memory of training."""
    title = "Cost of a training step"
    found = {model: fit_line(scene.points, "peak_bytes", model) for model in scene.models.models}
    lines = {model: line for model, line in found.items() if line is not None}
    return Drawing(
        name=scene.name,
        experiments=(scene.experiment,),
        title=title,
        caption=f"Tokens a second and peak memory of a whole training step (forward, backward, AdamW) on sequences of "
        f"each length, batch {scene.batch_size}. Points are geometric means of the rounds' medians, bars their 95 % "
        "intervals. Memory is weights, gradients, the optimiser's averages, activations and temporaries. Dotted is the "
        f"straight line through a memory that it misses at no point by more than {100 * LINEAR_MARGIN:.0f} %; memory "
        "far above these leaves the plot and goes on to the value beside its name.",
        conditions=scene.conditions,
        figure=training_curves.draw_training(scene, title, lines),
        data=_with_lines(_data(scene, ["tokens_per_s", "peak_bytes"]), lines),
    )


def _rooflines(scenes: Sequence[CostSweep]) -> list[Drawing]:
    """Share of the roofline, a figure an experiment and batch size, a panel a workload."""
    by_length = [scene for group in by_workload(scenes) if not swept_by_batch(group) for scene in group]
    timed = [scene for scene in by_length if "roofline_ratio" in set(scene.metrics["metric"])]
    drawings = []
    for experiment, batch_size in sorted({(scene.experiment, scene.batch_size) for scene in timed}):
        mine = [s for s in timed if (s.experiment, s.batch_size) == (experiment, batch_size)]
        title = "Share of the roofline reached"
        drawings.append(
            Drawing(
                name=f"{file_stem(experiment)}_roofline_batch{batch_size}",
                experiments=(experiment,),
                title=title,
                caption="The least time that the bytes and operations of a point allow on this machine, as measured "
                f"in the same run, over the time it took, batch {batch_size}. The dashed line is the machine's "
                "ceiling.",
                conditions=mine[0].conditions,
                figure=curves.draw_roofline(mine, title),
                data=pd.concat(
                    [_data(scene, ["roofline_ratio"]).assign(workload=scene.workload) for scene in mine],
                    ignore_index=True,
                ),
            )
        )
    return drawings


def _data(scene: CostSweep, metrics: list[str]) -> pd.DataFrame:
    """The points of some metrics, and those that failed."""
    rows = scene.points[scene.points["metric"].isin(metrics)]
    return _with_failures(rows, scene, metrics)


def _with_failures(rows: pd.DataFrame, scene: CostSweep, metrics: list[str]) -> pd.DataFrame:
    """Rows with the columns that every figure's data has, and a row a metric for each point that failed."""
    failed = scene.failed[["model", "context_len", "status"]].merge(
        pd.DataFrame({"metric": metrics}), how="cross"
    )
    frame = pd.concat([rows.assign(status="ok"), failed], ignore_index=True)
    return frame.reindex(columns=_DATA_COLUMNS).sort_values(
        ["metric", "model", "context_len"], ignore_index=True
    )


def _with_crossings(data: pd.DataFrame, crossings: dict[str, Crossover]) -> pd.DataFrame:
    """The data with a row for each crossover."""
    rows = [
        {
            "model": model,
            "metric": "crossover_context_len",
            "unit": "tokens",
            "value": crossing.value,
            "low": crossing.low,
            "high": crossing.high,
            "status": crossing.kind,
        }
        for model, crossing in crossings.items()
    ]
    return pd.concat([data, pd.DataFrame(rows, columns=_DATA_COLUMNS).astype(data.dtypes)], ignore_index=True)


def _with_lines(data: pd.DataFrame, lines: dict[str, Line]) -> pd.DataFrame:
    """The data with the line through each model's memory: its parts, and what it misses."""
    rows = [
        {
            "model": model,
            "metric": metric,
            "unit": unit,
            "value": value,
            "status": "linear" if line.fits else "not linear",
        }
        for model, line in lines.items()
        for metric, unit, value in (
            ("fitted_slope_bytes_per_token", "bytes/token", line.slope),
            ("fitted_intercept_bytes", "bytes", line.intercept),
            ("fitted_largest_residual_ratio", "ratio", line.largest_residual),
        )
    ]
    return pd.concat([data, pd.DataFrame(rows, columns=_DATA_COLUMNS).astype(data.dtypes)], ignore_index=True)
