"""The RetNet paper's Figure 6 from records: memory, throughput and latency, a panel each, with the paper's values.

The paper's values appear only beside records under its conditions (`retbench.papers.figure6`). What the paper does not
state is named in the caption.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from retbench.papers.figure6 import BATCH, PaperPoint, keep_comparable, paper_points
from retbench.papers.papers import KIND_WORDS, find_number
from retbench.records.record import Record
from retbench.report.claims.costs import describe_setup
from retbench.report.figures import curves, style
from retbench.report.figures.drawing import Drawing, View
from retbench.report.figures.labels import Label, add_text, label_ends
from retbench.report.figures.looks import HOLLOW
from retbench.report.figures.panels import TIME_UNITS, Panel, Units, frame_points, highest
from retbench.report.lineup import Lineup
from retbench.report.points import group
from retbench.report.sweeps import DATA_COLUMNS, CostSweep, by_workload, describe_rounds, with_failures
from retbench.report.wording import bind_units, file_stem
from retbench.units import GB, format_printed, format_rate, format_tokens


class _Kind(NamedTuple):
    """Metric, name, meaning and units of a panel."""

    metric: str
    name: str
    meaning: str
    units: Units


_KINDS = {
    "a": _Kind(
        "peak_bytes",
        "memory",
        "bytes of weights (dotted), state or key-value cache, and workspace of one decode step",
        ((GB, "GB"), (1e6, "MB")),
    ),
    "b": _Kind(
        "tokens_per_s", "throughput", "tokens/s of all sequences of a batch together", ((1, "tokens/s"),)
    ),
    "c": _Kind("tpot_s", "time per token", "time per output token against the batch size", TIME_UNITS),
}
_NEEDS = {
    "a": ("memory at several context lengths", "memory", "memory"),
    "b": ("decoding at several context lengths", "decode", "latency"),
    "c": ("decoding at several batch sizes", "throughput", "throughput"),
}
"""Meaning of each panel, the workload that measures it, and the experiment that does for RetNet and the Transformer."""
_WEIGHTS = "weight_bytes"
_COLUMNS = ["panel", "model", "batch_size", *DATA_COLUMNS[1:], "kind", "source"]


@dataclass(frozen=True)
class Figure6Panel:
    """One panel of the figure.

    Attributes:
        letter: Letter of the paper's panel.
        models: All models.
        rows: Points to draw, of `sweeps.summarise`; with those of the weights if the panel shows memory.
        failed: Points without a value.
        records: Records of the rows.
    """

    letter: str
    models: Lineup
    rows: pd.DataFrame
    failed: pd.DataFrame
    records: tuple[Record, ...]

    @property
    def axis(self) -> str:
        """Column of the horizontal axis; a panel against the batch size has a curve per length."""
        return "batch_size" if self.letter == "c" else "context_len"

    @cached_property
    def paper(self) -> list[PaperPoint]:
        """The paper's own values on the curves that are drawn, within their range."""
        curve = "context_len" if self.letter == "c" else "batch_size"
        drawn = {getattr(record.point, curve) for record in self.records}
        reach = max(getattr(record.point, self.axis) for record in self.records)
        return [
            point
            for point in keep_comparable(paper_points(self.letter), self.records)
            if getattr(point, curve) in drawn and getattr(point, self.axis) <= reach
        ]

    @cached_property
    def panel(self) -> Panel:
        """The curves, as other figures have them."""
        kind, by_length = _KINDS[self.letter], "length" if self.letter == "c" else ""
        rows = self.rows[self.rows["metric"] == kind.metric]
        rows = rows.assign(length=rows["context_len"].map(format_tokens))
        points = frame_points(rows, self.failed, self.axis, by_length)
        top = max([highest(points), *(point.number.value for point in self.paper)])
        batch = "" if by_length else f", batch {self.records[0].point.batch_size}"
        where = "{}" if self.axis == "context_len" else "batch {}"
        title = f"({self.letter}) {kind.name}, {{unit}}{batch}"
        return Panel(points, self.models, title, units=kind.units, at_least=top, where=where)

    @property
    def markers(self) -> dict[str, str]:
        """The marker of the first model of each architecture."""
        architectures = {record.model.name: record.model.architecture for record in self.records}
        names = [name for name in self.models.models if name in architectures]
        return {architectures[name]: self.panel.look(name).marker for name in reversed(names)}

    def describe(self, value: float) -> str:
        """Return a value with three digits in the unit of the panel; a rate has none."""
        if self.letter == "b":
            return format_rate(value, "").strip()
        return format_printed(float(f"{value / self.panel.size:.3g}"), self.panel.unit)

    @property
    def labels(self) -> list[Label]:
        """Names of the curves with their last value or their length; then the paper's last values."""
        panel = self.panel
        if self.letter == "c":
            ends = [line[-1] for lines in panel.curves.values() for line in lines]
            return [
                Label(e.x, e.value / panel.size, f"{panel.name(e.model)} {e.curve}", panel.look(e.model).text)
                for e in ends
            ]
        longest = panel.ticks[-1]
        labels = curves.end_labels(panel, lambda p: curves.with_length(self.describe(p.value), p, longest))
        for architecture, value in {point.architecture: point.number.value for point in self.paper}.items():
            text = f"{HOLLOW[self.markers[architecture]]} paper {self.describe(value)}"
            labels.append(Label(0, value / panel.size, text, style.MUTED, is_bold=False))
        return labels

    @property
    def data(self) -> pd.DataFrame:
        """The points measured, the points that failed, and the paper's."""
        metric = _KINDS[self.letter].metric
        mine = with_failures(self.rows, self.failed, [metric])
        paper = [
            {
                **point._asdict(),
                "model": point.architecture,
                "metric": metric,
                "unit": point.number.unit,
                "value": point.number.value,
                "kind": KIND_WORDS[point.number.kind],
                "source": point.number.source,
            }
            for point in self.paper
        ]
        measured = mine.assign(kind="measured", source=self.records[0].experiment).to_dict(orient="records")
        return pd.DataFrame([*measured, *paper]).assign(panel=self.letter).reindex(columns=_COLUMNS)


