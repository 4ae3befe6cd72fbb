"""`retbench env`: what this machine is and can do, as a run would find it."""

from typing import Any

import typer

from retbench.cli.layout import print_columns, print_json
from retbench.cli.listing import named_models
from retbench.cli.measure_once import alone_on_machine, become_worker
from retbench.measure import environment
from retbench.records.record import Ceilings
from retbench.run.devices import find_device
from retbench.units import format_bytes, format_rate

DTYPES = ("float32", "bfloat16")


def show_environment(device: str | None, *, as_json: bool) -> None:
    """Print the machine, the ceilings measured now, and every backend with the reason where it cannot be used.

    Raises:
        ConfigError: no such kind of device.
        UnsupportedError: the device is not here.
    """
    name = find_device(device).name
    threads = become_worker()
    facts = environment.describe_environment(name, threads)
    ceilings = _measure(name)
    backends = _backends(name)
    if as_json:
        measured = {dtype: found.model_dump() for dtype, found in ceilings.items()}
        print_json({"device": name, "environment": facts, "ceilings": measured, "backends": backends})
    else:
        _print_facts(name, facts, ceilings)
        typer.echo()
        _print_backends(backends)


def _measure(device: str) -> dict[str, Ceilings]:
    """Ceilings by dtype, while no run is timing on this machine."""
    import torch

    from retbench.measure.ceilings import measure_ceilings

    with alone_on_machine("retbench env"):
        return {dtype: measure_ceilings(torch.device(device), getattr(torch, dtype)) for dtype in DTYPES}


def _backends(device: str) -> dict[str, dict[str, dict[str, str | None]]]:
    """Model, then backend, then dtype: None where usable, else the reason why not."""
    import torch

    from retbench.architectures.matching import resolve_model
    from retbench.models.build import build_model

    found: dict[str, dict[str, dict[str, str | None]]] = {}
    for name, spec in named_models().items():
        for dtype in DTYPES:
            model = build_model(
                resolve_model(spec, "1m"),
                dtype=getattr(torch, dtype),
                device=device,
                seed=0,
                backend=spec.backend,
            )
            for backend, reason in model.backends().items():
                found.setdefault(name, {}).setdefault(backend, {})[dtype] = reason
    return found


def _print_facts(device: str, facts: dict[str, Any], ceilings: dict[str, Ceilings]) -> None:
    """What matters most of the environment, in readable units."""
    gpu = facts.get("gpu", {})
    bandwidth = max(found.read_bandwidth_bytes_per_s for found in ceilings.values())
    rows = [
        ("machine", facts["machine"]),
        ("processor", f"{facts['cpu_model']}, {facts['physical_cores']} cores"),
        ("memory", format_bytes(facts["memory_bytes"])),
        ("operating system", facts["os"]),
        ("device", " ".join([device, *_gpu_words(gpu)])),
        ("threads", str(facts["threads"])),
        *((name, version) for name, version in facts["versions"].items()),
        ("retbench", facts["code_revision"]),
        ("read bandwidth", format_rate(bandwidth, "B/s")),
        *(
            (f"products, {dtype}", format_rate(c.matmul_flops_per_s, "FLOP/s"))
            for dtype, c in ceilings.items()
        ),
        *((f"absent: {name}", reason) for name, reason in facts["absent"].items()),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        typer.echo(f"{name.ljust(width)}  {value}")


def _gpu_words(gpu: dict[str, Any]) -> list[str]:
    """Name and memory of a GPU; nothing for a CPU."""
    return [gpu["name"], format_bytes(gpu["memory_bytes"])] if gpu else []


def _print_backends(backends: dict[str, dict[str, dict[str, str | None]]]) -> None:
    """One row a model and backend: usable at which dtypes, or why not."""
    print_columns(
        ("model", "backend", *DTYPES),
        [
            (model, backend, *(reasons[dtype] or "usable" for dtype in DTYPES))
            for model, found in backends.items()
            for backend, reasons in found.items()
        ],
    )
