"""What `retbench train` prints on stdout: the runs that are over, or those that are planned."""

from collections.abc import Sequence
from typing import Any

from retbench.cli.layout import print_columns, print_json
from retbench.cli.training_progress import describe_rate
from retbench.training.events import RunResult, TrainingResult
from retbench.training.plan import TrainingPlan, TrainingRun
from retbench.units import format_count, format_duration, format_rate


def print_result(plan: TrainingPlan, result: TrainingResult, *, as_json: bool) -> None:
    """Print what training came to: a table of the runs, or one JSON object in base units."""
    if as_json:
        print_json(_as_json(plan, result))
    else:
        _print_runs(result.runs)


def _as_json(plan: TrainingPlan, result: TrainingResult) -> dict[str, Any]:
    """What training came to, in base units."""
    return {
        "experiment": plan.experiment.name,
        "profile": plan.profile_name,
        "interrupted": result.interrupted,
        "tuning": [
            {
                "model": tuning.model_name,
                "size": tuning.size,
                "learning_rate": tuning.learning_rate,
                "edge_of_grid": tuning.edge,
            }
            for tuning in result.tunings
        ],
        "runs": [
            {
                **_run_fields(plan, item.run),
                "status": item.status,
                "error": item.error,
                "num_tokens": item.num_tokens,
                "validation_loss_nats": item.validation_loss,
                "tokens_per_s": item.tokens_per_s,
                "folder": str(item.folder),
                "trained_before": item.on_disk,
            }
            for item in result.runs
        ],
    }


def _run_fields(plan: TrainingPlan, run: TrainingRun) -> dict[str, Any]:
    """A run in base units."""
    return {
        "model": run.model_name,
        "size": run.size,
        "role": run.role,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "num_tokens": plan.num_tokens(run),
    }


def _print_runs(runs: Sequence[RunResult]) -> None:
    """The table of runs that are over."""
    header = (
        "model",
        "size",
        "run",
        "learning rate",
        "seed",
        "tokens",
        "validation nats/token",
        "tokens/s",
        "folder",
    )
    print_columns(
        header,
        [
            (
                item.run.model_name,
                item.run.size,
                item.run.role,
                describe_rate(item.run),
                str(item.run.seed),
                format_count(item.num_tokens),
                "failed" if item.validation_loss is None else f"{item.validation_loss:.4f}",
                "" if item.tokens_per_s is None else format_rate(item.tokens_per_s, "tokens/s"),
                str(item.folder),
            )
            for item in runs
        ],
    )


def print_plan(
    plan: TrainingPlan, runs: Sequence[TrainingRun], seconds: Sequence[float], *, as_json: bool
) -> None:
    """Print every run with its tokens and the seconds that it will roughly take."""
    if as_json:
        fields = [
            {**_run_fields(plan, run), "seconds": expected}
            for run, expected in zip(runs, seconds, strict=True)
        ]
        print_json(
            {
                "experiment": plan.experiment.name,
                "profile": plan.profile_name,
                "command": plan.command,
                "runs": fields,
            }
        )
        return
    rows = [
        (
            run.model_name,
            run.size,
            run.role,
            describe_rate(run),
            str(run.seed),
            format_count(plan.num_tokens(run)),
            format_duration(expected),
        )
        for run, expected in zip(runs, seconds, strict=True)
    ]
    total = (
        "all",
        "",
        "",
        "",
        "",
        format_count(sum(map(plan.num_tokens, runs))),
        format_duration(sum(seconds)),
    )
    print_columns(("model", "size", "run", "learning rate", "seed", "tokens", "time"), [*rows, total])
