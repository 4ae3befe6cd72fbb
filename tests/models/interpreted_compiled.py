"""Compiled decode steps with the fused operators, as `--compile` on a GPU runs them, under Triton's interpreter.

`test_fused_steps` runs this file in a process of its own, since Triton reads TRITON_INTERPRET when it is imported.
"""

import pytest
import torch

from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.models.build import build_model
from retbench.models.compiled import StepCompiler
from retbench.models.equivalence import relative_error
from retbench.ops import fused

TEXT = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))


# What inductor loads still uses torch.jit.script.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", ["yoco", "mamba2", "rwkv6", "mla", "hybrid-based"])
@torch.inference_mode()
def test_a_compiled_step_has_the_fused_operators_as_nodes_and_changes_the_state_in_place(name, monkeypatch):
    """YOCO has a retention, a cache, and a layer that reads the cache of another."""
    monkeypatch.setattr(fused, "missing_reason", lambda device, dtype: None)
    spec = named_specs()[name]
    config = resolve_model(spec, "1m")
    blocks = tuple(block.model_copy(update={"count": 1}) for block in dict.fromkeys(config.blocks))
    config = config.model_copy(update={"blocks": blocks})
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend=spec.backend)
    assert model.decode_operators == "fused"
    compiler = StepCompiler(model)
    for depth in (5, 11):
        state, token = model.init_state(2, 16), TEXT[:, depth : depth + 1]
        model.prefill(TEXT[:, :depth], state)
        mark = state.mark()
        eager, expected = model(token, state), state.snapshot().tensors()
        state.rewind(mark)
        held = [tensor.data_ptr() for layer in state.layers for tensor in layer.tensors.values()]
        step = compiler.prepare(token, state)
        assert relative_error(step.logits, eager) < 1e-4
        assert held == [tensor.data_ptr() for layer in state.layers for tensor in layer.tensors.values()]
        for name, tensor in state.tensors().items():
            assert relative_error(tensor, expected[name]) < 1e-4
