"""The figure of the share of a roofline that each workload reaches."""

from collections.abc import Sequence

import pandas as pd

from retbench.report.figures import style
from retbench.report.figures.curves import draw_row, with_length
from retbench.report.figures.drawing import Drawing, View
from retbench.report.figures.labels import add_text
from retbench.report.figures.panels import PERCENT, sweep_panel
from retbench.report.points import group
from retbench.report.sweeps import CostSweep, by_workload, subtitle_of, swept_by_batch
from retbench.report.wording import file_stem

_METRIC = "roofline_ratio"


def draw_rooflines(sweeps: Sequence[CostSweep]) -> list[Drawing]:
    """Draw % of roofline, one figure per experiment, one panel per workload and batch size."""
    timed = [
        sweep
        for of_one in by_workload(sweeps)
        if not swept_by_batch(of_one)
        for sweep in of_one
        if _METRIC in set(sweep.metrics["metric"])
    ]
    return [_draw(of_one) for of_one in group(timed, lambda sweep: sweep.experiment).values()]


def _draw(sweeps: Sequence[CostSweep]) -> Drawing:
    first, longest = sweeps[0], sweeps[-1].lengths[-1]
    several = len({sweep.batch_size for sweep in sweeps}) > 1
    view = View(
        name=f"{file_stem(first.experiment)}_roofline{'' if several else f'_batch{first.batch_size}'}",
        title="% of roofline",
        subtitle=subtitle_of("%", sweeps, _METRIC),
        caption="The least time that the bytes and operations of a point allow on this machine, as measured in the "
        f"same run, as a percentage of the measured time{'' if several else f', batch {first.batch_size}'}. The dashed "
        "line is the ceiling of the machine.",
        records=[record for sweep in sweeps for record in sweep.records],
        models=first.models,
    )
    titles = [
        f"{sweep.workload}, batch {sweep.batch_size}" if several else sweep.workload for sweep in sweeps
    ]
    panels = [
        sweep_panel(sweep, _METRIC, title, units=PERCENT, at_least=1.0)
        for sweep, title in zip(sweeps, titles, strict=True)
    ]
    figure = draw_row(
        panels, view.texts, lambda point: with_length(f"{100 * point.value:.0f} %", point, longest)
    )
    for axes in figure.axes:
        axes.axhline(100, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
    at = ("axes fraction", "data")
    add_text(figure.axes[0], "ceiling", (0.03, 100), at, (0, 2), color=style.MUTED)
    data = [
        sweep.data([_METRIC]).assign(workload=sweep.workload, batch_size=sweep.batch_size) for sweep in sweeps
    ]
    return view.drawing(figure, pd.concat(data, ignore_index=True))
