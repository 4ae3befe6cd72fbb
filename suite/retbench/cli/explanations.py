"""Output of `retbench predict --paper`: published costs next to the analytical ones."""

from collections.abc import Sequence
from dataclasses import asdict

import typer

from retbench.cli.layout import print_json, print_prose, print_table
from retbench.cli.targets import count_kernels
from retbench.papers.explanations import (
    BATCH_SIZE,
    DEVICE,
    DTYPE,
    POINT_TOLERANCE_BYTES,
    STEP_TOLERANCE,
    TOLERANCE,
    Explanation,
    PublishedStep,
    explain_paper,
    explain_steps,
    published_models,
)
from retbench.papers.papers import find_datasheet
from retbench.report.claims.words import describe_number
from retbench.units import GB, format_percent, format_seconds


def print_explanations(form: str) -> None:
    """Print published costs next to the analytical ones, with the part of them that these do not explain."""
    found, steps = explain_paper(), explain_steps(count_kernels(published_models(), DTYPE, "eager"))
    if form == "json":
        print_json(
            {
                "explanations": [{"number": describe_number(each.place), **asdict(each)} for each in found],
                "steps": [
                    {"number": describe_number(each.place), **asdict(each), "remainder_s": each.remainder_s}
                    for each in steps
                ],
            }
        )
        return
    _print_steps(steps, form)
    typer.echo()
    _print_numbers(found, form)


def _print_steps(steps: Sequence[PublishedStep], form: str) -> None:
    """Print the published times of decode steps, and how the columns are to be read."""
    header = ("number", "model", "batch", "context", "time per step", "bound", "launches", "remainder")
    print_table(header, [_step_row(each) for each in steps], form, keys=4)
    typer.echo()
    kernel = format_seconds(find_datasheet(DEVICE).kernel_s)
    print_prose(
        f"time per step: as published, or implied by a throughput; batch {BATCH_SIZE} of Figure 6(b) is derived. "
        "bound: bytes, in 16 bits, and operations by the device's datasheet. launches: the kernels of this package's "
        f"eager step, {kernel} each as in a CUDA graph. remainder: what neither explains, with its share of the time; "
        "it includes the slower launches of steps without a graph."
    )


def _print_numbers(found: Sequence[Explanation], form: str) -> None:
    """Print every other published number with its analytical value, and how the verdicts are to be read."""
    print_table(
        ("number", "analytical", "verdict", "how it was computed"),
        [(describe_number(each.place), each.derived_text, each.verdict, each.note) for each in found],
        form,
    )
    typer.echo()
    print_prose(
        f"explained: within {100 * TOLERANCE:.0f} %, a point of Figure 6(a) within "
        f"{POINT_TOLERANCE_BYTES / GB:g} GB, latency by throughput within {100 * STEP_TOLERANCE:.0f} %. "
        "allowed: no better than the device permits."
    )


def _step_row(each: PublishedStep) -> tuple[str, ...]:
    """Return one published step, all times in ms."""
    launches = "not counted" if each.launches_s is None else _milliseconds(each.launches_s)
    share = format_percent(each.remainder_s / each.step_s)
    return (
        describe_number(each.place),
        each.model.replace("_", " "),
        str(each.batch_size),
        f"{each.context_len:,}",
        _milliseconds(each.step_s),
        _milliseconds(each.bound_s),
        launches,
        f"{_milliseconds(each.remainder_s)} ({share})",
    )


def _milliseconds(seconds: float) -> str:
    """Return a time in ms, the unit of Figure 6(c), however short it is."""
    return f"{1e3 * seconds:.2f} ms"
