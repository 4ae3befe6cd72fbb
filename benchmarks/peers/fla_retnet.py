"""The RetNet of flash-linear-attention, written from its published description as plain float64 loops.

This is not flash-linear-attention itself, whose kernels run on GPUs only. It computes one token and one head at a time
and shares no code with `retbench.models`, so that it does not repeat our errors. Weights have the names of its
checkpoints.

Source: fla-org/flash-linear-attention, `fla/layers/multiscale_retention.py`, `fla/models/retnet/modeling_retnet.py`,
`fla/modules/rotary.py`.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.peers import pairs
from retbench.architectures.configs import ModelConfig

Weights = Mapping[str, Tensor]


def draw_weights(config: ModelConfig, *, seed: int) -> dict[str, Tensor]:
    """Draw float64 weights under the names of fla's checkpoints, large enough for every part to matter."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        drawn = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return drawn / math.sqrt(columns)

    def norm(width: int) -> Tensor:
        return 0.5 + torch.rand(width, generator=generator, dtype=torch.float64)

    d, values, ffn = config.d_model, pairs.retention_of(config).value_dim, pairs.ffn_of(config).ffn_dim
    weights = {
        "model.embeddings.weight": matrix(config.vocab_size, d) * math.sqrt(d),
        "model.norm.weight": norm(d),
        "lm_head.weight": matrix(config.vocab_size, d),
    }
    for index in range(config.num_layers):
        layer = f"model.layers.{index}"
        weights |= {
            f"{layer}.attn_norm.weight": norm(d),
            f"{layer}.attn.q_proj.weight": matrix(d, d),
            f"{layer}.attn.k_proj.weight": matrix(d, d),
            f"{layer}.attn.v_proj.weight": matrix(values, d),
            f"{layer}.attn.g_proj.weight": matrix(values, d),
            f"{layer}.attn.o_proj.weight": matrix(d, values),
            f"{layer}.attn.g_norm_swish_gate.weight": norm(pairs.retention_of(config).value_head_dim),
            f"{layer}.mlp_norm.weight": norm(d),
            f"{layer}.mlp.gate_proj.weight": matrix(ffn, d),
            f"{layer}.mlp.up_proj.weight": matrix(ffn, d),
            f"{layer}.mlp.down_proj.weight": matrix(d, ffn),
        }
    return weights


def logits(weights: Weights, config: ModelConfig, tokens: Tensor) -> Tensor:
    """Return the logits (T, N) float64 of one sequence of tokens (T,), token by token."""
    shape = (config.mixer.num_heads, config.mixer.head_dim, pairs.retention_of(config).value_head_dim)
    states = [torch.zeros(shape, dtype=torch.float64) for _ in range(config.num_layers)]
    rows = []
    for position, token in enumerate(tokens.tolist()):
        x = weights["model.embeddings.weight"][token]
        for index, state in enumerate(states):
            layer = f"model.layers.{index}"
            mixed = _retain(
                weights,
                f"{layer}.attn",
                config,
                _rms_norm(x, weights[f"{layer}.attn_norm.weight"]),
                state,
                position,
            )
            x = x + mixed
            x = x + _swiglu(weights, f"{layer}.mlp", _rms_norm(x, weights[f"{layer}.mlp_norm.weight"]))
        rows.append(weights["lm_head.weight"] @ _rms_norm(x, weights["model.norm.weight"]))
    return torch.stack(rows)


def _retain(
    weights: Weights, layer: str, config: ModelConfig, x: Tensor, state: Tensor, position: int
) -> Tensor:
    """Return the multi-scale retention of one token x (D,); `state` (H, K, V) is advanced in place."""
    q = (weights[f"{layer}.q_proj.weight"] @ x).view(config.mixer.num_heads, -1)
    k = (weights[f"{layer}.k_proj.weight"] @ x).view(config.mixer.num_heads, -1)
    v = (weights[f"{layer}.v_proj.weight"] @ x).view(config.mixer.num_heads, -1)
    gate_proj = weights.get(f"{layer}.g_proj.weight")  # absent where `use_output_gate` is false
    gate = (gate_proj @ x).view(config.mixer.num_heads, -1) if gate_proj is not None else None
    outs = []
    for head in range(config.mixer.num_heads):
        query, key = _rotate(q[head], position), _rotate(k[head], position)
        decay = 1 - 2.0 ** (-5 - head)
        state[head] = decay * state[head] + torch.outer(key, v[head])
        out = (query * config.mixer.head_dim**-0.5) @ state[head]
        normed = _rms_norm(out, weights[f"{layer}.g_norm_swish_gate.weight"])
        outs.append(normed if gate is None else normed * gate[head] * torch.sigmoid(gate[head]))
    return weights[f"{layer}.o_proj.weight"] @ torch.cat(outs)


def _rotate(x: Tensor, position: int) -> Tensor:
    """Rotate one head x (K,): pairs (x_i, x_{i+K/2}) by position / 10000^(2i/K)."""
    half = x.shape[0] // 2
    rotated = torch.empty_like(x)
    for i in range(half):
        angle = torch.tensor(position / 10000.0 ** (2 * i / x.shape[0]), dtype=torch.float64)
        rotated[i] = x[i] * angle.cos() - x[i + half] * angle.sin()
        rotated[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin()
    return rotated


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Divide a vector (D,) by its rms and multiply it by the weight; epsilon 1e-6 as in fla's configuration."""
    normed: Tensor = x / (x.pow(2).mean() + 1e-6).sqrt() * weight
    return normed


def _swiglu(weights: Weights, layer: str, x: Tensor) -> Tensor:
    """Return the gated feed-forward of one token x (D,)."""
    gate = weights[f"{layer}.gate_proj.weight"] @ x
    up = weights[f"{layer}.up_proj.weight"] @ x
    return weights[f"{layer}.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up)


def retention_loop(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the operator by its definition, in float64, one token and one head at a time.

    Args:
        q: (T, H, K).
        k: (T, H, K).
        v: (T, H, V).
        log_decay: (H,), or (T, H) where it depends on the data.

    Returns:
        out (T, H, V) and the last state (H, K, V), float64.
    """
    length, heads, key_dim = q.shape
    state = torch.zeros(heads, key_dim, v.shape[-1], dtype=torch.float64)
    out = torch.empty(v.shape, dtype=torch.float64)
    for t in range(length):
        for head in range(heads):
            log = log_decay[head] if log_decay.dim() == 1 else log_decay[t, head]
            state[head] = log.double().exp() * state[head] + torch.outer(
                k[t, head].double(), v[t, head].double()
            )
            out[t, head] = q[t, head].double() @ state[head]
    return out, state
