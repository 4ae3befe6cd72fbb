"""Chunks of heads that share queries and keys, some chunks at a time."""

import pytest
import torch

from retbench.ops import chunk_decay
from retbench.ops.linear_operator import linear_chunkwise, linear_recurrent


@pytest.mark.parametrize("kind", ["none", "fixed", "data"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("length", [1, 16, 64, 150])
def test_chunks_at_once_are_the_recurrence(
    monkeypatch: pytest.MonkeyPatch, kind: str, groups: int, batch: int, length: int
) -> None:
    """Three chunks of 16 tokens are computed at once, and memory is used again where it fits."""
    heads = 4
    monkeypatch.setattr(chunk_decay, "PAIRS_AT_ONCE", 3 * batch * heads * 16 * 16)
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)

    inputs = [normal(length, groups, 6), normal(length, groups, 6), normal(length, heads, 5)]
    state = normal(heads, 6, 5)
    decays = {
        "none": None,
        "fixed": -torch.rand(heads, generator=generator).double(),
        "data": -normal(length, heads).abs(),
    }
    leaves = [x.requires_grad_() for x in (*inputs, state)]
    expected = linear_recurrent(*inputs, decays[kind], state)
    with torch.no_grad():
        plain = linear_chunkwise(*inputs, decays[kind], state, chunk_size=16)
    found = linear_chunkwise(*inputs, decays[kind], state, chunk_size=16)
    for one, other, want in zip(plain, found, expected, strict=True):
        torch.testing.assert_close(one, want, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(other, want, atol=1e-12, rtol=1e-12)
    gradients = (torch.autograd.grad(sum(x.sin().sum() for x in pair), leaves) for pair in (found, expected))
    for one, want in zip(*gradients, strict=True):
        torch.testing.assert_close(one, want, atol=1e-11, rtol=1e-11)
