"""The equivalence check before a training: what no run would evaluate is not trained for hours."""

import torch

from retbench.architectures.blame import blaming_package, users_packages
from retbench.data import text
from retbench.errors import GateError
from retbench.models.build import build_model
from retbench.models.equivalence import LENGTHS, check_equivalence
from retbench.ops.linear import RowProducts
from retbench.training.plan import TrainingPlan, TrainingRun

_LENGTHS = LENGTHS[:-1]
"""Prompt lengths of the check, up to several chunks: it takes seconds, and an evaluation repeats it in full."""


def check_users_models(plan: TrainingPlan) -> None:
    """Check each model of a plan that has mixers of a user's package, at the smallest of its sizes.

    The tests of retbench check the others.

    Raises:
        GateError: the execution modes of one are not equivalent.
        ConfigError: a mixer fails, or breaks the contract of its module.
    """
    smallest: dict[str, TrainingRun] = {}
    for run in sorted(plan.runs, key=lambda run: plan.flops(run) / run.num_steps):
        if users_packages(plan.config(run)):
            smallest.setdefault(run.model_name, run)
    for run in smallest.values():
        _check(plan, run)


def _check(plan: TrainingPlan, run: TrainingRun) -> None:
    """Check the model of a run over real text, in float32."""
    entry, config = plan.entry(run), plan.config(run)
    with blaming_package(config):
        model = build_model(
            config,
            dtype=torch.float32,
            device=plan.device,
            seed=run.seed,
            backend=entry.backend,
            chunk_size=entry.chunk_size,
            products=RowProducts(),
        )
        # A model of a synthetic task may have fewer tokens than there are bytes.
        tokens = text.read_rows(1, max(_LENGTHS)).to(model.device) % config.vocab_size
        gate = check_equivalence(model, tokens, depth=max(_LENGTHS), lengths=_LENGTHS)
    if not gate.passed:
        raise GateError(
            f"the execution modes of '{run.model_name}' at size {run.size} are not equivalent: {gate.failures}. "
            "No run would evaluate it, so nothing is trained."
        )
