"""The torch side of mixers: the interface that the decoder calls, and what mixers of one operator share."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retbench.errors import unknown_name
from retbench.mixers.linear_operator import LinearOperator
from retbench.mixers.mixer import Mixer
from retbench.mixers.softmax_attention import SoftmaxAttention
from retbench.mixers.state import LayerState, allocate_state
from retbench.ops import fused
from retbench.ops.fused import FusedSteps
from retbench.ops.linear import FewestKeys, Linear
from retbench.ops.linear_operator import (
    Readout,
    linear_chunkwise,
    linear_decayed_step_,
    linear_last,
    linear_parallel,
    linear_recurrent,
    linear_step_,
)
from retbench.ops.position import NoEncoding, Positions, Rotary, rotate, scale_frequencies
from retbench.ops.precision import wide_dtype


class Depth(NamedTuple):
    """Place of a block in a model."""

    layer: int
    """Number of the block, from 0."""
    num_layers: int
    """Blocks of the model."""


class StatefulModule(FusedSteps):
    """Base of the parts of a block that carry a state from token to token: mixers, and some channel mixers."""

    @property
    def after_operator(self) -> nn.Module:
        """The module that gets what the part computes of several tokens, (B, T, H, V) or (B, T, H V)."""
        raise NotImplementedError

    @property
    def operator_heads(self) -> int:
        """H, the heads of what `after_operator` gets."""
        raise NotImplementedError

    def init_weights(self, generator: torch.Generator, depth: Depth) -> None:
        """Draw vectors and other small weights as published; `models.build.init_weights` has drawn the projections.

        No weight is such that others take no part: equivalence checks and timings use these weights.
        """

    def init_published(self, generator: torch.Generator, depth: Depth) -> None:
        """Draw the projections as published too, after `init_weights`; `published_init` says if that differs."""

    @staticmethod
    def keep(state: LayerState | None, name: str, tensor: Tensor) -> None:
        """Put a new tensor into the state, where there is one."""
        if state is None:
            return
        if tensor.requires_grad:
            state[name] = tensor
        else:  # in place, so that a captured CUDA graph finds it where it was
            state[name].copy_(tensor)


class ChannelMixerModule(StatefulModule):
    """Base of the channel mixers with a state: (B, T, D) in and out. The state is advanced in place.

    A subclass implements `forward` and `after_operator`, which gets (B, T, W) of any width.
    """

    @property
    def operator_heads(self) -> int:
        """One: channels are in no heads."""
        return 1

    def forward(self, x: Tensor, state: LayerState | None, *, last_only: bool = False) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is that of the block, None starts at zero."""
        raise NotImplementedError


