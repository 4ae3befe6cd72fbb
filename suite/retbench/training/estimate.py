"""How long runs will take, from the products that this machine does in a second."""

from collections.abc import Sequence

import torch

from retbench.measure.ceilings import measure_ceilings
from retbench.training.plan import TrainingPlan, TrainingRun

EFFICIENCY = 0.4
"""Estimated: the share of the rate of square products that a training step reaches."""


def estimate_seconds(plan: TrainingPlan, runs: Sequence[TrainingRun]) -> list[float]:
    """Wall time of each run, by its operations and a rate that is measured now, of one process.

    Several processes are taken to be as many times as fast.
    """
    dtype = torch.bfloat16 if plan.spec.autocast == "bfloat16" else torch.float32
    rate = measure_ceilings(torch.device(plan.device), dtype).matmul_flops_per_s
    return [plan.flops(run) / (rate * plan.world_size) / EFFICIENCY for run in runs]
