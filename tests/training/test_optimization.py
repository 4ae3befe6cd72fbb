import math

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.config.training import RECIPES
from retbench.errors import DivergedError
from retbench.models.build import build_model
from retbench.ops.linear import Linear
from retbench.training.optimization import (
    LossMonitor,
    clip_gradients,
    make_contiguous,
    make_optimizer,
    set_rate,
)

GUESS = math.log(257)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), Linear(8, 12), nn.RMSNorm(12))
    nn.init.normal_(model[2].weight)
    return model


def test_only_matrices_decay() -> None:
    model = make_model()
    optimizer = make_optimizer(model, RECIPES["paper"])
    set_rate(optimizer, 0.1)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in model.named_parameters():
        kept = 1 - 0.1 * 0.05 if weight.dim() == 2 else 1
        torch.testing.assert_close(weight, before[name] * kept)


@pytest.mark.parametrize("laid_out", [False, True])
def test_the_fused_optimiser_is_the_plain_one_in_either_layout(laid_out: bool) -> None:
    results = []
    for fused in (True, False):
        model = make_model()
        if laid_out:
            make_contiguous(model)
        optimizer = make_optimizer(model, RECIPES["paper"])
        if not fused:
            optimizer = AdamW(
                [{**group, "fused": False, "foreach": False} for group in optimizer.param_groups]
            )
        for number in range(5):
            optimizer.zero_grad()
            torch.manual_seed(number)
            (model(torch.randint(11, (4, 5))) * torch.randn(4, 5, 12)).sum().backward()
            set_rate(optimizer, 0.01)
            optimizer.step()
        results.append(list(model.parameters()))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


def test_laying_out_changes_no_value() -> None:
    model = make_model()
    tokens = torch.arange(10)[None]
    before = model(tokens)
    make_contiguous(model)
    assert all(weight.is_contiguous() for weight in model.parameters())
    torch.testing.assert_close(model(tokens), before)


@pytest.mark.parametrize("name", named_specs())
def test_every_weight_can_be_sharded(name: str) -> None:
    # FSDP takes contiguous weights only; decoding stores some of Mamba-2's and RWKV-6's transposed.
    spec = named_specs()[name]
    config = resolve_model(spec, "40k", vocab_size=23)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend=spec.backend)
    before = {key: weight.clone() for key, weight in model.named_parameters()}
    make_contiguous(model)
    assert all(weight.is_contiguous() for weight in model.parameters())
    assert all(weight.equal(before[key]) for key, weight in model.named_parameters())


def test_gradients_are_clipped_together() -> None:
    model = make_model()
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 3.0)
    count = sum(weight.numel() for weight in model.parameters())
    norm = clip_gradients(model, 2.0)
    assert float(norm) == pytest.approx(3.0 * count**0.5, rel=1e-6)
    clipped = sum(
        float(weight.grad.square().sum()) for weight in model.parameters() if weight.grad is not None
    )
    assert clipped**0.5 == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused_at_once(loss: float) -> None:
    with pytest.raises(DivergedError, match=r"step 1: the training loss is"):
        LossMonitor(257, 3.0).check(1, loss, 1.0)


def test_gradients_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DivergedError, match=r"step 1: the norm of the gradients is inf"):
        LossMonitor(257, 3.0).check(1, GUESS, math.inf)


def test_a_spike_is_refused_and_names_its_limit() -> None:
    monitor = LossMonitor(257, 3.0, [2.0] * 20)
    monitor.check(21, 5.9, 1.0)
    with pytest.raises(DivergedError, match=r"step 22: .* 6\.1 nats, more than 3 times the median"):
        monitor.check(22, 6.1, 1.0)


def test_what_is_no_worse_than_guessing_is_no_spike() -> None:
    LossMonitor(257, 3.0, [0.1] * 20).check(21, GUESS - 0.01, 1.0)


def test_the_first_steps_may_be_wild() -> None:
    monitor = LossMonitor(257, 3.0)
    for step, loss in enumerate([1.0, 30.0, 2.0], start=1):
        monitor.check(step, loss, 1.0)


def test_a_restarted_monitor_judges_as_the_one_before() -> None:
    before = LossMonitor(257, 3.0)
    for step in range(1, 101):
        before.check(step, 2.0 + step / 100, 1.0)
    after = LossMonitor(257, 3.0, before.recent)
    assert after.recent == before.recent
    with pytest.raises(DivergedError):
        after.check(101, 9.0, 1.0)
