"""The attention backends against each other, and what they say of themselves."""

import pytest
import torch

from retbench.models.attention import (
    attend_products,
    attend_reference,
    attend_sdpa,
    missing_reason,
    sdpa_kernel,
    what_runs,
)
from retbench.models.gate import relative_error


def make_inputs(length, keys, heads=4, kv_heads=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length + keys)
    q = torch.randn(2, heads, length, 8, generator=generator, dtype=dtype)
    k, v = (torch.randn(2, kv_heads, keys, 8, generator=generator, dtype=dtype) for _ in range(2))
    return q, k, v


def test_reference_is_the_definition():
    q, k, v = make_inputs(3, 5)
    out = attend_reference(q, k, v)
    for t in range(3):
        seen = 5 - 3 + t + 1
        scores = torch.stack([(q[0, 1, t] * k[0, 1, s]).sum() / 8**0.5 for s in range(seen)])
        assert torch.allclose(out[0, 1, t], scores.softmax(0) @ v[0, 1, :seen])


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("length", "keys"), [(1, 1), (1, 33), (33, 33), (7, 40), (40, 41)])
@pytest.mark.parametrize("attend", [attend_sdpa, attend_products])
def test_every_backend_equals_reference_at_any_offset(length, keys, kv_heads, attend):
    q, k, v = make_inputs(length, keys, kv_heads=kv_heads)
    assert relative_error(attend(q, k, v), attend_reference(q, k, v)) < 1e-12


def test_products_say_that_only_a_single_query_is_theirs():
    assert what_runs("products", *make_inputs(1, 9)) == "products"
    assert what_runs("products", *make_inputs(9, 9, dtype=torch.float32)).startswith("sdpa:")
    assert what_runs("reference", *make_inputs(9, 9)) == "reference"


def test_grouped_heads_share_neighbouring_keys():
    q, k, v = make_inputs(5, 5, heads=4, kv_heads=2)
    out = attend_reference(q, k, v)
    alone = attend_reference(q[:, 3:4], k[:, 1:2], v[:, 1:2])
    assert torch.allclose(out[:, 3:4], alone)


@pytest.mark.parametrize(("length", "keys"), [(1, 9), (9, 9), (4, 9)])
def test_torch_names_the_kernel_it_picks(length, keys):
    assert sdpa_kernel(*make_inputs(length, keys, dtype=torch.float32)) in ("flash", "math")


def test_flash_says_why_it_cannot_run_and_what_to_do():
    assert "use backend 'sdpa'" in (missing_reason("flash", torch.device("cpu"), torch.bfloat16) or "")
    assert "--dtype bfloat16" in (missing_reason("flash", torch.device("cuda"), torch.float32) or "")
    assert missing_reason("reference", torch.device("cpu"), torch.float32) is None
