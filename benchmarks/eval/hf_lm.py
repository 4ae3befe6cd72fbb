"""lm-eval's HFLM over transformers' Llama with the weights of one of our models, and over our tokenizer."""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import LlamaForCausalLM, PreTrainedTokenizer

from benchmarks.peers import hf_llama
from retbench.checkpoints.format import Description
from retbench.checkpoints.reading import FORMATS
from retbench.data.tokenizers import Tokenizer
from retbench.evaluation.tasks import quiet
from retbench.models.decoder import Decoder


class OurTokenizer(PreTrainedTokenizer):  # type: ignore[misc]  # transformers is not followed
    """One of our tokenizers with the interface of transformers; like ours, it adds no special token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ours = tokenizer
        marks = {"bos_token": tokenizer.bos_token_id, "eos_token": tokenizer.eos_token_id}
        self.marks = {f"<{name}>": token for name, token in marks.items() if token is not None}
        super().__init__(**{name: f"<{name}>" for name, token in marks.items() if token is not None})

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.ours.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Return the special tokens only, which is all that is used here."""
        return dict(self.marks)

    def encode(self, text: str, **_: Any) -> list[int]:
        """Return the tokens of a text."""
        return self.ours.encode(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.marks[token]

    def _convert_id_to_token(self, index: int) -> str:
        return next((mark for mark, token in self.marks.items() if token == index), self.ours.decode([index]))


def build_hf_lm(
    model: Decoder, tokenizer: Tokenizer, *, max_length: int, batch_size: int, fast_file: str | None = None
) -> HFLM:
    """Build an HFLM with the weights of `model`, a Transformer of Llama's variant.

    Args:
        model: Our model.
        tokenizer: Our tokenizer.
        max_length: Longest context in tokens.
        batch_size: Requests per forward pass.
        fast_file: A tokenizer.json that transformers' own fast tokenizer reads instead, for timing.
    """
    from transformers import PreTrainedTokenizerFast

    theirs = (
        PreTrainedTokenizerFast(tokenizer_file=fast_file, eos_token="<eos>")
        if fast_file
        else OurTokenizer(tokenizer)
    )
    with quiet():
        return HFLM(
            pretrained=carry_to_llama(model, max_length),
            tokenizer=theirs,
            max_length=max_length,
            batch_size=batch_size,
            device="cpu",
            backend="causal",
        )


@torch.no_grad()
def carry_to_llama(model: Decoder, max_length: int) -> LlamaForCausalLM:
    """Return a Llama with our weights, by the inverse of the checkpoint conversion."""
    config = model.config
    peer = hf_llama.build_peer(config, seed=0, max_len=max_length)
    theirs = peer.state_dict()
    ours = model.state_dict()
    for name, parts in FORMATS["llama"].plan(Description(config=config), theirs.keys(), {}).items():
        places: Sequence[torch.Tensor] = [theirs[part.name] for part in parts]
        for place, rows in zip(places, ours[name].split([len(place) for place in places]), strict=True):
            place.copy_(rows)
    return peer
