"""The figures of quality in the order of the report: which are drawn from the scores. Each kind has its module."""

from retbench.report import style
from retbench.report.accuracy_figure import draw_accuracies
from retbench.report.drawing import Drawing
from retbench.report.evaluations import Evaluations
from retbench.report.needle_figure import draw_needles
from retbench.report.rate_figure import draw_rates
from retbench.report.recall_figure import draw_distances, draw_lengths, draw_recall
from retbench.report.series_figures import draw_gains, draw_learning, draw_positions
from retbench.report.size_figures import draw_bits, draw_figure5, draw_states


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
            *(each for points in scores.groups("lengths") for each in draw_lengths(scores, points)),
            *(each for task_point in trainings for each in draw_learning(scores, task_point)),
            *(each for task_point in trainings for each in draw_rates(scores, task_point)),
        ]
