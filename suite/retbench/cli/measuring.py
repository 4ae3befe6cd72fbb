"""The verbs that measure and train."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.options import AsJson, DataDir, DeviceName, ExperimentName, Overrides, ProfileName


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    app.command(epilog="Example: retbench run latency --profile smoke --device cpu")(run)
    app.command(epilog="Example: retbench train quality --profile smoke --device cpu")(train)


def run(
    experiment: ExperimentName,
    profile: ProfileName = None,
    device: DeviceName = None,
    dtype: Annotated[str | None, typer.Option(help="Replaces the profile's dtype.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Keep the first so many context lengths, or documents.")
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Compile decode steps with torch.compile; replaces the profile's."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder that records are appended to.")] = Path(
        "results"
    ),
    overrides: Overrides = None,
    data_dir: DataDir = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is on disk already.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the cells with their expected time and memory; measure nothing."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure an experiment, or go on where it stopped.

    Records are appended as they are measured, so that nothing is lost when a run is ended; the same command
    measures what is left.
    """
    from retbench.planning.plan import make_plan

    plan = make_plan(
        experiment,
        profile=profile,
        device=device,
        dtype=dtype,
        limit=limit,
        compiled=compiled,
        overrides=overrides or [],
        results=out,
        data_dir=data_dir.absolute() if data_dir else None,
    )
    from retbench.cli import run as command

    if dry_run:
        command.show_plan(plan, out, as_json=as_json)
    else:
        raise typer.Exit(command.carry_out(plan, out, fresh=fresh, as_json=as_json))


def train(
    experiment: ExperimentName,
    profile: ProfileName = None,
    device: DeviceName = None,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of results; the models go below its checkpoints/.")
    ] = Path("results"),
    overrides: Overrides = None,
    data_dir: DataDir = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the runs with their tokens and expected time; train nothing."),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the runs of this profile and train them anew.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train the models of an experiment alike, or go on where training stopped.

    Each model runs the same grid of learning rates and takes its own best; then the final runs follow. A run that was
    ended, in whatever way, goes on as if it had not been.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m retbench train EXPERIMENT, with a folder of results that
    all of them see.
    """
    from retbench.cli import train as command

    request = command.Request(experiment, profile, device, tuple(overrides or ()), data_dir)
    if dry_run:
        command.show_plan(request, out, as_json=as_json)
    else:
        raise typer.Exit(command.train(request, out, fresh=fresh, as_json=as_json))
