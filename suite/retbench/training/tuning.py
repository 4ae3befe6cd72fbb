"""From the runs of the grid to each model's learning rate: its best by validation loss, and whether that is an edge."""

from collections.abc import Iterable
from typing import Literal

from retbench.training.events import RunResult, Tuning
from retbench.training.plan import TrainingPlan


def best_rates(plan: TrainingPlan, results: Iterable[RunResult]) -> dict[tuple[str, str], Tuning]:
    """By (model, size) of the grid, the rate with the lowest validation loss; the lower rate of two that tie.

    A model of which no run came to its end is left out.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for result in results:
        run = result.run
        if run.role == "tuning" and result.validation_loss is not None:
            assert run.learning_rate is not None
            found.setdefault((run.model_name, run.size), []).append(
                (result.validation_loss, run.learning_rate)
            )
    return {
        (name, size): Tuning(name, size, rate, edge_of(rate, plan.spec.learning_rates))
        for (name, size), losses in found.items()
        for _, rate in [min(losses)]
    }


def edge_of(rate: float, grid: tuple[float, ...]) -> Literal["lowest", "highest"] | None:
    """Which end of the grid a rate is; None inside it, or where the grid has one rate only."""
    if len(grid) == 1 or min(grid) < rate < max(grid):
        return None
    return "lowest" if rate == min(grid) else "highest"
