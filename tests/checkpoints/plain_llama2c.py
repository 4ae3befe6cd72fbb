"""llama2.c's forward pass in numpy float64, a token and a head at a time, as `run.c` does it; and its file.

Nothing here shares code with the package: rotary pairs are side by side, as in the file.
"""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")


def read(path: Path) -> tuple[dict[str, int], dict[str, Array]]:
    """Header and weights of a file, those of all layers together as in the file."""
    raw = path.read_bytes()
    header = dict(zip(FIELDS, struct.unpack("<7i", raw[:28]), strict=True))
    values = np.frombuffer(raw, "<f4", offset=28).astype(np.float64)
    weights, start = {}, 0
    for name, shape in shapes(header).items():
        size = int(np.prod(shape))
        weights[name] = values[start : start + size].reshape(shape)
        start += size
    assert start == values.size
    return header, weights


def write(path: Path, header: dict[str, int], weights: dict[str, Array]) -> None:
    """A file with these weights."""
    parts = [np.asarray(weights[name], "<f4").reshape(shape) for name, shape in shapes(header).items()]
    path.write_bytes(struct.pack("<7i", *header.values()) + b"".join(part.tobytes() for part in parts))


def draw(header: dict[str, int], seed: int) -> dict[str, Array]:
    """Weights so large that every part of a block shows."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.uniform(0.5, 1.5, shape)
        if name.startswith("rms")
        else generator.normal(0, shape[-1] ** -0.5, shape)
        for name, shape in shapes(header).items()
    }


def shapes(header: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """In the order of the file."""
    d, f, layers, heads = (header[name] for name in ("dim", "hidden_dim", "n_layers", "n_heads"))
    kv, vocab, half = header["n_kv_heads"] * d // heads, abs(header["vocab_size"]), d // heads // 2
    found: dict[str, tuple[int, ...]] = {
        "token_embedding_table": (vocab, d),
        "rms_att_weight": (layers, d),
        "wq": (layers, d, d),
        "wk": (layers, kv, d),
        "wv": (layers, kv, d),
        "wo": (layers, d, d),
        "rms_ffn_weight": (layers, d),
        "w1": (layers, f, d),
        "w2": (layers, d, f),
        "w3": (layers, f, d),
        "rms_final_weight": (d,),
        "freq_cis_real": (header["seq_len"], half),
        "freq_cis_imag": (header["seq_len"], half),
    }
    if header["vocab_size"] < 0:
        found["wcls"] = (vocab, d)
    return found


def logits(header: dict[str, int], weights: dict[str, Array], tokens: list[int]) -> Array:
    """(T, N)."""
    heads, groups = header["n_heads"], header["n_heads"] // header["n_kv_heads"]
    size = header["dim"] // heads
    cache: list[list[tuple[Array, Array]]] = [[] for _ in range(header["n_layers"])]
    rows = []
    for position, token in enumerate(tokens):
        x = weights["token_embedding_table"][token].copy()
        for layer, seen in enumerate(cache):
            normed = rms_norm(x, weights["rms_att_weight"][layer])
            q = rotate(weights["wq"][layer] @ normed, position, size)
            seen.append(
                (rotate(weights["wk"][layer] @ normed, position, size), weights["wv"][layer] @ normed)
            )
            mixed = np.zeros_like(x)
            for head in range(heads):
                mine = slice(head * size, (head + 1) * size)
                theirs = slice(head // groups * size, (head // groups + 1) * size)
                scores = np.array([q[mine] @ key[theirs] for key, _ in seen]) / np.sqrt(size)
                shares = np.exp(scores - scores.max())
                shares /= shares.sum()
                mixed[mine] = sum(
                    share * value[theirs] for share, (_, value) in zip(shares, seen, strict=True)
                )
            x += weights["wo"][layer] @ mixed
            normed = rms_norm(x, weights["rms_ffn_weight"][layer])
            gate = weights["w1"][layer] @ normed
            x += weights["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (weights["w3"][layer] @ normed))
        table = weights.get("wcls", weights["token_embedding_table"])
        rows.append(table @ rms_norm(x, weights["rms_final_weight"]))
    return np.stack(rows)


def rms_norm(x: Array, weight: Array) -> Array:
    return weight * x / np.sqrt((x * x).mean() + 1e-5)


def rotate(x: Array, position: int, size: int) -> Array:
    """Every pair (x_i, x_i+1) of every head, turned by position / 10000^(i / size)."""
    out = np.empty_like(x)
    for i in range(0, x.size, 2):
        angle = position / 10000.0 ** (i % size / size)
        out[i] = x[i] * np.cos(angle) - x[i + 1] * np.sin(angle)
        out[i + 1] = x[i] * np.sin(angle) + x[i + 1] * np.cos(angle)
    return out
