"""Language quality: perplexity of corpora and scores on zero-shot tasks.

`zeroshot.evaluate` scores a task with lm-eval's own prompts and metrics; `scoring` computes shared prefixes once.
"""

from collections.abc import Callable

PassProgress = Callable[[int], object]
"""Called after every forward pass with the tokens that it read; an evaluation may take hours."""


def ignore_progress(_num_tokens: int) -> None:
    """Do nothing: the progress of an evaluation that nobody watches."""
