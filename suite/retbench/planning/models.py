"""Models under test: with weights drawn from a seed, left by a training, or read from a checkpoint.

Nothing here imports torch; of weights on the disk only the configuration is read.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from retbench.architectures.architecture import ModelSpec
from retbench.architectures.configs import ModelConfig
from retbench.architectures.costs import num_params_nonembedding
from retbench.architectures.sizes import find_size
from retbench.checkpoints.reading import CheckpointInfo, check_no_pickle, read_checkpoint
from retbench.checkpoints.weights import find_weight_files, fingerprint_files
from retbench.config.experiment import Experiment, Profile
from retbench.errors import ConfigError
from retbench.planning import cells
from retbench.planning.cells import CHECKPOINT_SIZE, Inputs, ModelUnderTest, Weights
from retbench.records.record import WeightsInfo
from retbench.training.trained import TrainedRun, find_trained
from retbench.units import format_size

_OTHER_SIZE = 0.1
"""Share of a size's parameters by which those of a checkpoint differ that is not of this size.

Published models of a size differ by 2 %, as their widths are multiples of 256.
"""


def find_models(
    experiment: Experiment,
    profile_name: str,
    results: Path,
    data_dir: Path | None = None,
    request: Sequence[str] | None = None,
) -> list[ModelUnderTest]:
    """Return the models under test of one profile.

    Args:
        experiment: The experiment.
        profile_name: One of its profiles.
        results: Root of the results, where `retbench train` stores its models.
        data_dir: Folder of checkpoints that are given by a name and not by a path.
        request: The experiment as the user gave it to `retbench run`, with the options that training takes too; by
            default its name.

    Raises:
        ConfigError: a trained model is missing, a checkpoint cannot be read, or the models are not matched.
    """
    experiment = experiment.of_profile(profile_name)
    profile = experiment.profile(profile_name)
    origin = profile.trained_by or (f"{experiment.name}/{profile_name}" if profile.training else None)
    names = [name for name, spec in experiment.models.items() if spec.checkpoint is None]
    if origin and names:
        trained = _trained_models(experiment, profile, origin, names, results, request or [experiment.name])
    elif names:
        drawn = {name: experiment.models[name] for name in names}
        trained = cells.seeded_models(experiment.model_copy(update={"models": drawn}), profile_name)
    else:
        trained = []
    found = trained + [
        _checkpoint_model(experiment, name, data_dir) for name in experiment.models if name not in names
    ]
    for size in dict.fromkeys(one.size for one in found):
        of_size = {one.model_name: one.model for one in found if one.size == size}
        where = f"experiment '{experiment.name}', profile '{profile_name}'"
        cells.check_match(of_size, experiment, profile, where=where)
    return found


def _trained_models(
    experiment: Experiment,
    profile: Profile,
    origin: str,
    names: Sequence[str],
    results: Path,
    request: Sequence[str],
) -> list[ModelUnderTest]:
    """Return the trained models of EXPERIMENT/PROFILE that have the names of this experiment's."""
    trained_in, _, trained_as = origin.partition("/")
    runs = find_trained(results, trained_in, trained_as)
    by_name = {name: [run for run in runs if run.model_name == name] for name in names}
    spec = profile.training
    wanted = {(size, seed) for size in spec.sizes for seed in spec.seeds_of(size)} if spec else set()
    for name, found in by_name.items():
        missing = sorted(wanted - {(run.size, run.seed) for run in found})
        if missing or not found:
            what = ", ".join(f"size {format_size(size)} seed {seed}" for size, seed in missing) or "any size"
            asked = request if trained_in == experiment.name else [trained_in]
            command = ["retbench", "train", *asked, "--profile", trained_as, "--out", str(results)]
            raise ConfigError(
                f"there is no trained '{name}' of {what} of {origin} under {results}. "
                f"Train it first: {shlex.join(command)}"
            )
    return [
        _trained_model(experiment, run, origin)
        for name in names
        for run in by_name[name]
        if not wanted or (run.size, run.seed) in wanted
    ]


