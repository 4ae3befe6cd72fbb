"""Plans of runs: the options of a command become cells, with profile, device and dtype decided and checked.

Impossible requests are refused here, before any process is started.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from retbench.architectures.registry import find_architecture
from retbench.config.dtypes import find_dtype
from retbench.config.experiment import Experiment, Profile
from retbench.config.experiment_files import default_profile, load_experiment
from retbench.config.overrides import READ_BY_TRAINING, field_of
from retbench.config.own_models import OwnModels
from retbench.errors import ConfigError, UnsupportedError, shown
from retbench.measure.devices import Device, default_threads, find_device
from retbench.measure.environment import missing_for_compilation, worker_environment
from retbench.planning import cells
from retbench.planning.cells import CHECKPOINT_SIZE, Cell, ModelUnderTest, Settings
from retbench.planning.models import find_inputs, find_models
from retbench.planning.shards import Shard, unit_of
from retbench.workloads.workload import WORKLOADS, find_workload


@dataclass(frozen=True)
class Plan:
    """Everything a run will do.

    Attributes:
        experiment: The experiment, with the overrides of the command line in its profile.
        profile_name: The profile chosen.
        profile: That profile.
        cells: Every cell, models outermost.
        rounds: Number of times that each cell is timed, each time in a new process; see `rounds_of`.
        command: The command line that makes the same plan again.
        device_memory_bytes: Memory of a CUDA device; None for the CPU.
        data_dir: Folder of local data; RETBENCH_DATA when None.
        note: Decisions for this machine, in words; None if there were none.
    """

    experiment: Experiment
    profile_name: str
    profile: Profile
    cells: tuple[Cell, ...]
    rounds: int
    command: str
    device_memory_bytes: int | None
    data_dir: Path | None = None
    note: str | None = None

    @property
    def settings(self) -> Settings:
        """Settings that all cells share."""
        return self.cells[0].settings

    @property
    def models(self) -> tuple[ModelUnderTest, ...]:
        """The models under test, each once, in the order of the cells."""
        return tuple({cell.under_test.label: cell.under_test for cell in self.cells}.values())

    @property
    def num_measurements(self) -> int:
        """Number of measurements of all cells in all rounds."""
        return sum(self.rounds_of(cell) for cell in self.cells)

    def rounds_of(self, cell: Cell) -> int:
        """Return the rounds in which a cell is measured: one where another would only repeat it."""
        return 1 if find_workload(cell.workload).one_round else self.rounds

    def part(self, shard: Shard) -> "Plan | None":
        """Return the plan of a shard; None if there are fewer parts than shards, and none is left for this one."""
        cells = shard.part_of(self.cells, unit_of)
        return replace(self, cells=tuple(cells), command=f"{self.command} --shard {shard}") if cells else None


def make_plan(
    name_or_path: str,
    *,
    profile: str | None,
    device: str | None,
    dtype: str | None = None,
    limit: int | None = None,
    overrides: Sequence[str] = (),
    compiled: bool | None = None,
    checkpoints: Sequence[str] = (),
    trust_remote_code: bool = False,
    results: Path = Path("results"),
    data_dir: str | Path | None = None,
) -> Plan:
    """Plan one command.

    Args:
        name_or_path: An experiment's name, or the path of a TOML file.
        profile: A profile of it; None for its only one, or of several `paper` on a GPU of 70 GB or more, else `cpu`.
        device: `cpu`, `cuda` or `cuda:N`; None for the first CUDA device where there is one, else the CPU.
        dtype: Replaces the profile's.
        limit: Keeps only the first context lengths of a workload, or the first documents where quality is measured.
        overrides: `key=value` items; see `load_experiment`.
        compiled: Replaces the profile's `compile`.
        checkpoints: Models of transformers that replace the experiment's: folders, or names on the hub.
        trust_remote_code: Run code that comes with `checkpoints`.
        results: Root of the results, where trained models are looked for.
        data_dir: Folder of local data; RETBENCH_DATA when None.

    Raises:
        ConfigError: something is misspelt or contradicts itself.
        UnsupportedError: this machine cannot do what was asked.
    """
    own_models = OwnModels(tuple(checkpoints), trust_remote_code)
    data_dir = Path(data_dir).absolute() if data_dir else None
    dtype = None if dtype is None else find_dtype(dtype)
    found = find_device(device)
    profile_name = default_profile(name_or_path, found.memory_bytes) if profile is None else profile
    loaded = load_experiment(name_or_path, overrides, profile=profile_name, own_models=own_models)
    experiment = loaded.of_profile(profile_name)
    where = f"experiment '{experiment.name}', profile '{profile_name}'"
    chosen = _adjust(experiment.profile(profile_name), dtype, limit)
    is_own = any(find_architecture(spec.architecture).reads_any_model for spec in experiment.models.values())
    compiled, note = _decide_compilation(chosen, found, is_own) if compiled is None else (compiled, None)
    if compiled is not None:
        chosen = chosen.model_copy(update={"compile": compiled})
    _check_device(chosen, found)
    _check_settings(chosen, where)
    experiment = experiment.model_copy(update={"profiles": {**experiment.profiles, profile_name: chosen}})
    request = _training_request(name_or_path, overrides, data_dir)
    models = find_models(experiment, profile_name, results, data_dir, request)
    _check_caches(models, chosen, where)
    _check_whole_models(models, chosen, where)
    settings, inputs = _settings(chosen, found), find_inputs(models, chosen, data_dir)
    planned = tuple(cells.expand(experiment, profile_name, settings, models=models, inputs=inputs))
    _check_cells(planned, chosen, where)
    options = {
        "--profile": profile_name,
        "--device": found.name,
        "--dtype": dtype,
        "--limit": limit,
        "--data-dir": data_dir,
    }
    return Plan(
        experiment=experiment,
        profile_name=profile_name,
        profile=chosen,
        cells=planned,
        rounds=1 if all(one.one_round for one in chosen.workloads.registered) else chosen.rounds,
        command=_command(name_or_path, options, overrides, own_models, compiled),
        device_memory_bytes=found.memory_bytes,
        data_dir=data_dir,
        note="; ".join(filter(None, [note, _describe_unmatched(models), *_describe_extrapolation(planned)]))
        or None,
    )


def _training_request(name_or_path: str, overrides: Sequence[str], data_dir: Path | None) -> list[str]:
    """Return the words after `retbench train` by which the models of a plan would be trained."""
    of_training = [item for item in overrides if field_of(item) in READ_BY_TRAINING]
    words = [name_or_path, *(word for item in of_training for word in ("--set", item))]
    return words if data_dir is None else [*words, "--data-dir", str(data_dir)]


def _check_cells(planned: Sequence[Cell], profile: Profile, where: str) -> None:
    """Refuse a plan without a cell."""
    if not planned:
        raise ConfigError(
            f"{where}: no model is measured by any of its workloads ({', '.join(profile.workloads.specs)}). Add one of "
            "them to the field 'workloads' of a model, or remove that field."
        )


def _describe_unmatched(models: Sequence[ModelUnderTest]) -> str | None:
    """Return which models are not compared with the others, as they have the size of their checkpoint."""
    others = [one for one in models if one.size != CHECKPOINT_SIZE]
    names = list(dict.fromkeys(one.model_name for one in models if one.size == CHECKPOINT_SIZE))
    if not others or not names:
        return None
    return (
        f"tables show {', '.join(names)} apart and without a ratio, since a checkpoint is not matched to the size of "
        "the other models"
    )


def _describe_extrapolation(planned: Sequence[Cell]) -> list[str]:
    """Return which models are given longer contexts than those that they were made for, where quality is measured."""
    longest: dict[tuple[str, int], int] = {}
    for cell in planned:
        weights = cell.under_test.weights
        made_for = None if cell.evaluation is None or weights is None else weights.context_len
        # Slices are counted in bytes. Examples beyond the trained length are what length recall is about.
        if made_for is not None and find_workload(cell.workload).scores in ("text", "answers", "needles"):
            named = cell.model_name, made_for
            longest[named] = max(longest.get(named, 0), cell.point.context_len)
    return [
        f"{name} was made for {made_for:,} tokens and may be given {context_len:,}"
        for (name, made_for), context_len in longest.items()
        if context_len > made_for
    ]


def _decide_compilation(
    profile: Profile, device: Device, is_own_model: bool
) -> tuple[bool | None, str | None]:
    """Return whether steps are compiled where a profile leaves it to the machine, with a note for the user.

    It is None where the profile does not leave it to the machine. Settings are those of all models alike, and the steps
    of another library's model are not compiled here.
    """
    if profile.compile != "auto":
        return None, None
    if device.name != "cpu":
        return False, None
    if is_own_model:
        return (
            False,
            "decode steps are measured eagerly, because those of a model of another library are not compiled",
        )
    missing = missing_for_compilation()
    if missing is None:
        return True, "decode steps are compiled with torch.compile (--no-compile measures them eagerly)"
    return False, (
        f"decode steps are measured eagerly, because {missing}; compiled ones are faster. On Debian and Ubuntu: "
        "apt install g++ python3-dev"
    )


def check_limit(limit: int) -> None:
    """Raise ConfigError unless a number of context lengths, or of documents, can be kept."""
    if not 1 <= limit < 2**31:
        raise ConfigError(
            f"--limit is {shown(limit)}: it is the number of context lengths, or documents, to keep, from 1 to "
            f"{2**31 - 1:,}."
        )


def _adjust(profile: Profile, dtype: str | None, limit: int | None) -> Profile:
    """Return the profile with the fields that the command line replaces."""
    changes: dict[str, object] = {}
    if dtype is not None:
        changes["dtype"] = dtype
    if limit is not None:
        check_limit(limit)
        changes["workloads"] = profile.workloads.limited(limit)
    return profile.model_copy(update=changes)


def _settings(profile: Profile, device: Device) -> Settings:
    """Return the settings that all cells share; UnsupportedError for more threads than there are processors."""
    threads = profile.threads or default_threads(device.name)
    worker_environment(threads, device.name)
    shared = profile.model_dump(include=Settings.model_fields.keys() - {"threads"})
    return Settings(device=device.name, threads=threads, **shared)


def _check_device(profile: Profile, device: Device) -> None:
    """Refuse settings that the device does not support."""
    if device.name != "cpu":
        return
    if profile.dtype == "float16":
        raise UnsupportedError(
            "dtype float16 on a CPU: torch has no fast float16 products there, so its times say nothing about "
            "a model. Use --dtype bfloat16 or float32, or a CUDA device."
        )
    if profile.decode_operators == "fused":
        raise UnsupportedError(
            "decode_operators = 'fused' on a CPU: these kernels run on CUDA devices only. Use --set "
            "decode_operators=eager, or a CUDA device."
        )
    if profile.cuda_graph:
        raise UnsupportedError(
            "cuda_graph = true on a CPU: there are no CUDA graphs without CUDA. Use --set cuda_graph=false, "
            "another --profile, or --device cuda."
        )


def _check_settings(profile: Profile, where: str) -> None:
    """Refuse settings that contradict the workloads, or that none of them uses."""
    workloads, present = profile.workloads.registered, ", ".join(profile.workloads.specs)
    training = [one.name for one in workloads if one.computes_gradients]
    if profile.cuda_graph and len(training) == len(workloads):
        raise ConfigError(
            f"{where}: cuda_graph = true, and its only workload is '{training[0]}', whose steps are not captured in a "
            "CUDA graph. Use --set cuda_graph=false."
        )
    if profile.activation_checkpointing and not training and profile.training is None:
        raise ConfigError(
            f"{where}: activation_checkpointing = true, and none of its workloads ({present}) "
            "computes gradients. Remove it, or add the workload 'training'."
        )
    if profile.compile and not any(one.compiles for one in workloads):
        compiling = " or ".join(f"'{one.name}'" for one in WORKLOADS.values() if one.compiles)
        raise ConfigError(
            f"{where}: compile is set, and none of its workloads ({present}) is {compiling}, whose steps alone are "
            "compiled. Leave it out, or measure an experiment that decodes, such as latency."
        )


def _check_caches(models: Sequence[ModelUnderTest], profile: Profile, where: str) -> None:
    """Refuse a cache that is concatenated where steps are captured or compiled: its tensors are new at every token."""
    concatenating = [one.model_name for one in models if one.model.concatenates]
    if not concatenating:
        return
    remedies = {"cuda_graph": "--set cuda_graph=false", "compile": "--no-compile"}
    for setting, remedy in remedies.items():
        if getattr(profile, setting):
            raise ConfigError(
                f"{where}: {setting} = true, and model '{concatenating[0]}' has cache = \"concat\", whose tensors are "
                f"allocated anew at every token. A captured or compiled step cannot do that. Use {remedy} for all "
                "models alike, or remove the option."
            )


def _check_whole_models(models: Sequence[ModelUnderTest], profile: Profile, where: str) -> None:
    """Refuse settings and workloads that are not there for a model that another library runs."""
    own = [one.model_name for one in models if one.model.whole_model is not None]
    if not own:
        return
    if profile.compile:
        raise ConfigError(
            f"{where}: compile = true, and '{own[0]}' is a model of another library, whose steps are not compiled "
            "here. Use --no-compile for all models alike."
        )
    training = [one.name for one in profile.workloads.registered if one.computes_gradients]
    if training:
        raise ConfigError(
            f"{where}: workload '{training[0]}' trains, and '{own[0]}' is a model of another library, measured "
            "in inference only. Leave the model out, or measure another experiment, such as latency."
        )


def _command(
    name_or_path: str,
    options: Mapping[str, object],
    overrides: Sequence[str],
    own: OwnModels,
    compiled: bool | None,
) -> str:
    """Return the command `retbench run` with the options that were given or decided."""
    pairs = [
        *(("--model", checkpoint) for checkpoint in own.checkpoints),
        *options.items(),
        *(("--set", item) for item in overrides),
    ]
    words = [word for flag, value in pairs if value is not None for word in (flag, str(value))]
    words += [] if compiled is None else ["--compile" if compiled else "--no-compile"]
    words += ["--trust-remote-code"] if own.trust_remote_code else []
    return shlex.join(["retbench", "run", name_or_path, *words])
