"""RULER's single needles (arXiv:2404.06654) as lm-eval generates them: tasks `niah_single_1` to `niah_single_3`.

lm-eval makes 500 prompts of a length when such a task is loaded, fitted in tokens, by the packages of the extra
`recall`. The words are lm-eval's; only three things differ. Tokens are counted by the model's own tokenizer, of any
format, where lm-eval runs the code of a tokenizer's repository. The global random generator is seeded first, as by
lm-eval's own command, so that the prompts do not depend on the tasks before. The metric is called `contains`, where
lm-eval names it after the length.

    niah_single_1   number in one sentence again and again; nothing is downloaded
    niah_single_2   number in essays of the hub, whose sentences nltk's model punkt_tab separates
    niah_single_3   uuid in these essays
"""

import io
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from statistics import fmean
from types import FunctionType, SimpleNamespace
from typing import Any

from retbench.data.tokenizers import Tokenizer
from retbench.errors import ConfigError, UnsupportedError
from retbench.evaluation.local_data import one_line

ESSAYS = "baber/paul_graham_essays"
"""Data set on the hub that lm-eval makes haystacks of."""
METRIC = "contains"
"""Share of the hidden values that stand in the answer."""
NEW_TOKENS = 128
"""Tokens of an answer, for which prompts leave room."""
RANDOM_SEED = 0
"""Default of lm-eval's own command for the global random generator."""
_PACKAGES = ("nltk", "transformers", "wonderwords")


def missing_packages() -> str:
    """Return why prompts cannot be generated here; empty if they can."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    return f"lm-eval needs {', '.join(missing)} for it: pip install 'retbench[recall]'" if missing else ""


@contextmanager
def without_downloads() -> Iterator[None]:
    """Keep lm-eval's generator from asking nltk's server for a model, and from printing so, when it is imported."""
    import nltk

    download = nltk.download
    nltk.download = lambda *_, **__: False
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        nltk.download = download


def generate(config: Mapping[str, Any], tokenizer: Tokenizer, context_len: int) -> dict[str, Any]:
    """Return what replaces the fields of lm-eval's definition: the prompts, and a metric of any length.

    Args:
        config: lm-eval's definition of the task.
        tokenizer: The model's tokenizer.
        context_len: RULER's length: tokens of a prompt without the opening of its answer, and of the answer.

    Raises:
        ConfigError: no prompt fits into so many tokens.
        UnsupportedError: the texts cannot be obtained.
    """
    prompts = _generate(config, tokenizer, context_len)
    score: Callable[[Any, Any], dict[str, float]] = config["process_results"]
    return {
        "custom_dataset": lambda **_: prompts,
        "process_results": lambda doc, results: {METRIC: score(doc, results)[str(doc["max_length"])]},
        "metric_list": [{"metric": METRIC, "aggregation": fmean, "higher_is_better": True}],
    }


def opening_tokens(task: Any, tokenizer: Tokenizer) -> int:
    """Return the most tokens that the opening of an answer adds to a prompt; RULER's length leaves them out."""
    openings = [tokenizer.encode(f" {row['gen_prefix']}") for row in task.eval_docs]
    return 1 + max(map(len, openings))  # one for tokens that part where the two texts meet


def needs_essays(name: str) -> bool:
    """Return whether a task's haystacks are essays, which are downloaded."""
    return name != "niah_single_1"


def _generate(config: Mapping[str, Any], tokenizer: Tokenizer, context_len: int) -> Any:
    """Run lm-eval's generator with a tokenizer; nothing is printed, and the random generator is left as it was."""
    name = config["task"]
    function: FunctionType = config["custom_dataset"]

    def count(text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=tokenizer.encode(text))

    names = function.__globals__ | {"get_tokenizer": lambda _: count}
    if needs_essays(name):
        _fetch_essays(name, names["get_haystack"])
    before = random.getstate()
    random.seed(RANDOM_SEED)
    try:
        with redirect_stderr(io.StringIO()):  # a progress bar
            return FunctionType(function.__code__, names)(max_seq_lengths=[context_len])
    except ValueError as error:
        raise ConfigError(
            f"task {name}: no prompt with room for {NEW_TOKENS} new tokens fits into {context_len:,} tokens of "
            f"'{tokenizer.name}'. Ask for a longer context_len."
        ) from error
    finally:
        random.setstate(before)


def _fetch_essays(name: str, get_haystack: Callable[..., Any]) -> None:
    """Download what haystacks of essays are made of, which lm-eval then finds in its cache."""
    import nltk

    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            nltk.download("punkt_tab")
        nltk.data.find("tokenizers/punkt_tab")
        get_haystack(type_haystack="essay")
    except Exception as error:  # of the clients of the hub and of nltk's server
        raise UnsupportedError(
            f"task {name}: its haystacks are made of {ESSAYS} from the hub with nltk's model punkt_tab, and one of "
            f"them cannot be had ({one_line(error)}). niah_single_1 needs neither."
        ) from error
