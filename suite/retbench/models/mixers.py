"""The two mixers of a block: gated multi-scale retention, and causal attention.

A mixer turns x (B, T, D) into (B, T, D), carries the state of its layer, and says afterwards what it ran. Asked for
the last token only, it computes keys, values and state for all tokens and the rest for that one.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retbench.architectures.configs import RetNetConfig, TransformerConfig
from retbench.errors import unknown_name
from retbench.models.constants import Float64Constant, WideConstant
from retbench.models.layers import make_head_norm
from retbench.models.linear import Linear
from retbench.models.state import KVCache, LayerState, RetentionState
from retbench.ops import attention, kernels
from retbench.ops.decay import decay_schedule, gated_log_decay
from retbench.ops.position import Positions, rotate
from retbench.ops.retention import (
    RetentionForm,
    retention_chunkwise,
    retention_decayed_step_,
    retention_last,
    retention_parallel,
    retention_recurrent,
    retention_step_,
    wide_dtype,
)


class RetentionMixer(nn.Module):
    """Gated multi-scale retention, arXiv:2307.08621 Eq. 8, in every variant of `RETNET_TRAITS`.

    Where the variant asks for it, the retention at position n is divided by the square root of the row sum of D,
    (1 - decay^(n+1)) / (1 - decay): the same scalar in every form. torchscale's parallel form divides by a second,
    data-dependent sum, which its own recurrent form leaves out; so does this. It comes with the positions.

    Args:
        config: The model.
        backend: parallel, chunkwise, recurrent or fla: the form for more than one token. One token without gradients
            is always a recurrent step of this package, in place; so is the last token alone of a prompt's last block.
        chunk_size: Tokens of a chunk of the chunkwise form.
    """

    def __init__(self, config: RetNetConfig, backend: str, chunk_size: int) -> None:
        super().__init__()
        self.config = config
        self.forms: dict[str, RetentionForm] = {
            "parallel": retention_parallel,
            "chunkwise": partial(retention_chunkwise, chunk_size=chunk_size),
            "recurrent": retention_recurrent,
            "fla": kernels.retention_fla,
        }
        d, values = config.d_model, config.value_dim
        self.qkvg_proj = Linear(d, 2 * d + values * (2 if config.swish_gate else 1))
        self.head_norm = (
            make_head_norm(config.traits.head_norm, config.value_head_dim, config.norm_eps)
            if config.head_norm
            else nn.Identity()
        )
        self.out_proj = Linear(values, d)
        if config.decay == "gated":
            self.decay_proj = Linear(d, config.num_heads)
        else:
            self.log_decay = Float64Constant(lambda: decay_schedule(config.decay, config.num_heads))
            self.decay = WideConstant(lambda: decay_schedule(config.decay, config.num_heads).exp())
        self.ran: dict[str, str] = {}
        self.set_backend(backend)

    def backends(self, device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
        """Each form, with the reason why it cannot run here, or None."""
        return {name: self.missing_reason(name, device, dtype) for name in self.forms}

    @property
    def after_operator(self) -> nn.Module:
        """The module that gets what the operator gives, (B, T, H, V)."""
        return self.head_norm

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why one form cannot run here; None where it can."""
        return kernels.missing_reason(device, dtype) if name == "fla" else None

    def set_backend(self, name: str) -> None:
        """Choose the form for more than one token; ConfigError for an unknown name."""
        if name not in self.forms:
            raise unknown_name("retention backend", name, self.forms)
        self.backend = name
        self.ran = {}

    def init_state(self, batch_size: int, capacity: int) -> RetentionState:
        """The zero state; `capacity` does not matter to retention."""
        config, weight = self.config, self.qkvg_proj.weight
        shape = (batch_size, config.num_heads, config.head_dim, config.value_head_dim)
        return RetentionState(torch.zeros(shape, dtype=wide_dtype(weight.dtype), device=weight.device))

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        assert state is None or isinstance(state, RetentionState)
        log_decay = self._log_decay(x)
        if last_only:
            q, k, v, gate = self._project_last(x, positions)
            out, values = retention_last(q, k, v, log_decay, state.values if state else None)
            self._keep(values, state)
            positions = positions.last
        else:
            q, k, v, gate = self._project(x, positions)
            out = self._retain(q, k, v, log_decay, state)
        if positions.row_norm is not None:
            out = out * positions.row_norm
        out = self.head_norm(out).flatten(2)  # (B, T, H V)
        mixed: Tensor = self.out_proj(out if gate is None else F.silu(gate) * out)
        return mixed

    def _project(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Rotated q and scaled k (B, T, H, K), v (B, T, H, V), and the gate (B, T, H V) where there is one."""
        config = self.config
        values = [config.value_dim] * (2 if config.swish_gate else 1)
        qk, v, *gate = self.qkvg_proj(x).split([2 * config.d_model, *values], dim=-1)
        qk = rotate(self._heads(qk, 2), positions, config.traits.layout)  # (B, T, 2H, K)
        q, k = qk.chunk(2, dim=2)
        return q, k * config.head_dim**-0.5, self._heads(v), gate[0] if gate else None

    def _project_last(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The same, with q and gate for the last token alone."""
        d, values, layout = self.config.d_model, self.config.value_dim, self.config.traits.layout
        last, keys_end = x[:, -1:], 2 * d + values
        q = rotate(self._heads(self.qkvg_proj.part(last, 0, d)), positions.last, layout)
        k, v = self.qkvg_proj.part(x, d, keys_end).split([d, values], dim=-1)
        k = rotate(self._heads(k), positions, layout) * self.config.head_dim**-0.5
        gate = self.qkvg_proj.part(last, keys_end, keys_end + values) if self.config.swish_gate else None
        return q, k, self._heads(v), gate

    def _heads(self, x: Tensor, parts: int = 1) -> Tensor:
        """(B, T, W) as the heads of `parts` tensors side by side, (B, T, parts H, W / (parts H))."""
        return x.view(*x.shape[:-1], parts * self.config.num_heads, -1)

    def _log_decay(self, x: Tensor) -> Tensor:
        """(H,) where it is fixed; (B, T, H) where it depends on x (B, T, D)."""
        if self.config.decay == "gated":
            return gated_log_decay(self.decay_proj(x), wide_dtype(x.dtype))
        return self.log_decay.value

    def _retain(
        self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: RetentionState | None
    ) -> Tensor:
        """The operator: one in-place step for one token, the chosen form for more; (B, T, H, V)."""
        if state is not None and q.shape[1] == 1 and not torch.is_grad_enabled():
            self.ran["decode"] = "recurrent"
            if log_decay.dim() == 1:
                return retention_decayed_step_(q, k, v, self.decay.value, state.values)
            return retention_step_(q, k, v, log_decay, state.values)
        self.ran["prefill"] = self.backend
        out, values = self.forms[self.backend](q, k, v, log_decay, state.values if state else None)
        self._keep(values, state)
        return out

    def _keep(self, values: Tensor, state: RetentionState | None) -> None:
        """Put the new values into the state."""
        if state is None:
            return
        if values.requires_grad:
            state.values = values
        else:  # in place, so that a captured CUDA graph finds it where it was
            state.values.copy_(values)


class AttentionMixer(nn.Module):
    """Causal attention with half-split rotary positions, as in Llama; grouped-query where num_kv_heads < num_heads.

    Args:
        config: The model.
        backend: A name in `attention.BACKENDS`, for prefill and decode alike.
    """

    def __init__(self, config: TransformerConfig, backend: str) -> None:
        super().__init__()
        self.config = config
        self.kv_width = config.num_kv_heads * config.head_dim
        self.qkv_proj = Linear(config.d_model, config.d_model + 2 * self.kv_width)
        self.out_proj = Linear(config.d_model, config.d_model)
        self.ran: dict[str, str] = {}
        self.set_backend(backend)

    def backends(self, device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
        """Each attention backend, with the reason why it cannot run here, or None."""
        return {name: self.missing_reason(name, device, dtype) for name in attention.BACKENDS}

    @property
    def after_operator(self) -> nn.Module:
        """The module that gets what the operator gives, (B, T, H K)."""
        return self.out_proj

    def missing_reason(self, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why one backend cannot run here; None where it can."""
        return attention.missing_reason(name, device, dtype)

    def set_backend(self, name: str) -> None:
        """Choose the backend; ConfigError for an unknown name."""
        if name not in attention.BACKENDS:
            raise unknown_name("attention backend", name, attention.BACKENDS)
        self.backend = name
        self.ran = {}

    def init_state(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache with room for `capacity` tokens."""
        weight = self.qkv_proj.weight
        shape = (batch_size, self.config.num_kv_heads, capacity, self.config.head_dim)
        return KVCache(*(torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2)))

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        q, k, v = self._project_last(x, positions) if last_only else self._project(x, positions)
        if state is not None:
            assert isinstance(state, KVCache)
            k, v = state.append(k, v, positions.start)
        out = attention.BACKENDS[self.backend](q, k, v)  # (B, H, T, K)
        self._note_what_ran("prefill" if x.shape[1] > 1 else "decode", q, k, v)
        mixed: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return mixed

    def _project(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q (B, H, T, K) and k (B, Hkv, T, K), and v (B, Hkv, T, K)."""
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        qkv = self._heads(self.qkv_proj(x))
        qk = rotate(qkv[:, :, : heads + kv_heads], positions, self.config.traits.layout)
        q, k = qk.transpose(1, 2).split([heads, kv_heads], dim=1)
        return q, k, qkv[:, :, heads + kv_heads :].transpose(1, 2)

    def _project_last(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """The same, with q for the last token alone, (B, H, 1, K)."""
        d, layout = self.config.d_model, self.config.traits.layout
        q = rotate(self._heads(self.qkv_proj.part(x[:, -1:], 0, d)), positions.last, layout)
        k, v = self.qkv_proj.part(x, d, d + 2 * self.kv_width).chunk(2, dim=-1)
        k = rotate(self._heads(k), positions, layout)
        return q.transpose(1, 2), k.transpose(1, 2), self._heads(v).transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, W) as heads, (B, T, W / K, K)."""
        return x.view(*x.shape[:-1], -1, self.config.head_dim)

    def _note_what_ran(self, phase: str, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Ask once a phase, so that a decode step does nothing for it."""
        if phase not in self.ran:
            self.ran[phase] = attention.what_runs(self.backend, q, k, v)


Mixer = RetentionMixer | AttentionMixer
