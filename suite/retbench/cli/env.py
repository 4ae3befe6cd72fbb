"""`retbench env`: this machine as a run would find it."""

from typing import TYPE_CHECKING, Any

import typer

from retbench.cli.layout import print_columns, print_json
from retbench.cli.options import AsJson, DeviceName, new_app
from retbench.units import format_bytes, format_rate

if TYPE_CHECKING:
    from retbench.records.record import Ceilings

app = new_app()
DTYPES = ("float32", "bfloat16")
Backends = dict[str, dict[str, dict[str, str | None]]]
"""Model, then backend, then dtype: None where usable, else the reason why not."""


@app.command(epilog="Example: retbench env --json")
def env(device: DeviceName = None, as_json: AsJson = False) -> None:
    """Show this machine: hardware, ceilings and usable backends.

    The ceilings are measured now, while no run is timing.
    """
    from retbench.cli.in_process import become_worker
    from retbench.measure import environment
    from retbench.run.devices import find_device

    name = find_device(device).name
    threads = become_worker(name)
    facts = environment.describe_environment(name, threads)
    ceilings, backends = _measure(name), _find_backends(name)
    if as_json:
        measured = {dtype: found.model_dump() for dtype, found in ceilings.items()}
        print_json({"device": name, "environment": facts, "ceilings": measured, "backends": backends})
    else:
        _print_facts(name, facts, ceilings)
        typer.echo()
        _print_backends(backends)


def _measure(device: str) -> "dict[str, Ceilings]":
    """Measure the ceilings by dtype."""
    import torch

    from retbench.cli.in_process import alone_on_machine
    from retbench.measure.ceilings import measure_ceilings

    with alone_on_machine("retbench env"):
        return {dtype: measure_ceilings(torch.device(device), getattr(torch, dtype)) for dtype in DTYPES}


def _find_backends(device: str) -> Backends:
    import torch

    from retbench.architectures.matching import resolve_model
    from retbench.architectures.registry import named_specs
    from retbench.models.build import build_model

    found: Backends = {}
    for name, spec in named_specs().items():
        config = resolve_model(spec, "1m")
        for dtype in DTYPES:
            model = build_model(
                config, dtype=getattr(torch, dtype), device=device, seed=0, backend=spec.backend
            )
            for backend, reason in model.backends().items():
                found.setdefault(name, {}).setdefault(backend, {})[dtype] = reason
    return found


def _print_facts(device: str, facts: dict[str, Any], ceilings: "dict[str, Ceilings]") -> None:
    """Print the main facts of the environment in readable units."""
    gpu = facts.get("gpu")
    curve = next(iter(ceilings.values())).read_curve
    rates = {dtype: format_rate(found.matmul_flops_per_s, "FLOP/s") for dtype, found in ceilings.items()}
    rows = {
        "machine": facts["machine"],
        "processor": f"{facts['cpu_model']}, {facts['physical_cores']} cores",
        "memory": format_bytes(facts["memory_bytes"]),
        "operating system": facts["os"],
        "device": f"{device} {gpu['name']} {format_bytes(gpu['memory_bytes'])}" if gpu else device,
        "threads": str(facts["threads"]),
        **facts["versions"],
        "retbench": facts["code_revision"],
        "read bandwidth": ", ".join(
            f"{format_rate(rate.bytes_per_s, 'B/s')} of {format_bytes(rate.footprint_bytes)}"
            for rate in curve
        ),
        **{f"products, {dtype}": rate for dtype, rate in rates.items()},
        **{f"absent: {name}": reason for name, reason in facts["absent"].items()},
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        typer.echo(f"{name.ljust(width)}  {value}")


def _print_backends(backends: Backends) -> None:
    """Print one row per model and backend: usable, or the reason why not, by dtype."""
    print_columns(
        ("model", "backend", *DTYPES),
        [
            (model, backend, *(reasons[dtype] or "usable" for dtype in DTYPES))
            for model, found in backends.items()
            for backend, reasons in found.items()
        ],
    )
