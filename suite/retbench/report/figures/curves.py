"""Curves of every model against one quantity: the drawing functions that figures of cost and of quality share."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import isnan
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Transform, offset_copy

from retbench.report.figures import style
from retbench.report.figures.labels import ABOVE_PT, Label, add_text, label_ends, label_width_in
from retbench.report.figures.looks import repeats
from retbench.report.figures.panels import Panel, PlotPoint, lowest
from retbench.report.wording import describe_status, span
from retbench.units import format_tokens

_HEIGHT_IN = 2.75
"""Least height of a figure."""
_ROW_IN, _GAP_IN = 1.2, 0.58
_NARROWEST_IN = 0.62
"""Least width of a panel with its ticks; panels that have no room side by side go into further rows."""
_TITLE_LETTER_IN = 0.068
"""Width of a letter in the title of a panel."""
_TITLE_LINE_PT = 8.5
_CROSSES_PT = 6.0
"""Height of a row of crosses."""
_REASON_PT, _REASON_ASIDE_PT = 6.0, 5.0
"""Size of the reason beside crosses, and its distance from them."""
_MOST_REASONS = 2
"""Models whose crosses have the reason beside them; for more of them it stands in the subtitle."""
_MOST_MARKERS = 12
"""Points of a curve that have room for markers.

