"""Print the environment and the ceilings of a device as JSON: `python -m benchmarks.gpu.ceilings --device cuda`.

`retbench env` prints them too, and which backends of every model are usable. To find that out, it launches the kernels
of other packages, whose first compilation takes many minutes on a new machine. Exit codes are those of `retbench env`.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from retbench.cli.env import measure_ceilings_by_dtype
from retbench.cli.in_process import become_worker
from retbench.errors import RetbenchError
from retbench.measure import allocator, environment
from retbench.measure.devices import find_device


def measure(device: str) -> dict[str, object]:
    """Return the facts of the environment, and the ceilings by dtype, while no other run is timing."""
    threads = become_worker(device)
    facts = environment.describe_environment(device, threads)
    found = measure_ceilings_by_dtype(device, "python -m benchmarks.gpu.ceilings")
    return {"environment": facts, "ceilings": {dtype: one.model_dump() for dtype, one in found.items()}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print one JSON object, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.ceilings", description=__doc__)
    parser.add_argument("--device", default="cuda")
    if arguments is None:
        allocator.own_process()
    options = parser.parse_args(arguments)
    try:
        print(json.dumps(measure(find_device(options.device).name)))
    except RetbenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
