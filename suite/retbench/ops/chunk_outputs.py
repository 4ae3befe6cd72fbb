"""Memory of an operator that computes a sequence in chunks."""

import torch
from torch import Tensor


def overwrites() -> bool:
    """Return whether operators may write into memory that is no longer needed: nothing is differentiated or compiled.

    On a CPU, fresh memory can cost more than a product of all its elements.
    """
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


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
        """Add the outputs (B, H, C, ...) of the next chunk."""
        place = self._place(out)
        if place is None:
            self._outs.append(out)
        else:
            place.copy_(out)

    def add_sum(self, inner: Tensor, read: Tensor, decay: Tensor) -> None:
        """Add inner + read * decay, the outputs (B, H, C, ...) of the next chunk, which are written once only."""
        place = self._place(inner)
        if place is None:
            self._outs.append(torch.addcmul(inner, read, decay))
        else:
            torch.addcmul(inner, read, decay, out=place)

    def _place(self, out: Tensor) -> Tensor | None:
        """Return where outputs of this shape go; None where those of each chunk are kept."""
        count = out.shape[2]
        if count == self._length or not overwrites():
            return None
        if not self._outs:
            batch, heads, _, *width = out.shape
            self._outs.append(out.new_empty(batch, self._length, heads, *width).transpose(1, 2))
        start, self._end = self._end, self._end + count
        return self._outs[0].narrow(2, start, count)

    def join(self) -> Tensor:
        """Return the outputs of all chunks, (B, T, H, ...)."""
        out = self._outs[0] if len(self._outs) == 1 else torch.cat(self._outs, dim=2)
        return out.transpose(1, 2)
