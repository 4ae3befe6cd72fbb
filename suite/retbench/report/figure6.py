"""The RetNet paper's Figure 6 from records: memory, throughput and latency, a panel each, with the paper's values.

The paper's values appear only beside records of the size and device that the paper states, with as many key-value
heads as query heads (its attention has 4 d^2 parameters). What the paper does not state (the dtype, the attention
kernel, ...) contradicts nothing and is named in the caption. The batch of panel (a) is derived from its values.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.architectures import recorded
from retbench.papers.claims import Scale, load_claims
from retbench.papers.papers import KIND_WORDS, RETNET_PAPER, Number, find_number, load_papers
from retbench.records.record import Record
from retbench.report import style
from retbench.report.claims import describe_setup
from retbench.report.curves import (
    DOTTED,
    Panel,
    Point,
    describe_rate,
    draw_column,
    end_labels,
    frame_points,
    highest,
    time_unit,
    with_length,
)
from retbench.report.labels import Label, add_text, spread
from retbench.report.points import Lineup
from retbench.report.provenance import describe_conditions
from retbench.report.style import Drawing
from retbench.report.sweeps import CostSweep, by_workload, describe_rounds
from retbench.report.wording import bind_units, file_stem
from retbench.units import GB, format_printed, format_tokens

_BATCH = f"{RETNET_PAPER}/figure6a_batch/batch_size/value"
_METRICS = {"a": "peak_bytes", "b": "tokens_per_s", "c": "tpot_s"}
_NAMES = {"a": "memory", "b": "throughput", "c": "time per token"}
_WORDS = {
    "a": "bytes of weights (dotted), state or key-value cache, and workspace of one decode step",
    "b": "tokens/s of all sequences of a batch together",
    "c": "time per output token against the batch size",
}
_WEIGHTS = "weight_bytes"
_AXIS_LABELS = {"context_len": style.LENGTH_LABEL, "batch_size": "batch size"}
_MB, _SMALL_PT = 1e6, 7.0
_TITLE = "Figure 6 of the RetNet paper, redrawn"
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


# ---- the paper's values ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaperPoint:
    """A value of the paper's figure, for a model of one architecture.

    Attributes:
        batch: Source of the batch size; None where the figure states it.
    """

    architecture: str
    batch_size: int
    context_len: int
    number: Number
    batch: Number | None = None


def paper_points(letter: str) -> list[PaperPoint]:
    """Return the paper's values of a panel; two at one point are the ends of what others read off."""
    if letter != "c":
        batch = find_number(_BATCH)
        return [
            PaperPoint(row, round(batch.value), int(column), number, batch)
            for row, column, number in _cells(f"figure6{letter}")
        ]
    return [
        PaperPoint(sheet.removeprefix("figure6c_"), int(column), int(row.partition("_")[0]), number)
        for sheet in load_papers()[RETNET_PAPER].sheets
        if sheet.startswith("figure6c_")
        for row, column, number in _cells(sheet)
    ]


def _cells(name: str) -> Iterator[tuple[str, str, Number]]:
    sheet = load_papers()[RETNET_PAPER].sheets[name]
    for row in sheet.rows:
        for column in sheet.columns:
            yield row, column, find_number(f"{RETNET_PAPER}/{name}/{row}/{column}")


def keep_comparable(points: Iterable[PaperPoint], records: Iterable[Record]) -> list[PaperPoint]:
    """Return the points whose stated conditions hold for all records of some model."""
    by_model: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.status == "ok":
            by_model.setdefault((record.model.architecture, record.model.name), []).append(record)
    return [
        point
        for point in points
        if any(
            architecture == point.architecture
            and all(_holds(_sheet(point.number.place), record) for record in mine)
            for (architecture, _), mine in by_model.items()
        )
    ]


def _holds(sheet: str, record: Record) -> bool:
    """Return whether nothing stated about a sheet contradicts a record."""
    model = record.model
    features = recorded.baseline_features(model.architecture, model.config, record.backend)
    return _scale(sheet).holds(record) and "grouped" not in features


@cache
def _scale(sheet: str) -> Scale:
    """Return the size and device of a sheet, according to the claims that use it."""
    return next(
        claim.scale for claim in load_claims() if any(_sheet(place) == sheet for place in claim.numbers)
    )


def _sheet(place: str) -> str:
    """Return PAPER/SHEET of the place of a number."""
    return place.rsplit("/", 2)[0]