def draw_figure6(sweeps: Sequence[CostSweep]) -> list[Drawing]:
    """Return the paper's Figure 6 of each group of matched models, with all panels that the records allow."""
    longest = max(point.context_len for point in paper_points("a"))
    shown = [cut for sweep in sweeps if (cut := _up_to(longest, sweep)).records]
    pairs = group(shown, lambda sweep: (sweep.records[0].model.size, sweep.models.models))
    found = [_panels(pair) for pair in pairs.values()]
    return [_make_drawing(panels) for panels in found if panels]


def _up_to(longest: int, sweep: CostSweep) -> CostSweep:
    """Return a sweep without the context lengths beyond the paper's."""
    return replace(
        sweep,
        points=sweep.points[sweep.points["context_len"] <= longest],
        failed=sweep.failed[sweep.failed["context_len"] <= longest],
        records=tuple(record for record in sweep.records if record.point.context_len <= longest),
    )


def _panels(sweeps: Sequence[CostSweep]) -> list[Figure6Panel]:
    """Return the panels of one pair: memory of one experiment, throughput and latency of one that has most of both."""

    def having(metric: str) -> list[list[CostSweep]]:
        return [each for each in by_workload(sweeps) if any(len(sweep.rows(metric)) for sweep in each)]

    def extent(panels: Sequence[Figure6Panel]) -> tuple[int, int]:
        return len(panels), sum(len(panel.rows) for panel in panels)

    memory = [_by_length(each, "a") for each in having("state_bytes")]
    decoding = [_by_length(each, "b") + _by_batch(each) for each in having("tpot_s")]
    return [*max(memory, key=extent, default=[]), *max(decoding, key=extent, default=[])]


