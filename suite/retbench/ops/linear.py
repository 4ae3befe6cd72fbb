"""A projection whose weight is laid out for decoding, and the products that stream it on a CPU."""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retbench.ops.precision import cast, in_float32, matmul, wide_dtype, widens
from retbench.ops.registration import operator, realise, shapes_of

SMALL_PRODUCT = 1 << 20
"""Multiplications of the largest product that `multiply_thin` leaves to the compiler."""

FEW_ROWS = 64
"""Most rows that count as few: those of a batch of sequences in a decode step. A prompt has more."""

MOST_LOOPED_ROWS = 8
"""Most rows that a compiled step multiplies by `loop`, whose code grows with their number."""

_NARROW_ROWS = 2
"""Most rows that torch multiplies faster as they are on a CPU without 16-bit products, by a weight stored by output.

On an AMD EPYC without AVX-512 each row took as long, and four took longer than the widening of the weight and all rows.
"""


class FewestKeys(NamedTuple):
    """Fewest keys from which a single query attends by products; None: torch's fused attention always does it."""

    alone: int | None = None
    """With keys for each head of queries."""
    shared: int | None = None
    """With keys that several heads of queries share, as in grouped-query attention."""

    @property
    def is_always(self) -> bool:
        """True if single queries attend by products whatever the number of keys."""
        return self.alone == self.shared == 0


ALWAYS = FewestKeys(0, 0)
"""Single queries attend by products whatever the number of keys: in compiled steps, where that is the faster way."""


class RowProducts(NamedTuple):
    """Methods by which a CPU multiplies few rows, and those of prompts: by float32 weights, and any by a cache.

    Attributes:
        attention_from: Fewest keys from which a single query attends by `attention.attend_products` in the form `auto`.
        batches: Whether `multiply_in_batches` multiplies single rows by weights that are stored by output.
        slice_width: Fewest outputs that `stream` slices, where it multiplies single rows by weights that are stored by
            input; None: torch's product does.
        onednn_rows: Most rows, up to `FEW_ROWS`, by which oneDNN multiplies weights that are stored by input; two at
            least, and 0 if torch's product does.
        onednn_prompts: Whether oneDNN multiplies more rows than `FEW_ROWS` by weights in either layout.
        packed_from: Fewest rows that compiled code multiplies by packed weights instead; None: it packs none.
    """

    attention_from: FewestKeys = FewestKeys()
    batches: bool = False
    slice_width: int | None = None
    onednn_rows: int = 0
    onednn_prompts: bool = False
    packed_from: int | None = None

    @property
    def description(self) -> str:
        """Rows that weights are multiplied by in another way than torch's, as records state them; else `torch`."""
        single = "batched" if self.batches else "streamed" if self.slice_width is not None else None
        parts = [f"1 row: {single}"] if single else []
        parts += [f"2 to {self.onednn_rows} rows: onednn"] if self.onednn_rows else []
        parts += [f"more than {FEW_ROWS} rows: onednn"] if self.onednn_prompts else []
        return "; ".join(parts) or "torch"

    def takes_onednn(self, rows: int, *, by_output: bool) -> bool:
        """Return whether oneDNN multiplies so many rows by a float32 weight in a layout."""
        if rows > FEW_ROWS:
            return self.onednn_prompts
        return not by_output and 1 < rows <= self.onednn_rows

    def compiles_onednn(self, rows: int, *, by_output: bool) -> bool:
        """Return whether it does so in compiled code without gradients."""
        is_packed = self.packed_from is not None and rows >= self.packed_from
        return not is_packed and self.takes_onednn(rows, by_output=by_output)