# ---- the panels ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure6Panel:
    """One panel of the figure.

    Attributes:
        letter: Letter of the paper's panel.
        axis: Column of the horizontal axis: `context_len`, or `batch_size` with a curve per length.
        models: All models.
        rows: Points to draw, of `points.summarise`; with those of the weights if the panel shows memory.
        failed: Points without a value.
        paper: The paper's own values.
        records: Records of the rows.
    """

    letter: str
    axis: str
    models: Lineup
    rows: pd.DataFrame
    failed: pd.DataFrame
    paper: tuple[PaperPoint, ...]
    records: tuple[Record, ...]

    @property
    def metric(self) -> str:
        """Metric of the curves."""
        return _METRICS[self.letter]

    @cached_property
    def curves(self) -> Panel:
        """The curves, as other figures have them."""
        rows = self.rows[self.rows["metric"] == self.metric]
        by_length = "context_len" if self.axis == "batch_size" else ""
        points = frame_points(rows, self.failed, self.axis, by_length)
        top = max([highest(points), *(point.number.value for point in self.paper)])
        size, unit = _unit(self.letter, top)
        batch = "" if by_length else f", batch {self.records[0].point.batch_size}"
        title = f"({self.letter}) {_NAMES[self.letter]}, {unit}{batch}"
        return Panel(points, self.models, title, size=size, at_least=top)

    @property
    def markers(self) -> dict[str, str]:
        """The marker of the first model of each architecture."""
        architectures = {record.model.name: record.model.architecture for record in self.records}
        names = [name for name in self.models.models if name in architectures]
        return {architectures[name]: self.curves.look(name).marker for name in reversed(names)}

    def describe(self, value: float) -> str:
        """Return a value with three digits in the unit of the panel; a rate has none."""
        if self.letter == "b":
            return describe_rate(Point("", 0, value))
        size, unit = _unit(self.letter, self.curves.top)
        return format_printed(float(f"{value / size:.3g}"), unit)

    @property
    def labels(self) -> list[Label]:
        """Names of the curves with their last value or their length; then the paper's last values."""

        def describe(point: Point) -> str:
            return with_length(self.describe(point.value), point, self.curves.ticks[-1])

        if self.axis == "context_len":
            return end_labels(self.curves, describe) + self._paper_labels()
        return [
            Label(
                points[-1].x,
                points[-1].value / self.curves.size,
                f"{self.models.labels[model]} {points[-1].curve}",
                self.curves.look(model).text,
            )
            for model, curves in self.curves.curves.items()
            for points in curves
        ]

    def _paper_labels(self) -> list[Label]:
        last = {point.architecture: point.number.value for point in self.paper}
        return [
            Label(
                0,
                value / self.curves.size,
                f"{style.HOLLOW[self.markers[architecture]]} paper {self.describe(value)}",
                style.MUTED,
                is_bold=False,
            )
            for architecture, value in last.items()
        ]


def _unit(letter: str, top: float) -> tuple[float, str]:
    """Return the unit of a panel whose highest value is `top`: its size in base units, and its name."""
    if letter == "a":
        return (GB, "GB") if top >= GB else (_MB, "MB")
    return time_unit(top) if letter == "c" else (1.0, "tokens/s")


def draw_figure6(sweeps: Sequence[CostSweep]) -> list[Drawing]:
    """Return the paper's Figure 6 of each group of matched models, with all panels that the records allow."""
    pairs: dict[tuple[str, tuple[str, ...]], list[CostSweep]] = {}
    for sweep in sweeps:
        key = (sweep.records[0].model.size, sweep.models.models)
        pairs.setdefault(key, []).append(sweep)
    found = [_panels(pair) for pair in pairs.values()]
    return [_make_drawing(panels) for panels in found if panels]


def _panels(sweeps: Sequence[CostSweep]) -> list[Figure6Panel]:
    """Return the panels of one pair: memory of one experiment, throughput and latency of one that has most of both."""
    memory = [list(_by_length(group, "a")) for group in _with_metric(sweeps, "state_bytes")]
    decoding = [[*_by_length(group, "b"), *_by_batch(group)] for group in _with_metric(sweeps, "tpot_s")]
    return [*max(memory, key=_extent, default=[]), *max(decoding, key=_extent, default=[])]


def _with_metric(sweeps: Sequence[CostSweep], metric: str) -> Iterator[list[CostSweep]]:
    for group in by_workload(sweeps):
        if any(metric in set(sweep.points["metric"]) for sweep in group):
            yield group


def _extent(panels: Sequence[Figure6Panel]) -> tuple[int, int]:
    return len(panels), sum(len(panel.rows) for panel in panels)


