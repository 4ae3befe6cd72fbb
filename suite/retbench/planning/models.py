"""What a run measures: models with seeded weights, those that a training has left, or checkpoints.

Without torch: of weights on the disk only their configuration is read here.
"""

from collections.abc import Sequence
from pathlib import Path

from retbench.checkpoints.reading import CheckpointInfo, check_no_pickle, read_checkpoint
from retbench.checkpoints.weights import find_weight_files, fingerprint_files
from retbench.config.experiment import Experiment, Profile
from retbench.errors import ConfigError
from retbench.planning import cells
from retbench.planning.cells import Subject, Weights
from retbench.records.record import WeightsInfo
from retbench.training.trained import TrainedRun, find_trained


def find_subjects(
    experiment: Experiment, profile_name: str, results: Path, data_dir: Path | None = None
) -> list[Subject]:
    """The subjects of one profile.

    Args:
        experiment: The experiment.
        profile_name: One of its profiles.
        results: Root of the results, where `retbench train` has left its models.
        data_dir: Where checkpoints are looked for that are named and are no path.

    Raises:
        ConfigError: a model that should be trained is not there, a checkpoint cannot be read, or the models that stand
            beside each other are not matched.
    """
    profile = experiment.profile(profile_name)
    origin = profile.trained_by or (f"{experiment.name}/{profile_name}" if profile.training else None)
    names = [name for name, spec in experiment.models.items() if spec.checkpoint is None]
    if origin and names:
        trained = _trained_subjects(experiment, profile, origin, names, results)
    elif names:
        trained = cells.seeded_subjects(_only(experiment, names), profile_name)
    else:
        trained = []
    found = trained + [
        _checkpoint_subject(experiment, name, data_dir) for name in experiment.models if name not in names
    ]
    _check_matches(found, profile, where=f"experiment '{experiment.name}', profile '{profile_name}'")
    return found


def _only(experiment: Experiment, names: Sequence[str]) -> Experiment:
    """The experiment with some of its models."""
    return experiment.model_copy(update={"models": {name: experiment.models[name] for name in names}})


def _trained_subjects(
    experiment: Experiment, profile: Profile, origin: str, names: Sequence[str], results: Path
) -> list[Subject]:
    """The trained models of EXPERIMENT/PROFILE that go by the names of this experiment's."""
    trained_in, _, trained_as = origin.partition("/")
    runs = find_trained(results, trained_in, trained_as)
    by_name = {name: [run for run in runs if run.model_name == name] for name in names}
    spec = profile.training
    wanted = {(size, seed) for size in spec.sizes for seed in spec.seeds_of(size)} if spec else set()
    for name, found in by_name.items():
        missing = sorted(wanted - {(run.size, run.seed) for run in found})
        if missing or not found:
            what = ", ".join(f"size {size} seed {seed}" for size, seed in missing) or "any size"
            raise ConfigError(
                f"there is no trained '{name}' of {what} of {origin} under {results}. "
                f"Train it first: retbench train {trained_in} --profile {trained_as} --out {results}"
            )
    return [
        _trained_subject(experiment, run, origin)
        for name in names
        for run in by_name[name]
        if not wanted or (run.size, run.seed) in wanted
    ]


def _trained_subject(experiment: Experiment, run: TrainedRun, origin: str) -> Subject:
    """A model that `retbench train` has left."""
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
    return _subject(experiment, run.model_name, run.size, info, weights, run.corpus_fingerprint)


def _checkpoint_subject(experiment: Experiment, name: str, data_dir: Path | None) -> Subject:
    """A model whose entry names a checkpoint.

    What `retbench train` noted of its training comes with it, so that no path leads around the guards against text that
    was learned from; its seed does not, for it is one model and none of several seeds.
    """
    spec = experiment.models[name]
    assert spec.checkpoint is not None
    info = read_checkpoint(spec.checkpoint, revision=spec.revision, data_dir=data_dir)
    check_no_pickle(info)
    told = info.metadata if "training_fingerprint" in info.metadata else {}
    weights = WeightsInfo(
        source=spec.checkpoint,
        fingerprint=info.weights_fingerprint
        or info.revision
        or fingerprint_files(find_weight_files(info.path)),
        format=info.format,
        revision=info.revision,
        num_tokens=told.get("num_tokens"),
        corpus=told.get("corpus"),
    )
    return _subject(
        experiment, name, spec.size or "checkpoint", info, weights, told.get("corpus_fingerprint")
    )


def _subject(
    experiment: Experiment,
    name: str,
    size: str,
    info: CheckpointInfo,
    weights: WeightsInfo,
    corpus_fingerprint: str | None = None,
) -> Subject:
    """A subject with weights on the disk; ConfigError where they are of another architecture than its entry."""
    spec = experiment.models[name]
    if info.config.architecture != spec.architecture:
        raise ConfigError(
            f"{info.path}: holds a {info.config.architecture}, and '{name}' is a {spec.architecture}. "
            "Name another checkpoint, or change the entry's architecture."
        )
    held = Weights(
        path=info.path,
        info=weights,
        tokenizer=info.tokenizer,
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        corpus_fingerprint=corpus_fingerprint,
    )
    return cells.make_subject(name, spec, size, info.config, held)


def _check_matches(subjects: Sequence[Subject], profile: Profile, *, where: str) -> None:
    """ConfigError where models of one size are not matched and the profile does not allow it."""
    for size in dict.fromkeys(subject.size for subject in subjects):
        models = {subject.model_name: subject.model for subject in subjects if subject.size == size}
        cells.check_match(models, profile, where=where)
