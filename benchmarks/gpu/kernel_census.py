"""Count the kernels of a decode step, per layer, with Nsight Systems: `python -m benchmarks.gpu.kernel_census`.

Each model of an experiment replays a captured decode step in a process under `nsys`, which lists every kernel of the
graph. One JSON object per model goes to stdout. Exit codes: 0 counted, 1 nsys failed, 3 nsys is not installed.
"""

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from retbench.config.experiment_files import load_experiment
from retbench.measure.clock import capture_graph
from retbench.models.build import build_model
from retbench.planning.cells import ModelUnderTest, seeded_models

PROFILE = "cpu"
"""Profile whose models are counted; a step is the same in each."""
EXPERIMENTS = ("latency", "kin")
REPLAYS = 10
CONTEXT_LEN = 1024
TIMEOUT_S = 300.0


def models_at(size: str, experiment: str) -> dict[str, ModelUnderTest]:
    """Return the models of an experiment at a size, by name."""
    found = seeded_models(load_experiment(experiment, [f'size="{size}"'], profile=PROFILE), PROFILE)
    return {one.model_name: one for one in found}


@torch.inference_mode()
def replay(under_test: ModelUnderTest, device: torch.device) -> None:
    """Capture a decode step in bfloat16 and replay it between the marks that nsys records."""
    model = build_model(
        under_test.model, dtype=torch.bfloat16, device=device, seed=0, backend=under_test.backend
    )
    state = model.init_state(1, CONTEXT_LEN + 1)
    state.start_at(CONTEXT_LEN)
    mark, token = state.mark(), torch.zeros(1, 1, dtype=torch.int64, device=device)
    step = capture_graph(lambda: model(token, state), device=device, before=lambda: state.rewind(mark))
    step()
    torch.cuda.synchronize(device)
    with torch.cuda.profiler.profile():
        for _ in range(REPLAYS):
            step()
        torch.cuda.synchronize(device)


def record(name: str, arguments: Sequence[str], folder: Path) -> str:
    """Run one model under nsys, with the other arguments of `main`, and return its summary of kernels as CSV.

    Raises:
        subprocess.SubprocessError: nsys, or the process under it, failed or took too long.
    """
    report = folder / name
    own = [sys.executable, "-m", "benchmarks.gpu.kernel_census", "--replay", name, *arguments]
    nsys = ["nsys", "profile", "--trace=cuda", "--cuda-graph-trace=node", "--capture-range=cudaProfilerApi"]
    # The process ends by itself: by default nsys would end it with the capture, and report a failure.
    command = [*nsys, "--capture-range-end=stop", "--force-overwrite=true", f"--output={report}", *own]
    subprocess.run(command, stdout=sys.stderr, timeout=TIMEOUT_S, check=True)
    stats = ["nsys", "stats", "--report=cuda_gpu_kern_sum", "--format=csv", "--quiet", f"{report}.nsys-rep"]
    return subprocess.run(stats, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout


def count(summary: str, num_layers: int) -> dict[str, object]:
    """Return the kernels per layer and step, and the instances per step of each kernel, from a summary as CSV.

    Embedding, last norm and head count as part of the layers.

    Raises:
        ValueError: the summary has no kernel.
    """
    lines = summary.splitlines()
    start = next((number for number, line in enumerate(lines) if "Instances" in line), None)
    if start is None:
        raise ValueError("nsys stats lists no kernel")
    rows = list(csv.DictReader(io.StringIO("\n".join(lines[start:]))))
    instances = {row["Name"]: int(row["Instances"]) / REPLAYS for row in rows if row.get("Instances")}
    return {"kernels_per_layer": sum(instances.values()) / num_layers, "instances_per_step": instances}


def main(arguments: Sequence[str] | None = None) -> int:
    """Count the kernels of every model, or with `--replay` be the process under nsys."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.kernel_census", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="200m", help="heads as wide as the paper's")
    parser.add_argument(
        "--experiment", choices=EXPERIMENTS, default=EXPERIMENTS[0], help="whose models are counted"
    )
    parser.add_argument("--replay", metavar="MODEL", help="replay the step of one model, for nsys")
    options = parser.parse_args(arguments)
    models = models_at(options.size, options.experiment)
    if options.replay:
        replay(models[options.replay], torch.device(options.device))
        return 0
    if shutil.which("nsys") is None:
        print("nsys (NVIDIA Nsight Systems) is not installed: kernels were not counted")
        return 3
    given = ("--size", options.size, "--device", options.device, "--experiment", options.experiment)
    with tempfile.TemporaryDirectory() as folder:
        counted = [_print_count(one, options.size, given, Path(folder)) for one in models.values()]
    return 0 if all(counted) else 1


def _print_count(under_test: ModelUnderTest, size: str, arguments: Sequence[str], folder: Path) -> bool:
    """Count the kernels of one model and print them; return whether that was possible."""
    name = under_test.model_name
    try:
        found = count(record(name, arguments, folder), under_test.model.num_layers)
    except (subprocess.SubprocessError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return False
    print(json.dumps({"model": name, "size": size, **found}), flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
