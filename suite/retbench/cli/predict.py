"""`retbench predict`: what decoding should take and hold, from closed forms and a device's ceilings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import typer

from retbench.architectures.configs import ModelConfig
from retbench.architectures.matching import resolve_model
from retbench.cli.layout import print_columns, print_json
from retbench.cli.listing import named_models
from retbench.cli.targets import (
    Target,
    datasheet_target,
    measured_cpu,
    measured_gpu,
    recorded_target,
)
from retbench.config.experiment import Dtype, ModelSpec, TransformerSpec
from retbench.errors import ConfigError, unknown_name
from retbench.papers.explanations import (
    BARS_TOLERANCE,
    POINT_TOLERANCE_BYTES,
    TOLERANCE,
    Explanation,
    explain_paper,
)
from retbench.planning.prediction import Overtaking, Prediction, find_overtaking, predict
from retbench.units import format_bytes, format_percent, format_rate, format_seconds, format_tokens

COUNTERPART = {"retnet": "transformer", "transformer": "retnet"}
"""Whom a model is compared with, by architecture."""


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        model: A name of `retbench list --models`; None with `paper`.
        size: A name of `retbench list --sizes`.
        device: A datasheet's name, cpu or cuda[:N].
        ceilings: Records that the ceilings are taken from instead of a device.
        dtype: None for that of the records, float32 on a CPU, else bfloat16.
        contexts: Context lengths.
        batches: Batch sizes.
        kv_heads: Key and value heads of the Transformer.
    """

    model: str
    size: str
    device: str
    ceilings: Path | None
    dtype: str | None
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    kv_heads: int | None


def print_prediction(request: Request, *, as_json: bool) -> None:
    """Print time, memory, largest batch and crossover of a model and of its counterpart.

    Raises:
        ConfigError: an unknown model, size, device or dtype, or a length or batch below 1.
        UnsupportedError: the device is not here, or its datasheet has no such dtype.
        RecordError: there are no records with ceilings at that dtype.
    """
    for what, values in (("--context", request.contexts), ("--batch", request.batches)):
        if min(values) < 1:
            raise ConfigError(f"{what} is {min(values)}. Give 1 or more.")
    specs = _specs(request)
    models = {name: resolve_model(spec, request.size) for name, spec in specs.items()}
    target = _target(request, specs, models)
    points = [(batch, context) for batch in request.batches for context in request.contexts]
    found = predict(
        models, points, dtype=target.dtype, step_time=target.step_time, memory_bytes=target.memory_bytes
    )
    overtakings = _overtakings(request, models, target)
    if as_json:
        print_json(_as_json(request, target, found, overtakings))
    else:
        _print_text(request, target, found, overtakings)


def _specs(request: Request) -> dict[str, ModelSpec]:
    """The model and its counterpart, that of RetNet first."""
    known = named_models()
    if request.model not in known:
        raise unknown_name("model", request.model, known)
    names = [request.model, COUNTERPART[known[request.model].architecture]]
    specs = {name: known[name] for name in names}
    if request.kv_heads is not None:
        specs = {
            name: spec.model_copy(update={"num_kv_heads": request.kv_heads})
            if isinstance(spec, TransformerSpec)
            else spec
            for name, spec in specs.items()
        }
    return dict(sorted(specs.items(), key=lambda item: item[1].architecture))


def _target(request: Request, specs: dict[str, ModelSpec], models: dict[str, ModelConfig]) -> Target:
    """The device with its ceilings: from records, a datasheet, or measured here and now."""
    if request.dtype is not None and request.dtype not in get_args(Dtype):
        raise unknown_name("dtype", request.dtype, get_args(Dtype), where="--dtype")
    if request.ceilings is not None:
        return recorded_target(request.ceilings, request.dtype)
    if request.device == "cpu":
        wanted = [(model, specs[name].backend) for name, model in models.items()]
        return measured_cpu(wanted, request.batches, request.contexts, request.dtype or "float32")
    dtype = request.dtype or "bfloat16"
    is_here = request.device.partition(":")[0] == "cuda"
    return measured_gpu(request.device, dtype) if is_here else datasheet_target(request.device, dtype)


def _overtakings(request: Request, models: dict[str, ModelConfig], target: Target) -> list[Overtaking]:
    """Where the RetNet overtakes the Transformer, at every batch size."""
    retnet, transformer = models.values()
    return [
        find_overtaking(retnet, transformer, batch, target.step_time, target.within)
        for batch in request.batches
    ]


