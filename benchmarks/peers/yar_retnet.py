"""yet-another-retnet: a RetNet of other constants (the paper's decays, biases, values as wide as keys).

Its weights fit no model of ours, so equality is shown of the operator, which both have with the paper's decays.
"""

import torch
from torch import Tensor
from yet_another_retnet.retnet import RetNet

from retbench import costs
from retbench.architectures import RetNetConfig

CHUNK_SIZE = 512  # it has no default; torchscale's


def build_peer(config: RetNetConfig, *, seed: int) -> RetNet:
    """A decoder with `config`'s width, depth, heads and vocabulary, its feed-forward solved for the same parameters."""
    torch.manual_seed(seed)
    budget = costs.layer_params(config)
    d = config.d_model
    # q, k, v, g, out with biases and two layer norms; then two matrices with biases of the width to be solved
    fixed = 5 * (d * d + d) + 4 * d + d
    ffn_dim = 8 * round((budget - fixed) / (2 * d + 1) / 8)
    return RetNet(
        num_tokens=config.vocab_size,
        d_model=d,
        nhead=config.num_heads,
        num_layers=config.num_layers,
        dropout=0.0,
        dim_feedforward=ffn_dim,
    )


def forward_chunkwise(peer: RetNet, tokens: Tensor) -> Tensor:
    """Logits (B, T, N) by its chunkwise form; the caller walks over the chunks, as its README shows."""
    states: list[Tensor] = []
    outs = []
    for start in range(0, tokens.shape[1], CHUNK_SIZE):
        out, states = peer.forward_chunkwise(tokens[:, start : start + CHUNK_SIZE], start, states)
        outs.append(out)
    return torch.cat(outs, dim=1)
