from dataclasses import replace

import pytest

from retbench.architectures import costs
from retbench.records.record import Ceilings
from retbench.training import estimate
from retbench.training.plan import TrainingPlan
from tests.training.conftest import PlanOf

RATES = {"float32": 1e10, "bfloat16": 4e10}


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known rates; what a real one reaches is tested with the ceilings."""
    monkeypatch.setattr(
        estimate,
        "measure_ceilings",
        lambda device, dtype: Ceilings(
            read_bandwidth_bytes_per_s=1.0,
            matmul_flops_per_s=RATES[str(dtype).removeprefix("torch.")],
        ),
    )


def test_a_run_takes_its_operations_at_the_share_of_the_rate_that_training_reaches(
    plan: TrainingPlan,
) -> None:
    for run, seconds in zip(plan.final_runs, estimate.estimate_seconds(plan, plan.final_runs), strict=True):
        chunk = 32 if run.model_name == "retnet" else None
        step = costs.training_flops(plan.config(run), 2, 48, chunk)
        assert seconds == pytest.approx(12 * step / 1e10 / estimate.EFFICIENCY)


def test_it_is_less_with_more_processes_and_in_bfloat16(plan: TrainingPlan, plan_of: PlanOf) -> None:
    alone = estimate.estimate_seconds(plan, plan.final_runs)
    of_four = estimate.estimate_seconds(replace(plan, world_size=4), plan.final_runs)
    narrow = estimate.estimate_seconds(plan_of("training.autocast=bfloat16"), plan.final_runs)
    assert of_four == pytest.approx([seconds / 4 for seconds in alone])
    assert narrow == pytest.approx([seconds / 4 for seconds in alone])