def _by_length(sweeps: Sequence[CostSweep], letter: str) -> list[Figure6Panel]:
    """Return a panel against context length, at the paper's batch or the largest there is; none with one length."""
    metric, batch_size = _KINDS[letter].metric, paper_points(letter)[0].batch_size
    fit = [sweep for sweep in sweeps if len(sweep.lengths) > 1 and len(sweep.rows(metric))]
    if not fit:
        return []
    sweep = max(fit, key=lambda sweep: (sweep.batch_size == batch_size, sweep.batch_size))
    rows = sweep.points[sweep.points["metric"].isin([metric, _WEIGHTS])]
    return [Figure6Panel(letter, sweep.models, rows, sweep.failed, sweep.records)]


def _by_batch(sweeps: Sequence[CostSweep]) -> list[Figure6Panel]:
    """Return (c), latency against batch size: of the reference at each length, of the others at the longest."""
    largest, models = max(point.batch_size for point in paper_points("c")), sweeps[0].models
    fit = [sweep for sweep in sweeps if sweep.batch_size <= largest]
    records = tuple(record for sweep in fit for record in sweep.records)
    longest = max((record.point.context_len for record in records), default=0)

    def shown(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
        rows = pd.concat(frames, ignore_index=True)
        return rows[(rows["context_len"] == longest) | (rows["model"] == models.reference)]

    if len(fit) < 2 or (rows := shown(sweep.rows("tpot_s") for sweep in fit)).empty:
        return []
    return [Figure6Panel("c", models, rows, shown(sweep.failed for sweep in fit), records)]


def _make_drawing(panels: Sequence[Figure6Panel]) -> Drawing:
    timed = [record for panel in panels if panel.letter != "a" for record in panel.records]
    experiments = tuple(dict.fromkeys(panel.records[0].experiment for panel in panels))
    caption = " ".join([_describe(panels, experiments), *_describe_absent(panels), *_describe_paper(panels)])
    view = View(
        name=f"{file_stem('_'.join(experiments))}_figure6",
        title="Our measurements in the layout of RetNet Figure 6",
        subtitle=_subtitle(panels),
        caption=bind_units(caption),
        records=timed or panels[0].records,
        models=panels[0].models,
    )
    names = ["batch size" if panel.letter == "c" else style.LENGTH_LABEL for panel in panels]
    figure = curves.draw_column(
        [each.panel for each in panels], [each.labels for each in panels], view.texts, names
    )
    for axes, panel in zip(figure.axes, panels, strict=True):
        _draw_weights(axes, panel.rows[panel.rows["metric"] == _WEIGHTS], panel.panel.size)
        _draw_paper(axes, panel)
    data = pd.concat([panel.data for panel in panels], ignore_index=True)
    return replace(view.drawing(figure, data), experiments=experiments)


def _draw_weights(axes: Axes, rows: pd.DataFrame, size: float) -> None:
    """Draw a thin dotted line at the weights of each model, and name it."""
    for _, mine in rows.groupby("model"):
        height = float(mine["value"].iloc[0]) / size
        axes.axhline(height, **style.DOTTED, zorder=1.5)
    if not rows.empty:
        at = (0.02, rows["value"].min() / size)
        add_text(axes, "weights", at, ("axes fraction", "data"), (0, -2), color=style.MUTED, va="top")


def _draw_paper(axes: Axes, panel: Figure6Panel) -> None:
    """Draw the paper's values hollow and grey, with the model's marker, and with their length where curves have one."""
    for architecture in dict.fromkeys(point.architecture for point in panel.paper):
        mine = [point for point in panel.paper if point.architecture == architecture]
        axes.plot(
            [getattr(point, panel.axis) for point in mine],
            [point.number.value / panel.panel.size for point in mine],
            panel.markers[architecture],
            markersize=5.2,
            markerfacecolor="none",
            markeredgecolor=style.MUTED,
            markeredgewidth=0.8,
            zorder=3,
        )
        if panel.letter == "c" and len({point.context_len for point in mine}) > 1:
            _name_lengths(axes, mine, panel.panel.size)


def _name_lengths(axes: Axes, points: Sequence[PaperPoint], size: float) -> None:
    """Write the length of the paper's values at the largest batch to their left, apart from each other."""
    last = max(point.batch_size for point in points)
    ends: dict[int, list[float]] = {}
    for point in points:
        if point.batch_size == last:
            ends.setdefault(point.context_len, []).append(point.number.value / size)
    labels = [
        Label(last, fmean(values), format_tokens(length), style.MUTED, is_bold=False)
        for length, values in ends.items()
    ]
    label_ends(axes, labels, aside_pt=-5, fontsize=5.6, ha="right")


def _subtitle(panels: Sequence[Figure6Panel]) -> str:
    """Return what the bars and the hollow markers are."""
    timed = [panel.rows for panel in panels if panel.letter != "a" and not panel.rows.empty]
    parts = [describe_rounds(pd.concat(timed))] if timed else []
    kinds = dict.fromkeys(KIND_WORDS[point.number.kind] for panel in panels for point in panel.paper)
    if kinds:
        parts.append(
            f"hollow: paper, {', '.join(dict.fromkeys(kind.partition(' by ')[0] for kind in kinds))}"
        )
    return "; ".join(parts)


def _describe(panels: Sequence[Figure6Panel], experiments: Sequence[str]) -> str:
    """Return what the panels show, over which range and from which experiments."""
    words = "; ".join(f"({panel.letter}) {_describe_panel(panel)}" for panel in panels)
    text = f"From {' and '.join(experiments)}, in the layout and range of the paper's Figure 6: {words}."
    if all(panel.letter == "a" for panel in panels):
        return text
    return (
        f"{text} Rates and times are geometric means of the rounds' medians, bars their 95 % intervals (often narrower "
        "than the marker)."
    )


def _describe_absent(panels: Sequence[Figure6Panel]) -> list[str]:
    """Return why panels of the paper are absent, and what measures them."""
    first, present = panels[0].records[0], {panel.letter for panel in panels}
    is_shipped = first.experiment in {experiment for *_, experiment in _NEEDS.values()}
    return [
        f"Panel ({letter}) is absent: it shows {what}, which "
        + (
            f"`retbench run {experiment} --profile {first.profile}`"
            if is_shipped
            else f"the workload `{workload}`"
        )
        + " measures."
        for letter, (what, workload, experiment) in _NEEDS.items()
        if letter not in present
    ]


def _describe_panel(panel: Figure6Panel) -> str:
    words, models = _KINDS[panel.letter].meaning, panel.models
    if panel.letter != "c":
        return words
    if models.challengers:
        others = ", ".join(models.labels[name] for name in models.challengers)
        words += f", {others} at the longest context and {models.labels[str(models.reference)]} at each"
    crosses = "; ".join(
        f"{models.labels[str(name)]} at {', '.join(map(format_tokens, sorted(set(rows['context_len']))))}"
        for name, rows in panel.failed.groupby("model")
    )
    return f"{words} (crosses: {crosses})" if crosses else words


def _describe_paper(panels: Sequence[Figure6Panel]) -> list[str]:
    """Return what the hollow markers are, and what is not known about them; nothing if there are none."""
    shown = [panel for panel in panels if panel.paper]
    if not shown:
        return []
    numbers = [point.number for panel in shown for point in panel.paper]
    if shown[0].letter != "c":
        numbers.insert(1, find_number(BATCH))
    records = tuple(record for panel in reversed(shown) for record in panel.records)
    unknown = dict.fromkeys(item for number in numbers for item in number.conditions.not_stated)
    doubts: dict[str, dict[str, None]] = {}
    for number in numbers:
        doubts.setdefault(number.source.split()[-1], {}).update(dict.fromkeys(number.doubts))
    return [
        "Hollow markers are the paper's values; nothing that it states contradicts the conditions here: "
        f"{describe_setup(records)}.",
        f"Not stated there: {', '.join(unknown)}.",
        *(f"{source}: {' '.join(words)}" for source, words in doubts.items() if words),
    ]
