"""The figures of cost: which are drawn from the records of which workload.

The metrics of a workload decide on its figure: a time becomes curves against the context length, memory becomes
stacked bars, and a workload that measures both becomes two rows. Each figure has its module; `score_figures` draws
quality.
"""

from collections.abc import Sequence

from retbench.report import style
from retbench.report.drawing import Drawing
from retbench.report.figure6 import draw_figure6
from retbench.report.length_figure import draw_lengths
from retbench.report.memory_figure import draw_memory
from retbench.report.panels import UNITS
from retbench.report.roofline_figure import draw_rooflines
from retbench.report.selection import Selection
from retbench.report.sweeps import CostSweep, by_workload, make_sweeps, swept_by_batch
from retbench.report.throughput_figures import draw_throughput, draw_throughput_by_state
from retbench.report.training_figure import draw_training
from retbench.workloads.workload import WORKLOADS, Workload


def make_drawings(selection: Selection) -> list[Drawing]:
    """Return every figure that the records of a selection allow, in the order of the report."""
    sweeps = make_sweeps(selection)
    with style.house_style():
        by_name = [
            drawing
            for workload in WORKLOADS.values()
            for of_one in by_workload(sweeps)
            if of_one[0].workload == workload.name
            for drawing in _of_workload(of_one, workload)
        ]
        return [*by_name, *draw_figure6(sweeps), *draw_rooflines(sweeps)]


def _of_workload(sweeps: Sequence[CostSweep], workload: Workload) -> list[Drawing]:
    """Return the figures of one experiment's sweeps of a workload."""
    metrics = {metric.name for metric in workload.metrics}
    if workload.primary.name == "peak_bytes":
        return [draw_memory(sweeps, workload)]
    if {"tokens_per_s", "peak_bytes"} <= metrics:
        return [draw_training(sweep, workload) for sweep in sweeps]
    if not workload.primary.has_interval:
        return []
    if workload.primary.name == "tokens_per_s":
        by_batch = [draw_throughput(sweeps)] if swept_by_batch(sweeps) else []
        return [*by_batch, *draw_throughput_by_state(sweeps, workload)]
    if "tokens_per_s" in metrics and swept_by_batch(sweeps):
        return [draw_throughput(sweeps)]
    return [draw_lengths(sweeps, workload)] if workload.primary.unit in UNITS else []
