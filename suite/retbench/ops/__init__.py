"""Tensor operators: linear recurrence, attention, short convolution, rotary positions, and layers built on them.

Letters of tensor shapes, the same in the whole package: B batch, T query positions, S key positions, C chunk, H heads,
K width of a key head, V width of a value head, D model width, F feed-forward width, N vocabulary. This file imports no
torch, so that configurations can use its constants.
"""

from typing import Literal

Layout = Literal["half", "interleaved"]
"""Pairs of a head's values that a rotary position rotates; see `ops.position`."""

DecodeOperators = Literal["fused", "eager"]
"""Operators of a decode step: fused kernels of a GPU (`ops.fused`), or torch's own operators one by one."""

GPU_SHORTAGE = ("out of memory", "nvml_success == ")
"""Parts of the messages of a full GPU, in lower case.

torch's CUDA allocator asks NVML about the memory that ran out. Where that fails, as in slices of a GPU (MIG) or beside
another driver, its assertion hides the shortage (pytorch#112377)."""

ROTARY_BASE = 10_000.0
"""Base of the rotary positions in every paper's and every named model."""

FLA_CHUNK_SIZE = 64
"""Tokens per chunk in flash-linear-attention's kernels (`fla/ops/simple_gla/chunk.py`)."""