class Linear(nn.Linear):
    """nn.Linear without bias whose (out, in) weight is stored transposed in memory. Its state dict is the same.

    `store` changes how it is stored: workers take the layout that a measurement finds faster.

    Decoding one sequence streams every weight once for a single row. On some CPUs torch's product of a row and a matrix
    does not do that at memory bandwidth. In an eager step `multiply_in_batches` does, or `stream` comes closer, and
    `loop` does in a compiled one, of a few rows too, where it multiplies weights that are stored by output. Of several
    rows, and of those of a prompt, oneDNN's product can be faster than the one that torch takes; `measure.products`
    finds out. All other cases use nn.Linear's product: gradients, other dtypes and GPUs.

    Attributes:
        row_products: Methods for few rows, and for those of prompts.
    """

    row_products = RowProducts()

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.weight = nn.Parameter(torch.empty(in_features, out_features).t())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        weight = self.weight  # once: a module looks a parameter up in Python
        if self._is_eager_step(x):
            products, by_output = self.row_products, weight.is_contiguous()
            rows = x.numel() // self.in_features
            if products.takes_onednn(rows, by_output=by_output):
                return multiply_onednn(x, weight)
            if rows == 1 and by_output and products.batches:
                return multiply_in_batches(x, weight)
            if rows == 1 and not by_output and products.slice_width is not None:
                streamed = stream(x.flatten(), weight.t(), products.slice_width)
                return streamed.view(*x.shape[:-1], self.out_features)
        if torch.compiler.is_compiling() and x.device.type == "cpu":
            rows = x.numel() // self.in_features
            product = self.compiled_product(rows)
            if product == "loop":
                return loop(x, weight)
            if rows == 1:
                return _multiply_row(x, weight).view(*x.shape[:-1], self.out_features)
            if product == "onednn" and not torch.is_grad_enabled():
                out: Tensor = multiply_rows(x, weight)
                return out
        return multiply(x, weight)

    def _is_eager_step(self, x: Tensor) -> bool:
        """Return True if `row_products` can multiply x."""
        return (
            x.is_cpu
            and x.dtype is torch.float32
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        )

    def compiled_product(self, rows: int) -> str:
        """Return how compiled code multiplies so many rows: by a loop, by onednn (without gradients) or by torch's."""
        weight = self.weight
        if weight.device.type != "cpu":
            return "torch"
        by_output = weight.is_contiguous()
        if by_output and 1 <= rows <= MOST_LOOPED_ROWS:
            return "loop"
        if weight.dtype is torch.float32 and self.row_products.compiles_onednn(rows, by_output=by_output):
            return "onednn"
        return "torch"

    def store(self, *, by_output: bool) -> None:
        """Store the weight (out, in) in memory, as nn.Linear does, or (in, out); a new parameter replaces it."""
        stored = stored_weight(self.weight.detach(), by_output=by_output)
        if stored.stride() != self.weight.stride():
            self.weight = nn.Parameter(stored, requires_grad=self.weight.requires_grad)

    def part(self, x: Tensor, start: int, end: int) -> Tensor:
        """Compute outputs start .. end - 1 only: (..., in) to (..., end - start)."""
        return multiply(x, self.weight[start:end])


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply (..., in) by a weight (out, in) in their dtype, or in that of autocast; returns (..., out).

    A CPU without products of that dtype multiplies more than few rows in float32; see `ops.precision`.
    """
    if not widens(x) or (weight.is_contiguous() and x.numel() <= _NARROW_ROWS * x.shape[-1]):
        return F.linear(x, weight)
    return in_float32(F.linear, x, weight)


def loop(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply few rows (..., in) by a weight (out, in) that is stored by output; returns (..., out).

    A compiler makes one loop of it, which reads the weight once in its order for all rows, and joins it with what comes
    next. As one sum over the last of three dimensions it would read the weight once for each row.
    """
    # A compiler may else compute what precedes the rows anew for each output: steps of 25M with GELU took 1.5 to 1.7
    # times as long. Rows of 16 bits would be widened for each output, too: eight rows took twice as long.
    rows = realise(cast(x.reshape(-1, x.shape[-1]), wide_dtype(x.dtype)))
    sums = [(row * weight).sum(-1) for row in rows.unbind()]
    out = torch.stack(sums) if len(sums) > 1 else sums[0]
    return cast(out, x.dtype).view(*x.shape[:-1], weight.shape[0])