def _by_length(sweeps: Sequence[CostSweep], letter: str) -> Iterator[Figure6Panel]:
    """Yield a panel against context length up to the paper's longest, at its batch or the largest there is."""
    paper, metric = paper_points(letter), _METRICS[letter]
    longest = max(point.context_len for point in paper)
    metrics = [metric, _WEIGHTS] if letter == "a" else [metric]
    fit = [
        sweep
        for sweep in sweeps
        if len([n for n in sweep.lengths if n <= longest]) > 1
        and not _within(sweep.rows(metric), longest).empty
    ]
    if not fit:
        return
    sweep = max(fit, key=lambda sweep: (sweep.batch_size == paper[0].batch_size, sweep.batch_size))
    records = [record for record in sweep.records if record.point.context_len <= longest]
    reach = max(record.point.context_len for record in records)
    yield Figure6Panel(
        letter,
        "context_len",
        models=sweep.models,
        rows=_within(sweep.points[sweep.points["metric"].isin(metrics)], longest),
        failed=_within(sweep.failed, longest),
        paper=tuple(
            point
            for point in keep_comparable(paper, records)
            if point.batch_size == sweep.batch_size and point.context_len <= reach
        ),
        records=tuple(records),
    )


def _within(rows: pd.DataFrame, longest: int) -> pd.DataFrame:
    return rows[rows["context_len"] <= longest]


