"""Task files that anybody may have written: each is scored, or refused by one of our errors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from retbench.evaluation.tasks import load_task
from retbench.evaluation.zeroshot import run_lm_eval
from tests.fuzzing import EXAMPLES, NOT_JSON, fuzz, mutated, read_or_refused

COPA = {"premise": "It was.", "choice1": "A.", "choice2": "B.", "question": "cause", "label": 1}
WINOGRAD = {"text": "He saw it.", "pronoun": "it", "pronoun_loc": 7, "options": ["a", "b"], "label": 0}
ROWS: dict[str, Any] = {
    "copa": COPA,
    "lambada_openai": {"text": "a b c"},
    "hellaswag": {"activity_label": "A", "ctx_a": "a", "ctx_b": "b", "endings": ["x", "y"], "label": "1"},
    "wsc273": WINOGRAD,
    "sciq": {
        "question": "q",
        "correct_answer": "a",
        "distractor1": "b",
        "distractor2": "c",
        "distractor3": "d",
        "support": "s",
    },
    "wikitext": {"page": " = A = \n text"},
}
SPLIT = {"wsc273": "test", "lambada_openai": "test", "wikitext": "test"}


class ConstantLM(LM):  # type: ignore[misc]  # lm-eval has no type information
    """Gives every text the same score."""

    def loglikelihood(self, requests: Sequence[Instance], **_: Any) -> list[tuple[float, bool]]:
        return [(-1.0, True)] * len(requests)

    def loglikelihood_rolling(self, requests: Sequence[Instance], **_: Any) -> list[float]:
        return [-1.0] * len(requests)

    def generate_until(self, requests: Sequence[Instance], **_: Any) -> list[str]:
        return [""] * len(requests)


@EXAMPLES
@pytest.mark.parametrize("task", ROWS)
def test_any_rows_are_scored_or_refused(tmp_path: Path, task: str, examples: int) -> None:
    path = tmp_path / task / f"{SPLIT.get(task, 'validation')}.jsonl"
    path.parent.mkdir()

    def check(lines: list[bytes]) -> None:
        path.write_bytes(b"\n".join(lines))
        with read_or_refused():
            run_lm_eval(ConstantLM(), load_task(task, data_dir=tmp_path), limit=None)

    plain = json.dumps(ROWS[task]).encode()
    line = st.one_of(
        st.just(plain), mutated(ROWS[task]).map(lambda value: json.dumps(value).encode()), NOT_JSON
    )
    check([plain])
    fuzz(st.lists(line, min_size=1, max_size=3), check, max(20, examples // len(ROWS)))
