"""transformers' MistralForCausalLM: Llama's blocks with a sliding window, our `sliding_window` without sinks."""

import torch
from transformers import MistralConfig, MistralForCausalLM

from benchmarks.peers import hf_llama
from retbench.architectures.configs import ModelConfig
from retbench.mixers.window_attention.config import WindowAttention


def build_peer(config: ModelConfig, *, seed: int, max_len: int) -> MistralForCausalLM:
    """Build a Mistral of `config`'s shapes with its own initialisation, norm weights that are not all one, and SDPA.

    Args:
        config: The model.
        seed: Same seed, same weights.
        max_len: Largest number of positions.
    """
    mixer = config.mixer
    assert isinstance(mixer, WindowAttention)
    torch.manual_seed(seed)
    fields = hf_llama.shape_fields(config, max_len) | {"sliding_window": mixer.window}
    peer = MistralForCausalLM(MistralConfig(**fields)).eval()
    hf_llama.draw_norms(peer)
    return peer
