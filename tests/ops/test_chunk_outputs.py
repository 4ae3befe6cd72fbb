"""Outputs of chunks are joined alike with and without gradients."""

import pytest
import torch
from torch import Tensor

from retbench.ops.chunk_outputs import ChunkOutputs


def _join(chunks: list[Tensor]) -> Tensor:
    outs = ChunkOutputs(sum(chunk.shape[2] for chunk in chunks))
    for chunk in chunks:
        outs.add(chunk)
    return outs.join()


@pytest.mark.parametrize("sizes", [[5], [4, 4, 1], [0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunks_follow_one_another_with_and_without_gradients(
    sizes: list[int], dtype: torch.dtype
) -> None:
    chunks = [torch.randn(2, 4, size, 3, dtype=dtype) for size in sizes]
    with torch.no_grad():
        copied = _join(chunks)
    assert torch.equal(copied, torch.cat(chunks, dim=2).transpose(1, 2))
    assert torch.equal(_join(chunks), copied)


def test_without_gradients_the_memory_of_a_chunk_is_free_for_the_next() -> None:
    outs = ChunkOutputs(6)
    chunk = torch.empty(1, 3, 2, 4)
    with torch.inference_mode():
        for number in range(3):
            outs.add(chunk.fill_(number))
        joined = outs.join()
    assert joined[0, :, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert joined.is_contiguous()


def test_gradients_reach_every_chunk() -> None:
    chunks = [torch.randn(1, 4, 2, 3, requires_grad=True) for _ in range(3)]
    (_join(chunks) * torch.arange(6.0)[:, None, None]).sum().backward()
    assert [chunk.grad[0, 0, :, 0].tolist() for chunk in chunks if chunk.grad is not None] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]
