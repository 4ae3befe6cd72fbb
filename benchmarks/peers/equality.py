"""Compare logits of our models and each peer's from the same weights. Errors are max |difference| over the rms."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.peers import fla_retnet, pairs
from benchmarks.peers.outcomes import FP32_LIMIT, Outcome, error_outcome, worst
from retbench.architectures.configs import ModelConfig
from retbench.models.decoder import Decoder
from retbench.models.language_model import LanguageModel
from retbench.ops.linear_operator import linear_chunkwise, linear_parallel, linear_recurrent

FP64_LIMIT = 1e-12


@torch.inference_mode()
def decode_logits(model: LanguageModel, tokens: Tensor, num_prompt: int) -> Tensor:
    """Return logits (1, T - num_prompt + 1, N): prefill the prompt, then decode the other tokens of (1, T)."""
    state = model.init_state(1, tokens.shape[1])
    logits = [model.prefill(tokens[:, :num_prompt], state)]
    logits += [model(tokens[:, t : t + 1], state) for t in range(num_prompt, tokens.shape[1])]
    return torch.cat(logits, dim=1)


def _usable(model: Decoder) -> list[str]:
    """Return the forms or backends of a model that run here."""
    return [name for name, reason in model.backends().items() if reason is None]


@torch.inference_mode()
def torchscale_equality(config: ModelConfig | None = None, length: int = 385) -> Iterator[Outcome]:
    """Compare our forms with torchscale's parallel form and our decoding with its recurrent form; default size 25m."""
    from benchmarks.peers import torchscale_retnet

    config = config or pairs.torchscale_config()
    peer = torchscale_retnet.build_peer(config, seed=1)
    ours = pairs.carry(config, pairs.map_weights("torchscale", config, peer.state_dict()))
    tokens = pairs.random_tokens(config, length)
    expected = peer(tokens)[0]
    yield from _backends_against("equal-torchscale", ours, tokens, expected)
    decoding = torchscale_retnet.RecurrentDecoding(peer, length)
    stepped = torch.cat([decoding.step(tokens[:, t : t + 1]) for t in range(length)], dim=1)
    found = decode_logits(ours, tokens, 1)
    yield error_outcome("equal-torchscale: decode = its recurrent", found, stepped, FP32_LIMIT)


def llama_equality() -> Iterator[Outcome]:
    """Compare size 25m with multi-head attention, and with a quarter of the key-value heads."""
    for num_kv_heads in (None, 2):
        yield from llama_pair_equality(pairs.llama_config(num_kv_heads=num_kv_heads), 385, 16)


@torch.inference_mode()
def llama_pair_equality(config: ModelConfig, length: int, new_tokens: int) -> Iterator[Outcome]:
    """Compare our prefill with Llama's forward, and our decoding with each step of Llama's `generate`."""
    from benchmarks.peers import hf_llama

    mixer = pairs.attention_of(config)
    kind = "" if mixer.num_kv_heads == mixer.num_heads else f" ({mixer.num_kv_heads} key heads)"
    peer = hf_llama.build_peer(config, seed=1, max_len=length + new_tokens)
    ours = pairs.carry(config, pairs.map_weights("llama", config, peer.state_dict()))
    tokens = pairs.random_tokens(config, length)
    expected = peer(tokens).logits
    yield from _backends_against(f"equal-llama{kind}", ours, tokens, expected)
    generated = hf_llama.generate(peer, tokens, new_tokens, with_logits=True)
    whole = torch.cat([tokens, generated.tokens[:, :-1]], dim=1)
    found = decode_logits(ours, whole, length)
    yield error_outcome(f"equal-llama{kind}: decode = its generate", found, generated.logits, FP32_LIMIT)


@torch.inference_mode()
def mistral_equality(config: ModelConfig | None = None, length: int = 385) -> Iterator[Outcome]:
    """Compare our prefill and our decoding with Mistral's forward; by default size 25m, with a window of 100 tokens."""
    from benchmarks.peers import hf_mistral

    config = config or pairs.window_config()
    peer = hf_mistral.build_peer(config, seed=1, max_len=length)
    ours = pairs.carry(config, pairs.map_weights("llama", config, peer.state_dict()))
    tokens = pairs.random_tokens(config, length)
    yield from _against_forward("equal-mistral", ours, tokens, peer(tokens).logits)


@torch.inference_mode()
def deepseek_equality(config: ModelConfig | None = None, length: int = 385) -> Iterator[Outcome]:
    """Compare our prefill and our decoding with DeepSeek-V2's forward; by default size 25m in both variants."""
    from benchmarks.peers import hf_deepseek

    configs = [config] if config else [pairs.mla_config("direct"), pairs.mla_config("compressed")]
    for each in configs:
        peer = hf_deepseek.build_peer(each, seed=1, max_len=length)
        ours = pairs.carry(each, hf_deepseek.map_weights(peer.state_dict(), each))
        tokens = pairs.random_tokens(each, length)
        yield from _against_forward(f"equal-deepseek ({each.variant})", ours, tokens, peer(tokens).logits)