Where one curve has more, none has markers, or if several models have the same colour, each the one at its end.
"""
_MOST_AT_ONE_PLACE = 4
"""Models whose intervals at one place do not hide each other."""
_LONE_MARKER_PT = 5.2
"""Size of a marker of a model without a line, which would help to find it."""
_ASIDE_MARKER_PT = 2.6
"""Size of a marker beside the line of its model: of a seed that only one size has."""

Scale = Literal["zero", "span", "log"]
Describe = Callable[[PlotPoint], str]


def draw_row(
    panels: Sequence[Panel],
    texts: tuple[str, str, str],
    describe: Describe,
    label: str = style.LOG_LENGTH_LABEL,
    set_axis: Callable[[Axes, Sequence[float]], None] = style.set_length_axis,
    *,
    scale: Scale = "zero",
) -> Figure:
    """Draw panels side by side with the same vertical axis; names of models stand to the right of the last one.

    Args:
        panels: From left to right.
        texts: Title, subtitle and conditions.
        describe: Words for the last value of a curve.
        label: Name of the horizontal axis.
        set_axis: Sets ticks and limits of the horizontal axis.
        scale: The vertical axis is linear from zero, or linear and spans the values, or logarithmic.
    """
    labels = end_labels(panels[-1], describe)
    if len(panels) > 1 and labels:  # values of the last panel, whose title stands above them
        heading = panels[-1].title.replace("\n", " ")
        labels.append(Label(0, max(label.y for label in labels), f"{heading}:", style.MUTED, is_bold=False))
    beside = len(panels) == 1 and panels[0].num_failing <= _MOST_REASONS
    right_in = _room_in(panels, labels)
    longest = max(len(line) for panel in panels for line in panel.title.split("\n"))
    narrowest_in = max(_NARROWEST_IN, _TITLE_LETTER_IN * longest)
    most_columns = min(len(panels), max(1, int((style.WIDTH_IN - right_in) / narrowest_in)))
    # Rows are full: the labels, which reach above the last row, stand beside its last panel.
    num_columns = max(count for count in range(1, most_columns + 1) if len(panels) % count == 0)
    num_rows = len(panels) // num_columns
    shares = [2.0 + len(panel.ticks) for panel in panels[:num_columns]]
    row_in = _height_in(labels) if num_rows == 1 else max(_ROW_IN, _height_in(labels) / num_rows)
    names = [""] * (num_rows - 1) + [label]
    figure, axes = _new_panels(panels, shares, names, texts, row_in=row_in, right_in=right_in)
    unexplained: list[str] = []
    for each, panel in zip(axes, panels, strict=True):
        set_axis(each, panel.ticks)
        _set_value_axis(each, panels, scale)
        unexplained += _fill(each, panel, max(panel.num_failing for panel in panels), beside=beside)
    style.extend_subtitle(figure, describe_crosses(unexplained))
    rows_above = axes[0].get_position().y1 - axes[-1].get_position().y1
    above_pt = rows_above * figure.get_figheight() * style.POINTS_PER_IN
    _name_curves(axes[-1], labels, above_pt + _free_pt(panels[-1]))
    return figure


def draw_scales(
    panels: Sequence[Panel],
    texts: tuple[str, str, str],
    describe: Describe,
    name: str,
    more: str = "",
    write: Callable[[float], str] = style.write_length,
) -> Iterator[Figure]:
    """Yield what `draw_row` draws on logarithmic axes, then on linear ones.

    Args:
        panels: From left to right.
        texts: Title, subtitle and conditions.
        describe: Words for the last value of a curve.
        name: Name of the horizontal axis, of context lengths or batch sizes.
        more: What its label says after the scale.
        write: Writes a place of that axis.
    """
    log_axis, linear_axis = (
        partial(set_axis, write=write) for set_axis in (style.set_length_axis, style.set_linear_length_axis)
    )
    yield draw_row(panels, texts, describe, f"{name} (log scales){more}", log_axis, scale="log")
    yield draw_row(panels, texts, describe, f"{name}{more}", linear_axis)


def _set_value_axis(axes: Axes, panels: Sequence[Panel], scale: Scale) -> None:
    """Make the vertical axis that panels share, in the unit of the first."""
    size = panels[0].size
    measured = [point for panel in panels for point in panel.measured if point.value <= panel.at_most]
    top, values = max(panel.top for panel in panels) / size, [point.value / size for point in measured]
    if scale == "span":
        ends = [end / size for point in measured for end in (point.low, point.high) if not isnan(end)]
        style.set_value_axis(axes, max([*values, *ends]), min([*values, *ends]))
    elif scale == "log" and any(value > 0 for value in values):
        style.set_log_value_axis(axes, lowest(measured) / size, top)
    else:
        style.set_value_axis(axes, top)


def draw_column(
    panels: Sequence[Panel],
    labels: Sequence[Sequence[Label]],
    texts: tuple[str, str, str],
    axis_labels: Sequence[str],
) -> Figure:
    """Draw panels one above the other on linear axes, with labels beside each.

    Args:
        panels: From the top down.
        labels: Labels of each panel in its units; their height counts, their place along the axis does not.
        texts: Title, subtitle and conditions.
        axis_labels: Name of the horizontal axis of each panel.
    """
    right_in = _room_in(panels, [label for mine in labels for label in mine])
    row_in = max(_ROW_IN, *(_height_in(mine) for mine in labels))
    figure, rows = _new_panels(
        panels, [1], axis_labels, texts, row_in=row_in, right_in=right_in, left_in=0.52
    )
    unexplained: list[str] = []
    for axes, panel, mine in zip(rows, panels, labels, strict=True):
        style.set_linear_length_axis(axes, panel.ticks)
        style.set_value_axis(axes, panel.top / panel.size)
        unexplained += _fill(axes, panel, panel.num_failing)
        _name_curves(axes, mine, _free_pt(panel))
    style.extend_subtitle(figure, describe_crosses(unexplained))
    return figure


def _new_panels(
    panels: Sequence[Panel],
    shares: Sequence[float],
    axis_labels: Sequence[str],
    texts: tuple[str, str, str],
    *,
    row_in: float,
    right_in: float,
    left_in: float = 0.38,
) -> tuple[Figure, list[Axes]]:
    """Return a new figure with axes for panels, and room above each row for its crosses; see `style.new_panels`."""
    num_failing = max(panel.num_failing for panel in panels)
    # One panel without a title has room for a few rows of crosses anyway.
    num_crosses = num_failing if panels[0].title else max(0, num_failing - _MOST_REASONS)
    num_lines = max(panel.title.count("\n") for panel in panels)
    above_in = (num_crosses * _CROSSES_PT + num_lines * _TITLE_LINE_PT) / style.POINTS_PER_IN
    return style.new_panels(
        texts,
        shares,
        axis_labels,
        row_in=row_in,
        right_in=right_in,
        left_in=left_in,
        top_in=style.HEADER_IN + above_in,
        gap_in=_GAP_IN + above_in,
        least_in=_HEIGHT_IN,
        count=len(panels),
    )


def _fill(axes: Axes, panel: Panel, num_failing: int, *, beside: bool = True) -> list[str]:
    """Draw curves, crosses and title of one panel, whose row has as many rows of crosses.

    Args:
        axes: The axes.
        panel: The panel.
        num_failing: Rows of crosses.
        beside: Whether the reasons stand beside the crosses.

    Returns:
        The statuses of crosses that do not have their reason beside them.
    """
    axes.yaxis.set_visible(bool(panel.measured))
    _draw_curves(axes, panel)
    unexplained = _draw_crosses(axes, panel, beside=beside)
    axes.set_title(panel.title.replace("{unit}", panel.unit), pad=4 + _CROSSES_PT * num_failing)
    return unexplained


def _room_in(panels: Sequence[Panel], labels: Sequence[Label]) -> float:
    """Return the inches that labels need beside the panels, at least those of the models' names."""
    names = map(panels[0].name, panels[0].models.models)
    return label_width_in([*names, *(label.text for label in labels)])


