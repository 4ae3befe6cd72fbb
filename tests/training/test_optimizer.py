import pytest
import torch
from torch import nn
from torch.optim import AdamW

from retbench.config.training import RECIPES
from retbench.ops.linear import Linear
from retbench.training.optimizer import clip_gradients, lay_out_for_training, make_optimizer, set_rate


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
            lay_out_for_training(model)
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
    lay_out_for_training(model)
    assert all(weight.is_contiguous() for weight in model.parameters())
    torch.testing.assert_close(model(tokens), before)


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
