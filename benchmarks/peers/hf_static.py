"""A model of transformers in transformers' own loop with a static cache, and the same model through retbench."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from retbench.checkpoints.reading import read_checkpoint
from retbench.models.hf import HfModel, load

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    "tie_word_embeddings": True,
}
"""The shape of SmolLM2-135M; the weights, which do not affect the time of a step, are drawn."""


@contextmanager
def saved_model(fields: dict[str, Any]) -> Iterator[HfModel]:
    """Yield a Llama of transformers behind retbench's interface, loaded from a folder as `--model` loads it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(1)
    with TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(**fields)).save_pretrained(folder)
        info = read_checkpoint(folder, format="hf")
        yield load(info.config, Path(folder), dtype=torch.float32, device="cpu", backend="default")


class StaticDecoding:
    """Decoding of a model after a prompt (1, T) by transformers alone, with its static cache.

    Args:
        inner: The model of transformers.
        prompt: (1, T) int64.
        capacity: Tokens that the cache has room for.

    Attributes:
        logits: Those of the prompt's last token, (1, 1, N).
    """

    def __init__(self, inner: Any, prompt: Tensor, capacity: int) -> None:
        self._inner = inner
        self._depth = prompt.shape[1]
        self._cache = StaticCache(config=inner.config, max_cache_len=capacity)
        self.logits: Tensor = inner(
            input_ids=prompt, cache=self._cache, use_cache=True, logits_to_keep=1
        ).logits

    def step(self, token: Tensor) -> Tensor:
        """Return the logits of one more token (1, 1), (1, 1, N)."""
        logits: Tensor = self._inner(input_ids=token, cache=self._cache, use_cache=True).logits
        return logits

    def rewind(self) -> None:
        """Continue after the prompt again."""
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(self._depth)
