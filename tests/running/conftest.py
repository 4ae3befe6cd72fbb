"""Cells and a plan that need no measuring, for the parts of the runner that only keep books."""

from collections.abc import Callable
from pathlib import Path

import pytest

from retbench.planning.plan import Plan, make_plan
from retbench.running.protocol import RunInfo

Planner = Callable[..., Plan]


@pytest.fixture
def plan_of(tiny_experiment: Path) -> Planner:
    """Makes the plan of the small experiment, with overrides."""

    def make(*overrides: str) -> Plan:
        return make_plan(str(tiny_experiment), profile="smoke", device="cpu", overrides=overrides)

    return make


@pytest.fixture
def run_info(plan_of: Planner) -> RunInfo:
    return RunInfo(
        run_id="run-1",
        experiment="tiny",
        profile="smoke",
        command="retbench run tiny",
        code_revision="0.1.0+src.test",
    )
