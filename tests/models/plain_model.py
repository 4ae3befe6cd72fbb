"""The models once more, in float64 numpy, written from the papers: slow, obvious, and without any code of the package.

One sequence at a time, every pair of tokens, one head after the other. Only the names of the weights are the package's.

Sources: Sun et al., arXiv:2307.08621, Sec. 2 and 3.1; Sun et al., arXiv:2405.05254; DeepSeek-AI, arXiv:2405.04434,
Eq. 9 to 19; torchscale and YOCO for what the papers leave open (rotary frequencies, head norms without weights).
"""

import math

import numpy as np
from numpy.typing import NDArray

from retbench.architectures.configs import ModelConfig
from retbench.mixers.mixer import Mixer

Array = NDArray[np.float64]
Weights = dict[str, Array]


def logits(weights: Weights, config: ModelConfig, tokens: list[int]) -> Array:
    """Logits (T, N)."""
    layered = config.variant in ("paper", "gpt")
    x = weights["embedding.weight"][tokens]
    shared = None
    for index, layer in enumerate(config.layers):
        block = _below(weights, f"blocks.{index}.")
        normed, mixer = _norm(x, _below(block, "mixer_norm."), layered, config.norm_eps), layer.mixer
        if mixer.mixer == "retention":
            x = x + _retain(_below(block, "mixer."), config, normed)
        elif mixer.mixer == "latent_attention":
            x = x + _attend_latent(_below(block, "mixer."), config, normed)
        else:
            if mixer.mixer != "shared_attention":
                shared = _project_keys(_below(block, "mixer."), mixer, normed)
            x = x + _attend(_below(block, "mixer."), mixer, normed, shared)
        feed = _gelu_ffn if layered else _swiglu
        x = x + feed(_below(block, "ffn."), _norm(x, _below(block, "ffn_norm."), layered, config.norm_eps))
    return _norm(x, _below(weights, "norm."), layered, config.norm_eps) @ weights["head.weight"].T


