"""Small random models of transformers, saved to a folder as their users have them."""

from pathlib import Path
from typing import Any

import torch

VOCAB_SIZE = 320
WINDOW = 16
POSITIONS = 96
_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def _make(name: str) -> Any:
    """Build a model: grouped queries, a table of positions, a window, capped logits, experts, or a fixed state."""
    import transformers

    marks = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    kind, fields = {
        "llama": ("Llama", _SHAPE),
        "tied": ("Llama", {**_SHAPE, "tie_word_embeddings": True}),
        "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}),
        "gptj": (
            "GPTJ",
            {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": POSITIONS},
        ),
        "falcon": (
            "Falcon",
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
        ),
        "gpt_neo": (
            "GPTNeo",
            {
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 4,
                "attention_types": [[["global", "local"], 1]],
                "window_size": WINDOW,
                "max_position_embeddings": POSITIONS,
            },
        ),
        "mistral": ("Mistral", {**_SHAPE, "sliding_window": WINDOW}),
        "gemma2": ("Gemma2", {**_SHAPE, "sliding_window": WINDOW, "final_logit_softcapping": 0.5}),
        "glm4_moe": (
            "Glm4Moe",
            {**_SHAPE, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2},
        ),
        "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    }[name]
    config = getattr(transformers, f"{kind}Config")(**marks, **fields)
    model = getattr(transformers, f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:  # so that logits differ from token to token
                weight.normal_(0.0, 2 * weight.shape[-1] ** -0.5)
    return model


def save_hf_model(name: str, folder: Path) -> Path:
    """Save a model of `_make` to a folder and return the folder."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    _make(name).save_pretrained(folder)
    return folder