def _trained_model(experiment: Experiment, run: TrainedRun, origin: str) -> ModelUnderTest:
    """Return a model that `retbench train` has stored."""
    info = read_checkpoint(str(run.path))
    weights = WeightsInfo(
        source=origin,
        fingerprint=run.weights_fingerprint,
        format=info.format,
        seed=run.seed,
        num_tokens=run.num_tokens,
        learning_rate=run.learning_rate,
        corpus=run.corpus,
    )
    return _model_on_disk(experiment, run.model_name, run.size, info, weights, run.corpus_fingerprint)


def _checkpoint_model(experiment: Experiment, name: str, data_dir: Path | None) -> ModelUnderTest:
    """Return a model whose entry names a checkpoint.

    The notes of `retbench train` on its training are kept, so that a path does not bypass the guards against evaluating
    on training text. Its seed is not kept: it is one model and not one of several seeds.
    """
    spec = experiment.models[name]
    assert spec.checkpoint is not None
    info = read_checkpoint(
        spec.checkpoint,
        revision=spec.revision,
        format=spec.checkpoint_format,
        data_dir=data_dir,
        with_code=spec.runs_checkpoint_code,
    )
    check_no_pickle(info)
    noted = info.metadata if "training_fingerprint" in info.metadata else {}
    weights = WeightsInfo(
        source=spec.checkpoint,
        fingerprint=info.weights_fingerprint
        or info.revision
        or fingerprint_files(find_weight_files(info.path)),
        format=info.format,
        revision=info.revision,
        num_tokens=noted.get("num_tokens"),
        corpus=noted.get("corpus"),
    )
    size = _size_of_checkpoint(spec, info.config)
    return _model_on_disk(experiment, name, size, info, weights, noted.get("corpus_fingerprint"))


def _size_of_checkpoint(spec: ModelSpec, config: ModelConfig) -> str:
    """Return the size that an entry names, unless its checkpoint was replaced by one of another size."""
    if spec.size is None:
        return CHECKPOINT_SIZE
    budget = find_size(spec.size).budget
    is_other = abs(num_params_nonembedding(config) - budget) > _OTHER_SIZE * budget
    return CHECKPOINT_SIZE if is_other else spec.size


def _model_on_disk(
    experiment: Experiment,
    name: str,
    size: str,
    info: CheckpointInfo,
    weights: WeightsInfo,
    corpus_fingerprint: str | None,
) -> ModelUnderTest:
    """Return a model with weights on the disk; ConfigError where they are of another architecture than its entry."""
    spec = experiment.models[name]
    if info.config.architecture != spec.architecture:
        raise ConfigError(
            f"{info.path}: holds a {info.config.architecture}, and '{name}' is a {spec.architecture}. "
            "Name another checkpoint, or change the entry's architecture."
        )
    if spec.concatenates and not info.config.concatenates:
        raise ConfigError(
            f"'{name}' has cache = \"concat\", and {info.path} holds a model with a preallocated cache. Remove the "
            "option, or measure a model whose weights are drawn from a seed."
        )
    held = Weights(
        path=info.path,
        info=weights,
        tokenizer=info.tokenizer,
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        corpus_fingerprint=corpus_fingerprint,
        context_len=info.context_len,
        runs_code=spec.runs_checkpoint_code,
    )
    return cells.model_under_test(name, spec, size, info.config, held)


def find_inputs(
    models: Sequence[ModelUnderTest], profile: Profile, data_dir: Path | None
) -> dict[str, Inputs]:
    """Return the evaluation inputs of each workload that needs some, checked against the models.

    Raises:
        ConfigError: a model has random weights; a tokenizer is missing, does not fit, or is
            not that of the training; a corpus is missing, lacks the split, or has changed since a model was trained on
            it; a task is unknown or takes no examples.
        UnsupportedError: the data of a task or a corpus cannot be obtained here.
    """
    return {
        workload.name: dict(workload.find_inputs(profile.workloads.specs[workload.name], models, data_dir))
        for workload in profile.workloads.registered
        if workload.find_inputs is not None
    }
