"""`retbench predict`: time and memory of decoding, from analytical costs and a device's ceilings."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.layout import output_format, print_json, print_prose, print_table
from retbench.cli.options import (
    NAMED_MODEL,
    AsJson,
    OutputFormat,
    SizeName,
    dtype_option,
    given_options,
    new_app,
    read_counts,
    read_path,
)
from retbench.errors import ConfigError
from retbench.units import format_bytes, format_rate, format_seconds, format_size, format_tokens

if TYPE_CHECKING:
    from retbench.architectures.architecture import ModelSpec
    from retbench.cli.targets import Models, PredictionTarget
    from retbench.planning.prediction import Curve, PredictedCrossover, Prediction
    from retbench.records.record import Ceilings

app = new_app()
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)

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
    typer.Option(
        metavar="PATH",
        parser=read_path,
        help="Folder or file of records whose ceilings replace the device's.",
    ),
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
    int | None,
    typer.Option(metavar="N", min=1, help="Key-value heads of the Transformer; by default all heads."),
]
ComparePaper = Annotated[
    bool,
    typer.Option("--paper", help="Compare the paper's own numbers with the analytical costs instead."),
]


@app.command(epilog="Example: retbench predict retnet --context 8K --batch 8")
def predict(
    call: typer.Context,
    model: Annotated[str | None, NAMED_MODEL] = None,
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

    MODEL is compared with its counterpart. From a datasheet or recorded ceilings of a GPU the table has the least time
    that the device allows (at best), and the expected time with a cost per kernel. With --device cpu or cuda, where the
    operators of a step are measured one by one, it has the expected time.
    """
    from retbench.architectures.matching import resolve_model
    from retbench.architectures.registry import title_of
    from retbench.architectures.sizes import size_id
    from retbench.planning import prediction

    form = output_format(form, as_json=as_json)
    if (model is None) != paper:
        raise typer.BadParameter("give either MODEL or --paper")
    if model is None:
        from retbench.cli.explanations import print_explanations

        if given := {*given_options(call)} - {"--paper", "--format", "--json"}:
            raise typer.BadParameter(
                f"--paper has the paper's own sizes and device: leave out {', '.join(sorted(given))}"
            )
        print_explanations(form)
        return
    if ceilings is not None and "--device" in given_options(call):
        raise typer.BadParameter("--ceilings are those of the records' device: leave out --device")
    contexts = read_counts(context, "--context") if context else CONTEXTS
    batches = read_counts(batch, "--batch") if batch else (1,)
    size = size_id(size)
    specs = _specs(model, kv_heads)
    models = {name: (resolve_model(spec, size), spec.backend) for name, spec in specs.items()}
    is_measured = ceilings is None and device.partition(":")[0] in ("cpu", "cuda")
    if compile_step and not is_measured:
        raise typer.BadParameter("--compile needs a device that is measured now: --device cpu or cuda")
    if is_measured:
        target = _measured(device, dtype, models, compiled=compile_step)
    else:
        target = _looked_up(device, ceilings, dtype, models)
    configs = {name: config for name, (config, _) in models.items()}
    found = prediction.predict(
        configs,
        [(batch_size, context_len) for batch_size in batches for context_len in contexts],
        dtype=target.dtype,
        times=target.times,
        memory_bytes=target.memory_bytes,
    )
    first, second = configs.values()
    crossovers = [
        (time, prediction.predict_crossover(first, second, batch_size, step_time))
        for batch_size in batches
        for time, step_time in target.times.by_name.items()
    ]
    if form == "json":
        _print_json(size, target, found, crossovers)
    else:
        title = title_of(next(iter(specs.values())).architecture)
        lines = [(each.batch_size, _describe(title, time, each)) for time, each in crossovers]
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
            if name == model and dict(one)["num_kv_heads"] is not None:
                raise ConfigError(
                    f"--kv-heads {kv_heads}: the model '{name}' is one with its own number of key-value heads. Leave "
                    f"--kv-heads out, or name another model, such as '{one.architecture}'."
                )
            specs[name] = one.model_copy(update={"num_kv_heads": kv_heads})
    return dict(sorted(specs.items(), key=lambda item: is_baseline(item[1].architecture)))


def _measured(device: str, dtype: str | None, models: "Models", *, compiled: bool) -> "PredictionTarget":
    """Return a device of this machine with what it reaches now."""
    from retbench.cli.targets import measured_target
    from retbench.config.dtypes import find_dtype

    usual = "float32" if device == "cpu" else "bfloat16"
    return measured_target(device, models, find_dtype(dtype or usual), compiled=compiled)


def _looked_up(device: str, ceilings: Path | None, dtype: str | None, models: "Models") -> "PredictionTarget":
    """Return a device with its ceilings: from records, or from a datasheet."""
    from retbench.cli import targets
    from retbench.config.dtypes import find_dtype

    dtype = None if dtype is None else find_dtype(dtype)
    if ceilings is not None:
        return targets.recorded_target(ceilings, dtype, models)
    return targets.datasheet_target(device, dtype or "bfloat16", models)


def _print_json(
    size: str,
    target: "PredictionTarget",
    found: "Sequence[Prediction]",
    crossovers: "Sequence[tuple[str, PredictedCrossover]]",
) -> None:
    """Print everything in base units."""
    predictions = [{**asdict(each), "memory_bytes": each.memory_bytes, "fits": each.fits} for each in found]
    print_json(
        {
            "device": target.title,
            "source": target.source,
            "memory_bytes": target.memory_bytes,
            "ceilings": target.ceilings.model_dump() if target.ceilings else None,
            "rates": asdict(target.rates) if target.rates else None,
            "operators": {name: count._asdict() for name, count in target.operators.items()},
            "basis": target.basis,
            "size": size,
            "dtype": target.dtype,
            "predictions": predictions,
            "crossovers": [{"time": time, **asdict(each)} for time, each in crossovers],
        }
    )


