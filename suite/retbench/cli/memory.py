"""Whether a model fits, asked before it is built: the kernel would end some process for its memory, maybe not this."""

import psutil

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.errors import UnsupportedError
from retbench.units import format_bytes


def require_memory(named: str, config: ModelConfig, dtype: str, advice: str) -> None:
    """UnsupportedError where the weights alone are more than the memory that is free.

    Args:
        named: The model, as the message names it.
        config: The model.
        dtype: Dtype of its weights.
        advice: What to do about it.
    """
    needed = costs.weight_bytes(config, dtype)
    free = psutil.virtual_memory().available
    if needed > free:
        raise UnsupportedError(
            f"{named} has {format_bytes(needed)} of weights, and {format_bytes(free)} of memory are free. {advice}"
        )