def _below(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _norm(x: Array, weights: Weights, layered: bool, eps: float) -> Array:
    if layered:
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return x * weights.get("weight", 1.0) + weights.get("bias", 0.0)


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def _swiglu(weights: Weights, x: Array) -> Array:
    gate, up = np.split(x @ weights["gate_up_proj.weight"].T, 2, axis=-1)
    return (_silu(gate) * up) @ weights["down_proj.weight"].T


def _gelu_ffn(weights: Weights, x: Array) -> Array:
    x = x @ weights["up_proj.weight"].T
    gelu = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return gelu @ weights["down_proj.weight"].T


def _rotate(x: Array, interleaved: bool) -> Array:
    """x (T, K), token t at position t, each pair as a complex number turned by t theta."""
    length, width = x.shape
    half = width // 2
    if interleaved:
        theta = 10_000.0 ** -np.linspace(0, 1, half)
        real, imaginary = x[:, 0::2], x[:, 1::2]
    else:
        theta = 10_000.0 ** -(np.arange(half) / half)
        real, imaginary = x[:, :half], x[:, half:]
    turned = (real + 1j * imaginary) * np.exp(1j * np.arange(length)[:, None] * theta)
    out = np.empty_like(x)
    if interleaved:
        out[:, 0::2], out[:, 1::2] = turned.real, turned.imag
    else:
        out[:, :half], out[:, half:] = turned.real, turned.imag
    return out


def _decays(weights: Weights, config: ModelConfig, x: Array) -> Array:
    """Decay of each token and head, (T, H)."""
    heads = config.mixer.num_heads
    match config.mixer.decay:
        case "eq8":
            fixed = [1 - 2.0 ** (-5 - head) for head in range(heads)]
        case "paper":
            fixed = list(1 - np.exp(np.linspace(math.log(1 / 32), math.log(1 / 512), heads)))
        case "single":
            fixed = [127 / 128] * heads
        case "none":
            fixed = [1.0] * heads
        case "gated":
            return (1 / (1 + np.exp(-(x @ weights["decay_proj.weight"].T)))) ** (1 / 16)
    return np.tile(fixed, (x.shape[0], 1))


def _retain(weights: Weights, config: ModelConfig, x: Array) -> Array:
    d, values, heads = config.d_model, config.mixer.value_dim, config.mixer.num_heads
    length = x.shape[0]
    projected = x @ weights["qkvg_proj.weight"].T
    q, k, v, gate = np.split(projected, [d, 2 * d, 2 * d + values], axis=-1)
    decays = _decays(weights, config, x)
    outs = []
    for head, (qh, kh, vh) in enumerate(zip(*(np.split(y, heads, axis=-1) for y in (q, k, v)), strict=True)):
        interleaved = config.variant != "fla"
        scores = _rotate(qh, interleaved) @ _rotate(kh, interleaved).T / math.sqrt(config.mixer.head_dim)
        matrix = np.zeros((length, length))
        for n in range(length):
            for m in range(n + 1):
                matrix[n, m] = np.prod(decays[m + 1 : n + 1, head])
        if config.variant in ("torchscale", "paper"):
            matrix = matrix / np.sqrt(matrix.sum(-1, keepdims=True))
        out = (scores * matrix) @ vh
        if config.mixer.head_norm != "none":
            weight = {"weight": weights["head_norm.weight"]} if config.variant == "fla" else {}
            out = _norm(out, weight, config.variant == "paper", config.norm_eps)
        outs.append(out)
    mixed = np.concatenate(outs, axis=-1)
    if config.mixer.swish_gate:
        mixed = _silu(gate) * mixed
    return mixed @ weights["out_proj.weight"].T


def _project_keys(weights: Weights, mixer: Mixer, x: Array) -> tuple[Array, Array]:
    """Keys and values, (T, Hkv K) each."""
    kept = weights["qkv_proj.weight"][mixer.d_model :]
    return tuple(np.split(x @ kept.T, 2, axis=-1))


def _attend(weights: Weights, mixer: Mixer, x: Array, keys_and_values: tuple[Array, Array]) -> Array:
    k, v = keys_and_values
    length, width = x.shape[0], mixer.head_dim
    from_queries = (
        weights["q_proj.weight"]
        if "q_proj.weight" in weights
        else weights["qkv_proj.weight"][: mixer.d_model]
    )
    q = x @ from_queries.T
    outs = []
    for head in range(mixer.num_heads):
        shared = head * mixer.num_kv_heads // mixer.num_heads
        own, theirs = slice(head * width, (head + 1) * width), slice(shared * width, (shared + 1) * width)
        scores = _rotate(q[:, own], False) @ _rotate(k[:, theirs], False).T / math.sqrt(width)
        scores[np.triu_indices(length, 1)] = -np.inf
        if mixer.mixer == "window_attention":
            scores[np.tril_indices(length, -mixer.window)] = -np.inf
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        outs.append(weight / weight.sum(-1, keepdims=True) @ v[:, theirs])
    return np.concatenate(outs, axis=-1) @ weights["out_proj.weight"].T


def _attend_latent(weights: Weights, config: ModelConfig, x: Array) -> Array:
    """Every head's keys and values written out, Eq. 9 to 19."""
    mixer, heads, length = config.mixer, config.mixer.num_heads, x.shape[0]
    rank, rope = mixer.kv_rank, mixer.rope_head_dim
    projected = x @ weights["in_proj.weight"].T
    queries, latent, shared_key = np.split(projected, [-rank - rope, -rope], axis=-1)
    if mixer.query_rank is not None:
        normed = _norm(queries, _below(weights, "query_norm."), False, mixer.norm_eps)
        queries = normed @ weights["query_up_proj.weight"].T
    latent = _norm(latent, _below(weights, "latent_norm."), False, mixer.norm_eps)
    keys = np.split(latent @ weights["key_up_proj.weight"].T, heads, axis=-1)
    values = np.split(latent @ weights["value_up_proj.weight"].T, heads, axis=-1)
    outs = []
    for q, k, v in zip(np.split(queries, heads, axis=-1), keys, values, strict=True):
        content, rotary = np.split(q, [mixer.nope_head_dim], axis=-1)
        scores = content @ k.T + _rotate(rotary, False) @ _rotate(shared_key, False).T
        scores = scores / math.sqrt(mixer.nope_head_dim + rope)
        scores[np.triu_indices(length, 1)] = -np.inf
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        outs.append(weight / weight.sum(-1, keepdims=True) @ v)
    return np.concatenate(outs, axis=-1) @ weights["out_proj.weight"].T
