"""The torch side of a mixer: the interface that the decoder calls."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from retbench.errors import unknown_name
from retbench.mixers.mixer import Mixer
from retbench.mixers.state import LayerState, allocate_state
from retbench.ops.position import NoEncoding, Positions
from retbench.ops.retention import wide_dtype


class MixerModule(nn.Module):
    """Base of every mixer's module: (B, T, D) in and out, with a state that is advanced in place.

    A subclass implements `forward` and `mixing`, and may override `missing_reason`, `encoding` and `after_operator`.

    Args:
        config: The mixer.
        form: The form for more than one token.
        chunk_size: Tokens of a chunk where the form has chunks; the mixer's default when None.

    Attributes:
        executed: Phase (prefill, decode) to the form or kernel that was executed since the form was set.
    """

    config: Mixer

    def __init__(self, config: Mixer, form: str, chunk_size: int | None) -> None:
        super().__init__()
        self.config = config
        self.executed: dict[str, str] = {}
        self.set_backend(form)

    @property
    def after_operator(self) -> nn.Module:
        """The module that gets what the operator gives, (B, T, H, V) or (B, T, H V)."""
        raise NotImplementedError

    def encoding(self) -> nn.Module:
        """Build what the mixer needs of a position; blocks of one mixer share it."""
        return NoEncoding()

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why a form cannot run on a device at a dtype, and what to do; None where it can."""
        return None

    def backends(self, device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
        """Return each form with the reason why it cannot run here, or None."""
        return {name: self.missing_reason(name, device, dtype) for name in self.config.forms}

    def set_backend(self, name: str) -> None:
        """Choose the form for more than one token, and empty `executed`; ConfigError for an unknown name."""
        if name not in self.config.forms:
            raise unknown_name(f"{self.config.title} backend", name, self.config.forms)
        self.backend = name
        self.executed = {}

    def init_state(self, batch_size: int, capacity: int) -> LayerState:
        """Return the zero state; `capacity` tokens where a tensor has an entry for each token."""
        weight = next(self.parameters())
        return allocate_state(self.config.state, batch_size, capacity, weight, wide_dtype(weight.dtype))

    @staticmethod
    def keep(state: LayerState | None, name: str, tensor: Tensor) -> None:
        """Put a new tensor into the state, where there is one."""
        if state is None:
            return
        if tensor.requires_grad:
            state[name] = tensor
        else:  # in place, so that a captured CUDA graph finds it where it was
            state[name].copy_(tensor)

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        raise NotImplementedError

    def mixing(self, state: LayerState, batch_size: int, context_len: int) -> Callable[[], object]:
        """Return a call that does what a decode step at a depth does between the projections, on random inputs."""
        raise NotImplementedError
