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
        self.length = length
        self._outs: list[Tensor] = []
        self._end = 0

    def add(self, out: Tensor) -> None:
        """Add the outputs (B, C, ...) of the next chunk."""
        count = out.shape[1]
        if count == self.length or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._outs.append(out)
            return
        if not self._outs:
            self._outs.append(out.new_empty(out.shape[0], self.length, *out.shape[2:]))
        self._outs[0].narrow(1, self._end, count).copy_(out)
        self._end += count

    def join(self) -> Tensor:
        """Return the outputs of all chunks, (B, T, ...)."""
        return self._outs[0] if len(self._outs) == 1 else torch.cat(self._outs, dim=1)
