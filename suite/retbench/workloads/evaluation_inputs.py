"""Tokenizers and corpora of the workloads that measure quality: chosen when a run is planned, checked when measured.

Inputs that do not fit a model are refused before anything is measured. Nothing here imports torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retbench.config.evaluation import TextSpec
from retbench.data.corpora import Corpus, check_split, load_corpus
from retbench.data.tokenizers import Tokenizer, check_vocabulary, load_tokenizer, prefix_token
from retbench.errors import ConfigError
from retbench.planning.cells import Evaluation, ModelUnderTest, SlicedText

if TYPE_CHECKING:
    from retbench.workloads.context import Context


def choose_tokenizer(model: ModelUnderTest, asked: str | None, data_dir: Path | None) -> Tokenizer:
    """Load the tokenizer of the model's weights, or else the one that the profile names, and check that it fits.

    Raises:
        ConfigError: there is none, it does not fit the model, or the model was trained with another one.
    """
    weights = model.trained_weights
    name = weights.tokenizer or asked
    if name is None:
        raise ConfigError(
            f"the checkpoint of '{model.model_name}' comes without a tokenizer. Name one in the workload's field "
            "'tokenizer' (--set workloads.WORKLOAD.tokenizer=NAME)."
        )
    tokenizer = load_tokenizer(name, data_dir=data_dir)
    trained_with = weights.tokenizer_fingerprint
    if trained_with is not None and tokenizer.fingerprint != trained_with:
        raise ConfigError(
            f"'{model.model_name}' was trained with a tokenizer of fingerprint {trained_with}, and '{name}' has "
            f"{tokenizer.fingerprint}. Restore its files."
        )
    check_vocabulary(tokenizer, model.model.vocab_size)
    return tokenizer


def find_texts(
    workload: str, spec: TextSpec, models: Sequence[ModelUnderTest], data_dir: Path | None
) -> dict[tuple[str, str], Evaluation]:
    """Describe what the loss of each model on each corpus depends on.

    Raises:
        ConfigError: a tokenizer or corpus is missing or does not fit, or a corpus has changed since a model was trained
            on it.
        UnsupportedError: the data of a corpus cannot be obtained here.
    """
    corpora = [load_corpus(name, data_dir=data_dir) for name in spec.corpora]
    for corpus in corpora:
        check_split(corpus, spec.split)
    found = {}
    for model in models:
        tokenizer = choose_tokenizer(model, spec.tokenizer, data_dir)
        prefix_token(tokenizer)
        for corpus in corpora:
            _check_unchanged(model, corpus, workload)
            found[model.label, corpus.name] = Evaluation(
                split=spec.split,
                limit=spec.limit,
                tokenizer=tokenizer.name,
                tokenizer_fingerprint=tokenizer.fingerprint,
                corpus_fingerprint=corpus.fingerprint,
            )
    return found


def _check_unchanged(model: ModelUnderTest, corpus: Corpus, workload: str) -> None:
    """Refuse a corpus that has changed since a model was trained on it.

    Its held-out documents are chosen among all documents, so that the present ones may have been in the training text.

    Raises:
        ConfigError: the corpus has changed.
    """
    weights = model.trained_weights
    then = weights.corpus_fingerprint
    if weights.info.corpus == corpus.name and then not in (None, corpus.fingerprint):
        experiment, _, profile = weights.info.source.partition("/")
        is_path = weights.info.seed is None
        command = (
            ""
            if is_path
            else f" (retbench train {experiment} --profile {profile} --fresh and its other options)"
        )
        raise ConfigError(
            f"the corpus '{corpus.name}' has changed since '{model.label}' was trained on it (fingerprint {then} "
            f"then, {corpus.fingerprint} now): its held-out documents may have been in the training text. Restore its "
            f"files, train again{command}, or measure another corpus (--set workloads.{workload}.corpora=)."
        )


def corpus_of(context: "Context") -> Corpus:
    """Load the corpus of the cell's point; ConfigError if it is no longer the one that was planned."""
    corpus = load_corpus(context.cell.point.task or "", data_dir=context.data_dir)
    _check_fingerprint(corpus, evaluation_of(context).corpus_fingerprint)
    return corpus


def _check_fingerprint(corpus: Corpus, planned: str | None) -> None:
    if corpus.fingerprint != planned:
        raise ConfigError(
            f"corpus '{corpus.name}' has changed during the run: its fingerprint is {corpus.fingerprint} and was "
            f"{planned}. Run the same command again."
        )


def counted_corpus_of(context: "Context") -> Corpus | None:
    """Load the corpus in which the cell counts pairs, checked as in `corpus_of`; None where it has none."""
    evaluation = context.cell.evaluation
    assert isinstance(evaluation, SlicedText)
    if evaluation.counted_in is None:
        return None
    corpus = load_corpus(evaluation.counted_in, data_dir=context.data_dir)
    _check_fingerprint(corpus, evaluation.counted_in_fingerprint)
    return corpus


def evaluation_of(context: "Context") -> Evaluation:
    """Return the evaluation inputs of the cell of a workload that has some."""
    assert isinstance(context.cell.evaluation, Evaluation)
    return context.cell.evaluation


def tokenizer_of(context: "Context") -> Tokenizer:
    """Load the tokenizer that the plan chose for the cell's model.

    Raises:
        ConfigError: its files have changed since.
    """
    evaluation = evaluation_of(context)
    tokenizer = load_tokenizer(evaluation.tokenizer, data_dir=context.data_dir)
    if tokenizer.fingerprint != evaluation.tokenizer_fingerprint:
        raise ConfigError(
            f"tokenizer '{evaluation.tokenizer}' has the fingerprint {tokenizer.fingerprint}, and "
            f"'{context.cell.model_name}' wants {evaluation.tokenizer_fingerprint}. Restore its files, or name the "
            "right tokenizer."
        )
    return tokenizer