def _height_in(labels: Sequence[Label]) -> float:
    """Return the inches that labels need one above the other."""
    return sum(label.height_pt for label in labels) / style.POINTS_PER_IN


def _draw_curves(axes: Axes, panel: Panel) -> None:
    """Draw the curves of every model with their intervals, thinner where a model has several."""
    aside_pt = _asides_pt(axes, panel)
    _make_room(axes, panel.ticks, max(aside_pt.values(), default=0.0))
    longest = max((len(points) for curves in panel.curves.values() for points in curves), default=0)
    has_room = longest <= _MOST_MARKERS
    has_markers = has_room or repeats(len(panel.models.models))
    for model, curves in panel.curves.items():
        look = panel.look(model)
        beside = offset_copy(axes.transData, axes.figure.figure, x=aside_pt[model], units="points")
        for points in curves:
            marker_pt = 3.9 if len(curves) == 1 else 3.4
            if len(points) == 1:
                marker_pt = _LONE_MARKER_PT if max(map(len, curves)) == 1 else _ASIDE_MARKER_PT
            draw_line(
                axes,
                model,
                points,
                panel.size,
                lambda point: panel.words(point, axes.format_xdata(point.x)),
                color=look.line,
                linestyle=look.dash if panel.joined in (None, points[0].curve) else "",
                transform=beside,
                linewidth=1.3 if len(curves) == 1 else 0.9,
                marker=look.marker if has_markers else "",
                markevery=None if has_room else [-1],
                markersize=marker_pt * look.marker_scale,
            )


def draw_line(
    axes: Axes,
    model: str,
    points: Sequence[PlotPoint],
    size: float,
    words: Describe,
    *,
    more: Sequence[Artist] = (),
    **look: Any,
) -> None:
    """Draw a line through points with their intervals; the page shows the words of each, and hides it with its model.

    Args:
        axes: The axes.
        model: Name of the model.
        points: Points of the line, from left to right, in base units.
        size: One unit of the vertical axis in base units.
        words: The words of a point.
        more: What else was drawn of the line.
        look: Options of `Axes.plot`, among them `color`; `transform` places the line and its intervals.
    """
    line = axes.plot(
        [point.x for point in points], [point.value / size for point in points], **style.MARKER_EDGE, **look
    )
    place = look.get("transform", axes.transData)
    style.tag(axes, model, [*line, *_draw_intervals(axes, points, size, look["color"], place), *more])
    for point in points:
        style.mark(axes, model, (point.x, point.value / size), words(point))


def _asides_pt(axes: Axes, panel: Panel) -> dict[str, float]:
    """Return how far the points of each model stand to the right of their place.

    They stand side by side where the panel says so, where there is one place only (then in the order of their labels),
    and where the intervals of many models would hide each other.
    """
    models, width_pt = list(panel.models.models), axes.bbox.width / axes.figure.dpi * style.POINTS_PER_IN
    num_places, reach_pt = len(panel.ticks), panel.aside_pt
    num_at_places = Counter(x for x, _ in {(point.x, point.model) for point in panel.measured})
    if not reach_pt and max(num_at_places.values(), default=0) > _MOST_AT_ONE_PLACE:
        if num_places == 1:
            models = sorted(panel.curves, key=lambda model: -panel.curves[model][0][-1].value)
            reach_pt = 0.8 * width_pt
        elif any(point.low < point.high for point in panel.measured):
            reach_pt = 0.3 * width_pt / num_places
    last = max(1, len(models) - 1)
    return {model: reach_pt * (place / last - 0.5) for place, model in enumerate(models)}


def _make_room(axes: Axes, places: Sequence[float], aside_pt: float) -> None:
    """Widen the horizontal axis where points that stand so far aside would leave it at the first or last place."""
    if len(places) == 1 or not aside_pt:
        return
    scale, width_pt = axes.xaxis.get_transform(), axes.bbox.width / axes.figure.dpi * style.POINTS_PER_IN
    low, first, last, high = scale.transform([axes.get_xlim()[0], places[0], places[-1], axes.get_xlim()[1]])
    least = (aside_pt + _LONE_MARKER_PT / 2) / width_pt
    left, right = (max(least, edge / (high - low)) for edge in (first - low, high - last))
    width = (last - first) / (1 - left - right)
    axes.set_xlim(*scale.inverted().transform([first - left * width, last + right * width]))