def _multiply_row(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply one row (..., in) by a weight (out, in) by torch's product, which does not copy the row.

    A view of one row has a stride of 0 between rows in compiled code, and torch's product on a CPU copies such a row
    before it multiplies. Negating twice changes no value, and its result is a tensor of shape (1, in) with its own
    strides. On a GPU it would be a kernel more.
    """
    return multiply(x.reshape(1, -1).neg().neg(), weight)


def multiply_onednn(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply (..., in) by a weight (out, in) by oneDNN, packed or not and in either layout; returns (..., out).

    The weight must be whole: prompts in which one was a part of a stored weight took more than twenty times as long.
    """
    # No activation follows; torch._inductor.mkldnn_lowerings names the arguments.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return out


@operator()
def multiply_rows(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply (..., in) by oneDNN as one operator, whose weight compiled code leaves as it lies; see above."""
    return multiply_onednn(x, weight)


@shapes_of("multiply_rows")
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


NUM_SLICES = 8
"""Parts of a weight that are multiplied side by side."""


def multiply_in_batches(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply one row (..., in) by a float32 weight (out, in) stored by output, in its order; returns (..., out).

    It is a batch of products of parts of the outputs with one column. On an AMD EPYC weights that no cache holds were
    read about as fast as by a sum, but a quarter as fast if the column was contiguous, and half as fast by nn.Linear.
    """
    outputs, inputs = weight.shape
    batch = max(NUM_SLICES, torch.get_num_threads())
    each, left = divmod(outputs, batch)
    # One view each: by three each a product of 256 x 256 took 12 us on an AMD EPYC, and it takes 9.
    parts = weight.as_strided((batch, each, inputs), (each * inputs, inputs, 1))
    columns = x.as_strided((batch, inputs, 1), (0, x.stride(-1), inputs))  # with the strides of a row
    product = torch.bmm(parts, columns)
    if left:
        product = torch.cat((product.flatten(), torch.mv(weight[-left:], x.flatten())))
    return product.view(*x.shape[:-1], outputs)


def stored_weight(weight: Tensor, *, by_output: bool) -> Tensor:
    """Return a weight (out, in) as it lies in memory by outputs, (out, in), or else by inputs, (in, out)."""
    return weight.contiguous() if by_output else weight.t().contiguous().t()


def stream(x: Tensor, table: Tensor, slice_width: int) -> Tensor:
    """Multiply x (in,) by a contiguous float32 table (in, out), reading the table once in its order; returns (out,).

    From `slice_width` outputs on it is a batch of products over slices of the rows, below it their weighted sum. On an
    AMD EPYC threads that had summed rows multiplied slices at two thirds of their speed until they did something
    elementwise.
    """
    is_sliced = table.shape[1] >= slice_width and table.shape[0] % NUM_SLICES == 0
    return (_multiply_slices if is_sliced else _sum_rows)(x, table)


def _multiply_slices(x: Tensor, table: Tensor) -> Tensor:
    """Multiply x (in,) by a contiguous table (in, out) as a batch of products over slices of the rows."""
    slices = table.view(NUM_SLICES, -1, table.shape[1])  # (slices, in / slices, out)
    return torch.bmm(x.view(NUM_SLICES, 1, -1), slices).sum(dim=(0, 1))


def _sum_rows(x: Tensor, table: Tensor) -> Tensor:
    """Multiply x (in,) by a contiguous table (in, out) as embedding bags of consecutive rows, two per thread."""
    rows, bags = _bags(x.shape[0], 2 * torch.get_num_threads())
    # Positional arguments: no scaling by frequency, mode 0 (sum), a dense gradient, and x as the weights of the rows.
    summed = torch.embedding_bag(table, rows, bags, False, 0, False, x)[0]  # (bags, out)
    return summed.sum(dim=0)


@lru_cache
def _bags(num_rows: int, num_bags: int) -> tuple[Tensor, Tensor]:
    """Return the indices of all rows in order, and the start of each bag."""
    with torch.inference_mode(False):  # cached, so usable in every mode
        return torch.arange(num_rows), torch.arange(num_bags) * num_rows // num_bags


def multiply_thin(x: Tensor, weight: Tensor, added: Tensor | None = None) -> Tensor:
    """Multiply (..., M, K) by a matrix of a low rank, (..., K, N); `added` joins several products, (J, M, N) each.

    A small product in a compiled model is a loop of the compiler, joined with what comes next. On two cores of an AMD
    EPYC the products took half to two thirds of the time of torch's with eight rows in bfloat16, and steps of RWKV-6 in
    float32 0.88 to 0.98 of the time with one row or eight.
    """
    if x.numel() * weight.shape[-1] <= SMALL_PRODUCT and torch.compiler.is_compiling():
        product = (x.unsqueeze(-1) * weight.unsqueeze(-3)).sum(-2)
        return product if added is None else added + product
    if added is None:
        return matmul(x, weight)
    return in_float32(torch.baddbmm, added, x, weight) if widens(x) else torch.baddbmm(added, x, weight)
