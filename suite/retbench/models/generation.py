"""Generation of text: greedy, or drawn with a temperature from the most probable tokens."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from retbench.errors import ConfigError, RetbenchError
from retbench.models.language_model import LanguageModel


@dataclass(frozen=True)
class Sampling:
    """Rule for the choice of the next token.

    Attributes:
        temperature: Logits are divided by it; 0 takes the most probable token (greedy).
        top_k: Number of most probable tokens to draw from; None for all.
        top_p: Draw from the smallest set of tokens with this total probability, after `top_k`; None for all (nucleus
            sampling, arXiv:1904.09751).

    Raises:
        ConfigError: an invalid value, or one without effect at temperature 0.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature {self.temperature}: must be 0 (greedy) or a positive number.")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top-k {self.top_k}: must be at least 1 token.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p {self.top_p}: must be a probability over 0, at most 1.")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ConfigError(
                "top-k and top-p say what to draw from, and at temperature 0 nothing is drawn. Give a temperature over "
                "0, or leave them out."
            )


GREEDY = Sampling()


def token_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probability of drawing each token.

    Args:
        logits: (N,).
        sampling: With a temperature over 0.

    Returns:
        (N,) float32 or wider, summing to one; 0 for excluded tokens.
    """
    values = logits.to(torch.promote_types(logits.dtype, torch.float32))
    least = torch.finfo(values.dtype).tiny  # less would be read as 0 by operations in this dtype
    scaled = (values - values.max()) / max(sampling.temperature, least)  # at most 0: no quotient is +inf
    if sampling.top_k is None and sampling.top_p is None:
        return scaled.softmax(0)
    ordered, tokens = scaled.sort(descending=True, stable=True)  # ties in the order of the greedy choice
    kept = ordered[: sampling.top_k].softmax(0)
    if sampling.top_p is not None and sampling.top_p < 1:
        before = kept.cumsum(0) - kept  # of all tokens more probable than this one
        kept = kept.where(before < max(sampling.top_p, least), 0)
        kept = kept / kept.sum()
    return torch.zeros_like(scaled).scatter(0, tokens[: sampling.top_k], kept)


def choose_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Choose the next token from logits (N,)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(token_probabilities(logits, sampling), 1, generator=generator))


@torch.inference_mode()
def decode_steps(
    model: LanguageModel, prompts: Tensor, *, max_tokens: int, choose: Callable[[Tensor], list[int]]
) -> Iterator[list[int]]:
    """Yield the tokens chosen at each step, one per prompt: one prefill, then one decode step per token.

    Args:
        model: The model, in evaluation mode.
        prompts: (B, T) int64 on the model's device, at least one token each, without padding.
        max_tokens: Maximum number of steps.
        choose: Maps the last logits (B, N) to one token per prompt.
    """
    state = model.init_state(len(prompts), prompts.shape[1] + max_tokens)
    logits = model.prefill(prompts, state)
    for index in range(max_tokens):
        tokens = choose(logits[:, -1])
        yield tokens
        if index + 1 < max_tokens:
            logits = model(torch.tensor(tokens, device=model.device)[:, None], state)


def generate(
    model: LanguageModel,
    prompt: Tensor,
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop: Collection[int] = (),
    num_tokens: int | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow a prompt, each as soon as it is chosen.

    Args:
        model: The model, in evaluation mode.
        prompt: (1, T) int64 on the model's device, at least one token.
        max_tokens: Maximum number of new tokens.
        sampling: Choice of each token.
        seed: Seed of the draws; the same seed and device give the same tokens.
        stop: Tokens that end the text; they are not yielded.
        num_tokens: Choose among the first so many tokens, if the tokenizer has fewer than the model.

    Raises:
        ConfigError: an empty prompt.
        RetbenchError: logits that are not finite.
    """
    if prompt.shape[1] == 0:
        raise ConfigError("the prompt has no tokens; a model continues at least one.")
    generator = torch.Generator(model.device).manual_seed(seed)
    positions = count(prompt.shape[1] - 1)

    def choose(logits: Tensor) -> list[int]:
        candidates, position = logits[0, :num_tokens], next(positions)
        if not candidates.isfinite().all():
            advice = "Try float32." if model.dtype.itemsize == 2 else "Check its weights."
            raise RetbenchError(
                f"the logits at position {position} are not finite at {model.dtype}: the model cannot go on. {advice}"
            )
        return [choose_token(candidates, sampling, generator)]

    for (token,) in decode_steps(model, prompt, max_tokens=max_tokens, choose=choose):
        if token in stop:
            return
        yield token
