"""Attention from one position by products and loops, eager and compiled."""

import pytest
import torch

from retbench.models.equivalence import relative_error
from retbench.ops import attention_products
from retbench.ops.attention import attend, attend_reference
from retbench.ops.linear import ALWAYS
from tests.ops.test_attention import make_inputs


@pytest.mark.parametrize(
    ("kv_heads", "dtype", "by_value"),
    [
        (4, torch.float32, False),
        pytest.param(4, torch.float32, True, marks=pytest.mark.slow),
        pytest.param(4, torch.float64, True, marks=pytest.mark.slow),
        pytest.param(2, torch.float64, False, marks=pytest.mark.slow),
        (2, torch.float64, True),
        pytest.param(1, torch.float32, False, marks=pytest.mark.slow),
        (4, torch.float16, False),  # widened as it is read on most CPUs
    ],
)
def test_a_compiled_step_attends_by_products_of_any_number_of_keys_by_one_code(kv_heads, dtype, by_value):
    q, k, v = make_inputs(1, 5002, kv_heads=kv_heads, dtype=dtype)
    v = v.mT.contiguous().mT if by_value else v
    step = torch.compile(lambda q, k, v: attend("auto", q, k, v, ALWAYS), fullgraph=True, dynamic=True)
    with (
        torch.inference_mode(),
        torch.compiler.set_stance("default"),
        torch._dynamo.config.patch(capture_scalar_outputs=True),  # as `compile_step` does
    ):
        for tensor in (q, k, v):
            torch._dynamo.mark_static(tensor, [0, 1, 3])
        step(q, k[:, :, :20], v[:, :, :20])
        with torch.compiler.set_stance("fail_on_recompile"):
            for keys in (2, 17, 513, 4095, 4096, 4097, 5000):
                part = k[:, :, :keys], v[:, :, :keys]
                error = relative_error(step(q, *part), attend_reference(q, *part))
                assert error < {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2}[dtype]


def test_values_of_many_keys_are_averaged_in_slices_by_one_compilation_for_every_number(monkeypatch):
    monkeypatch.setattr(attention_products, "_SLICE_KEYS", 16)
    scores, values = torch.randn(2, 3, 100, dtype=torch.float64), torch.randn(2, 100, 5, dtype=torch.float64)
    compiled = torch.compile(attention_products.average, fullgraph=True, dynamic=True)

    def check(products, keys):
        some, held = scores[:products, :, :keys], values[:products, :keys]
        torch._dynamo.mark_static(some, [0, 1])
        torch._dynamo.mark_static(held, [0, 2])
        for average in (attention_products.average, compiled):
            torch.testing.assert_close(average(some, held), some.softmax(-1) @ held)

    with torch.inference_mode(), torch.compiler.set_stance("default"):
        for products in (1, 2):
            check(products, 20)
            with torch.compiler.set_stance("fail_on_recompile"):
                for keys in (31, 32, 33, 99):
                    check(products, keys)
