"""A projection laid out for decoding, and the products that stream its weight on a CPU."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """nn.Linear without bias whose weight, (out, in) to the outside, lies transposed in memory. Same state dict.

    Decoding one sequence streams every weight once for a single row. On a CPU neither layout of a matrix product
    does that at the rate of the memory; for a wide output a batch of products over slices of the rows comes closer
    (`_multiply_slices`), for a narrow one the weighted sum of a table's rows (`_sum_rows`), and (in, out) is such a
    table. Everything else (several rows, gradients, other dtypes, a GPU) is nn.Linear's own product, and so is a
    compiled one, for which torch packs the weight in a layout of its own.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.weight = nn.Parameter(torch.empty(in_features, out_features).t())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if self._streams(x):
            is_wide = self.out_features >= WIDE_OUTPUT and self.in_features % NUM_SLICES == 0
            product = _multiply_slices if is_wide else _sum_rows
            return product(x.flatten(), self.weight.t()).view(*x.shape[:-1], self.out_features)
        return F.linear(x, self.weight)

    def _streams(self, x: Tensor) -> bool:
        """Whether x is a single row that streams the weight on a CPU."""
        return (
            x.numel() == self.in_features
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        )

    def part(self, x: Tensor, start: int, end: int) -> Tensor:
        """Outputs start .. end - 1 alone: (..., in) to (..., end - start)."""
        return F.linear(x, self.weight[start:end])


WIDE_OUTPUT = 4096
"""From this width on slices were the faster way in a trial on two cores, below it the sum of rows."""
NUM_SLICES = 8


def _multiply_slices(x: Tensor, table: Tensor) -> Tensor:
    """Product of x (in,) and a contiguous table (in, out) as a batch of products over slices of the rows."""
    slices = table.view(NUM_SLICES, -1, table.shape[1])  # (slices, in / slices, out)
    return torch.bmm(x.view(NUM_SLICES, 1, -1), slices).sum(dim=(0, 1))


def _sum_rows(x: Tensor, table: Tensor) -> Tensor:
    """Product of x (in,) and a contiguous table (in, out) as embedding bags, two a thread, each a run of rows."""
    rows, bags = _bags(x.shape[0], 2 * torch.get_num_threads())
    # By position: no scaling by frequency, mode 0 (sum), a dense gradient, and x as the weights of the rows.
    summed = torch.embedding_bag(table, rows, bags, False, 0, False, x)[0]  # (bags, out)
    return summed.sum(dim=0)


@lru_cache
def _bags(num_rows: int, num_bags: int) -> tuple[Tensor, Tensor]:
    """Every row once, in order, and where each bag starts."""
    with torch.inference_mode(False):  # made once, used in every mode
        return torch.arange(num_rows), torch.arange(num_bags) * num_rows // num_bags
