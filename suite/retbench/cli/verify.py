"""`retbench verify`: the equivalence check of one model, shown check by check."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.layout import output_format, print_json, print_prose, print_table, same_reasons
from retbench.cli.options import (
    NAMED_MODEL,
    AsJson,
    DeviceName,
    OutputFormat,
    SizeName,
    dtype_option,
    new_app,
)
from retbench.errors import GateError, unknown_name
from retbench.units import format_size

if TYPE_CHECKING:
    from retbench.architectures.architecture import ModelSpec
    from retbench.architectures.configs import ModelConfig
    from retbench.models.decoder import Decoder
    from retbench.records.record import Gate

app = new_app()
DEPTH = 4096
"""Tokens of the streamed state: the greatest depth of a run's equivalence check on a CPU."""


@app.command(epilog="Example: retbench verify retnet --size 1M")
def verify(
    model: Annotated[str, NAMED_MODEL],
    size: SizeName = "6M",
    dtype: Annotated[str, dtype_option("")] = "float32",
    backend: Annotated[
        str | None,
        typer.Option(metavar="FORM", help="Retention form or attention backend; by default the model's own."),
    ] = None,
    device: DeviceName = None,
    form: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """Check that all execution modes of a model are equivalent.

    A run does the same check before it times anything. Exit code 1 if the modes are not equivalent.
    """
    from retbench.architectures.blame import blaming_package
    from retbench.architectures.matching import resolve_model
    from retbench.architectures.sizes import size_id
    from retbench.cli.in_process import backends_of, find_named_model, within_memory
    from retbench.config.dtypes import find_dtype
    from retbench.measure.devices import find_device

    form = output_format(form, as_json=as_json)
    spec, size, dtype = find_named_model(model), size_id(size), find_dtype(dtype)
    if backend is not None and backend not in backends_of(spec):
        raise unknown_name("backend", backend, backends_of(spec), where="--backend")
    config = resolve_model(spec, size)
    device = find_device(device).name
    named = f"{model} of size {format_size(size)} at {dtype}"
    advice = "Give a smaller --size or another --device."
    with within_memory(named, config, dtype, device, advice), blaming_package(config):
        decoder, gate = _run_gate(spec, config, dtype, backend or spec.backend, device)
    if form == "json":
        _print_json(model, size, decoder, gate)
    else:
        _print_checks(f"{model} {format_size(size)}", decoder, gate, form)
    if not gate.passed:
        raise GateError(
            f"{named}: its execution modes are not equivalent: {gate.failures}. No run would measure it."
        )


def _run_gate(
    spec: "ModelSpec", config: "ModelConfig", dtype: str, backend: str, device: str
) -> "tuple[Decoder, Gate]":
    """Build the model and check it, with the text and the seed of a run."""
    import torch

    from retbench.data import text
    from retbench.measure.environment import use_device
    from retbench.models.build import build_model
    from retbench.models.equivalence import LENGTHS, check_equivalence

    use_device(device)
    model = build_model(
        config,
        dtype=getattr(torch, dtype),
        device=device,
        seed=0,
        backend=backend,
        chunk_size=spec.chunk_size,
    )
    tokens = text.read_tokens(max(DEPTH, *LENGTHS))[None].to(device)
    return model, check_equivalence(model, tokens, depth=DEPTH)


def _print_checks(name: str, model: "Decoder", gate: "Gate", form: str) -> None:
    """Print the checks as a table, the backends that were not compared, and the verdict."""
    rows = [
        (one.name, str(one.length), f"{one.error:.1e}", f"{one.limit:.1e}", "ok" if one.passed else "FAILED")
        for one in gate.checks
    ]
    print_table(("check", "tokens", "error", "limit", "result"), rows, form, keys=2)
    typer.echo()
    for names, reason in same_reasons(_not_compared(model)):
        print_prose(f"not compared: {names}: {reason}")
    verdict = "equivalent" if gate.passed else "NOT EQUIVALENT"
    typer.echo(f"{name} {gate.dtype} {model.device} {model.backend}: {verdict}")


def _not_compared(model: "Decoder") -> dict[str, str]:
    """Return the backends that were not compared, each with the reason."""
    from retbench.architectures.configs import form_of

    compared, alike = model.other_backends(), f"it reads prompts as {model.backend} does at this dtype"
    return {
        name: reason or alike
        for name, reason in model.backends().items()
        if name not in compared
        and any(form_of(mixer.config, name) != mixer.backend for mixer in model.mixers)
    }


def _print_json(name: str, size: str, model: "Decoder", gate: "Gate") -> None:
    """Print the same as one JSON object; an error that is not finite is null."""
    from retbench.architectures import costs

    checks = [
        {**one.model_dump(), "error": one.error if math.isfinite(one.error) else None, "passed": one.passed}
        for one in gate.checks
    ]
    print_json(
        {
            "model": name,
            "size": size,
            "num_params_nonembedding": costs.num_params_nonembedding(model.config),
            "dtype": gate.dtype,
            "device": str(model.device),
            "backend": model.backend,
            "not_compared": _not_compared(model),
            "passed": gate.passed,
            "checks": checks,
        }
    )
