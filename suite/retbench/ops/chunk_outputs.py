"""Outputs of an operator that computes a sequence in chunks."""

import torch
from torch import Tensor


class ChunkOutputs:
    """Outputs of the chunks of a sequence, joined.

    Without gradients each is copied to its place while a CPU's cache has it, so that the next one is computed in the
    same memory, and never are all there twice. Else all are kept and concatenated: one operation to differentiate, or
    for a compiler to fuse.
    """

    def __init__(self, length: int) -> None:
        """Begin a sequence of `length` tokens."""
        self._length = length
        self._outs: list[Tensor] = []
        self._end = 0

    def add(self, out: Tensor) -> None:
        """Add the outputs (B, H, C, V) of the next chunk."""
        batch, heads, count, width = out.shape
        if count == self._length or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._outs.append(out)
            return
        if not self._outs:
            self._outs.append(out.new_empty(batch, self._length, heads, width).transpose(1, 2))
        self._outs[0].narrow(2, self._end, count).copy_(out)
        self._end += count

    def join(self) -> Tensor:
        """Return the outputs of all chunks, (B, T, H, V)."""
        out = self._outs[0] if len(self._outs) == 1 else torch.cat(self._outs, dim=2)
        return out.transpose(1, 2)
