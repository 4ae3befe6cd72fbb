"""The figures of a report: which are drawn from which records. Each kind of figure has its module.

The metrics of a workload of cost decide on its figure: a time becomes curves against the context length, memory becomes
stacked areas, and a workload that measures both becomes two rows. What a workload of quality scores decides on its.
"""

from collections.abc import Sequence

from retbench.report.contents import Contents
from retbench.report.evaluations import Evaluations
from retbench.report.figures import style
from retbench.report.figures.accuracies import draw_accuracies
from retbench.report.figures.drawing import Drawing
from retbench.report.figures.figure6 import draw_figure6
from retbench.report.figures.lengths import draw_lengths
from retbench.report.figures.memory import draw_memory
from retbench.report.figures.needles import draw_needles
from retbench.report.figures.panels import UNITS
from retbench.report.figures.rates import draw_rates
from retbench.report.figures.recall import draw_distances, draw_length_recall, draw_recall
from retbench.report.figures.rooflines import draw_rooflines
from retbench.report.figures.series import draw_gains, draw_learning, draw_positions
from retbench.report.figures.sizes import draw_bits, draw_figure5, draw_states
from retbench.report.figures.throughput import draw_throughput, draw_throughput_by_state
from retbench.report.figures.training import draw_training
from retbench.report.sweeps import CostSweep, by_workload, swept_by_batch
from retbench.workloads.workload import WORKLOADS, Workload


def make_drawings(contents: Contents) -> list[Drawing]:
    """Return every figure that the records of a selection allow, in the order of the report."""
    scores = contents.evaluations
    return [*draw_costs(contents.sweeps), *(draw_scores(scores) if scores else [])]


def draw_costs(sweeps: Sequence[CostSweep]) -> list[Drawing]:
    """Return every figure that the costs allow, in the order of the workloads."""
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


def draw_scores(scores: Evaluations) -> list[Drawing]:
    """Return every figure that the scores allow, in the order of the report."""
    trainings = scores.task_points("seed")
    with style.house_style():
        return [
            *(each for task_point in trainings for each in draw_figure5(scores, task_point)),
            *draw_bits(scores),
            *draw_states(scores),
            *(each for task_point in scores.longest_texts() for each in draw_positions(scores, task_point)),
            *(each for points in scores.groups("answers") for each in draw_accuracies(scores, points)),
            *(each for task_point in scores.scored("slices") for each in draw_gains(scores, task_point)),
            *(each for points in scores.groups("needles") for each in draw_needles(scores, points)),
            *(each for points in scores.groups("recall") for each in draw_recall(scores, points)),
            *(each for points in scores.groups("recall") for each in draw_distances(scores, points)),
            *(each for points in scores.groups("lengths") for each in draw_length_recall(scores, points)),
            *(each for task_point in trainings for each in draw_learning(scores, task_point)),
            *(each for task_point in trainings for each in draw_rates(scores, task_point)),
        ]
