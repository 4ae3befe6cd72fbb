"""Builds a model from its configuration, with weights drawn from a seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from retbench.architectures.configs import ModelConfig
from retbench.models.decoder import Decoder

INIT_STD = 0.02
"""Standard deviation of every weight matrix: `initializer_range` of Llama and of fla's RetNet."""


def build_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int,
    backend: str,
    chunk_size: int | None = None,
) -> Decoder:
    """A model on its device, in evaluation mode, with normal weights drawn from `seed`.

    Args:
        config: The model.
        dtype: Dtype of the weights; the retention state, the decay and the rotary angles stay in the wide dtype.
        device: torch's name or device.
        seed: Same seed, device type and configuration give the same weights.
        backend: Retention form or attention backend; see `Decoder.backends`.
        chunk_size: Chunk of the chunkwise form; the default when None.

    Raises:
        ConfigError: unknown backend.
        UnsupportedError: the backend cannot run on this device at this dtype.
    """
    model = allocate_model(config, dtype=dtype, device=device, backend=backend, chunk_size=chunk_size)
    init_weights(model, seed)
    return model


def allocate_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    backend: str,
    chunk_size: int | None = None,
) -> Decoder:
    """What `build_model` gives, with weights that are still whatever was in the memory: to be read from a file."""
    with _default_dtype(dtype), torch.device(device), _WithoutInit():
        model = Decoder(config, backend, chunk_size)
    model = model.to(device)  # its constants are made on the CPU
    model.set_backend(backend)
    return model.eval()


class _WithoutInit(TorchFunctionMode):
    """Leaves out what modules do to new weights, which are drawn anew afterwards.

    Building on the meta device would do the same, but its first use loads torch's decompositions and sympy: a
    second of every worker's start.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do nothing for a function of torch.nn.init but return its tensor; anything else as it is."""
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new floating-point tensors `dtype`, so that no weight exists in a wider one first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Draw every matrix from a normal distribution; every norm gets weight one and bias zero."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:  # in the order of memory, whichever way the matrix lies
            stored = parameter if parameter.is_contiguous() else parameter.t()
            stored.normal_(0.0, INIT_STD, generator=generator)