def _as_json(
    request: Request,
    target: Target,
    found: Sequence[Prediction],
    overtakings: Sequence[Overtaking],
) -> dict[str, Any]:
    """Everything in base units."""
    return {
        "device": target.title,
        "source": target.source,
        "memory_bytes": target.memory_bytes,
        "ceilings": target.ceilings.model_dump() if target.ceilings else None,
        "size": request.size,
        "dtype": target.dtype,
        "step_s_is": "at_best" if target.is_bound else "expected",
        "predictions": [
            {**asdict(each), "memory_bytes": each.memory_bytes, "fits": each.fits} for each in found
        ],
        "crossovers": [asdict(each) for each in overtakings],
    }


def _print_text(
    request: Request,
    target: Target,
    found: Sequence[Prediction],
    overtakings: Sequence[Overtaking],
) -> None:
    """The same for people."""
    reached = (
        f"; {format_rate(target.ceilings.read_bandwidth_bytes_per_s, 'B/s')} read, "
        f"{format_rate(target.ceilings.matmul_flops_per_s, 'FLOP/s')}"
        if target.ceilings
        else ""
    )
    typer.echo(f"{target.title}, {target.dtype}, size {request.size} ({target.source}{reached})")
    typer.echo()
    time = "token at best" if target.is_bound else "token"
    memory = ("weights", "state", "memory", "largest batch")
    print_columns(
        ("model", "batch", "context", f"time per {time}", "tokens/s", *memory), [_row(each) for each in found]
    )
    typer.echo()
    for each in overtakings:
        is_out = any(one.batch_size == each.batch_size and one.fits is False for one in found)
        typer.echo(
            f"{_describe(each)}{' That is of time alone: what is out of memory above does not fit.' if is_out else ''}"
        )


def _row(each: Prediction) -> tuple[str, ...]:
    """One prediction; a batch that does not fit has no time."""
    out_of_memory = each.fits is False
    return (
        each.model,
        str(each.batch_size),
        format_tokens(each.context_len),
        "out of memory" if out_of_memory else format_seconds(each.step_s),
        "" if out_of_memory else format_rate(each.tokens_per_s, ""),
        format_bytes(each.weight_bytes),
        format_bytes(each.state_bytes),
        format_bytes(each.memory_bytes),
        "not known" if each.largest_batch is None else str(each.largest_batch),
    )


def _describe(each: Overtaking) -> str:
    """Where RetNet overtakes, as a sentence."""
    lead = f"batch {each.batch_size}: RetNet's step is the shorter one"
    if each.context_len is None:
        return f"{lead} nowhere up to {format_tokens(each.looked_to)} tokens of context."
    if each.context_len == each.looked_from:
        return f"{lead} at every context from {format_tokens(each.looked_from)} on."
    return f"{lead} from {each.context_len:,} tokens of context on."


def print_explanations(*, as_json: bool) -> None:
    """Print the RetNet paper's numbers of cost beside the closed forms, and which of them these do not explain."""
    found = explain_paper()
    if as_json:
        print_json({"explanations": [asdict(each) for each in found]})
        return
    print_columns(
        ("number", "paper", "closed form", "verdict", "what was computed"),
        [(each.place.removeprefix("retnet/"), *_values(each), each.verdict, each.note) for each in found],
    )
    typer.echo()
    typer.echo(
        f"explained: within {100 * TOLERANCE:.0f} %, a point of Figure 6(a) within {POINT_TOLERANCE_BYTES / 1e9:g} GB, "
        f"two bars of Figure 1 within {100 * BARS_TOLERANCE:.0f} %. allowed: no better than the device permits."
    )


def _values(each: Explanation) -> tuple[str, str]:
    """Both numbers in readable units; GB where the paper has them."""
    match each.unit:
        case "bytes":
            return f"{each.printed / 1e9:.4g} GB", f"{each.derived / 1e9:.4g} GB"
        case "s":
            return format_seconds(each.printed), format_seconds(each.derived)
        case "tokens/s":
            return format_rate(each.printed, "tokens/s"), format_rate(each.derived, "tokens/s")
        case _ if each.printed < 1:
            return format_percent(each.printed), format_percent(each.derived)
        case _:
            return f"{each.printed:.3g}x", f"{each.derived:.3g}x"
