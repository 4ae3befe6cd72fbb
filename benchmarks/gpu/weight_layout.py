"""Compare two layouts of weights for decoding: `python -m benchmarks.gpu.weight_layout --device cuda --sizes 1.3b`.

The products of a decode step read each weight once. `ops.linear.Linear` stores weights (in, out); torch's own layers
store them (out, in). Every shape of a model's blocks is timed in both layouts, as `measure.products` does with a few of
them in every run. One JSON object per line goes to stdout: the bandwidth by shape, then the ratio by size.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from retbench.architectures.configs import ModelConfig
from retbench.config.experiment_files import load_experiment
from retbench.measure.product_trials import product_seconds
from retbench.planning.cells import resolve_models

LAYOUTS = ("out,in", "in,out")


@dataclass(frozen=True)
class Product:
    """Bandwidth of one shape in one layout: bytes of the weight over the median time of its product."""

    size: str
    inputs: int
    outputs: int
    rows: int
    layout: str
    weight_bytes: int
    bandwidth_bytes_per_s: float


def shapes_of(config: ModelConfig) -> set[tuple[int, int]]:
    """Return the (in, out) widths of the products of a model's blocks, and of its head."""
    shapes = {(config.d_model, config.vocab_size)}
    for block in config.blocks:
        projection = block.mixer.projection()
        if projection is not None:
            shapes |= {(config.d_model, sum(projection.widths)), (projection.mixed_width, config.d_model)}
        if block.ffn is not None:
            shapes |= {(config.d_model, block.ffn.ffn_dim), (block.ffn.ffn_dim, config.d_model)}
    return shapes


def shapes_at(size: str) -> list[tuple[int, int]]:
    """Return the shapes of the models of the experiment `latency` at a size."""
    models = resolve_models(load_experiment("latency", [f'size="{size}"']), "cpu")
    return sorted(set().union(*(shapes_of(config) for config in models.values())))


def measure(
    size: str, shape: tuple[int, int], rows: int, layout: str, *, device: torch.device, num_steps: int
) -> Product:
    """Time the product of `rows` rows with weights of one shape in one layout."""
    inputs, outputs = shape
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    seconds = product_seconds(
        shape, rows, by_output=layout == "out,in", device=device, dtype=dtype, num_steps=num_steps
    )
    weight_bytes = inputs * outputs * dtype.itemsize
    return Product(size, inputs, outputs, rows, layout, weight_bytes, weight_bytes / seconds)


def compare(products: Sequence[Product]) -> dict[str, object]:
    """Return the time of all shapes in the layout (in, out) over that in (out, in), for one size and batch."""
    seconds = {
        layout: sum(one.weight_bytes / one.bandwidth_bytes_per_s for one in products if one.layout == layout)
        for layout in LAYOUTS
    }
    ratio = seconds["in,out"] / seconds["out,in"]
    faster = min(LAYOUTS, key=lambda layout: seconds[layout])
    return {"size": products[0].size, "rows": products[0].rows, "in,out / out,in": ratio, "faster": faster}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every size and batch, print the results, and return 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.weight_layout", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["1.3b", "6.7b"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8], help="batch sizes")
    parser.add_argument("--steps", type=int, default=20, help="timed steps per shape")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    for size in options.sizes:
        for rows in options.rows:
            products = [
                measure(size, shape, rows, layout, device=device, num_steps=options.steps)
                for shape in shapes_at(size)
                for layout in LAYOUTS
            ]
            for one in products:
                print(json.dumps(asdict(one)), flush=True)
            print(json.dumps(compare(products)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
