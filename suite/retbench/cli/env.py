"""`retbench env`: this machine as a run would find it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench.cli.layout import output_format, print_json, print_prose, print_table, same_reasons
from retbench.cli.options import AsJson, DeviceName, OutputFormat, new_app
from retbench.units import format_bytes, format_rate

if TYPE_CHECKING:
    from retbench.records.record import Ceilings

app = new_app()
DTYPES = ("float32", "bfloat16")
Backends = dict[str, dict[str, dict[str, str | None]]]
"""Model, then backend, then dtype: None where usable, else the reason why not."""


@app.command(epilog="Example: retbench env --ceilings")
def env(
    device: DeviceName = None,
    measure: Annotated[
        bool,
        typer.Option("--ceilings", help="Measure read bandwidth and products too, while no run is timing."),
    ] = False,
    form: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """Show this machine: hardware, versions and usable backends.

    A warning on stderr says if other processes keep the machine busy.
    """
    from retbench.cli.in_process import become_worker, warn_if_busy
    from retbench.measure import environment, machine
    from retbench.measure.devices import find_device

    form = output_format(form, as_json=as_json)
    name = find_device(device).name
    threads = become_worker(name)
    busy = machine.busy_ratio()
    facts = environment.describe_environment(name, threads)
    ceilings = measure_ceilings_by_dtype(name, "retbench env") if measure else None
    backends = _find_backends(name)
    if form == "json":
        measured = None if ceilings is None else {key: found.model_dump() for key, found in ceilings.items()}
        shown = {"device": name, "environment": facts, "ceilings": measured, "backends": backends}
        print_json({**shown, "busy_ratio": busy})
    else:
        print_table(("fact", "value"), [*_facts(name, facts).items(), *_rates(ceilings).items()], form)
        typer.echo()
        _print_backends(backends, form)
    warn_if_busy(busy, "Times that are measured now would be too long")


def measure_ceilings_by_dtype(device: str, command: str) -> "dict[str, Ceilings]":
    """Measure the ceilings by dtype while no run is timing; the read bandwidth, which does not depend on it, once.

    Args:
        device: `cpu` or `cuda:N`.
        command: The command that waiting commands name as the holder of the lock.
    """
    import torch

    from retbench.cli.in_process import alone_on_machine
    from retbench.measure.ceilings import measure_ceilings

    with alone_on_machine(command, device):
        found: dict[str, Ceilings] = {}
        for dtype in DTYPES:
            curve = next(iter(found.values())).read_curve if found else ()
            found[dtype] = measure_ceilings(torch.device(device), getattr(torch, dtype), curve)
        return found


def _find_backends(device: str) -> Backends:
    import torch

    from retbench.architectures.matching import resolve_model
    from retbench.architectures.registry import named_specs
    from retbench.models.build import usable_backends

    if device != "cpu":
        typer.echo(
            "retbench: kernels are compiled to find out which can run; on a new machine that takes minutes",
            err=True,
        )
    found: Backends = {}
    for name, spec in named_specs().items():
        config = resolve_model(spec, "1m")
        for dtype in DTYPES:
            backends = usable_backends(config, dtype=getattr(torch, dtype), device=device)
            for backend, reason in backends.items():
                found.setdefault(name, {}).setdefault(backend, {})[dtype] = reason
    return found


def _facts(device: str, facts: dict[str, Any]) -> dict[str, str]:
    """Return the main facts of the environment in readable units, and once each why others are unknown."""
    gpu = facts.get("gpu")
    unknown = "; ".join(f"{names}: {reason}" for names, reason in same_reasons(facts["absent"]))
    return {
        "machine": facts["machine"],
        "processor": f"{facts['cpu_model']}, {facts['physical_cores']} cores",
        "memory": format_bytes(facts["memory_bytes"]),
        "operating system": facts["os"],
        "device": f"{device} {gpu['name']} {format_bytes(gpu['memory_bytes'])}" if gpu else device,
        "threads": str(facts["threads"]),
        **facts["versions"],
        "retbench": facts["code_revision"],
        **({"not known": unknown} if unknown else {}),
    }


def _rates(ceilings: "dict[str, Ceilings] | None") -> dict[str, str]:
    """Return the measured ceilings in readable units."""
    if ceilings is None:
        return {"ceilings": "not measured; --ceilings measures them, in some seconds"}
    curve = next(iter(ceilings.values())).read_curve
    reads = [
        f"{format_rate(rate.bytes_per_s, 'B/s')} of {format_bytes(rate.footprint_bytes)}" for rate in curve
    ]
    products = {
        f"products, {dtype}": format_rate(found.matmul_flops_per_s, "FLOP/s")
        for dtype, found in ceilings.items()
    }
    return {"read bandwidth": ", ".join(reads), **products}


def _print_backends(backends: Backends, form: str) -> None:
    """Print the usable backends of each model, and once each the reasons why others are not."""
    rows, reasons = [], {}
    for model, found in backends.items():
        usable = []
        for backend, by_dtype in found.items():
            dtypes = [dtype for dtype, reason in by_dtype.items() if reason is None]
            if dtypes:
                usable.append(backend if len(dtypes) == len(by_dtype) else f"{backend} ({', '.join(dtypes)})")
            for dtype, reason in by_dtype.items():
                reasons[f"{backend} in {dtype}" if dtypes else backend] = reason
        rows.append((model, " ".join(usable)))
    print_table(("model", "usable backends"), rows, form)
    typer.echo()
    for names, reason in same_reasons(reasons):
        print_prose(f"not usable: {names}: {reason}")
