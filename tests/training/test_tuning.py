from pathlib import Path

import pytest

from retbench.training.engine import best_rates, edge_of
from retbench.training.events import RunResult
from retbench.training.plan import TrainingPlan, TrainingRun
from tests.training.conftest import PlanOf

GRID = (1e-3, 3e-3, 1e-2)


@pytest.fixture
def plan(plan_of: PlanOf) -> TrainingPlan:
    return plan_of("training.learning_rates=[1e-3, 3e-3, 1e-2]")


def result(name: str, rate: float, loss: float | None, *, size: str = "1m", final: bool = False) -> RunResult:
    run = TrainingRun(name, size, 0, 12, "final" if final else "tuning", rate)
    return RunResult(run, "failed" if loss is None else "ok", Path(), 1152, validation_loss=loss)


def test_each_model_takes_the_best_of_its_own_grid_at_each_size(plan: TrainingPlan) -> None:
    found = best_rates(
        plan,
        [
            result("retnet", 1e-3, 2.0),
            result("retnet", 3e-3, 1.5),
            result("retnet", 1e-2, None),
            result("transformer", 1e-3, 1.6),
            result("transformer", 3e-3, 1.4),
            result("transformer", 1e-2, 1.3),
            result("retnet", 1e-3, 1.1, size="3m"),
            result("retnet", 1e-2, 1e-3, final=True),  # what is evaluated tunes nothing
        ],
    )
    assert {key: (tuning.learning_rate, tuning.edge) for key, tuning in found.items()} == {
        ("retnet", "1m"): (3e-3, None),
        ("transformer", "1m"): (1e-2, "highest"),
        ("retnet", "3m"): (1e-3, "lowest"),
    }


def test_of_two_that_tie_the_lower_rate_counts(plan: TrainingPlan) -> None:
    found = best_rates(plan, [result("retnet", rate, 1.5) for rate in reversed(GRID)])
    assert found["retnet", "1m"].learning_rate == 1e-3


def test_a_model_whose_grid_diverged_has_no_rate(plan: TrainingPlan) -> None:
    assert best_rates(plan, [result("retnet", rate, None) for rate in GRID]) == {}


@pytest.mark.parametrize(
    ("rate", "grid", "edge"),
    [
        (1e-3, GRID, "lowest"),
        (3e-3, GRID, None),
        (1e-2, GRID, "highest"),
        (3e-3, (1e-2, 1e-3, 3e-3), None),  # in whatever order they are given
        (1e-3, (1e-3,), None),
        (1e-3, (1e-3, 3e-3), "lowest"),
    ],
)
def test_an_edge_is_where_a_better_rate_may_lie_beyond(
    rate: float, grid: tuple[float, ...], edge: str | None
) -> None:
    assert edge_of(rate, grid) == edge
