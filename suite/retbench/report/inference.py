"""The RetNet paper's Figure 6 from records: which of them make its panels, and the paper's values beside them."""

from collections.abc import Iterator, Sequence

import pandas as pd

from retbench.papers.papers import KIND_WORDS
from retbench.report import overlays
from retbench.report.claims import describe_setup
from retbench.report.drawings import Drawing
from retbench.report.inference_curves import WEIGHTS, Panel, draw_inference
from retbench.report.overlays import PaperPoint, keep_comparable
from retbench.report.scenes import (
    Scene,
    bind_units,
    by_workload,
    describe_conditions,
    describe_rounds,
    file_stem,
)
from retbench.units import format_tokens

_COLUMNS = [
    "panel",
    "model",
    "batch_size",
    "context_len",
    "metric",
    "unit",
    "value",
    "low",
    "high",
    "num_rounds",
    "status",
    "kind",
    "source",
]


def draw_figure6(scenes: Sequence[Scene]) -> list[Drawing]:
    """The paper's Figure 6 of each pair of models, with as many of its panels as there are records for."""
    pairs: dict[str | None, list[Scene]] = {}
    for scene in scenes:
        pairs.setdefault(scene.records[0].pair_id, []).append(scene)
    found = [_panels(pair) for pair in pairs.values()]
    return [_draw(panels) for panels in found if panels]


def _panels(scenes: Sequence[Scene]) -> list[Panel]:
    """The panels of one pair: memory of one experiment, throughput and latency of one that has most of both."""
    memory, decoding = (
        by_workload([scene for scene in scenes if scene.workload == workload])
        for workload in ("memory", "decode")
    )
    return [
        *max((list(_memory(group)) for group in memory), key=_extent, default=[]),
        *max(([*_throughput(group), *_latency(group)] for group in decoding), key=_extent, default=[]),
    ]


def _extent(panels: Sequence[Panel]) -> tuple[int, int]:
    return len(panels), sum(len(panel.rows) for panel in panels)


def _memory(scenes: Sequence[Scene]) -> Iterator[Panel]:
    """(a): memory against context length."""
    yield from _by_length(scenes, ("a", "memory"), "peak_bytes", overlays.figure6a())


def _throughput(scenes: Sequence[Scene]) -> Iterator[Panel]:
    """(b): throughput against context length."""
    yield from _by_length(scenes, ("b", "throughput"), "tokens_per_s", overlays.figure6b())


def _by_length(
    scenes: Sequence[Scene], name: tuple[str, str], metric: str, paper: Sequence[PaperPoint]
) -> Iterator[Panel]:
    """A panel against context length up to the paper's longest, at its batch or the largest there is."""
    longest = max(point.context_len for point in paper)
    fit = [
        scene
        for scene in scenes
        if len([n for n in scene.lengths if n <= longest]) > 1
        and not _within(scene.rows(metric), longest).empty
    ]
    if not fit:
        return
    scene = max(fit, key=lambda scene: (scene.batch_size == paper[0].batch_size, scene.batch_size))
    metrics = [metric, WEIGHTS] if metric == "peak_bytes" else [metric]
    records = [record for record in scene.records if record.point.context_len <= longest]
    reach = max(record.point.context_len for record in records)
    yield Panel(
        *name,
        metric=metric,
        axis="context_len",
        models=scene.models,
        rows=_within(scene.points[scene.points["metric"].isin(metrics)], longest),
        failed=_within(scene.failed, longest),
        paper=tuple(
            point
            for point in keep_comparable(paper, records)
            if point.batch_size == scene.batch_size and point.context_len <= reach
        ),
        records=tuple(records),
    )


def _within(rows: pd.DataFrame, longest: int) -> pd.DataFrame:
    return rows[rows["context_len"] <= longest]


def _latency(scenes: Sequence[Scene]) -> Iterator[Panel]:
    """(c): time per token against batch size up to the paper's largest, a line a length.

    As in the paper, the reference has a line at every length and the others at the longest, their worst.
    """
    paper = overlays.figure6c()
    longest, largest = (
        max(getattr(point, name) for point in paper) for name in ("context_len", "batch_size")
    )
    fit = [scene for scene in scenes if scene.batch_size <= largest]
    lengths = [n for n in sorted({n for scene in fit for n in scene.lengths}) if n <= longest]
    if len(fit) < 2 or not lengths:
        return
    reference = scenes[0].models.reference

    def shown(rows: pd.DataFrame) -> pd.DataFrame:
        rows = _within(rows, longest)
        return rows[(rows["context_len"] == lengths[-1]) | (rows["model"] == reference)]

    rows = shown(pd.concat([scene.rows("tpot_s") for scene in fit], ignore_index=True))
    if rows.empty:
        return
    records = [r for scene in fit for r in scene.records if r.point.context_len <= longest]
    yield Panel(
        "c",
        "time per token",
        metric="tpot_s",
        axis="batch_size",
        models=scenes[0].models,
        rows=rows,
        failed=shown(pd.concat([scene.failed for scene in fit], ignore_index=True)),
        paper=tuple(
            point
            for point in keep_comparable(paper, records)
            if point.context_len in lengths and point.batch_size <= fit[-1].batch_size
        ),
        records=tuple(records),
    )