def _by_batch(sweeps: Sequence[CostSweep]) -> Iterator[Figure6Panel]:
    """Yield (c), latency against batch size: of the reference at each length, of the others at the longest."""
    paper = paper_points("c")
    longest, largest = max(p.context_len for p in paper), max(p.batch_size for p in paper)
    fit = [sweep for sweep in sweeps if sweep.batch_size <= largest]
    lengths = [n for n in sorted({n for sweep in fit for n in sweep.lengths}) if n <= longest]
    if len(fit) < 2 or not lengths:
        return
    reference = sweeps[0].models.reference

    def shown(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
        rows = _within(pd.concat(frames, ignore_index=True), longest)
        return rows[(rows["context_len"] == lengths[-1]) | (rows["model"] == reference)]

    rows = shown(sweep.rows("tpot_s") for sweep in fit)
    if rows.empty:
        return
    records = [r for sweep in fit for r in sweep.records if r.point.context_len <= longest]
    yield Figure6Panel(
        "c",
        "batch_size",
        models=sweeps[0].models,
        rows=rows,
        failed=shown(sweep.failed for sweep in fit),
        paper=tuple(
            point
            for point in keep_comparable(paper, records)
            if point.context_len in lengths and point.batch_size <= fit[-1].batch_size
        ),
        records=tuple(records),
    )


# ---- the drawing -----------------------------------------------------------------------------------------------------


def _make_drawing(panels: Sequence[Figure6Panel]) -> Drawing:
    timed = [record for panel in panels if panel.letter != "a" for record in panel.records]
    conditions = describe_conditions(timed or panels[0].records, panels[0].models)
    experiments = tuple(dict.fromkeys(panel.records[0].experiment for panel in panels))
    return Drawing(
        name=f"{file_stem('_'.join(experiments))}_figure6",
        experiments=experiments,
        title=_TITLE,
        caption=bind_units(" ".join([_describe(panels), *_describe_paper(panels)])),
        conditions=conditions,
        figure=_draw(panels, (_TITLE, _subtitle(panels), conditions)),
        data=pd.concat([_data(panel) for panel in panels], ignore_index=True),
    )


def _draw(panels: Sequence[Figure6Panel], texts: tuple[str, str, str]) -> Figure:
    """Draw the panels one above the other."""
    names = [_AXIS_LABELS[panel.axis] for panel in panels]
    figure = draw_column([panel.curves for panel in panels], [panel.labels for panel in panels], texts, names)
    for axes, panel in zip(figure.axes, panels, strict=True):
        _draw_weights(axes, panel.rows[panel.rows["metric"] == _WEIGHTS], panel.curves.size)
        _draw_paper(axes, panel)
    return figure


def _draw_weights(axes: Axes, rows: pd.DataFrame, size: float) -> None:
    """Draw a thin dotted line at the weights of each model, and name it."""
    for _, mine in rows.groupby("model"):
        height = float(mine["value"].iloc[0]) / size
        axes.axhline(height, color=style.INK, linewidth=0.8, linestyle=DOTTED, zorder=1.5)
    if not rows.empty:
        at = (0.02, rows["value"].min() / size)
        add_text(axes, "weights", at, ("axes fraction", "data"), (0, -2), color=style.MUTED, va="top")


def _draw_paper(axes: Axes, panel: Figure6Panel) -> None:
    """Draw the paper's values hollow and grey, with the model's marker, and with their length where curves have one."""
    for architecture in dict.fromkeys(point.architecture for point in panel.paper):
        mine = [point for point in panel.paper if point.architecture == architecture]
        axes.plot(
            [point.context_len if panel.axis == "context_len" else point.batch_size for point in mine],
            [point.number.value / panel.curves.size for point in mine],
            panel.markers[architecture],
            markersize=5.2,
            markerfacecolor="none",
            markeredgecolor=style.MUTED,
            markeredgewidth=0.8,
            zorder=3,
        )
        if panel.axis == "batch_size" and len({point.context_len for point in mine}) > 1:
            _name_lengths(axes, mine, panel.curves.size)


def _name_lengths(axes: Axes, points: Sequence[PaperPoint], size: float) -> None:
    """Write the length of the paper's values at the largest batch to their left, apart from each other."""
    last = max(point.batch_size for point in points)
    heights: dict[int, list[float]] = {}
    for point in points:
        if point.batch_size == last:
            heights.setdefault(point.context_len, []).append(point.number.value / size)
    middles = [sum(values) / len(values) for values in heights.values()]
    pt_per_unit = axes.bbox.height / axes.figure.dpi * style.POINTS_PER_IN / axes.get_ylim()[1]
    wanted = [middle * pt_per_unit for middle in middles]
    places = spread(wanted, [_SMALL_PT] * len(wanted))
    options = {"fontsize": 5.6, "color": style.MUTED, "ha": "right", "va": "center"}
    for length, middle, want, place in zip(heights, middles, wanted, places, strict=True):
        add_text(axes, format_tokens(length), (last, middle), "data", (-5, place - want), **options)


# ---- subtitle, caption and data --------------------------------------------------------------------------------------


def _subtitle(panels: Sequence[Figure6Panel]) -> str:
    """Return what the bars and the hollow markers are."""
    timed = [panel.rows for panel in panels if panel.letter != "a" and not panel.rows.empty]
    parts = [describe_rounds(pd.concat(timed))] if timed else []
    points = [point for panel in panels for point in panel.paper]
    kinds = dict.fromkeys(KIND_WORDS[point.number.kind].partition(" by ")[0] for point in points)
    return "; ".join([*parts, *([f"hollow: paper, {', '.join(kinds)}"] if points else [])])


def _describe(panels: Sequence[Figure6Panel]) -> str:
    """Return what the panels show, over which range and from which experiments."""
    words = "; ".join(f"({panel.letter}) {_describe_panel(panel)}" for panel in panels)
    experiments = " and ".join(dict.fromkeys(panel.records[0].experiment for panel in panels))
    bars = (
        " Rates and times are geometric means of the rounds' medians, bars their 95 % intervals (often narrower than "
        "the marker)."
    )
    is_timed = any(panel.letter != "a" for panel in panels)
    return f"From {experiments}, in the layout and range of the paper's Figure 6: {words}.{bars if is_timed else ''}"


def _describe_panel(panel: Figure6Panel) -> str:
    if panel.letter != "c":
        return _WORDS[panel.letter]
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
    return (
        f"time per output token against the batch size{lengths}{f' (crosses: {crosses})' if crosses else ''}"
    )


def _describe_paper(panels: Sequence[Figure6Panel]) -> list[str]:
    """Return what the hollow markers are, and what is not known about them; nothing if there are none."""
    numbers = [
        number
        for panel in panels
        for point in panel.paper
        for number in (point.number, point.batch)
        if number is not None
    ]
    if not numbers:
        return []
    records = tuple(record for panel in reversed(panels) if panel.paper for record in panel.records)
    unknown = dict.fromkeys(item for number in numbers for item in number.conditions.not_stated)
    doubts: dict[str, dict[str, None]] = {}
    for number in numbers:
        doubts.setdefault(number.source.split()[-1], {}).update(dict.fromkeys(number.doubts))
    return [
        "Hollow markers are the paper's values (two where those who read them off differ); nothing that it states "
        f"contradicts the conditions here: {describe_setup(records)}.",
        f"Not stated there: {', '.join(unknown)}.",
        *(f"{source}: {' '.join(words)}" for source, words in doubts.items() if words),
    ]


def _data(panel: Figure6Panel) -> pd.DataFrame:
    """Return the points measured, the points that failed, and the paper's."""
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
