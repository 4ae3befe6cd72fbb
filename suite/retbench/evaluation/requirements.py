"""What a tokenizer must have so that a model can be evaluated with it. Without torch."""

from retbench.data.tokenizers import Tokenizer
from retbench.errors import ConfigError


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """ConfigError where a tokenizer has tokens that a model with a vocabulary of that size does not know."""
    if tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            f"tokenizer '{tokenizer.name}' has {tokenizer.vocab_size:,} tokens and the model's vocabulary only "
            f"{vocab_size:,}. Give the tokenizer that the model was trained with."
        )


def prefix_token(tokenizer: Tokenizer) -> int:
    """The token that a text without context is read after: the first-token mark, else the end mark, as HFLM has it.

    Raises:
        ConfigError: the tokenizer has neither.
    """
    for mark in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if mark is not None:
            return mark
    raise ConfigError(
        f"tokenizer '{tokenizer.name}' has neither a first-token nor an end mark, and without one the first token of a "
        "text cannot be scored. Use a tokenizer that has one."
    )


def check_bos_token(tokenizer: Tokenizer) -> None:
    """ConfigError where a tokenizer has no mark for `add_bos` to begin a context with."""
    if tokenizer.bos_token_id is None:
        raise ConfigError(
            f"tokenizer '{tokenizer.name}' has no first-token mark, which add_bos asks for. Set add_bos to false."
        )
