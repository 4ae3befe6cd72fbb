"""The parts of a block: a projection laid out for decoding, the feed-forward, and the two mixers.

A mixer turns x (B, T, D) into (B, T, D), carries the state of its layer, and says afterwards what it ran.
"""

from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retbench.architectures import RetNetConfig, TransformerConfig
from retbench.errors import unknown_name
from retbench.models import attention
from retbench.models.constants import Float64Constant
from retbench.models.position import Layout, Positions, rotate
from retbench.models.retention import (
    RetentionForm,
    retention_chunkwise,
    retention_parallel,
    retention_recurrent,
    retention_step_,
    wide_dtype,
)
from retbench.models.state import KVCache, LayerState, RetentionState


class Linear(nn.Linear):
    """nn.Linear without bias whose weight, (out, in) to the outside, lies transposed in memory. Same state dict.

    Decoding one sequence streams every weight once for a single row. On a CPU neither layout of a matrix product
    does that at the rate of the memory; for a wide output a batch of products over slices of the rows comes closer
    (`_multiply_slices`), for a narrow one the weighted sum of a table's rows (`_sum_rows`), and (in, out) is such a
    table. Everything else (several rows, gradients, other dtypes, a GPU) is nn.Linear's own product.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.weight = nn.Parameter(torch.empty(in_features, out_features).t())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        one_row = x.numel() == self.in_features
        if one_row and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled():
            is_wide = self.out_features >= WIDE_OUTPUT and self.in_features % NUM_SLICES == 0
            product = _multiply_slices if is_wide else _sum_rows
            return product(x.flatten(), self.weight.t()).view(*x.shape[:-1], self.out_features)
        return F.linear(x, self.weight)


WIDE_OUTPUT = 4096
"""From this width on slices were the faster way in a trial on two cores, below it the sum of rows."""
NUM_SLICES = 8


def _multiply_slices(x: Tensor, table: Tensor) -> Tensor:
    """Product of x (in,) and a contiguous table (in, out) as a batch of products over slices of the rows."""
    slices = table.view(NUM_SLICES, -1, table.shape[1])  # (slices, in / slices, out)
    return torch.bmm(x.view(NUM_SLICES, 1, -1), slices).sum(dim=(0, 1))


def _sum_rows(x: Tensor, table: Tensor) -> Tensor:
    """Product of x (in,) and a contiguous table (in, out) as embedding bags, two a thread, each a run of rows."""
    rows, bags = _bags(x.shape[0], 2 * torch.get_num_threads())
    # By position: no scaling by frequency, mode 0 (sum), a dense gradient, and x as the weights of the rows.
    summed = torch.embedding_bag(table, rows, bags, False, 0, False, x)[0]  # (bags, out)
    return summed.sum(dim=0)


@lru_cache
def _bags(num_rows: int, num_bags: int) -> tuple[Tensor, Tensor]:
    """Every row once, in order, and where each bag starts."""
    with torch.inference_mode(False):  # made once, used in every mode
        return torch.arange(num_rows), torch.arange(num_bags) * num_rows // num_bags


class GatedFeedForward(nn.Module):
    """SwiGLU, (silu(x W_gate) * x W_up) W_down, gate and up in one product (arXiv:2002.05202)."""

    def __init__(self, d_model: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(d_model, 2 * ffn_dim)
        self.down_proj = Linear(ffn_dim, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


def decay_schedule(kind: str, num_heads: int) -> Tensor:
    """Logarithm of the decay of each head, (H,) float64.

    eq8: 1 - 2^(-5-h), arXiv:2307.08621 Eq. 8, torchscale, fla.
    paper: 1 - exp(linspace(log 1/32, log 1/512, H)), ibid. Sec. 3.1, which the paper's models used.
    """
    heads = torch.arange(num_heads, dtype=torch.float64)
    if kind == "eq8":
        return torch.log1p(-(2.0 ** (-5 - heads)))
    ends = torch.tensor([1 / 32, 1 / 512], dtype=torch.float64).log()
    return torch.log1p(-torch.linspace(float(ends[0]), float(ends[1]), num_heads, dtype=torch.float64).exp())


RETENTION_LAYOUTS: dict[str, Layout] = {"fla": "half", "torchscale": "interleaved"}
ATTENTION_LAYOUT: Layout = "half"


class RetentionMixer(nn.Module):
    """Gated multi-scale retention, arXiv:2307.08621 Eq. 8, in the variants `fla` and `torchscale`.

    fla: half-split rotary, RMSNorm of each head with one weight for all heads, swish gate.
    torchscale: interleaved rotary over linspace, RMSNorm without a weight, and the retention at position n divided by
    the square root of the row sum of D, (1 - decay^(n+1)) / (1 - decay): the same scalar in every form. torchscale's
    parallel form divides by a second, data-dependent sum, which its own recurrent form leaves out; so does this.

    Args:
        config: The model.
        backend: parallel, chunkwise or recurrent: the form for more than one token. One token without gradients is
            always a recurrent step, in place.
        chunk_size: Tokens of a chunk of the chunkwise form.
    """

    def __init__(self, config: RetNetConfig, backend: str, chunk_size: int) -> None:
        super().__init__()
        self.config = config
        self.layout = RETENTION_LAYOUTS[config.variant]
        self.forms: dict[str, RetentionForm] = {
            "parallel": retention_parallel,
            "chunkwise": partial(retention_chunkwise, chunk_size=chunk_size),
            "recurrent": retention_recurrent,
        }
        d, values = config.d_model, config.value_dim
        self.qkvg_proj = Linear(d, 2 * d + 2 * values)
        self.head_norm = nn.RMSNorm(
            config.value_head_dim, eps=config.norm_eps, elementwise_affine=config.variant == "fla"
        )
        self.out_proj = Linear(values, d)
        self.log_decay = Float64Constant(lambda: decay_schedule(config.decay, config.num_heads))
        self.ran: dict[str, str] = {}
        self.set_backend(backend)

    def backends(self, device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
        """Each form, with the reason why it cannot run here, or None."""
        return dict.fromkeys(self.forms)

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

    def forward(self, x: Tensor, state: LayerState | None, positions: Positions) -> Tensor:
        """(B, T, D) to (B, T, D); `state` is advanced in place."""
        batch, length, d = x.shape
        heads, values = self.config.num_heads, self.config.value_dim
        qk, v, gate = self.qkvg_proj(x).split([2 * d, values, values], dim=-1)
        qk = rotate(qk.view(batch, length, 2 * heads, -1), positions, self.layout)  # (B, T, 2H, K)
        q, k = qk.chunk(2, dim=2)
        out = self._retain(q, k * self.config.head_dim**-0.5, v.view(batch, length, heads, -1), state)
        if self.config.variant == "torchscale":
            out = out * self._row_norm(positions.start, length).to(out.dtype)
        out = self.head_norm(out).view(batch, length, values)
        mixed: Tensor = self.out_proj(F.silu(gate) * out)
        return mixed

    def _retain(self, q: Tensor, k: Tensor, v: Tensor, state: LayerState | None) -> Tensor:
        """The operator: one in-place step for one token, the chosen form for more; (B, T, H, V)."""
        log_decay = self.log_decay.value
        if state is None:
            self.ran["prefill"] = self.backend
            return self.forms[self.backend](q, k, v, log_decay, None)[0]
        assert isinstance(state, RetentionState)
        if q.shape[1] == 1 and not torch.is_grad_enabled():
            self.ran["decode"] = "recurrent"
            return retention_step_(q, k, v, log_decay, state.values)
        self.ran["prefill"] = self.backend
        out, values = self.forms[self.backend](q, k, v, log_decay, state.values)
        if values.requires_grad:
            state.values = values
        else:  # in place, so that a captured CUDA graph finds it where it was
            state.values.copy_(values)
        return out

    def _row_norm(self, start: int, length: int) -> Tensor:
        """One over the square root of the row sums of D at positions start .. start + length - 1, (T, H, 1)."""
        log_decay = self.log_decay.value
        tokens = torch.arange(start + 1, start + length + 1, dtype=torch.float64, device=log_decay.device)
        row_sum = torch.expm1(tokens[:, None] * log_decay) / torch.expm1(log_decay)
        return row_sum.rsqrt().unsqueeze(-1)


class AttentionMixer(nn.Module):
    """Causal attention with half-split rotary positions, as in Llama; grouped-query where num_kv_heads < num_heads.

    Args:
        config: The model.
        backend: A name in `attention.BACKENDS`, for prefill and decode alike.
    """

    def __init__(self, config: TransformerConfig, backend: str) -> None:
        super().__init__()
        self.config = config
        kv_width = config.num_kv_heads * config.head_dim
        self.qkv_proj = Linear(config.d_model, config.d_model + 2 * kv_width)
        self.out_proj = Linear(config.d_model, config.d_model)
        self.ran: dict[str, str] = {}
        self.set_backend(backend)

    def backends(self, device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
        """Each attention backend, with the reason why it cannot run here, or None."""
        return {name: attention.missing_reason(name, device, dtype) for name in attention.BACKENDS}

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

    def forward(self, x: Tensor, state: LayerState | None, positions: Positions) -> Tensor:
        """(B, T, D) to (B, T, D); `state` is advanced in place."""
        batch, length, d = x.shape
        heads, kv_heads, head_dim = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        qkv = self.qkv_proj(x).view(batch, length, heads + 2 * kv_heads, head_dim)
        qk = rotate(qkv[:, :, : heads + kv_heads], positions, ATTENTION_LAYOUT)
        q, k = qk.transpose(1, 2).split([heads, kv_heads], dim=1)  # (B, H, T, K), (B, Hkv, T, K)
        v = qkv[:, :, heads + kv_heads :].transpose(1, 2)  # (B, Hkv, T, K)
        if state is not None:
            assert isinstance(state, KVCache)
            k, v = state.append(k, v, positions.start)
        out = attention.BACKENDS[self.backend](q, k, v)  # (B, H, T, K)
        self._note_what_ran("prefill" if length > 1 else "decode", q, k, v)
        mixed: Tensor = self.out_proj(out.transpose(1, 2).reshape(batch, length, d))
        return mixed

    def _note_what_ran(self, phase: str, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Ask once a phase, so that a decode step does nothing for it."""
        if phase not in self.ran:
            kernel = f":{attention.sdpa_kernel(q, k, v)}" if self.backend == "sdpa" else ""
            self.ran[phase] = self.backend + kernel


Mixer = RetentionMixer | AttentionMixer
