"""Construction of a model from its configuration, with weights drawn from a seed; and its setting for decode steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from retbench.architectures.configs import Initialisation, ModelConfig
from retbench.architectures.costs import mixer_params
from retbench.errors import ConfigError
from retbench.measure.products import row_products, storing_by_output_is_faster
from retbench.mixers.module import Depth, StatefulModule
from retbench.models.decoder import Decoder, check_decode_operators
from retbench.models.language_model import LanguageModel
from retbench.ops import fused
from retbench.ops.linear import RowProducts

INIT_STD = 0.02
"""Standard deviation of every weight matrix; `initializer_range` of Llama and of fla's RetNet."""


def build_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int,
    backend: str,
    chunk_size: int | None = None,
    compute_dtype: torch.dtype | None = None,
    decode_operators: str | None = None,
    products: RowProducts | None = None,
    initialisation: Initialisation = "plain",
) -> Decoder:
    """Build a model on its device, in evaluation mode, with weights drawn from `seed`.

    Args:
        config: The model.
        dtype: Dtype of the weights; recurrent states, decays and rotary angles stay in the wide dtype.
        device: torch's name or device.
        seed: Equal seeds, device types and configurations give equal weights.
        backend: A name in `Decoder.backends`.
        chunk_size: Tokens per chunk of a chunkwise form; the mixer's default when None.
        compute_dtype: Dtype that the caller's autocast gives the operators; that of the weights when None.
        decode_operators: fused or eager; None is fused if they can run here, else eager.
        products: How few rows are multiplied; None is the fastest way here, which takes seconds to find out on a CPU.
        initialisation: As of `init_weights`.

    Raises:
        ConfigError: unknown backend or decode operators; or a mixer is not what its configuration counts.
        UnsupportedError: the backend or the operators cannot run on this device at the dtype of their inputs.
    """
    model = allocate_model(
        config,
        dtype=dtype,
        device=device,
        backend=backend,
        chunk_size=chunk_size,
        compute_dtype=compute_dtype,
        decode_operators=decode_operators,
        products=products,
    )
    init_weights(model, seed, initialisation)
    return model


def allocate_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    backend: str,
    chunk_size: int | None = None,
    compute_dtype: torch.dtype | None = None,
    decode_operators: str | None = None,
    products: RowProducts | None = None,
) -> Decoder:
    """Build a model with uninitialised weights, to be filled from a file; arguments and errors as of `build_model`."""
    with _default_dtype(dtype), torch.device(device), _WithoutInit():
        model = Decoder(config, backend, chunk_size)
    _check_params(model)
    model = model.to(device)  # constants are computed on the CPU
    model.compute_dtype = compute_dtype
    model.set_backend(backend)
    if decode_operators is None:
        decode_operators = fused.default_operators(model.device, model.dtype)
    model.set_decode_operators(decode_operators)
    model.set_row_products(row_products(model.device, dtype) if products is None else products)
    return model.eval()


def set_up_steps(model: LanguageModel, *, compiled: bool, rows: int = 1) -> None:
    """Have decode steps multiply by the fastest methods here, with weights in the layout that they read fastest.

    Which these are is measured once per process; nothing else may run on the device.

    Args:
        model: The model.
        compiled: Whether its steps are compiled.
        rows: Sequences of a step.
    """
    device, dtype = model.device, model.dtype
    model.set_row_products(row_products(device, dtype, compiled=compiled))
    model.store_weights(by_output=storing_by_output_is_faster(device, dtype, compiled=compiled, rows=rows))


def check_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    backend: str,
    decode_operators: str | None = None,
) -> None:
    """Raise UnsupportedError if a model cannot run on a device; it is built without values.

    Arguments as of `build_model`.
    """
    with _default_dtype(dtype), torch.device("meta"):
        model = Decoder(config, backend, None)
    model.check_runs(backend, device)
    if decode_operators is not None:
        check_decode_operators(decode_operators, device, dtype)


def _check_params(model: Decoder) -> None:
    """Raise a ConfigError if a mixer has other parameters than its configuration counts: it would not be matched."""
    for mixer in model.mixers:
        counted, built = mixer_params(mixer.config), sum(weight.numel() for weight in mixer.parameters())
        if counted != built:
            raise ConfigError(
                f"{mixer.config.title}: the configuration counts {counted:,} parameters, and its module has {built:,}. "
                "Correct streamed_params, local_params or other_params, or the module."
            )


def usable_backends(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device | str
) -> dict[str, str | None]:
    """Return why each backend of a model cannot run on a device, or None where it can; no product is timed for it.

    Args:
        config: The model.
        dtype: Dtype of the weights.
        device: torch's name or device.
    """
    with _default_dtype(dtype), torch.device(device), _WithoutInit():
        model = Decoder(config, config.forms[0], None)
    return model.to(device).backends()


class _WithoutInit(TorchFunctionMode):
    """Mode that skips the initialisation of new weights, which are overwritten afterwards.

    The meta device would do the same, but its first use loads torch's decompositions and sympy, which delays the start
    of every worker by a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the tensor of a function of torch.nn.init unchanged; call any other function."""
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create floating-point tensors in `dtype`, so that no weight exists in a wider dtype first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def init_weights(model: Decoder, seed: int, initialisation: Initialisation = "plain") -> None:
    """Draw matrices from a normal distribution, and set weights of norms to one and biases to zero.

    Each mixer then draws its vectors and other small weights as they are published. With `published` it draws its
    projections so too; a model that trains from there is of use to no check before, as some of them are zero.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:  # in memory order for any layout
            axes = sorted(range(parameter.dim()), key=lambda axis: -parameter.stride()[axis])
            parameter.permute(axes).normal_(0.0, INIT_STD, generator=generator)
    for index, block in enumerate(model.blocks):
        for part in block.children():
            if isinstance(part, StatefulModule):
                depth = Depth(index, len(model.blocks))
                part.init_weights(generator, depth)
                if initialisation == "published":
                    part.init_published(generator, depth)
