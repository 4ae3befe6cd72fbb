"""yet-another-retnet: the paper's block, but with biases and values as wide as keys, and without a last norm.

Its decays are those of the paper's experiments. If its biases are zero, our `paper` variant with values as wide as keys
can load its weights, and has the same logits without its last norm.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yet_another_retnet.retnet import RetNet

from benchmarks.peers import pairs
from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.models.decoder import Decoder

CHUNK_SIZE = 512  # torchscale's; it has no default


def build_matched_peer(config: ModelConfig, *, seed: int) -> RetNet:
    """Build a decoder with `config`'s width, depth, heads and vocabulary, and as many parameters."""
    budget = costs.block_params(config) // config.num_layers
    d = config.d_model
    # q, k, v, g, out with biases and two layer norms; then two matrices with biases of the width to be solved
    fixed = 5 * (d * d + d) + 4 * d + d
    ffn_dim = 8 * round((budget - fixed) / (2 * d + 1) / 8)
    return _build(config, ffn_dim, seed)


def _build(config: ModelConfig, ffn_dim: int, seed: int) -> RetNet:
    """Build a decoder with `config`'s width, depth, heads and vocabulary."""
    torch.manual_seed(seed)
    return RetNet(
        num_tokens=config.vocab_size,
        d_model=config.d_model,
        nhead=config.mixer.num_heads,
        num_layers=config.num_layers,
        dropout=0.0,
        dim_feedforward=ffn_dim,
        activation="gelu",
        layer_norm_eps=config.norm_eps,
    )


def build_peer(config: ModelConfig, *, seed: int) -> RetNet:
    """Build a decoder of `config`'s shapes with its own initialisation, whose biases are zero, and uneven norms."""
    peer = _build(config, pairs.ffn_of(config).ffn_dim, seed).eval()
    for layer in peer.decoder.layers:
        layer.retention.activation = F.silu  # it has one setting for the feed-forward and for the gate
        layer.retention.group_norm.eps = config.norm_eps
        for norm in (layer.norm1, layer.norm2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return peer


def carry(peer: RetNet, config: ModelConfig) -> Decoder:
    """Build our model with its weights and, like it, without a norm after the last block."""
    model = pairs.carry(config, _map_weights(peer.state_dict(), config))
    model.norm = nn.Identity()
    return model


def _map_weights(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return our state dict from its own; the last norm's weights are ours."""
    mapped = {
        "embedding.weight": weights["embedding.weight"],
        "head.weight": weights["out.weight"],
        "norm.weight": torch.ones(config.d_model),
        "norm.bias": torch.zeros(config.d_model),
    }
    for index in range(config.num_layers):
        theirs, ours = f"decoder.layers.{index}", f"blocks.{index}"
        projections = [weights[f"{theirs}.retention.{letter}_proj.weight"] for letter in "qkvg"]
        mapped |= {
            f"{ours}.mixer.qkvg_proj.weight": torch.cat(projections),
            f"{ours}.mixer.out_proj.weight": weights[f"{theirs}.retention.out_proj.weight"],
            f"{ours}.ffn.up_proj.weight": weights[f"{theirs}.linear1.weight"],
            f"{ours}.ffn.down_proj.weight": weights[f"{theirs}.linear2.weight"],
        }
        for norm, name in (("mixer_norm", "norm1"), ("ffn_norm", "norm2")):
            for part in ("weight", "bias"):
                mapped[f"{ours}.{norm}.{part}"] = weights[f"{theirs}.{name}.{part}"]
    return mapped


def forward_chunkwise(peer: RetNet, tokens: Tensor) -> Tensor:
    """Return logits (B, T, N) of its chunkwise form, chunk by chunk as its README shows."""
    states: list[Tensor] = []
    outs = []
    for start in range(0, tokens.shape[1], CHUNK_SIZE):
        out, states = peer.forward_chunkwise(tokens[:, start : start + CHUNK_SIZE], start, states)
        outs.append(out)
    return torch.cat(outs, dim=1)
