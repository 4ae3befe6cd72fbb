"""A model is read with the tokenizer that the plan found, or not at all."""

from pathlib import Path

import pytest

from retbench.errors import ConfigError
from retbench.workloads.evaluation_inputs import tokenizer_of

from .quality import BYTES, make_context

POINT = {"task": "x", "protocol": "whole", "context_len": 64}


def test_the_tokenizer_is_the_one_of_the_plan(tmp_path: Path) -> None:
    context = make_context(tmp_path, "retnet", "perplexity", POINT, {})
    assert tokenizer_of(context).fingerprint == BYTES.fingerprint


def test_another_of_its_name_is_refused(tmp_path: Path) -> None:
    context = make_context(tmp_path, "retnet", "perplexity", POINT, {"tokenizer_fingerprint": "another"})
    with pytest.raises(
        ConfigError, match=f"'bytes' has the fingerprint {BYTES.fingerprint}, and 'retnet' wants anot"
    ):
        tokenizer_of(context)


def test_one_that_is_gone_is_refused(tmp_path: Path) -> None:
    context = make_context(tmp_path, "retnet", "perplexity", POINT, {"tokenizer": "gone/tokenizer.json"})
    with pytest.raises(ConfigError, match=r"unknown tokenizer 'gone/tokenizer.json'"):
        tokenizer_of(context)
