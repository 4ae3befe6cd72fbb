"""Answers of a model to needle-in-a-haystack prompts: one streamed prefill, then a greedy answer and ten scored ones.

The state after the prompt is copied: the greedy answer continues one copy, and the right value and the wrong ones run
side by side from others. Padding follows every scored token, and the states that it enters are discarded.
"""

import re
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from retbench.data.needle_prompts import Prompt
from retbench.data.tokenizers import Tokenizer
from retbench.models.language_model import LanguageModel
from retbench.models.state import DecoderState

EXTRA_TOKENS = 8
"""Tokens that are generated beyond the length of the right answer."""


@dataclass(frozen=True)
class NeedleAnswer:
    """One answer.

    Attributes:
        text: The greedy answer, up to the end of its line.
        exact: It begins with the value, and no digit follows.
        contains: The value stands in it, and is no part of a longer number.
        chosen: The value has a higher log-probability than every wrong value.
        answer_nats: Negative log-likelihood of the value.
        rank: Wrong values that have a higher log-probability.
        prefill_s: Time of the prefill.
        state_bytes: Bytes of the state that has room for prompt and answer.
    """

    text: str
    exact: bool
    contains: bool
    chosen: bool
    answer_nats: float
    rank: int
    prefill_s: float
    state_bytes: int


@torch.inference_mode()
def answer_prompt(model: LanguageModel, tokenizer: Tokenizer, prefix: int, prompt: Prompt) -> NeedleAnswer:
    """Answer a prompt that follows the token `prefix`."""
    longest = max(map(len, prompt.answers))
    num_new = len(prompt.answers[0]) + EXTRA_TOKENS
    tokens = torch.tensor([[prefix, *prompt.tokens]], device=model.device)
    state = model.init_state(1, tokens.shape[1] + max(longest, num_new))
    start_s = time.perf_counter()
    logits = model.prefill(tokens, state)[:, -1]
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    prefill_s = time.perf_counter() - start_s
    scores = _score_answers(model, state, logits, prompt)
    text = tokenizer.decode(_continue(model, tokenizer, state, logits, num_new)).split("\n")[0]
    value, rank = prompt.needle.value, int((scores[1:] > scores[0]).sum())
    return NeedleAnswer(
        text=text,
        exact=re.match(rf"\s*{value}(?!\d)", text) is not None,
        contains=re.search(rf"(?<!\d){value}(?!\d)", text) is not None,
        chosen=bool((scores[1:] < scores[0]).all()),
        answer_nats=-float(scores[0]),
        rank=rank,
        prefill_s=prefill_s,
        state_bytes=state.num_bytes,
    )


def _score_answers(model: LanguageModel, state: DecoderState, first: Tensor, prompt: Prompt) -> Tensor:
    """Return the log-probabilities of the answers (A,), given the logits (1, N) before their first tokens."""
    width = max(map(len, prompt.answers))
    padded = torch.tensor(
        [[*answer, *[0] * (width - len(answer))] for answer in prompt.answers], device=model.device
    )
    is_scored = torch.tensor(
        [[place < len(answer) for place in range(width)] for answer in prompt.answers], device=model.device
    )
    logits = first[:, None].expand(len(padded), 1, -1)
    if width > 1:
        rows = torch.zeros(len(padded), dtype=torch.int64, device=model.device)
        copies = state.gather(rows, state.position + width)
        logits = torch.cat([logits, model(padded[:, :-1], copies)], dim=1)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    found = wide.gather(-1, padded[..., None])[..., 0].double()
    return found.where(is_scored, 0.0).sum(1).cpu()


def _continue(
    model: LanguageModel, tokenizer: Tokenizer, state: DecoderState, logits: Tensor, num_tokens: int
) -> list[int]:
    """Return the greedy tokens after a state, up to an end-of-text token or the end of a line."""
    found: list[int] = []
    while True:
        token = int(logits[0, : tokenizer.vocab_size].argmax())
        if token == tokenizer.eos_token_id:
            return found
        found.append(token)
        if len(found) == num_tokens or "\n" in tokenizer.decode([token]):
            return found
        logits = model(torch.tensor([[token]], device=model.device), state)[:, -1]
