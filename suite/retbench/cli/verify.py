"""`retbench verify`: the equality gate of one model, shown check by check."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import typer

from retbench.architectures import costs, matching
from retbench.architectures.architecture import ModelSpec
from retbench.architectures.configs import ModelConfig
from retbench.cli.layout import print_columns, print_json
from retbench.cli.listing import backends_of, named_models
from retbench.cli.memory import require_memory
from retbench.config.experiment import Dtype
from retbench.errors import GateError, UnsupportedError, unknown_name
from retbench.measure.limits import is_out_of_memory
from retbench.records.record import Gate
from retbench.run.devices import find_device

if TYPE_CHECKING:
    from retbench.models.decoder import Decoder

DEPTH = 4096
"""Tokens of the streamed state: as deep as the gate of a run on the CPU goes."""


@dataclass(frozen=True)
class Request:
    """Which model to verify, and how it is to run; None for the model's or the machine's own choice."""

    model: str
    size: str
    dtype: str
    backend: str | None
    device: str | None


def verify(request: Request, *, as_json: bool) -> None:
    """Print every check of a model's gate.

    Raises:
        ConfigError: an unknown model, size, dtype, backend or device.
        UnsupportedError: the backend or the memory that it needs is not here.
        GateError: a check failed.
    """
    spec = _check(request)
    config = matching.resolve_model(spec, request.size)
    device = find_device(request.device).name
    if device == "cpu":
        named = f"{request.model} of size '{request.size}' at {request.dtype}"
        require_memory(named, config, request.dtype, "Give a smaller --size, or another --device.")
    try:
        model, gate = _run_gate(request, spec, config, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UnsupportedError(
            f"{request.model} of size '{request.size}' at {request.dtype} does not fit in the memory of {device}. "
            "Give a smaller --size or another --device."
        ) from error
    (_print_json if as_json else _print_text)(request, model, gate)
    if not gate.passed:
        failed = ", ".join(
            f"{check.name} at {check.length} tokens" for check in gate.checks if not check.passed
        )
        raise GateError(
            f"{request.model} of size '{request.size}' at {request.dtype}: its forms disagree ({failed}). "
            "No run would measure it; see the errors above."
        )


def _check(request: Request) -> ModelSpec:
    """The model asked for, once every name is known to be right."""
    models = named_models()
    if request.model not in models:
        raise unknown_name("model", request.model, models)
    spec = models[request.model]
    if request.dtype not in get_args(Dtype):
        raise unknown_name("dtype", request.dtype, get_args(Dtype), where="--dtype")
    if request.backend is not None and request.backend not in backends_of(spec):
        raise unknown_name("backend", request.backend, backends_of(spec), where="--backend")
    return spec


def _run_gate(request: Request, spec: ModelSpec, config: ModelConfig, device: str) -> "tuple[Decoder, Gate]":
    """The model with its gate, on the text and with the seed that a run has."""
    import torch

    from retbench.data import text
    from retbench.models.build import build_model
    from retbench.models.equivalence import LENGTHS, check_equivalence

    if device != "cpu":
        torch.cuda.set_device(device)  # kernels that are not torch's own go to the current one
    model = build_model(
        config,
        dtype=getattr(torch, request.dtype),
        device=device,
        seed=0,
        backend=request.backend or spec.backend,
        chunk_size=spec.chunk_size,
    )
    tokens = text.read_tokens(max(DEPTH, *LENGTHS))[None].to(device)
    return model, check_equivalence(model, tokens, depth=DEPTH)


def _print_text(request: Request, model: "Decoder", gate: Gate) -> None:
    """The checks as a table, what could not be compared, and the verdict."""
    print_columns(
        ("check", "tokens", "error", "limit", "result"),
        [
            (check.name, str(check.length), f"{check.error:.1e}", f"{check.limit:.1e}", _word(check.passed))
            for check in gate.checks
        ],
    )
    for name, reason in model.backends().items():
        if reason:
            typer.echo(f"not compared: {name}: {reason}")
    verdict = "equal" if gate.passed else "NOT EQUAL"
    typer.echo(f"{request.model} {request.size} {gate.dtype} {model.device} {model.backend}: {verdict}")


def _print_json(request: Request, model: "Decoder", gate: Gate) -> None:
    """The same as one JSON object; an error that is not finite is null."""
    checks: list[dict[str, Any]] = [
        {
            "name": check.name,
            "length": check.length,
            "error": check.error if math.isfinite(check.error) else None,
            "limit": check.limit,
            "passed": check.passed,
        }
        for check in gate.checks
    ]
    print_json(
        {
            "model": request.model,
            "size": request.size,
            "num_params_nonembedding": costs.num_params_nonembedding(model.config),
            "dtype": gate.dtype,
            "device": str(model.device),
            "backend": model.backend,
            "not_compared": {name: reason for name, reason in model.backends().items() if reason},
            "passed": gate.passed,
            "checks": checks,
        }
    )


def _word(passed: bool) -> str:
    return "ok" if passed else "FAILED"
