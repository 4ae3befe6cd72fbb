"""Retention: the names that its papers give to the linear recurrence with a decay per head.

    out_t = q_t S_t        S_t = exp(log_decay_t) S_{t-1} + k_t^T v_t

`log_decay` is (H,) if fixed (RetNet) or (B, T, H) if data-dependent (gated retention). See `ops.linear_operator` for
the forms, their arguments and their sources.
"""

from collections.abc import Callable

from torch import Tensor

from retbench.ops.linear_chunk import wide_dtype
from retbench.ops.linear_operator import (
    DEFAULT_CHUNK_SIZE,
    linear_chunkwise,
    linear_decayed_step_,
    linear_last,
    linear_parallel,
    linear_recurrent,
    linear_step_,
)

__all__ = ["DEFAULT_CHUNK_SIZE", "wide_dtype"]

RetentionForm = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]

retention_recurrent = linear_recurrent
retention_step_ = linear_step_
retention_decayed_step_ = linear_decayed_step_
retention_last = linear_last
retention_parallel = linear_parallel
retention_chunkwise = linear_chunkwise
