"""transformers' LlamaForCausalLM: built, initialised, and timed token by token inside its own `generate`."""

import time
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.peers import pairs
from retbench.architectures.configs import ModelConfig
from retbench.mixers.softmax_attention import SoftmaxAttention


def build_peer(config: ModelConfig, *, seed: int, max_len: int) -> LlamaForCausalLM:
    """Build a Llama of `config`'s shapes with its own initialisation, norm weights that are not all one, and SDPA.

    Args:
        config: The model.
        seed: Same seed, same weights.
        max_len: Largest number of positions.
    """
    torch.manual_seed(seed)
    peer = LlamaForCausalLM(LlamaConfig(**shape_fields(config, max_len))).eval()
    draw_norms(peer)
    return peer


def shape_fields(config: ModelConfig, max_len: int) -> dict[str, Any]:
    """Return the fields of a configuration that Llama and its relatives share, for `config`'s shapes."""
    mixer = config.mixer
    assert isinstance(mixer, SoftmaxAttention)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": pairs.ffn_of(config).ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": max_len,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,  # nothing ends a generation early
        "pad_token_id": None,
        "attn_implementation": "sdpa",
    }


@torch.no_grad()
def draw_norms(peer: nn.Module) -> None:
    """Draw weights of norms that are not all one."""
    for parameter in peer.parameters():
        if parameter.dim() == 1:
            parameter.uniform_(0.5, 1.5)


class Generated(NamedTuple):
    """Result of one call of `generate`."""

    tokens: Tensor
    """(1, n) int64: the new tokens."""
    logits: Tensor
    """(1, n, N): logits of each new token; empty unless requested."""
    step_s: list[float]
    """Seconds from each new token to the next, n - 1 of them: decode steps, without the prefill."""


class _TokenClock:
    """A streamer for `generate`: it receives the prompt, then every new token as soon as it is known."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing after the last token."""


def _static_options(peer: LlamaForCausalLM) -> dict[str, Any]:
    """Return the options of `generate` for a static cache of the model's largest length, and compiled decode steps.

    One length for every call: another one would be compiled anew.
    """
    compiled = CompileConfig()
    # transformers compiles on a GPU by itself; on a CPU it compiles only with this flag.
    compiled._compile_all_devices = True
    return {
        "cache_implementation": "static",
        "max_cache_len": peer.config.max_position_embeddings,
        "compile_config": compiled,
    }


def generate(
    peer: LlamaForCausalLM,
    prompt: Tensor,
    num_tokens: int,
    *,
    with_logits: bool = False,
    static: bool = False,
) -> Generated:
    """Generate greedily with the key-value cache that transformers uses by default, or with a static one.

    Args:
        peer: The model.
        prompt: (1, T) int64.
        num_tokens: Exact number of new tokens.
        with_logits: Keep the logits of every step; not for timing.
        static: Use a static cache and compile the decode steps by `generate`'s own options.

    Raises:
        RuntimeError: transformers did not compile the steps.
    """
    clock = _TokenClock()
    found = peer.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        do_sample=False,
        use_cache=True,
        streamer=clock,
        return_dict_in_generate=True,
        output_logits=with_logits,
        **(_static_options(peer) if static else {}),
    )
    if static and not hasattr(peer, "_compiled_call"):
        raise RuntimeError("transformers did not compile the decode steps of a static cache.")
    new = clock.times[1:]  # the first call is for the prompt
    step_s = [later - earlier for earlier, later in pairwise(new)]
    logits = torch.stack(found.logits, dim=1) if with_logits else torch.empty(0)
    return Generated(found.sequences[:, prompt.shape[1] :], logits, step_s)


def median_step_s(
    peer: LlamaForCausalLM, prompt: Tensor, *, warm: int, timed: int, static: bool = False
) -> float:
    """Return the median seconds of a decode step inside one `generate` call, after `warm` untimed steps."""
    return median(generate(peer, prompt, warm + timed + 1, static=static).step_s[warm:])
