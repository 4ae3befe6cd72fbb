"""RWKV-5 and RWKV-6 in float64 numpy, token by token, from the formulas of arXiv:2404.05892, Sec. 4.

Nothing of the package is used but the names of its weights. One sequence at a time; each block is a pair of functions
that get the input of the token before.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]


def logits(weights: Weights, tokens: list[int], heads: int, layers: int) -> Array:
    """Logits (T, N)."""
    width = weights["embedding.weight"].shape[1]
    states = [np.zeros((heads, width // heads, width // heads)) for _ in range(layers)]
    before = [np.zeros((2, width)) for _ in range(layers)]
    rows = []
    for token in tokens:
        x = layer_norm(weights["embedding.weight"][token], below(weights, "embedding_norm."))
        for layer in range(layers):
            block = below(weights, f"blocks.{layer}.")
            seen = layer_norm(x, below(block, "mixer_norm."))
            x = x + time_mix(below(block, "mixer."), seen, before[layer][0], states[layer])
            before[layer][0] = seen
            seen = layer_norm(x, below(block, "ffn_norm."))
            x = x + channel_mix(below(block, "ffn."), seen, before[layer][1])
            before[layer][1] = seen
        rows.append(weights["head.weight"] @ layer_norm(x, below(weights, "norm.")))
    return np.stack(rows)


def below(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def layer_norm(x: Array, weights: Weights, eps: float = 1e-5) -> Array:
    return (x - x.mean()) / np.sqrt(x.var() + eps) * weights["weight"] + weights["bias"]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def time_mix(weights: Weights, x: Array, before: Array, state: Array) -> Array:
    """Output of one token; the state (H, K, V) is advanced in place."""
    heads, width, _ = state.shape
    letters = "wkvrg" if "decay_down" in weights else "kvrg"
    mixes = dict(zip(letters, np.split(weights["mix"], len(letters)), strict=True))
    if "mix_input" in weights:
        low = np.tanh((x + (before - x) * weights["mix_input"]) @ weights["mix_down"])
        for index, part in enumerate(np.split(low, len(letters))):
            mixes[letters[index]] = mixes[letters[index]] + part @ weights["mix_up"][index]
    mixed = {letter: x + (before - x) * mix for letter, mix in mixes.items()}
    r = (weights["receptance_proj.weight"] @ mixed["r"]).reshape(heads, width)
    k = (weights["key_proj.weight"] @ mixed["k"]).reshape(heads, width)
    v = (weights["value_proj.weight"] @ mixed["v"]).reshape(heads, width)
    gate = weights["gate_proj.weight"] @ mixed["g"]
    rate = weights["log_rate"]
    if "decay_down" in weights:
        rate = rate + np.tanh(mixed["w"] @ weights["decay_down"]) @ weights["decay_up"]
    decay = np.exp(-np.exp(rate)).reshape(heads, width)
    bonus = weights["bonus"].reshape(heads, width)
    outs = []
    for head in range(heads):
        own = np.outer(k[head], v[head])
        out = r[head] @ (state[head] + bonus[head][:, None] * own)
        state[head] = decay[head][:, None] * state[head] + own
        # The published code: GroupNorm of a read-out divided by 8, with an epsilon of 1e-5.
        out = out / 8
        outs.append((out - out.mean()) / np.sqrt(out.var() + 1e-5))
    normed = np.concatenate(outs) * weights["head_norm.weight"] + weights["head_norm.bias"]
    return weights["out_proj.weight"] @ (gate * sigmoid(gate) * normed)


def channel_mix(weights: Weights, x: Array, before: Array) -> Array:
    """Output of one token."""
    key = weights["key_proj.weight"] @ (x + (before - x) * weights["key_mix"])
    receptance = weights["receptance_proj.weight"] @ (x + (before - x) * weights["receptance_mix"])
    return sigmoid(receptance) * (weights["value_proj.weight"] @ np.maximum(key, 0) ** 2)
