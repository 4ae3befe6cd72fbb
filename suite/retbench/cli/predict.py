"""`retbench predict`: time and memory of decoding, from analytical costs and a device's ceilings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.layout import output_format, print_json, print_prose, print_table
from retbench.cli.options import (
    AsJson,
    OutputFormat,
    SizeName,
    complete_model,
    dtype_option,
    given_options,
    new_app,
    read_counts,
)
from retbench.units import (
    format_bytes,
    format_percent,
    format_rate,
    format_seconds,
    format_size,
    format_tokens,
)

if TYPE_CHECKING:
    from retbench.architectures.architecture import ModelSpec
    from retbench.architectures.configs import ModelConfig
    from retbench.cli.targets import PredictionTarget
    from retbench.papers.explanations import Explanation
    from retbench.planning.prediction import Crossover, Prediction

app = new_app()
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)

ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", autocompletion=complete_model, help="A name from `retbench list --models`."
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="a100-40gb, a100-80gb, a100-80gb-pcie, h100-80gb, h100-80gb-pcie, h100-nvl, h200, l40s, b200 or mi300x; "
        "cpu or cuda: measured now.",
    ),
]
CeilingsPath = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Folder or file of records whose ceilings replace the device's."),
]
DtypeName = Annotated[
    str | None, dtype_option("By default that of the records, float32 on cpu, else bfloat16.")
]
ContextLens = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TOKENS",
        help="Context lengths: 8K, 1K,8K or 1K-32K (doubling), the default. May be repeated.",
    ),
]
BatchSizes = Annotated[
    list[str] | None,
    typer.Option(metavar="N", help="Batch sizes: 8, 1,8 or 1-64 (doubling); 1 by default. May be repeated."),
]
KvHeads = Annotated[
    int | None, typer.Option(min=1, help="Key-value heads of the Transformer; by default all heads.")
]
ComparePaper = Annotated[
    bool,
    typer.Option("--paper", help="Compare the paper's own numbers with the analytical costs instead."),
]


@app.command(epilog="Example: retbench predict retnet --context 8K --batch 8")
def predict(
    call: typer.Context,
    model: ModelName = None,
    size: SizeName = "6.7B",
    device: DeviceOption = "a100-80gb",
    ceilings: CeilingsPath = None,
    dtype: DtypeName = None,
    context: ContextLens = None,
    batch: BatchSizes = None,
    kv_heads: KvHeads = None,
    compile_step: Annotated[
        bool, typer.Option("--compile", help="Predict compiled steps; needs --device cpu or cuda.")
    ] = False,
    paper: ComparePaper = False,
    form: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """Predict time per token, memory, largest batch and crossover.

    MODEL is compared with its counterpart. From a datasheet or recorded ceilings the time is the least that the device
    allows. With --device cpu or cuda, where the operators of a step are measured one by one, it is the expected time.
    """
    from retbench.architectures.matching import resolve_model
    from retbench.architectures.registry import title_of
    from retbench.architectures.sizes import size_id
    from retbench.planning import prediction

    form = output_format(form, as_json=as_json)
    if (model is None) != paper:
        raise typer.BadParameter("give either MODEL or --paper")
    if model is None:
        _print_explanations(call, form)
        return
    if ceilings is not None and "--device" in given_options(call):
        raise typer.BadParameter("--ceilings are those of the records' device: leave out --device")
    contexts = read_counts(context, "--context") if context else CONTEXTS
    batches = read_counts(batch, "--batch") if batch else (1,)
    size = size_id(size)
    specs = _specs(model, kv_heads)
    models = {name: resolve_model(spec, size) for name, spec in specs.items()}
    backends = [(config, specs[name].backend) for name, config in models.items()]
    is_measured = ceilings is None and device.partition(":")[0] in ("cpu", "cuda")
    if compile_step and not is_measured:
        raise typer.BadParameter("--compile needs a device that is measured now: --device cpu or cuda")
    if is_measured:
        target = _measured(device, dtype, backends, compiled=compile_step)
    else:
        target = _looked_up(device, ceilings, dtype)
    found = prediction.predict(
        models,
        [(batch_size, context_len) for batch_size in batches for context_len in contexts],
        dtype=target.dtype,
        step_time=target.step_time,
        memory_bytes=target.memory_bytes,
    )
    first, second = models.values()
    crossovers = [
        prediction.find_crossover(first, second, batch_size, target.step_time) for batch_size in batches
    ]
    if form == "json":
        _print_json(size, target, found, crossovers)
    else:
        title = title_of(next(iter(specs.values())).architecture)
        lines = {each.batch_size: _describe(title, each) for each in crossovers}
        _print_text(size, target, found, lines, form)


def _specs(model: str, kv_heads: int | None) -> "dict[str, ModelSpec]":
    """Return the model and its counterpart, RetNet first."""
    from retbench.architectures.registry import counterpart_of, is_baseline
    from retbench.cli.in_process import find_named_model

    spec = find_named_model(model)
    counterpart = counterpart_of(spec.architecture)
    specs = {model: spec, counterpart: find_named_model(counterpart)}
    for name, one in specs.items():
        if kv_heads is not None and "num_kv_heads" in type(one).model_fields:
            specs[name] = one.model_copy(update={"num_kv_heads": kv_heads})
    return dict(sorted(specs.items(), key=lambda item: is_baseline(item[1].architecture)))


def _measured(
    device: str, dtype: str | None, models: "Sequence[tuple[ModelConfig, str]]", *, compiled: bool
) -> "PredictionTarget":
    """Return a device of this machine with what it reaches now."""
    from retbench.cli.targets import measured_target
    from retbench.config.experiment import find_dtype

    usual = "float32" if device == "cpu" else "bfloat16"
    return measured_target(device, models, find_dtype(dtype or usual), compiled=compiled)


def _looked_up(device: str, ceilings: Path | None, dtype: str | None) -> "PredictionTarget":
    """Return a device with its ceilings: from records, or from a datasheet."""
    from retbench.cli import targets
    from retbench.config.experiment import find_dtype

    dtype = None if dtype is None else find_dtype(dtype)
    if ceilings is not None:
        return targets.recorded_target(ceilings, dtype)
    return targets.datasheet_target(device, dtype or "bfloat16")


def _print_json(
    size: str, target: "PredictionTarget", found: "Sequence[Prediction]", crossovers: "Sequence[Crossover]"
) -> None:
    """Print everything in base units."""
    predictions = [{**asdict(each), "memory_bytes": each.memory_bytes, "fits": each.fits} for each in found]
    print_json(
        {
            "device": target.title,
            "source": target.source,
            "memory_bytes": target.memory_bytes,
            "ceilings": target.ceilings.model_dump() if target.ceilings else None,
            "size": size,
            "dtype": target.dtype,
            "step_s_is": "at_best" if target.ceilings else "expected",
            "predictions": predictions,
            "crossovers": [asdict(each) for each in crossovers],
        }
    )


def _print_text(
    size: str,
    target: "PredictionTarget",
    found: "Sequence[Prediction]",
    crossovers: Mapping[int, str],
    form: str,
) -> None:
    """Print the same in readable units; `crossovers` has a sentence for each batch size."""
    rates, time = "", "time per token"
    if reached := target.ceilings:
        rates = f"; {format_rate(reached.read_bandwidth_bytes_per_s, 'B/s')} read"
        rates += f", {format_rate(reached.matmul_flops_per_s, 'FLOP/s')}"
        time += " at best"
    print_prose(f"{target.title}, {target.dtype}, size {format_size(size)} ({target.source}{rates})")
    typer.echo()
    header = ("model", "batch", "context", time, "tokens/s", "weights", "state", "memory", "largest batch")
    print_table(header, [_row(each) for each in found], form, keys=3)
    typer.echo()
    for batch_size, sentence in crossovers.items():
        is_out = any(one.batch_size == batch_size and one.fits is False for one in found)
        note = " This compares times only: a batch that is out of memory above does not fit."
        print_prose(f"{sentence}{note if is_out else ''}")


def _row(each: "Prediction") -> tuple[str, ...]:
    """Return one prediction; a batch that does not fit has no time."""
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


def _describe(title: str, each: "Crossover") -> str:
    """Return the crossover as a sentence about the first model, by its title."""
    lead = f"batch {each.batch_size}: {title}'s step is shorter"
    if each.context_len is None:
        return f"{lead} at no context up to {format_tokens(each.looked_to)} tokens."
    if each.context_len == each.looked_from:
        return f"{lead} at every context of {format_tokens(each.looked_from)} tokens or more."
    return f"{lead} from {each.context_len:,} tokens of context on."


def _print_explanations(call: typer.Context, form: str) -> None:
    """Print the RetNet paper's costs next to the analytical ones, with those that these do not explain."""
    from retbench.papers.explanations import (
        POINT_TOLERANCE_BYTES,
        STEP_TOLERANCE,
        TOLERANCE,
        explain_paper,
    )

    if given := {*given_options(call)} - {"--paper", "--format", "--json"}:
        raise typer.BadParameter(
            f"--paper has the paper's own sizes and device: leave out {', '.join(sorted(given))}"
        )
    found = explain_paper()
    if form == "json":
        print_json({"explanations": [asdict(each) for each in found]})
        return
    print_table(
        ("number", "paper", "analytical", "verdict", "how it was computed"),
        [(each.place.removeprefix("retnet/"), *_values(each), each.verdict, each.note) for each in found],
        form,
    )
    typer.echo()
    print_prose(
        f"explained: within {100 * TOLERANCE:.0f} %, a point of Figure 6(a) within "
        f"{POINT_TOLERANCE_BYTES / 1e9:g} GB, latency by throughput within {100 * STEP_TOLERANCE:.0f} %. "
        "allowed: no better than the device permits."
    )


def _values(each: "Explanation") -> tuple[str, ...]:
    """Return the printed and the derived number in readable units; GB where the paper has them."""
    if each.unit == "bytes":
        return tuple(f"{value / 1e9:.4g} GB" for value in (each.printed, each.derived))
    if each.unit == "s":
        return format_seconds(each.printed), format_seconds(each.derived)
    if each.unit == "tokens/s":
        return format_rate(each.printed, "tokens/s"), format_rate(each.derived, "tokens/s")
    if each.printed < 1:
        return format_percent(each.printed), format_percent(each.derived)
    return f"{each.printed:.3g}x", f"{each.derived:.3g}x"
