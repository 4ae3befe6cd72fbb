"""The figure of needles: a map of context length and depth per model, with the share of exact answers in each cell."""

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.axes import Axes

from retbench.records.record import Record
from retbench.report.evaluations import Evaluations
from retbench.report.figures import style
from retbench.report.figures.drawing import Drawing, View
from retbench.report.figures.labels import shorten
from retbench.report.points import ModelInstance, TaskPoint, group, instance_of, instance_row
from retbench.report.wording import file_stem
from retbench.units import format_size, format_tokens

_SERIES = "acc_by_depth"
_COLUMNS = 2
_MAP_IN, _GAP_IN = 1.35, 0.62
"""Height of a map and of the space between two rows of maps."""
_COLOURS = "Greys"
_CAPTION = (
    "Share of exact answers, %, to prompts in which a number is hidden in a text and asked for at its end: by the "
    "tokens of the prompt and by the depth of the number, 0 % at the beginning of the text. One map per model and seed."
)
_BORDER = " To the right of the dashed line of a map, prompts are longer than the sequences of the training."


def draw_needles(scores: Evaluations, points: Sequence[TaskPoint]) -> Iterator[Drawing]:
    """Yield the maps of all models of each size in one haystack."""
    records = [r for point in points for r in scores.measured(point) if _SERIES in r.series]
    for size in scores.sizes(records):
        mine = [record for record in records if record.model.size == size]
        maps = group(mine, lambda record: (record.model.name, instance_of(record)))
        ordered = sorted(maps, key=lambda key: (scores.models.models.index(key[0]), key[1].seed_word))
        yield _draw(scores, points[0], size, {key: maps[key] for key in ordered})


def _draw(
    scores: Evaluations, point: TaskPoint, size: str, maps: dict[tuple[str, ModelInstance], list[Record]]
) -> Drawing:
    records = [record for mine in maps.values() for record in mine]
    borders = [_border(mine, scores.trained_length(mine)) for mine in maps.values()]
    view = View(
        name=file_stem(f"{point.experiment}_{point.workload}_{point.task}_{size}_map"),
        title=f"Needles found in the haystack {point.task}",
        subtitle=f"exact answers, %, models of {format_size(size)}; depth of the needle, %",
        caption=_CAPTION + (_BORDER if any(borders) else ""),
        records=records,
    )
    figure, panels = style.new_panels(
        view.texts,
        [1] * _COLUMNS,
        [style.LENGTH_LABEL] * -(-len(maps) // _COLUMNS),
        row_in=_MAP_IN,
        top_in=style.HEADER_IN + 0.12,
        gap_in=_GAP_IN,
        count=len(maps),
    )
    for axes, ((model, instance), mine), border in zip(panels, maps.items(), borders, strict=True):
        seed = "" if instance.seed is None else f", seed {instance.seed}"
        name = shorten(f"{scores.models.labels[model]}{seed}")
        axes.set_title(name, pad=4)
        _draw_map(axes, model, name, mine)
        if border is not None:
            axes.axvline(border, color=style.MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
    return view.drawing(figure, pd.DataFrame([row for record in records for row in _data_rows(record)]))


def _border(records: Sequence[Record], trained: int | None) -> float | None:
    """Return the place between the columns of a map after the trained length; None where no prompt is longer."""
    lengths = {record.point.context_len for record in records}
    if trained is None or not min(lengths) <= trained < max(lengths):
        return None
    return sum(length <= trained for length in lengths) - 0.5


def _draw_map(axes: Axes, model: str, name: str, records: Sequence[Record]) -> None:
    """Draw the cells of one model: lengths from the left, depths from the top."""
    by_length = {record.point.context_len: record.series[_SERIES] for record in records}
    lengths = sorted(by_length)
    depths = sorted({depth for series in by_length.values() for depth in series.x})
    for column, length in enumerate(lengths):
        series = by_length[length]
        for depth, share in zip(series.x, series.y, strict=True):
            row = depths.index(depth)
            cell = axes.imshow(
                [[share]],
                extent=(column - 0.5, column + 0.5, row + 0.5, row - 0.5),
                cmap=_COLOURS,
                vmin=0,
                vmax=1.25,
                aspect="auto",
            )
            colour = style.PAPER if share > 0.6 else style.INK
            words = axes.text(
                column, row, f"{100 * share:.0f}", fontsize=4.6, color=colour, ha="center", va="center"
            )
            style.tag(axes, model, [cell, words])
            where = f"{format_tokens(length)} tokens, depth {depth:.0f} %"
            style.mark(axes, model, (column, row), f"{name}, {where}: {100 * share:.0f} %")
    axes.set_xlim(-0.5, len(lengths) - 0.5)
    axes.set_ylim(len(depths) - 0.5, -0.5)
    axes.set_xticks(range(len(lengths)), [format_tokens(length) for length in lengths])
    shown = range(0, len(depths), max(1, len(depths) // 5))
    axes.set_yticks(list(shown), [f"{depths[row]:.0f}" for row in shown])


def _data_rows(record: Record) -> Iterator[dict[str, object]]:
    """Yield the cells of a record's column of a map."""
    series = record.series[_SERIES]
    for depth, share, count in zip(series.x, series.y, series.counts, strict=True):
        yield instance_row(record) | {
            "context_len": record.point.context_len,
            "depth_percent": depth,
            "metric": "acc",
            "unit": "ratio",
            "value": share,
            "count": count,
        }
