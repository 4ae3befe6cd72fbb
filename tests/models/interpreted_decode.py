"""Decode steps of whole models by the fused operators, under Triton's interpreter.

`test_fused_steps` runs this file in a process of its own, since Triton reads TRITON_INTERPRET when it is imported.
"""

import pytest
import torch

from retbench.models import equivalence
from retbench.models.build import build_model
from retbench.models.equivalence import check_equivalence, relative_error
from retbench.ops import fused, fused_linear
from tests.models.fused_cases import fused_configs

CONFIGS = fused_configs()
TEXT = torch.randint(0, 256, (4, 40), generator=torch.Generator().manual_seed(0))
ALONE = (
    "torchscale",
    "yoco-gated",
    "llama-concat",
    "gpt",
    "sliding-window",
    "mla",
    "mamba2",
    "gla",
    "rwkv6",
    "linear-taylor",
)
"""Cases that are run with a single sequence too: at least one of each mixer, layout, cache and feed-forward."""


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setattr(fused, "missing_reason", lambda device, dtype: None)
    # The interpreter takes a tenth of a second per step.
    monkeypatch.setattr(equivalence, "DECODED_TOKENS", 4)


def _replace_launch(monkeypatch, launch):
    for module in (fused, fused_linear):
        monkeypatch.setattr(module, "launch", launch)


def build(case, operators, dtype=torch.float32):
    config = CONFIGS[case]
    return build_model(
        config, dtype=dtype, device="cpu", seed=3, backend=config.forms[0], decode_operators=operators
    )


@pytest.mark.parametrize(
    ("case", "batch"),
    [*((case, 2) for case in CONFIGS), *(pytest.param(case, 1, marks=pytest.mark.slow) for case in ALONE)],
)
@torch.no_grad()
def test_a_fused_step_is_an_eager_step(case, batch):
    text = TEXT[:batch]
    logits, states = [], []
    for operators in ("fused", "eager"):
        model = build(case, operators)
        state = model.init_state(batch, 16)
        model.prefill(text[:, :11], state)
        held = {name: tensor.data_ptr() for layer in state.layers for name, tensor in layer.tensors.items()}
        model.set_backend(model.backend)
        logits.append(torch.cat([model(text[:, t : t + 1], state) for t in range(11, 13)], dim=1))
        states.append(state)
        (executed,) = model.executed_backends().values()
        assert ("fused" in executed) == (operators == "fused")
        left = {name: tensor.data_ptr() for layer in state.layers for name, tensor in layer.tensors.items()}
        assert held == left or model.config.concatenates
    assert relative_error(*logits) < 1e-4
    expected = states[1].tensors()
    for name, tensor in states[0].tensors().items():
        assert relative_error(tensor, expected[name]) < 1e-4


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param("torchscale", torch.bfloat16, marks=pytest.mark.slow),
        ("llama-grouped-query", torch.float32),
    ],
)
def test_the_equivalence_check_compares_fused_steps(case, dtype, monkeypatch):
    launched = []
    launch = fused.launch
    _replace_launch(
        monkeypatch, lambda name, *rest, **sizes: launched.append(name) or launch(name, *rest, **sizes)
    )
    model = build(case, None, dtype)
    assert model.decode_operators == "fused"
    gate = check_equivalence(model, TEXT[:1], depth=40, lengths=(1, 17))
    assert gate.passed, [check for check in gate.checks if not check.passed]
    assert len(launched) > 40


@pytest.mark.parametrize("case", ["torchscale", pytest.param("llama-grouped-query", marks=pytest.mark.slow)])
def test_the_equivalence_check_fails_wrong_fused_steps(case, monkeypatch):
    """In bfloat16, where the operators alone are compared; the rotation then has another sign."""
    launch = fused.launch

    def wrong(name, grid, arguments, **sizes):
        if name == "rotate_and_cache_kernel":
            arguments = (*arguments[:2], -arguments[2], *arguments[3:])
        if name == "linear_step_kernel":
            arguments = (*arguments[:3], arguments[3] * 0.5, *arguments[4:])
        launch(name, grid, arguments, **sizes)

    _replace_launch(monkeypatch, wrong)
    assert not check_equivalence(
        build(case, "fused", torch.bfloat16), TEXT[:1], depth=40, lengths=(1, 17)
    ).passed


@torch.no_grad()
def test_gradients_and_several_tokens_take_the_eager_operators():
    model = build("fla", "fused")
    with torch.enable_grad():
        model(TEXT[:, :1], model.init_state(4, 16))
    model(TEXT[:, :2], model.init_state(4, 16))
    assert model.executed_backends() == {"prefill": "parallel"}
