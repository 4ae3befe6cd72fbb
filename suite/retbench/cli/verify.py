"""`retbench verify`: the equivalence check of one model, shown check by check."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.layout import print_columns, print_json
from retbench.cli.options import AsJson, DeviceName, new_app
from retbench.errors import GateError, unknown_name

if TYPE_CHECKING:
    from retbench.architectures.architecture import ModelSpec
    from retbench.architectures.configs import ModelConfig
    from retbench.models.decoder import Decoder
    from retbench.records.record import Gate

app = new_app()
DEPTH = 4096
"""Tokens of the streamed state: the greatest depth of a run's equivalence check on a CPU."""


@app.command(epilog="Example: retbench verify retnet --size 1m")
def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name from `retbench list --models`.")],
    size: Annotated[str, typer.Option(help="A name from `retbench list --sizes`.")] = "6m",
    dtype: Annotated[str, typer.Option(help="float64, float32, bfloat16 or float16.")] = "float32",
    backend: Annotated[
        str | None, typer.Option(help="Retention form or attention backend; by default the model's own.")
    ] = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Check that all execution modes of a model are equivalent.

    A run does the same check before it times anything. Exit code 1 if the modes are not equivalent.
    """
    from retbench.architectures.matching import resolve_model
    from retbench.cli.in_process import backends_of, check_dtype, find_named_model, within_memory
    from retbench.run.devices import find_device

    spec = find_named_model(model)
    check_dtype(dtype)
    if backend is not None and backend not in backends_of(spec):
        raise unknown_name("backend", backend, backends_of(spec), where="--backend")
    config = resolve_model(spec, size)
    device = find_device(device).name
    named = f"{model} of size '{size}' at {dtype}"
    with within_memory(named, config, dtype, device, "Give a smaller --size or another --device."):
        decoder, gate = _run_gate(spec, config, dtype, backend or spec.backend, device)
    (_print_json if as_json else _print_text)(model, size, decoder, gate)
    if not gate.passed:
        failed = ", ".join(f"{one.name} at {one.length} tokens" for one in gate.checks if not one.passed)
        raise GateError(
            f"{named}: its execution modes are not equivalent ({failed}). No run would measure it; see the "
            "errors above."
        )


def _run_gate(
    spec: "ModelSpec", config: "ModelConfig", dtype: str, backend: str, device: str
) -> "tuple[Decoder, Gate]":
    """Build the model and check it, with the text and the seed of a run."""
    import torch

    from retbench.data import text
    from retbench.models.build import build_model
    from retbench.models.equivalence import LENGTHS, check_equivalence

    if device != "cpu":
        torch.cuda.set_device(device)  # kernels that are not torch's own use the current device
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


def _print_text(name: str, size: str, model: "Decoder", gate: "Gate") -> None:
    """Print the checks as a table, the backends that were not compared, and the verdict."""
    rows = [
        (one.name, str(one.length), f"{one.error:.1e}", f"{one.limit:.1e}", "ok" if one.passed else "FAILED")
        for one in gate.checks
    ]
    print_columns(("check", "tokens", "error", "limit", "result"), rows)
    for backend, reason in model.backends().items():
        if reason:
            typer.echo(f"not compared: {backend}: {reason}")
    verdict = "equivalent" if gate.passed else "NOT EQUIVALENT"
    typer.echo(f"{name} {size} {gate.dtype} {model.device} {model.backend}: {verdict}")


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
            "not_compared": {backend: reason for backend, reason in model.backends().items() if reason},
            "passed": gate.passed,
            "checks": checks,
        }
    )
