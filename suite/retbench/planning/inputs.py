"""What the models of a run are asked, where quality is measured: text and tasks, each held to the models.

What cannot be answered is refused here, before anything is measured. Without torch.
"""

from collections.abc import Sequence
from pathlib import Path

from retbench.config.evaluation import PerplexitySpec, ZeroshotSpec
from retbench.config.experiment import Profile
from retbench.data.corpora import Corpus, check_split, load_corpus
from retbench.data.tokenizers import (
    Tokenizer,
    check_bos_token,
    check_vocabulary,
    load_tokenizer,
    prefix_token,
)
from retbench.errors import ConfigError
from retbench.evaluation.tasks import check_task
from retbench.planning.cells import Evaluation, Subject
from retbench.workloads import EVALUATES

Evaluations = dict[tuple[str, str | None], Evaluation]
"""By the label of a subject and the corpus; None for zero-shot tasks."""


def find_evaluations(subjects: Sequence[Subject], profile: Profile, data_dir: Path | None) -> Evaluations:
    """What the cells of quality of each subject depend on.

    Raises:
        ConfigError: weights that nothing was trained to; a tokenizer that is missing, does not fit, or is not the one
            that a model was trained with; a corpus that is missing, has no such split, or has changed since a model was
            trained on it; a task that is unknown or takes no examples.
        UnsupportedError: the data of a task or a corpus cannot be had here.
    """
    perplexity, zeroshot = profile.workloads.perplexity, profile.workloads.zeroshot
    present = EVALUATES & set(profile.workloads.present)
    if zeroshot:
        for task in zeroshot.tasks:
            check_task(task, num_fewshot=max(zeroshot.num_fewshot), data_dir=data_dir)
    corpora = _corpora(perplexity, data_dir) if perplexity else []
    found: Evaluations = {}
    for subject in subjects if present else ():
        if subject.weights is None:
            raise ConfigError(
                f"'{subject.model_name}' has random weights, and {' and '.join(sorted(present))} of them say nothing. "
                f"Train it (retbench train), or give a checkpoint with --set models.{subject.model_name}.checkpoint="
            )
        if perplexity:
            tokenizer = _tokenizer(subject, perplexity.tokenizer, data_dir)
            prefix_token(tokenizer)
            for corpus in corpora:
                _check_unchanged(subject, corpus)
                found[subject.label, corpus.name] = _reading(perplexity, corpus, tokenizer)
        if zeroshot:
            tokenizer = _tokenizer(subject, zeroshot.tokenizer, data_dir)
            found[subject.label, None] = _exam(zeroshot, tokenizer)
    return found


def _corpora(spec: PerplexitySpec, data_dir: Path | None) -> list[Corpus]:
    """The corpora, each of which has the split that is asked for."""
    corpora = [load_corpus(name, data_dir=data_dir) for name in spec.corpora]
    for corpus in corpora:
        check_split(corpus, spec.split)
    return corpora


def _reading(spec: PerplexitySpec, corpus: Corpus, tokenizer: Tokenizer) -> Evaluation:
    """What the perplexity of a corpus depends on."""
    return Evaluation(
        split=spec.split,
        limit=spec.limit,
        max_document_tokens=spec.max_document_tokens,
        tokenizer=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        corpus_fingerprint=corpus.fingerprint,
    )


def _exam(spec: ZeroshotSpec, tokenizer: Tokenizer) -> Evaluation:
    """What the answers to tasks depend on."""
    if spec.add_bos:
        check_bos_token(tokenizer)
    return Evaluation(
        limit=spec.limit,
        fewshot_seed=spec.fewshot_seed,
        add_bos=spec.add_bos,
        tokenizer=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
    )


def _check_unchanged(subject: Subject, corpus: Corpus) -> None:
    """ConfigError where a model was trained on a corpus of that name that was another one then.

    Which documents are held out depends on all of them, so that what is held out now may have been learned from.
    """
    weights = subject.weights
    assert weights is not None
    then = weights.corpus_fingerprint
    if weights.info.corpus == corpus.name and then not in (None, corpus.fingerprint):
        experiment, _, profile = weights.info.source.partition("/")
        is_path = weights.info.seed is None
        command = "" if is_path else f" (retbench train {experiment} --profile {profile} --fresh)"
        raise ConfigError(
            f"the corpus '{corpus.name}' has changed since '{subject.label}' was trained on it (fingerprint {then} "
            f"then, {corpus.fingerprint} now): what is held out of it now may have been learned from. Restore its "
            f"files, train anew{command}, or measure another corpus (--set workloads.perplexity.corpora=)."
        )


def _tokenizer(subject: Subject, asked: str | None, data_dir: Path | None) -> Tokenizer:
    """The tokenizer of the weights, else the one that was asked for, held to the model."""
    weights = subject.weights
    assert weights is not None
    name = weights.tokenizer or asked
    if name is None:
        raise ConfigError(
            f"the checkpoint of '{subject.model_name}' comes without a tokenizer. Name one in the workload's field "
            "'tokenizer'."
        )
    tokenizer = load_tokenizer(name, data_dir=data_dir)
    trained_with = weights.tokenizer_fingerprint
    if trained_with is not None and tokenizer.fingerprint != trained_with:
        raise ConfigError(
            f"'{subject.model_name}' was trained with a tokenizer of fingerprint {trained_with}, and '{name}' has "
            f"{tokenizer.fingerprint}. Restore its files."
        )
    check_vocabulary(tokenizer, subject.model.vocab_size)
    return tokenizer
