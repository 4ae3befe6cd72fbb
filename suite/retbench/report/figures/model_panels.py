"""Small panels, one per model with a line per size: figures of more models than one panel can hold."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from retbench.report.figures import style
from retbench.report.figures.curves import draw_line
from retbench.report.figures.looks import Look, look_of
from retbench.report.figures.panels import PlotPoint, frame_points
from retbench.report.lineup import Lineup
from retbench.report.wording import with_interval
from retbench.units import format_size

_MOST_COLUMNS = 3
_ROW_IN, _GAP_IN, _LINE_IN = 0.72, 0.38, 0.1
"""Least height of a panel, and height of the space between two rows and of a second line of a panel's title."""
_ROWS_IN = 1.3
"""Least height of all panels."""
_TITLE_LETTERS = 18
"""Letters of a title that have room over a panel."""


class ModelLine(NamedTuple):
    """One line of a figure: the rows of one model and size in the panel of the model.

    Attributes:
        axes: The panel.
        rows: Rows of the figure's data, in their order.
        model: Name of the model.
        label: Its label with the size.
        look: Its look.
        dash: Dash pattern of the size.
    """

    axes: Axes
    rows: pd.DataFrame
    model: str
    label: str
    look: Look
    dash: Any


def add_model_panels(
    data: pd.DataFrame, models: Lineup, sizes: Sequence[str], texts: tuple[str, str, str], label: str
) -> tuple[Figure, list[ModelLine]]:
    """Return a figure with an empty panel per model, in rows, and the lines to draw in them.

    Args:
        data: Rows of the figure's data, with columns `model` and `size`; those with a column `seed` have a line per
            seed.
        models: All models.
        sizes: From the smallest to the largest.
        texts: Title, subtitle and conditions.
        label: Name of the horizontal axis.
    """
    names = [name for name in models.models if name in set(data["model"])]
    titles = [
        "\n".join(textwrap.wrap(models.labels[name], _TITLE_LETTERS, max_lines=2, placeholder="…"))
        for name in names
    ]
    num_rows = -(-len(names) // _MOST_COLUMNS)
    num_columns = -(-len(names) // num_rows)
    above_in = _LINE_IN * max(title.count("\n") for title in titles)
    top_in = style.HEADER_IN + above_in
    figure, panels = style.new_panels(
        texts,
        [1] * num_columns,
        [""] * (num_rows - 1) + [label],
        row_in=_ROW_IN,
        top_in=top_in,
        gap_in=_GAP_IN + above_in,
        least_in=top_in + _ROWS_IN + style.BASE_IN,
        count=len(names),
    )
    lines = []
    for axes, name, title in zip(panels, names, titles, strict=True):
        look, own = look_of(models, name), data[data["model"] == name]
        axes.set_title(title, fontsize=6.4, pad=3, color=look.text)
        for _, rows in own.groupby(["size", *own.columns.intersection(["seed"])], sort=False):
            size = str(rows["size"].iloc[0])
            label_of_line = f"{models.labels[name]} {format_size(size)}"
            lines.append(ModelLine(axes, rows, name, label_of_line, look, _dash(size, sizes)))
    if len(sizes) > 1:
        _name_sizes(figure, sizes)
    return figure, lines


def draw_model_line(line: ModelLine, axis: str, unit: tuple[float, str], more: Sequence[Artist] = ()) -> None:
    """Draw the values of a line with their intervals, and what the page hides with the line.

    Args:
        line: The line; its rows have the columns `value` and, for intervals, `low` and `high`.
        axis: Column of the horizontal axis.
        unit: Unit of the vertical axis in base units, and its name.
        more: What else was drawn of the model.
    """
    size, name = unit

    def words(point: PlotPoint) -> str:
        value = with_interval(*(f"{number / size:.4g}" for number in point.estimate))
        return f"{line.label}, {point.x:g}: {value} {name}"

    draw_line(
        line.axes,
        line.model,
        frame_points(line.rows.dropna(subset="value"), axis=axis),
        size,
        words,
        more=more,
        color=line.look.line,
        linestyle=line.dash,
        linewidth=1.0,
        marker=line.look.marker,
        markersize=3.2 * line.look.marker_scale,
    )


def _dash(size: str, sizes: Sequence[str]) -> Any:
    """Return the dash pattern of a size: the largest has a solid line, and smaller ones have ever shorter dashes."""
    place = len(sizes) - 1 - sizes.index(size)
    return (0, (4 / place, 1.2)) if place else "-"


def _name_sizes(figure: Figure, sizes: Sequence[str]) -> None:
    """Write the sizes with their lines beside the title."""
    figure.legend(
        [Line2D([], [], color=style.MUTED, linestyle=_dash(size, sizes)) for size in sizes],
        list(map(format_size, sizes)),
        ncols=len(sizes),
        loc="upper right",
        bbox_to_anchor=(1 - 0.1 / style.WIDTH_IN, 1 - 0.07 / figure.get_figheight()),
        borderpad=0.0,
        borderaxespad=0.0,
        handlelength=2.2,
        handletextpad=0.4,
        columnspacing=0.9,
    )
