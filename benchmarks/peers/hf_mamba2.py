"""transformers' Mamba2ForCausalLM, without optional kernels: built, initialised, and decoded token by token."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM

from benchmarks.peers import pairs
from retbench.architectures.configs import ModelConfig


def build_peer(config: ModelConfig, *, seed: int) -> Mamba2ForCausalLM:
    """Build a Mamba-2 of `config`'s shapes with its own initialisation, and norms and skips that are not all one.

    Args:
        config: The model, whose inner width is a multiple of its width: transformers has no others.
        seed: Same seed, same weights.
    """
    torch.manual_seed(seed)
    mixer = pairs.mamba2_of(config)
    arguments = Mamba2Config(
        num_heads=mixer.num_heads,
        head_dim=mixer.value_head_dim,
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        state_size=mixer.state_size,
        num_hidden_layers=config.num_layers,
        layer_norm_epsilon=config.norm_eps,
        expand=mixer.inner_dim // config.d_model,
        conv_kernel=mixer.conv_width,
        n_groups=mixer.num_groups,
        # At the default of 0.1, the peer itself differs by more than the limit from the same model in float64.
        initializer_range=0.02,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    peer = Mamba2ForCausalLM(arguments).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if name.endswith(("norm.weight", "norm_f.weight", ".D")):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("conv1d.bias"):
                parameter.uniform_(-0.5, 0.5)
    return peer


def last_logits(peer: Mamba2ForCausalLM, tokens: Tensor) -> Tensor:
    """Return the logits (1, 1, N) of the last of tokens (1, T), with the state, which is not returned."""
    logits: Tensor = peer(tokens, use_cache=True, logits_to_keep=1).logits
    return logits


class CachedDecoding:
    """Decoding of a peer after a prompt (1, T), from the state that its forward leaves.

    Attributes:
        logits: Those of the prompt's last token, (1, 1, N).
    """

    def __init__(self, peer: Mamba2ForCausalLM, prompt: Tensor) -> None:
        self._peer = peer
        found = peer(prompt, use_cache=True, logits_to_keep=1)
        self.logits: Tensor = found.logits
        self._cache: Any = found.cache

    def step(self, token: Tensor) -> Tensor:
        """Return the logits of one more token (1, 1), (1, 1, N)."""
        logits: Tensor = self._peer(token, cache=self._cache, use_cache=True).logits
        return logits

    def mark(self) -> Any:
        """Return a copy of the state."""
        return deepcopy(self._cache)

    def rewind(self, mark: Any) -> None:
        """Continue from a state that `mark` returned, any number of times."""
        self._cache = deepcopy(mark)