def _draw_intervals(
    axes: Axes, points: Sequence[PlotPoint], size: float, colour: str, place: Transform
) -> list[Artist]:
    """Draw the intervals of the points that have one, and return what was drawn."""
    bars = [(point.x, point.low / size, point.high / size) for point in points if not isnan(point.low)]
    if not bars:
        return []
    x, low, high = zip(*bars, strict=True)
    drawn: list[Artist] = [axes.vlines(x, low, high, color=colour, linewidth=0.8, transform=place)]
    look: dict[str, Any] = {"color": colour, "markersize": 5, "markeredgewidth": 0.8, "zorder": 1.9}
    for end in (low, high):
        drawn += axes.plot(x, end, "_", linestyle="", transform=place, **look)
    return drawn


def _draw_crosses(axes: Axes, panel: Panel, *, beside: bool) -> list[str]:
    """Draw crosses above the axes at the places without a value, a row per model, with the reason where it has room.

    Returns:
        The statuses of crosses without their reason beside them.
    """
    height_pt = axes.bbox.height / axes.figure.dpi * style.POINTS_PER_IN
    above_pt, unexplained = 3.5, list[str]()
    for model in panel.models.models:
        mine = sorted((point for point in panel.failed if point.model == model), key=lambda point: point.x)
        if not mine:
            continue
        statuses = [*dict.fromkeys(point.status for point in mine)]
        x, y, transform = [point.x for point in mine], 1 + above_pt / height_pt, axes.get_xaxis_transform()
        above_pt += _CROSSES_PT
        look = panel.look(model)
        drawn: list[Artist] = [
            *axes.plot(x, [y] * len(x), "x", color=look.line, transform=transform, clip_on=False)
        ]
        is_left = x[0] > panel.ticks[0]
        place, aside_pt = (x[0], -_REASON_ASIDE_PT) if is_left else (x[-1], _REASON_ASIDE_PT)
        reason = ", ".join(map(describe_status, statuses))
        if beside and style.has_room(axes, reason, place, aside_pt, _REASON_PT):
            side = "right" if is_left else "left"
            options = {"fontsize": _REASON_PT, "color": look.text, "ha": side, "va": "center"}
            drawn.append(add_text(axes, reason, (place, y), transform, (aside_pt, 0), **options))
        else:
            unexplained += statuses
        style.tag(axes, model, drawn)
    return unexplained


def describe_crosses(statuses: Iterable[str]) -> list[str]:
    """Return what the crosses of a figure stand for, if it has any: 'crosses: out of memory'."""
    words = [describe_status(status) for status in sorted(set(statuses))]
    return [f"crosses: {', '.join(words)}"] if words else []


def end_labels(panel: Panel, describe: Describe) -> list[Label]:
    """Return each model's name and last value, of several curves the range, in the units of the panel.

    The words of a value that leaves the panel say so.
    """
    labels = []
    for model, curves in panel.curves.items():
        named = [points for points in curves if points[0].curve == panel.joined] or curves
        last = max(points[-1].x for points in named)
        compared = (points[-1] for points in named if panel.ends_apart or points[-1].x == last)
        ends = sorted(compared, key=lambda point: point.value)
        above = ", above" if ends[0].value > panel.at_most else ""
        words = span(describe(ends[0]), describe(ends[-1])) + above
        middle = (ends[0].value + ends[-1].value) / 2 / panel.size
        text = f"{panel.name(model)}\n{words}"
        labels.append(Label(ends[-1].x, middle, text, panel.look(model).text, model=model))
    return labels


def with_length(words: str, point: PlotPoint, longest: float) -> str:
    """Return words for the last value of a curve, with its context length if longer ones exist."""
    return words if point.x >= longest else f"{words}, {format_tokens(int(point.x))}"


def three_decimals(point: PlotPoint) -> str:
    """Return the value of a point without a unit."""
    return f"{point.value:.3f}"


def _free_pt(panel: Panel) -> float:
    """Return how far names of curves may reach above a panel: not where a reason may stand beside its last cross."""
    failing = {(point.model, point.x) for point in panel.failed}
    first, last = panel.ticks[0], panel.ticks[-1]
    return 0.0 if any({(model, first), (model, last)} <= failing for model, _ in failing) else ABOVE_PT


def _name_curves(axes: Axes, labels: Sequence[Label], above_pt: float) -> None:
    """Write the labels of `end_labels` beside the axes at the height of the ends of the curves."""
    edge, (low, top) = axes.get_xlim()[1], axes.get_ylim()
    ordered = sorted(labels, key=lambda label: label.y)
    inside = [replace(label, x=edge, y=max(low, min(top, label.y))) for label in ordered]
    label_ends(axes, inside, above_pt=above_pt)
