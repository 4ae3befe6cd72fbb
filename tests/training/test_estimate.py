from dataclasses import replace

import pytest

from retbench.architectures import costs
from retbench.training import engine
from retbench.training.plan import TrainingPlan
from tests.training.conftest import PlanOf

RATES = {"float32": 1e10, "bfloat16": 4e10}


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known rates; what a real one reaches is tested with the ceilings."""
    monkeypatch.setattr(
        engine, "measure_matmul_rate", lambda device, dtype: RATES[str(dtype).removeprefix("torch.")]
    )


def test_a_run_takes_its_operations_at_the_share_of_the_rate_that_training_reaches(
    plan: TrainingPlan,
) -> None:
    for run, seconds in zip(plan.final_runs, engine.estimate_seconds(plan, plan.final_runs), strict=True):
        entry = plan.entry(run)
        step = costs.training_flops(plan.config(run), 2, 48, entry.backend, entry.chunk_size)
        assert seconds == pytest.approx(12 * step / 1e10 / engine.EFFICIENCY)


def test_it_is_less_with_more_processes_and_in_bfloat16(plan: TrainingPlan, plan_of: PlanOf) -> None:
    alone = engine.estimate_seconds(plan, plan.final_runs)
    of_four = engine.estimate_seconds(replace(plan, world_size=4), plan.final_runs)
    narrow = engine.estimate_seconds(plan_of("training.autocast=bfloat16"), plan.final_runs)
    assert of_four == pytest.approx([seconds / 4 for seconds in alone])
    assert narrow == pytest.approx([seconds / 4 for seconds in alone])


def test_the_rest_takes_as_long_an_operation_as_what_was_done() -> None:
    left = engine.RemainingTime(1000.0)
    assert left.advance(100, 5.0) == pytest.approx(45)
    assert left.advance(100, 15.0) == pytest.approx(80)


def test_what_is_on_disk_already_takes_no_time() -> None:
    left = engine.RemainingTime(1000.0)
    left.leave_out(600)
    assert left.advance(100, 5.0) == pytest.approx(15)
    left.leave_out(300)  # a run that diverged
    assert left.advance(100, 5.0) == 0
