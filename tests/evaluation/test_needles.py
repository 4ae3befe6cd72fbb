"""Answers to needle prompts: scores equal a whole pass over prompt and answer, and a model that copies is right."""

from typing import Any

import pytest
import torch

from retbench.data.needle_prompts import NOISE, Prompt, haystack_sentences, make_prompt
from retbench.data.tokenizers import load_tokenizer
from retbench.evaluation.needles import answer_prompt
from retbench.models.decoder import Decoder
from tests.workloads.conftest import SPECS

BYTES = load_tokenizer("bytes")


def a_prompt() -> Prompt:
    return make_prompt(BYTES, haystack_sentences(NOISE, None), NOISE, 7, depth=0.3, num_tokens=600)


@pytest.fixture(scope="module", params=["retnet", "transformer"])
def model(request: pytest.FixtureRequest) -> Decoder:
    from retbench.architectures.matching import resolve_model
    from retbench.models.build import build_model

    spec = SPECS[request.param]
    config = resolve_model(spec, "25k", vocab_size=BYTES.vocab_size)
    return build_model(config, dtype=torch.float32, device="cpu", seed=1, backend=spec.backend)


def test_the_score_of_an_answer_is_that_of_a_whole_pass(model: Decoder) -> None:
    prompt = a_prompt()
    found = answer_prompt(model, BYTES, 256, prompt)
    totals = []
    for answer in prompt.answers:
        tokens = torch.tensor([[256, *prompt.tokens, *answer]])
        with torch.inference_mode():
            wide = model(tokens[:, :-1]).log_softmax(-1)[0, -len(answer) :]
        totals.append(float(wide.gather(1, torch.tensor(answer)[:, None]).sum()))
    assert found.answer_nats == pytest.approx(-totals[0], rel=1e-4)
    assert found.rank == sum(total > totals[0] for total in totals[1:])
    assert found.chosen == (found.rank == 0)
    assert found.prefill_s > 0
    assert found.state_bytes > 0


class Copies:
    """A model that says what follows, of the state of another, in place of what it computes."""

    def __init__(self, model: Decoder, text: str) -> None:
        self._model, self._next = model, list(text.encode())
        self._given = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def prefill(self, tokens: torch.Tensor, state: Any) -> torch.Tensor:
        self._model.prefill(tokens, state)
        return self._logits(1, 1, 0)

    def __call__(self, tokens: torch.Tensor, state: Any) -> torch.Tensor:
        if len(tokens) > 1:  # the answers that are scored
            return self._logits(len(tokens), tokens.shape[1], 1)
        self._given += 1
        return self._logits(1, 1, self._given)

    def _logits(self, rows: int, width: int, first: int) -> torch.Tensor:
        wanted = [self._next[min(first + place, len(self._next) - 1)] for place in range(width)]
        return 20.0 * torch.nn.functional.one_hot(torch.tensor([wanted] * rows), BYTES.vocab_size)


@pytest.mark.parametrize(
    ("before", "after", "exact", "contains"),
    [
        (" ", ".\n", True, True),
        (" ", "5\n", False, False),
        (" It is ", "\n", False, True),
        ("\n", "", False, False),
    ],
)
def test_an_answer_is_exact_or_contains_the_value_as_a_whole_number(
    model: Decoder, before: str, after: str, exact: bool, contains: bool
) -> None:
    prompt = a_prompt()
    copies = Copies(model, f"{before}{prompt.needle.value}{after}")
    found = answer_prompt(copies, BYTES, 256, prompt)  # type: ignore[arg-type]
    assert (found.exact, found.contains) == (exact, contains)
    if before == " ":
        assert (found.chosen, found.rank) == (True, 0)