class MixerModule(StatefulModule):
    """Base of every mixer's module: (B, T, D) in and out, with a state that is advanced in place.

    A subclass implements `forward`, and may override `missing_reason`, `encoding` and `after_operator`. A mixer with a
    `source` gets the state of that layer, which is never None, and its positions.

    Args:
        config: The mixer.
        form: The form for more than one token.
        chunk_size: Tokens of a chunk where the form has chunks; the mixer's default when None.

    Attributes:
        executed: Phase (prefill, decode) to the form or kernel that was executed since the form was set.
        products_from: Fewest keys from which a single query attends by products in the form `auto`; see
            `ops.attention.chosen_backend`.
    """

    config: Mixer
    products_from = FewestKeys()

    def __init__(self, config: Mixer, form: str, chunk_size: int | None) -> None:
        super().__init__()
        self.config = config
        self.executed: dict[str, str] = {}
        self.set_backend(form)

    @property
    def operator_heads(self) -> int:
        """Heads of the mixer."""
        return self.config.num_heads

    @property
    def reads_by_value(self) -> bool:
        """True if decode steps read what may lie by value in that order; see `StateTensor`."""
        return not self.fused  # the kernels read each key's values

    def encoding(self) -> nn.Module:
        """Build what the mixer needs of a position; blocks of one mixer share it."""
        return NoEncoding()

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why a form cannot run on a device at a dtype, and what to do; None where it can."""
        return None

    def reading_form(self, name: str, dtype: torch.dtype) -> str:
        """Return the form that reads prompts where `name` is asked for: another where both compute the same."""
        return self.config.forms[name].reads_as or name

    def set_backend(self, name: str) -> None:
        """Choose the form for more than one token, and empty `executed`; ConfigError for an unknown name."""
        if name not in self.config.forms:
            raise unknown_name(f"{self.config.title} backend", name, self.config.forms)
        self.backend = name
        self.executed = {}

    def init_pass_state(self, batch_size: int) -> LayerState:
        """Return a state for a pass without one, in which later layers read what this layer gives.

        It takes new tokens as they are, so that gradients flow through it.
        """
        weight = next(self.parameters())
        layout = [replace(one, concatenated=one.kind == "per_token") for one in self.config.state]
        return allocate_state(layout, batch_size, 0, weight, wide_dtype(weight.dtype))

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place.

        A mixer that keeps no state may get the last token alone, (B, 1, D), with `last_only` and the positions
        of all T tokens.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define forward")


class LinearOperatorModule(MixerModule):
    """Base of the mixers that compute o_t = q_t S_t.

    One token without gradients is always a recurrent step in place, in every form; so is the last token alone of a
    prompt's last block.

    Args:
        config: The mixer.
        form: parallel, chunkwise, recurrent, or a kernel that the subclass adds to `forms`, for more than one token.
        chunk_size: Tokens of a chunk of the chunkwise form.

    Attributes:
        forms: The operator by form.
    """

    config: LinearOperator

    def __init__(self, config: LinearOperator, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        chunkwise = partial(linear_chunkwise, chunk_size=chunk_size or config.default_chunk_size or 1)
        self.forms: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
            "parallel": linear_parallel,
            "chunkwise": chunkwise,
            "chunkwise_fp32": partial(chunkwise, wide_products=True),
            "recurrent": linear_recurrent,
        }

    def reading_form(self, name: str, dtype: torch.dtype) -> str:
        """Return the form that reads prompts: products in float32 differ from those of the dtype only below it."""
        return "chunkwise" if name == "chunkwise_fp32" and wide_dtype(dtype) == dtype else name

    def operate(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        state: LayerState | None,
        *,
        step_decay: Tensor | None = None,
        readout: Readout | None = None,
    ) -> Tensor:
        """Run the operator and advance the state in place.

        Args:
            q: Queries, (B, T, H, K), or (B, 1, H, K) for the last token's output alone.
            k: Keys, (B, T, H, K).
            v: Values, (B, T, H, V).
            log_decay: None, (H,), (B, T, H) or (B, T, H, K).
            state: Of this layer; None starts from zero and keeps nothing.
            step_decay: exp(log_decay) for decode steps, where it is at hand.
            readout: As of `linear_recurrent`, for forms that take it; None is inclusive.

        Returns:
            (B, T, H, V), or (B, 1, H, V) for the last token alone.
        """
        before = state["values"] if state is not None else None
        options = {} if readout is None else {"readout": readout}
        if q.shape[1] < k.shape[1]:
            out, after = linear_last(q, k, v, log_decay, before, **options)
        elif before is not None and q.shape[1] == 1 and not torch.is_grad_enabled():
            self.executed["decode"] = "recurrent"
            if step_decay is not None:
                return linear_decayed_step_(q, k, v, step_decay, before, **options)
            return linear_step_(q, k, v, log_decay, before, **options)
        else:
            self.executed["prefill"] = self.backend
            out, after = self.forms[self.backend](q, k, v, log_decay, before, **options)
        self.keep(state, "values", after)
        return out


class SoftmaxAttentionModule(MixerModule):
    """Base of the mixers of softmax attention: one product for queries, keys and values, and rotary positions."""

    config: SoftmaxAttention

    def __init__(self, config: SoftmaxAttention, form: str, chunk_size: int | None) -> None:
        super().__init__(config, form, chunk_size)
        self.qkv_proj = Linear(config.d_model, config.d_model + 2 * config.kv_width)
        self.out_proj = Linear(config.d_model, config.d_model)

    @property
    def after_operator(self) -> nn.Module:
        """The output projection, which gets (B, T, H K)."""
        return self.out_proj

    @property
    def reads_by_value(self) -> bool:
        """True if decode steps attend by products whatever the number of keys, as compiled ones do on a CPU."""
        multiplies = self.backend in ("auto", "products") and self.products_from.is_always
        return multiplies and super().reads_by_value

    def encoding(self) -> Rotary:
        """Build the rotary positions."""
        head_dim, base, scaling = self.config.head_dim, self.config.rotary_base, self.config.rotary_scaling
        if scaling is None:
            return Rotary(head_dim, "half", base)
        return Rotary(head_dim, "half", base, rescale=partial(scale_frequencies, **scaling.model_dump()))

    def project(self, x: Tensor, positions: Positions, *, last_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated q (B, H, T, K) and k (B, Hkv, T, K), and v; q for the last token alone with `last_only`."""
        heads, kv_heads, d = self.config.num_heads, self.config.num_kv_heads, self.config.d_model
        if last_only and x.shape[1] > 1:
            q = rotate(self._heads(self.qkv_proj.part(x[:, -1:], 0, d)), positions.last, "half")
            kv = self._heads(self.qkv_proj.part(x, d, d + 2 * self.config.kv_width))
            k, v = rotate(kv[:, :, :kv_heads], positions, "half"), kv[:, :, kv_heads:]
        else:
            qkv = self._heads(self.qkv_proj(x))
            q, k = rotate(qkv[:, :, : heads + kv_heads], positions, "half").split([heads, kv_heads], dim=2)
            v = qkv[:, :, heads + kv_heads :]
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def project_step(
        self, x: Tensor, state: LayerState, positions: Positions, *, sinks: int = 0, window: int = 0
    ) -> Tensor:
        """Return rotated q (B, H, 1, K) of one token, whose k and v the fused operator writes into the cache.

        `sinks` and `window` make the cache a ring buffer; see `fused.rotate_and_cache`.
        """
        qkv, caches = self.qkv_proj(x).squeeze(1), (state["keys"], state["values"])
        q: Tensor = fused.rotate_and_cache(
            qkv, positions.cos, positions.sin, "half", positions.on_device, *caches, sinks, window
        )
        return q.unsqueeze(2)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, W) as heads, (B, T, W / K, K)."""
        return x.view(*x.shape[:-1], -1, self.config.head_dim)