def _draw(panels: Sequence[Panel]) -> Drawing:
    """The figure of some panels."""
    title = "Figure 6 of the RetNet paper, redrawn"
    timed = [record for panel in panels if panel.metric != "peak_bytes" for record in panel.records]
    conditions = describe_conditions(timed or panels[0].records, panels[0].models)
    experiments = tuple(dict.fromkeys(panel.records[0].experiment for panel in panels))
    return Drawing(
        name=f"{file_stem('_'.join(experiments))}_figure6",
        experiments=experiments,
        title=title,
        caption=bind_units(" ".join([_describe(panels), *_describe_paper(panels)])),
        conditions=conditions,
        figure=draw_inference(panels, (title, _subtitle(panels), conditions)),
        data=pd.concat([_data(panel) for panel in panels], ignore_index=True),
    )


def _subtitle(panels: Sequence[Panel]) -> str:
    """What the bars and the hollow markers stand for."""
    timed = [panel.rows for panel in panels if panel.metric != "peak_bytes" and not panel.rows.empty]
    parts = [describe_rounds(pd.concat(timed))] if timed else []
    points = [point for panel in panels for point in panel.paper]
    return "; ".join([*parts, *([f"hollow: paper, {overlays.describe_kinds(points)}"] if points else [])])


def _describe(panels: Sequence[Panel]) -> str:
    """What the panels show, over which range and from which experiments."""
    said = "; ".join(f"({panel.letter}) {_describe_panel(panel)}" for panel in panels)
    experiments = " and ".join(dict.fromkeys(panel.records[0].experiment for panel in panels))
    is_timed = any(panel.letter != "a" for panel in panels)
    return f"From {experiments}, in the layout and range of the paper's Figure 6: {said}." + (
        " Rates and times are geometric means of the rounds' medians, bars their 95 % intervals (often narrower than "
        "the marker)."
        if is_timed
        else ""
    )


def _describe_panel(panel: Panel) -> str:
    """What a panel shows."""
    if panel.letter == "a":
        return "bytes of weights (dotted), state or key-value cache, and workspace of one decode step"
    if panel.letter == "b":
        return "tokens/s of all sequences of a batch together"
    models = panel.models
    others = ", ".join(models.labels[name] for name in models.challengers)
    lengths = (
        f", {others} at the longest context and {models.labels[models.reference]} at each"
        if others and models.reference
        else ""
    )
    crosses = "; ".join(
        f"{models.labels[str(name)]} at {', '.join(map(format_tokens, sorted(set(rows['context_len']))))}"
        for name, rows in panel.failed.groupby("model")
    )
    return f"time per output token against the batch size{lengths}" + (
        f" (crosses: {crosses})" if crosses else ""
    )


def _describe_paper(panels: Sequence[Panel]) -> list[str]:
    """What the hollow markers are, and what is not known of them; nothing where there are none."""
    points = [point for panel in panels for point in panel.paper]
    if not points:
        return []
    timed_first = [record for panel in reversed(panels) if panel.paper for record in panel.records]
    return [
        "Hollow markers are the paper's values (two where those who read them off differ); nothing that it states "
        f"contradicts the conditions here: {describe_setup(timed_first)}.",
        overlays.describe_points(points),
    ]


def _data(panel: Panel) -> pd.DataFrame:
    """What a panel shows: points measured, points that failed, and the paper's."""
    points = panel.rows.assign(status="ok")
    failed = panel.failed.assign(metric=panel.metric)
    mine = pd.concat([points, failed], ignore_index=True).assign(
        kind="measured", source=panel.records[0].experiment
    )
    mine = mine.sort_values(["metric", "model", "context_len", "batch_size"], ignore_index=True)
    paper = [
        {
            "model": point.architecture,
            "batch_size": point.batch_size,
            "context_len": point.context_len,
            "metric": panel.metric,
            "unit": point.number.unit,
            "value": point.number.value,
            "kind": KIND_WORDS[point.number.kind],
            "source": point.number.source,
        }
        for point in panel.paper
    ]
    rows = [*mine.to_dict(orient="records"), *paper]
    return pd.DataFrame(rows).assign(panel=panel.letter).reindex(columns=_COLUMNS)
