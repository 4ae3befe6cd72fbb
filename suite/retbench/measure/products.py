"""The faster product of few rows: on a CPU by one of several methods, on either device by one of two layouts.

On a CPU also the faster product of a prompt, and the faster attention of single queries.

What is measured here (by `product_trials`) holds for all models of a run: the runner hands the outcomes of its first
worker to the others.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from retbench.measure.product_trials import (
    SHARED_KEY_HEADS,
    measure_attention,
    measure_layouts,
    measure_loops,
    measure_packing,
    measure_prompts,
    measure_rows,
)
from retbench.ops.attention_products import compiled_products_are_faster
from retbench.ops.linear import ALWAYS, MOST_LOOPED_ROWS, FewestKeys, RowProducts, stream
from retbench.ops.precision import cpu_multiplies

_found: dict[str, int] = {}
"""Outcomes by name, such as `by_output, float32, 4 rows`: measured in this process, or taken from another.

Records state them under these names, and a later run takes the latest of each name from there.
"""


def row_products(device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> RowProducts:
    """Return how few rows, and those of a prompt, are multiplied: on a CPU not by torch's usual methods if others win.

    How a step multiplies single rows by weights depends on their layout; see `storing_by_output_is_faster`. The methods
    are measured once per process, on torch's present threads, unless another process has: see `agree`.

    Args:
        device: A CPU or a CUDA device; nothing else may run on it.
        dtype: Dtype of the weights.
        compiled: Whether steps are compiled: then products of any number of keys may be the faster attention.
    """
    if device.type != "cpu":
        return RowProducts()
    always = compiled and compiled_products_are_faster(device, dtype)
    attention_from = ALWAYS if always else _attention_from(dtype)
    packed_from = _packed_from(dtype) or None if compiled else None
    if dtype != torch.float32:
        return RowProducts(attention_from, packed_from=packed_from)
    onednn_rows = _onednn_rows(dtype)  # before what is found with it
    return RowProducts(
        attention_from=attention_from,
        batches=bool(_found["batches"]),
        slice_width=_found["slice_width"] or None,
        onednn_rows=onednn_rows,
        onednn_prompts=bool(_once("onednn_prompts", measure_prompts)),
        packed_from=packed_from,
    )


def _onednn_rows(dtype: torch.dtype) -> int:
    """Return up to how many rows oneDNN multiplies by weights of a dtype that lie by input; 0 where it does not."""
    if dtype != torch.float32:
        return 0
    if "onednn_rows" not in _found:
        _found.update(measure_rows())
    return _found["onednn_rows"]


def _attention_from(dtype: torch.dtype) -> FewestKeys:
    """Return from how many keys on single queries attend by products."""
    if not cpu_multiplies(dtype):
        return FewestKeys()  # they always do
    alone = _once(f"attention_from, {_name(dtype)}", partial(measure_attention, dtype))
    sharing = partial(measure_attention, dtype, key_heads=SHARED_KEY_HEADS)
    shared = _once(f"attention_from, shared, {_name(dtype)}", sharing)
    return FewestKeys(alone or None, shared or None)


def storing_by_output_is_faster(
    device: torch.device, dtype: torch.dtype, *, compiled: bool, rows: int = 1
) -> bool:
    """Return whether weights stored (out, in) beat weights stored (in, out) in products with few rows.

    It is measured once per process, unless another process has: see `agree`.

    Args:
        device: A CPU or a CUDA device; nothing else may run on it.
        dtype: Dtype of the weights.
        compiled: Whether steps are compiled. On a CPU such steps read them by `ops.linear.loop`, eager ones as
            `row_products` says.
        rows: Rows of the products; on a GPU, where one layout serves all, those with one row decide.
    """
    if device.type != "cpu":
        name = f"by_output, {device.type}, {_name(dtype)}"
        return bool(_once(name, partial(measure_layouts, device, dtype)))
    if not cpu_multiplies(dtype):
        return True  # products that are not widened take many times as long with weights stored by input
    if not compiled:
        return rows == 1 and row_products(device, dtype).batches
    if rows > MOST_LOOPED_ROWS or (rows > 1 and dtype.itemsize < torch.float32.itemsize):
        return False  # loops over several rows of 16 bits took up to 2.6 times as long as packed products
    name = f"by_output, {_name(dtype)}" + (f", {rows} rows" if rows > 1 else "")
    return bool(_once(name, lambda: measure_loops(dtype, rows, row_products(device, dtype, compiled=True))))


def packing_is_faster(rows: int, dtype: torch.dtype) -> bool:
    """Return whether compiled products of so many rows on a CPU clearly gain from packed weights.

    Compiled code packs weights that are its constants; see `measure.compiled.compile_step`. The fewest rows that gain
    are measured once per process, unless another process has: see `agree`.
    """
    return 0 < _packed_from(dtype) <= rows


def _packed_from(dtype: torch.dtype) -> int:
    """Return the fewest rows that compiled code multiplies by packed weights; 0 where it packs none."""
    return _once(f"packed_rows, {_name(dtype)}", lambda: measure_packing(dtype, _onednn_rows(dtype)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _once(name: str, measure: Callable[[], int]) -> int:
    """Return an outcome in this process, which is measured if it is not known."""
    if name not in _found:
        _found[name] = measure()
    return _found[name]


def found() -> dict[str, int]:
    """Return the outcomes in this process by name: those that were asked for, and those that another has found."""
    return dict(_found)


def agree(outcomes: Mapping[str, int]) -> None:
    """Take what another process has found on this device, so that all models of a run are multiplied alike."""
    _found.update(outcomes)
    if outcomes.get("slice_width"):
        # A trial would have: where the first generated code finds no memory, torch calls what it could not generate.
        stream(torch.ones(1, device="cpu"), torch.ones(1, 1, device="cpu"), slice_width=2)
