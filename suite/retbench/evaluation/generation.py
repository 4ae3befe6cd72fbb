"""Greedy continuation of prompts from a state: one prefill, then one decode step a token."""

from collections.abc import Callable, Sequence

import torch

from retbench.models.decoder import Decoder

IsDone = Callable[[Sequence[int]], bool]
"""Whether a continuation, its tokens so far, is to end."""


@torch.inference_mode()
def generate_greedy(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    is_done: IsDone,
    vocab_size: int | None = None,
) -> list[list[int]]:
    """The likeliest tokens one after another, for prompts of one length.

    Args:
        model: Any model.
        prompts: Tokens of each, all of one length and none empty: a state takes no padding.
        max_new_tokens: Tokens after which a continuation ends in any case.
        is_done: Asked after every token; the token that ends a continuation is part of it.
        vocab_size: Tokens that there are, where the model has room for more; None for all of the model's.

    Raises:
        ValueError: prompts of different lengths, or empty ones.
    """
    lengths = {len(prompt) for prompt in prompts}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"prompts must be of one length, at least 1; got lengths {sorted(lengths)}")
    state = model.init_state(len(prompts), lengths.pop() + max_new_tokens)
    device = model.device
    logits = model.prefill(torch.tensor([list(prompt) for prompt in prompts], device=device), state)
    found: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    for step in range(max_new_tokens):
        tokens = logits[:, -1, :vocab_size].argmax(dim=-1)  # (B,)
        for row, token in enumerate(tokens.tolist()):
            if going[row]:
                found[row].append(token)
                going[row] = not is_done(found[row])
        if not any(going) or step + 1 == max_new_tokens:
            break
        logits = model(tokens[:, None], state)
    return found
