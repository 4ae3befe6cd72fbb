"""A folder as transformers saves it, written without transformers."""

import json
from pathlib import Path
from typing import Any

import torch

from retbench.checkpoints.weights import save_tensors

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
WEIGHTS = {"model.embed_tokens.weight": (300, 8), "lm_head.weight": (300, 8), "model.norm.weight": (8,)}


def write_hf_folder(folder: Path, shapes: dict[str, tuple[int, ...]] | None = None, **changes: Any) -> Path:
    """Write a configuration, without the fields that are None, and weights of zeros; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = {name: value for name, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    tensors = {name: torch.zeros(shape) for name, shape in (shapes or WEIGHTS).items()}
    save_tensors(tensors, folder / "model.safetensors")
    return folder