def _print_text(
    size: str,
    target: "PredictionTarget",
    found: "Sequence[Prediction]",
    crossovers: Sequence[tuple[int, str]],
    form: str,
) -> None:
    """Print the same in readable units; `crossovers` has sentences, each with its batch size."""
    reached = f"; {_describe_ceilings(target.ceilings, found)}" if target.ceilings else ""
    print_prose(f"{target.title}, {target.dtype}, size {format_size(size)} ({target.source}{reached})")
    for line in filter(None, (_describe_rates(target), target.basis)):
        print_prose(line)
    typer.echo()
    times = {"at_best": "time per token at best", "expected": "expected time per token"}
    shown = {name: title for name, title in times.items() if name in target.times.by_name}
    last = ("tokens/s", "weights", "state", "memory", "largest batch")
    header = ("model", "batch", "context", *shown.values(), *last)
    print_table(header, [_row(each, list(shown)) for each in found], form, keys=3)
    typer.echo()
    for batch_size, sentence in crossovers:
        is_out = any(one.batch_size == batch_size and one.fits is False for one in found)
        note = " This compares times only: a batch that is out of memory above does not fit."
        print_prose(f"{sentence}{note if is_out else ''}")


def _describe_ceilings(ceilings: "Ceilings", found: "Sequence[Prediction]") -> str:
    """Return the ceilings in words: the bandwidth at the bytes that the steps move, or the one for all of them."""
    products = format_rate(ceilings.matmul_flops_per_s, "FLOP/s")
    if not ceilings.read_curve:
        bandwidth = format_rate(ceilings.read_bandwidth_bytes_per_s, "B/s")
        return f"{bandwidth} read at every footprint, {products}"
    moved = [each.moved_bytes for each in found]
    ends = sorted({min(moved), max(moved)})
    reads = [
        f"{format_rate(ceilings.read_bytes_per_s(size), 'B/s')} of {format_bytes(size)}" for size in ends
    ]
    return f"{' to '.join(reads)} read, {products}"


def _describe_rates(target: "PredictionTarget") -> str:
    """Return what was measured, at the smallest and the largest footprint; empty if nothing was."""
    rates = target.rates
    if rates is None or target.ceilings is not None:
        return ""
    parts = {"products": rates.products, "attention": rates.attention, "recurrence": rates.recurrence}
    words = [f"{name} {_ends(curve, lambda rate: format_rate(rate, 'B/s'))}" for name, curve in parts.items()]
    words.append(f"matrix products {format_rate(rates.matmul_flops_per_s, 'FLOP/s')}")
    shared = _ends(
        rates.shared_key_flops_per_s, lambda rate: format_rate(rate, "FLOP/s"), "{} of a key".format
    )
    words.append(f"queries that share keys {shared}")
    costs = {
        "operator": (((1, rates.operator_s),), "total", ""),
        "product": (rates.product_s, "products", " more"),
        "attention": (rates.attention_s, "attentions", " more"),
        "attention to shared keys": (rates.shared_attention_s, "shared_attentions", " more"),
        "view": (((1, rates.view_s),), "views", ""),
    }
    for name, (curve, counted, more) in costs.items():
        counts = {model: getattr(count, counted) for model, count in target.operators.items()}
        if any(seconds for _, seconds in curve) and any(counts.values()):
            per_step = ", ".join(f"{model} {number}" for model, number in counts.items())
            words.append(f"{_ends(curve, format_seconds)}{more} per {name} ({per_step} per step)")
    return f"Measured: {'; '.join(words)}."


def _ends(
    curve: "Curve", describe: Callable[[float], str], describe_place: Callable[[int], str] = format_bytes
) -> str:
    """Return the first and the last value of a curve with their footprints; one that holds for all alone."""
    if len(curve) == 1:
        return describe(curve[0][1])
    ends = (curve[0], curve[-1])
    return " to ".join(f"{describe(value)} ({describe_place(footprint)})" for footprint, value in ends)


def _row(each: "Prediction", times: Sequence[str]) -> tuple[str, ...]:
    """Return one prediction; a batch that does not fit has no time."""
    out_of_memory = each.fits is False
    seconds = [
        "out of memory" if out_of_memory else format_seconds(getattr(each, f"{time}_s")) for time in times
    ]
    return (
        each.model,
        f"{each.batch_size:,}",
        format_tokens(each.context_len),
        *seconds,
        "" if out_of_memory else format_rate(each.tokens_per_s, ""),
        format_bytes(each.weight_bytes),
        format_bytes(each.state_bytes),
        format_bytes(each.memory_bytes),
        "not known" if each.largest_batch is None else f"{each.largest_batch:,}",
    )


def _describe(title: str, time: str, each: "PredictedCrossover") -> str:
    """Return the crossover by one of the two times as a sentence about the first model, by its title."""
    lead = f"batch {each.batch_size:,}, {time.replace('_', ' ')}: {title}'s step is shorter"
    if each.ahead_to is not None:
        return f"{lead} up to {each.ahead_to:,} tokens of context, and not beyond."
    if each.context_len is None:
        return f"{lead} at no context up to {format_tokens(each.looked_to)} tokens."
    if each.context_len == each.looked_from:
        return f"{lead} at every context of 1 token or more."
    return f"{lead} from {each.context_len:,} tokens of context on."
