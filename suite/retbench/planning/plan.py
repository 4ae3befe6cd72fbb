"""From the words of a command to the cells of a run: profile, device and dtype settled, all of it checked.

What cannot work is refused here, before any process is started.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from retbench.config import experiment as config
from retbench.config.evaluation import PerplexitySpec, ZeroshotSpec
from retbench.config.experiment import Experiment, GridSpec, Profile, Workloads
from retbench.errors import ConfigError, UnsupportedError, unknown_name
from retbench.measure.environment import worker_environment
from retbench.measure.machine import usable_cores
from retbench.planning import cells
from retbench.planning.cells import Cell, Settings, Subject
from retbench.planning.inputs import find_evaluations
from retbench.planning.models import find_subjects
from retbench.run.devices import Device, find_device
from retbench.units import GB
from retbench.workloads import ONE_ROUND

PAPER_MEMORY_BYTES = 70 * GB
"""A device with this much memory runs the profile `paper` unless told otherwise: 80 GB cards and up."""


@dataclass(frozen=True)
class Plan:
    """Everything a run will do.

    Attributes:
        experiment: The experiment, with the overrides of the command line in its profile.
        profile_name: The profile chosen.
        profile: That profile.
        cells: Every cell, models outermost.
        rounds: How many times each cell is timed, each time in a process of its own; see `rounds_of`.
        command: The command line that makes the same plan again.
        device_memory_bytes: Of a CUDA device; None for the CPU.
        data_dir: Where local data is looked for.
    """

    experiment: Experiment
    profile_name: str
    profile: Profile
    cells: tuple[Cell, ...]
    rounds: int
    command: str
    device_memory_bytes: int | None
    data_dir: Path | None = None

    @property
    def settings(self) -> Settings:
        """What is the same for every cell."""
        return self.cells[0].settings

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """What is measured, each subject once, in the order of the cells."""
        return tuple({cell.subject.label: cell.subject for cell in self.cells}.values())

    @property
    def pair_ids(self) -> dict[str, str]:
        """The pair_id that records of each cell get now, by its cell_id."""
        by_model = cells.pair_ids(self.subjects)
        return {cell.cell_id: by_model[cell.model.fingerprint] for cell in self.cells}

    @property
    def num_measurements(self) -> int:
        """Measurements of all cells in all rounds."""
        return sum(self.rounds_of(cell) for cell in self.cells)

    def rounds_of(self, cell: Cell) -> int:
        """Rounds in which a cell is measured: one where another would only repeat it."""
        return 1 if cell.workload in ONE_ROUND else self.rounds


def make_plan(
    name_or_path: str,
    *,
    profile: str | None,
    device: str | None,
    dtype: str | None,
    limit: int | None,
    overrides: Sequence[str],
    compiled: bool | None = None,
    results: Path = Path("results"),
    data_dir: Path | None = None,
) -> Plan:
    """The plan of one command.

    Args:
        name_or_path: An experiment's name, or the path of a TOML file.
        profile: A profile of it; None for `paper` on a CUDA device with 70 GB or more, else `cpu`.
        device: `cpu`, `cuda` or `cuda:N`; None for the first CUDA device where there is one, else the CPU.
        dtype: Replaces the profile's.
        limit: Keeps only the first so many context lengths of a workload, or documents where quality is measured.
        overrides: `key=value` items; see `config.load_experiment`.
        compiled: Replaces the profile's `compile`.
        results: Root of the results, where trained models are looked for.
        data_dir: Where local data is looked for.

    Raises:
        ConfigError: something is misspelt or contradicts itself.
        UnsupportedError: this machine cannot do what was asked.
    """
    found = find_device(device)
    roomy = found.memory_bytes is not None and found.memory_bytes >= PAPER_MEMORY_BYTES
    profile_name = profile or ("paper" if roomy else "cpu")
    experiment = config.load_experiment(name_or_path, overrides, profile=profile_name)
    where = f"experiment '{experiment.name}', profile '{profile_name}'"
    chosen = _adjust(experiment.profile(profile_name), dtype, limit)
    if compiled is not None:
        chosen = chosen.model_copy(update={"compile": compiled})
    _check_device(chosen, found)
    _check_training(chosen, where)
    _check_compile(chosen, where)
    experiment = experiment.model_copy(update={"profiles": {**experiment.profiles, profile_name: chosen}})
    options = [
        ("--profile", profile_name),
        ("--device", found.name),
        ("--dtype", dtype),
        ("--limit", limit),
        ("--data-dir", data_dir),
    ]
    flags = [] if compiled is None else ["--compile" if compiled else "--no-compile"]
    subjects = find_subjects(experiment, profile_name, results, data_dir)
    evaluations = find_evaluations(subjects, chosen, data_dir)
    return Plan(
        experiment=experiment,
        profile_name=profile_name,
        profile=chosen,
        cells=tuple(
            cells.expand(
                experiment,
                profile_name,
                _settings(chosen, found),
                subjects=subjects,
                evaluations=evaluations,
            )
        ),
        rounds=1 if set(chosen.workloads.present) <= ONE_ROUND else chosen.rounds,
        command=_command(name_or_path, [*options, *(("--set", item) for item in overrides)], flags),
        device_memory_bytes=found.memory_bytes,
        data_dir=data_dir,
    )


def _adjust(profile: Profile, dtype: str | None, limit: int | None) -> Profile:
    """The profile with what the command line replaces in it."""
    changes: dict[str, object] = {}
    if dtype is not None:
        if dtype not in get_args(config.Dtype):
            raise unknown_name("dtype", dtype, get_args(config.Dtype), where="--dtype")
        changes["dtype"] = dtype
    if limit is not None:
        if limit < 1:
            raise ConfigError(
                f"--limit is {limit}: it keeps the first so many context lengths, or documents. Give 1 or more."
            )
        changes["workloads"] = _limited(profile.workloads, limit)
    return profile.model_copy(update=changes)


def _limited(workloads: Workloads, limit: int) -> Workloads:
    """The workloads with the first so many context lengths, or, where quality is measured, documents."""
    changes: dict[str, object] = {}
    for name, spec in workloads:
        if isinstance(spec, GridSpec):
            changes[name] = spec.model_copy(update={"context_len": spec.context_len[:limit]})
        elif isinstance(spec, PerplexitySpec | ZeroshotSpec):
            changes[name] = spec.model_copy(update={"limit": limit})
    return workloads.model_copy(update=changes)


def _settings(profile: Profile, device: Device) -> Settings:
    """What is the same for every cell; UnsupportedError for more threads than there are processors."""
    threads = profile.threads or usable_cores()
    worker_environment(threads)
    return Settings(
        dtype=profile.dtype,
        device=device.name,
        threads=threads,
        seed=profile.seed,
        warmup_s=profile.warmup_s,
        min_steps=profile.min_steps,
        cuda_graph=profile.cuda_graph,
        compile=profile.compile,
        activation_checkpointing=profile.activation_checkpointing,
        memory_limit_bytes=profile.memory_limit_bytes,
    )


def _check_device(profile: Profile, device: Device) -> None:
    """UnsupportedError for what the device cannot do."""
    if device.name != "cpu":
        return
    if profile.dtype == "float16":
        raise UnsupportedError(
            "dtype float16 on a CPU: torch has no fast float16 products there, so its times say nothing about "
            "a model. Use --dtype bfloat16 or float32, or a CUDA device."
        )
    if profile.cuda_graph:
        raise UnsupportedError(
            "cuda_graph = true on a CPU: there are no CUDA graphs without CUDA. Use --set cuda_graph=false, "
            "another --profile, or --device cuda."
        )


def _check_training(profile: Profile, where: str) -> None:
    """ConfigError for a setting that training cannot have, or that nothing but training has."""
    trains = profile.workloads.training is not None
    if trains and profile.cuda_graph:
        raise ConfigError(
            f"{where}: cuda_graph = true, and a training step is not captured in a CUDA graph. "
            "Use --set cuda_graph=false, or measure the other workloads in an experiment of their own."
        )
    if profile.activation_checkpointing and not trains and profile.training is None:
        present = ", ".join(profile.workloads.present)
        raise ConfigError(
            f"{where}: activation_checkpointing = true, and none of its workloads ({present}) "
            "computes gradients. Remove it, or add the workload 'training'."
        )


def _check_compile(profile: Profile, where: str) -> None:
    """ConfigError for steps that are to be compiled where there are none."""
    if profile.compile and profile.workloads.decode is None:
        present = ", ".join(profile.workloads.present)
        raise ConfigError(
            f"{where}: compile = true, and none of its workloads ({present}) is 'decode', whose steps alone are "
            "compiled. Leave it out, or measure an experiment that decodes, such as latency."
        )


def _command(name_or_path: str, options: Sequence[tuple[str, object]], flags: Sequence[str]) -> str:
    """`retbench run` with the options that were given or settled."""
    words = ["retbench", "run", name_or_path]
    for flag, value in options:
        if value is not None:
            words += [flag, str(value)]
    return shlex.join([*words, *flags])
