"""`retbench submit`: carry out a command on a cluster, in shards and with requeues, or show what would be submitted."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench.cli import load_command
from retbench.cli.layout import output_format
from retbench.cli.options import AsJson, OutputFormat, new_app
from retbench.errors import ConfigError, RetbenchError, shown
from retbench.units import format_items

if TYPE_CHECKING:
    from retbench.config.experiment import Experiment
    from retbench.running.submission import JobRow

app = new_app()
CLUSTERS = ("slurm", "local", "debug")
COMMANDS = ("run", "train")


@app.command(
    epilog="Example: retbench submit --shards 8 --gpus-per-node 1 run throughput --profile paper",
    context_settings={"allow_interspersed_args": False},
)
def submit(
    call: typer.Context,
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", help="run or train, with an experiment and further options."),
    ],
    cluster: Annotated[
        str,
        typer.Option(
            metavar=f"[{'|'.join(CLUSTERS)}]",
            autocompletion=lambda: CLUSTERS,
            help="local: on this machine in the background; debug: in this process, one job after the other.",
        ),
    ] = "slurm",
    shards: Annotated[int, typer.Option(min=1, metavar="N", help="Jobs that the command is split into.")] = 1,
    timeout_min: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="MINUTES",
            help="Time limit of a job, after which it is requeued; by default 240, with local none.",
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Nodes of each job, for a training.")] = 1,
    gpus_per_node: Annotated[
        int, typer.Option(min=0, metavar="N", help="GPUs of each job on each node.")
    ] = 0,
    cpus_per_task: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Logical CPUs of each job on each node.")
    ] = None,
    nproc_per_node: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Processes of torchrun on each node, for a training; by default one per GPU.",
        ),
    ] = None,
    array_parallelism: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most jobs that run at once, by default 8.")
    ] = None,
    signal_delay_s: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Time before the limit at which a job is told to end, by default 120.",
        ),
    ] = None,
    max_timeouts: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="How often a job is requeued after its time limit, by default 20, with local 5.",
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A flag of sbatch, such as partition=gpu or exclusive."),
    ] = None,
    setup: Annotated[
        list[str] | None, typer.Option(metavar="SHELL", help="A shell command that runs first on the node.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all jobs have ended.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the script that would be submitted; submit nothing.")
    ] = False,
    form: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """Carry out run or train on a cluster, in shards and with requeues.

    Options of submit stand before the command, and those of run or train after it.
    Each shard is one job of submitit (extra slurm). A job that reaches its time limit or is preempted is requeued and
    continues. `retbench jobs` lists the jobs.
    """
    from retbench.cli.jobs import print_jobs
    from retbench.files import check_writable
    from retbench.running.cluster_job import Resources, find_cluster
    from retbench.running.submission import jobs_of, script, wait_for
    from retbench.running.submission import submit as submit_jobs

    if dry_run and (as_json or form is not None):
        raise typer.BadParameter("--dry-run prints a script: give it without --json and --format")
    form = output_format(form, as_json=as_json)
    place = find_cluster(cluster)
    given = _check_command(command, shards, call)
    resources = Resources(
        timeout_min=timeout_min,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_task=cpus_per_task,
        processes_per_node=_processes(command[0], nodes, gpus_per_node, nproc_per_node),
        array_parallelism=array_parallelism,
        signal_delay_s=signal_delay_s,
        max_timeouts=max_timeouts,
        flags=_flags(slurm or []),
        setup=tuple(setup or ()),
    )
    resources.check(place)
    commands = _commands(command, shards)
    out = Path(given["out"])
    if dry_run:
        typer.echo(script(place, commands, out, resources))
        return
    check_writable(out, "--out")
    folder = submit_jobs(place, commands, out, resources)
    jobs = format_items(len(commands), "job")
    done = f"carried out {jobs}; the states are" if place == "debug" else f"submitted {jobs}, with the logs"
    typer.echo(f"{done} in {folder}", err=True)
    rows = wait_for(folder) if wait else jobs_of(folder)
    print_jobs(rows, form)
    raise typer.Exit(_exit_code(rows))


def _exit_code(rows: "list[JobRow]") -> int:
    """Return 1 if a job has ended in another way than by finishing its command."""
    from retbench.running.submission import ENDED

    return RetbenchError.exit_code if (ENDED - {"done"}) & {row.state for row in rows} else 0


def _check_command(words: list[str], shards: int, call: typer.Context) -> dict[str, Any]:
    """Return the parameters of the command to submit; ConfigError for one that some job could not carry out."""
    from retbench.planning.shards import MAX_SHARDS, count_parts
    from retbench.training.planning import check_overrides

    name, *arguments = words
    if name not in COMMANDS:
        raise ConfigError(
            f"{shown(name)} cannot be submitted. Give run or train, with an experiment and its options."
        )
    given: dict[str, Any] = load_command(name).make_context(name, arguments, parent=call.find_root()).params
    for option in ("shard", "dry_run"):
        if given[option]:
            flag = f"--{option.replace('_', '-')}"
            raise ConfigError(
                f"{flag} is an option of a single command. Give it to `submit` itself: `retbench submit "
                f"{'--shards N' if option == 'shard' else flag} {name} ...`."
            )
    if name == "train" and given["fresh"]:
        raise ConfigError(
            "--fresh: a requeued job would delete what it has trained. Delete the runs first instead."
        )
    if shards > MAX_SHARDS:
        raise ConfigError(f"--shards {shards}: a command has at most {MAX_SHARDS:,} shards. Give fewer.")
    _check_values(given)
    if not given.get("own_models"):
        profile = given["profile"]
        experiment = _load(given["experiment"], given["overrides"] or (), profile)
        if name == "train":
            check_overrides(given["overrides"] or ())
        parts = None if profile is None else count_parts(experiment, profile, training=name == "train")
        if parts is not None and shards > parts:
            raise ConfigError(
                f"--shards {shards}: the plan has {format_items(parts, 'part')}, and a job without a part "
                f"has nothing to do. Give at most {parts}."
            )
    return given


def _check_values(given: dict[str, Any]) -> None:
    """Raise ConfigError for a value of an option that no machine could take."""
    from retbench.config.dtypes import find_dtype
    from retbench.measure.devices import check_device_name
    from retbench.planning.plan import check_limit

    check_device_name(given["device"])
    if given.get("dtype") is not None:
        find_dtype(given["dtype"])
    if given.get("limit") is not None:
        check_limit(given["limit"])


def _load(name: str, overrides: Sequence[str], profile: str | None) -> "Experiment":
    """Return the experiment of a command; ConfigError where its fields cannot be replaced.

    Without a profile, the machine of the job chooses one: some profile must then have the fields.
    """
    from retbench.config.experiment_files import load_experiment

    if profile is not None or not overrides:
        return load_experiment(name, overrides, profile=profile)
    fault: ConfigError | None = None
    for one in load_experiment(name).profiles:
        try:
            return load_experiment(name, overrides, profile=one)
        except ConfigError as error:
            fault = fault or error
    assert fault is not None  # an experiment has a profile
    raise fault


def _processes(name: str, nodes: int, gpus_per_node: int, nproc_per_node: int | None) -> int:
    """Return the processes of a job on each node; ConfigError where a run is to have several."""
    if name == "train":
        return nproc_per_node or max(1, gpus_per_node)
    if nodes > 1 or nproc_per_node not in (None, 1):
        raise ConfigError(
            f"--nodes {nodes}, --nproc-per-node {nproc_per_node or 1}: a run is measured by one process on one node. "
            "Give --shards to use several nodes at once."
        )
    return 1


def _flags(given: list[str]) -> dict[str, str | bool]:
    """Return flags of sbatch by name, with True for one without a value."""
    found: dict[str, str | bool] = {}
    for item in given:
        name, equals, value = item.partition("=")
        name = name.strip().lstrip("-").replace("_", "-")
        if not name or (equals and not value):
            raise ConfigError(
                f"--slurm {shown(item)}: give a flag of sbatch, such as partition=gpu or exclusive."
            )
        if name in found:
            raise ConfigError(f"--slurm {name}: given more than once. Give it once.")
        found[name] = value if equals else True
    return found


def _commands(words: list[str], shards: int) -> list[list[str]]:
    """Return the command of each shard."""
    name, *arguments = words
    if shards == 1:
        return [["retbench", *words]]
    # Before the arguments, of which a `--` makes all that follow no options.
    parts = [["--shard", f"{number}/{shards}"] for number in range(1, shards + 1)]
    return [["retbench", name, *part, *arguments] for part in parts]