@torch.inference_mode()
def gpt_neox_equality(config: ModelConfig | None = None, length: int = 385) -> Iterator[Outcome]:
    """Compare our prefill and our decoding with GPT-NeoX's forward; size 25m by default."""
    from benchmarks.peers import hf_gpt_neox

    config = config or pairs.gpt_config()
    peer = hf_gpt_neox.build_peer(config, seed=1, max_len=length)
    ours = pairs.carry(config, hf_gpt_neox.map_weights(peer.state_dict(), config))
    tokens = pairs.random_tokens(config, length)
    yield from _against_forward("equal-gpt-neox", ours, tokens, peer(tokens).logits)


@torch.inference_mode()
def mamba2_equality(
    config: ModelConfig | None = None, length: int = 385, new_tokens: int = 16
) -> Iterator[Outcome]:
    """Compare our forms with Mamba2ForCausalLM's forward, and our decoding with its decoding; 29M by default."""
    from benchmarks.peers import hf_mamba2

    config = config or pairs.mamba2_config(published=True)
    peer = hf_mamba2.build_peer(config, seed=1)
    ours = pairs.carry(config, pairs.map_weights("mamba2", config, peer.state_dict()))
    tokens = pairs.random_tokens(config, length + new_tokens)
    yield from _backends_against("equal-mamba2", ours, tokens, peer(tokens, use_cache=False).logits)
    ours.set_backend("chunkwise")
    decoding = hf_mamba2.CachedDecoding(peer, tokens[:, :length])
    steps = [decoding.step(tokens[:, t : t + 1]) for t in range(length, length + new_tokens)]
    expected, found = torch.cat([decoding.logits, *steps], dim=1), decode_logits(ours, tokens, length)
    yield error_outcome("equal-mamba2: decode = its decoding", found, expected, FP32_LIMIT)


@torch.inference_mode()
def yar_equality(config: ModelConfig | None = None, length: int = 385) -> Iterator[Outcome]:
    """Compare our forms and our decoding with yet-another-retnet's parallel form; size 25m by default."""
    from benchmarks.peers import yar_retnet

    config = config or pairs.paper_config()
    peer = yar_retnet.build_peer(config, seed=1)
    tokens = pairs.random_tokens(config, length)
    expected = peer.forward_parallel(tokens)
    yield from _against_forward("equal-yar", yar_retnet.carry(peer, config), tokens, expected)


def _against_forward(bar: str, ours: Decoder, tokens: Tensor, expected: Tensor) -> Iterator[Outcome]:
    """Compare all our backends that run here, and our decoding, with a peer's logits of all tokens."""
    yield from _backends_against(bar, ours, tokens, expected)
    yield error_outcome(f"{bar}: decode = its forward", decode_logits(ours, tokens, 1), expected, FP32_LIMIT)


def _backends_against(bar: str, ours: Decoder, tokens: Tensor, expected: Tensor) -> Iterator[Outcome]:
    """Compare all our backends that run here with a peer's logits of all tokens; the own one is set afterwards."""
    own = ours.backend
    for backend in _usable(ours):
        ours.set_backend(backend)
        yield error_outcome(f"{bar}: {backend} = its forward", ours(tokens), expected, FP32_LIMIT)
    ours.set_backend(own)


@torch.inference_mode()
def fla_equality(config: ModelConfig | None = None, length: int = 45) -> Iterator[Outcome]:
    """Compare our forms and our decoding with the published formula in float64, from equal weights rounded to fp32.

    The default size is 1m because the formula is slow. Chunks of 16 give several chunks and a remainder.
    """
    config = config or pairs.fla_config("1m")
    weights = {
        name: weight.float().double() for name, weight in fla_retnet.draw_weights(config, seed=1).items()
    }
    ours = pairs.carry(config, pairs.map_weights("fla", config, weights), chunk_size=16)
    tokens = pairs.random_tokens(config, length)
    expected = fla_retnet.logits(weights, config, tokens[0])[None]
    yield from _against_forward("equal-fla", ours, tokens, expected)


def loop_equality(length: int = 301) -> Iterator[Outcome]:
    """Compare the operator's forms in float64 with its definition, per token and head; yield the worst errors."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, length, 3, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    v = torch.randn(1, length, 3, 20, generator=generator, dtype=torch.float64)
    fixed = torch.tensor([-0.03, -0.004, 0.0], dtype=torch.float64)
    varying = -torch.rand(1, length, 3, generator=generator, dtype=torch.float64) / 16
    forms = {
        "parallel": linear_parallel,
        "chunkwise": linear_chunkwise,
        "recurrent": linear_recurrent,
    }
    found: dict[str, list[Outcome]] = {"output": [], "state": []}
    for kind, log_decay in (("fixed", fixed), ("varying", varying)):
        rows = log_decay if log_decay.dim() == 1 else log_decay[0]
        expected = fla_retnet.retention_loop(q[0], k[0], v[0], rows)
        for form, retention in forms.items():
            for part, ours, reference in zip(
                found, retention(q, k, v, log_decay, None), expected, strict=True
            ):
                label = f"equal-loop: {part}, worst in {form}, {kind} decay"
                found[part].append(error_outcome(label, ours[0], reference, FP64_LIMIT))
    for outcomes in found.values():
        yield worst(outcomes)
