"""Plans of trainings: the options of a command become runs, with their text, models and device decided and checked.

Nothing here imports torch.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from retbench.config.experiment_files import default_profile, load_experiment
from retbench.config.overrides import READ_BY_TRAINING, field_of
from retbench.config.training import TrainingSpec
from retbench.data.corpora import load_corpus
from retbench.data.tokenizers import load_tokenizer
from retbench.errors import ConfigError, shown
from retbench.measure.devices import Device, default_threads, find_device
from retbench.planning.shards import Shard
from retbench.training.plan import (
    TextSource,
    TrainingPlan,
    check_processes,
    resolve_models,
    training_spec,
)
from retbench.training.ranks import Launch


def make_training_plan(
    experiment: str,
    profile: str | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
    data_dir: Path | None = None,
    launch: Launch | None = None,
    shard: Shard | None = None,
) -> TrainingPlan:
    """Return the plan of one command; see `retbench.planning.plan.make_plan` for its defaults.

    Args:
        experiment: Name of an experiment, or path of its file.
        profile: Name of the profile.
        device: Requested device.
        overrides: KEY=VALUE replacements of the profile's fields.
        data_dir: Folder of local data.
        launch: The place of this process among those that train together; alone when None.
        shard: The part of the runs to train; all when None.

    Raises:
        ConfigError: something is misspelt or contradictory, or the profile trains nothing.
        UnsupportedError: this machine cannot do what was requested.
    """
    launch = launch or Launch()
    found = _find_device(device, launch)
    profile_name = default_profile(experiment, found.memory_bytes) if profile is None else profile
    loaded = load_experiment(experiment, overrides, profile=profile_name).of_profile(profile_name)
    check_overrides(overrides)
    spec = training_spec(loaded, profile_name)
    check_processes(spec, launch.world_size)
    source = spec.task or _load_text(spec, data_dir)
    device_word = found.name if launch.world_size == 1 else found.name.partition(":")[0]
    words = ["retbench", "train", experiment, "--profile", profile_name, "--device", device_word]
    words += [word for item in overrides for word in ("--set", item)]
    words += [] if data_dir is None else ["--data-dir", str(data_dir)]
    words += [] if shard is None else ["--shard", str(shard)]
    return TrainingPlan(
        experiment=loaded,
        profile_name=profile_name,
        spec=spec,
        models=resolve_models(loaded, profile_name, source.vocab_size),
        source=source,
        device=found.name,
        threads=loaded.profile(profile_name).threads or default_threads(found.name, launch.local_world_size),
        command=launch.command(shlex.join(words)),
        world_size=launch.world_size,
        local_world_size=launch.local_world_size,
        shard=shard,
    )


_MEANT = {"dtype": "autocast", "compile": "compile", "size": "sizes", "seed": "seeds"}
"""Fields for measurements, with those of the training table that are meant."""


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise a ConfigError for a `--set` of a field that only measurements read."""
    for item in overrides:
        field = field_of(item)
        if field not in READ_BY_TRAINING:
            cure = f"Set training.{_MEANT[field]}" if field in _MEANT else "Give it to `retbench run`"
            raise ConfigError(f"--set {shown(item)}: no training reads '{field}'. {cure} instead.")


def _load_text(spec: TrainingSpec, data_dir: Path | None) -> TextSource:
    """Return the corpus and the tokenizer that a training table names; ConfigError if there is none of that name."""
    tokenizer = load_tokenizer(spec.tokenizer, data_dir=data_dir)
    return TextSource(load_corpus(spec.corpus, data_dir=data_dir), tokenizer)


def _find_device(asked: str | None, launch: Launch) -> Device:
    """Return the device of this process: with several processes and GPUs, each takes the GPU of its rank."""
    if launch.world_size == 1:
        return find_device(asked)
    if asked not in (None, "cpu", "cuda"):
        raise ConfigError(
            f"--device {shown(asked)}: each of the {launch.world_size} processes takes its own GPU. Give cuda or cpu."
        )
    found = find_device(asked)
    return found if found.name == "cpu" else find_device(f"cuda:{launch.local_rank}")
