"""Record rounds of the code against itself, for the replay test of the checks: `python -m benchmarks.aa`.

Each round is one of `retbench check --against` on the profile `smoke` of latency: two workers per model, whose cells
alternate. Nothing differs between the sides, so that anything that a rule finds is a false alarm. The number of cores
that other processes kept busy is recorded, whether by --load or not. Every round is appended as soon as it is measured:
the command can be interrupted and run again for more rounds.

Exit codes: 0 the rounds are recorded, 1 something failed, 2 the request is impossible, 130 interrupted.
"""

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import psutil

from benchmarks.command import end_well, say
from retbench.errors import RetbenchError
from retbench.measure.environment import machine_name
from retbench.planning.plan import Plan, make_plan
from retbench.records.record import utc_now
from retbench.regress.interleaved import timed_plan
from retbench.regress.items import MeasurementPoint, Pair
from retbench.regress.revisions import checkout_root, working_tree
from retbench.regress.session import InterleavedSession, SessionLimits
from retbench.running.locks import catch_signals, timing_lock

DEFAULT_OUT = Path("reports") / "aa-rounds.jsonl"
SIGNIFICANT_DIGITS = 5

EPILOG = """\
Examples: python -m benchmarks.aa --rounds 100, then python -m benchmarks.aa --rounds 100 --load
          python -m benchmarks.aa --rounds 0 --pack tests/stats/aa_rounds.jsonl.gz
"""


def record(num_rounds: int, out: Path, *, loaded: bool) -> None:
    """Append rounds to a file, one JSON line each.

    Raises:
        RetbenchError: nothing can be measured, or another run is timing on this machine.
        Interrupted: the user ended it; finished rounds are kept.
    """
    plan = checked_plan()
    code = working_tree(checkout_root())
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="retbench-aa-") as folder,
        timing_lock("benchmarks.aa", "cpu", wait=_refuse),
    ):
        session = InterleavedSession(plan, (code, code), Path(folder), SessionLimits(), say)
        with catch_signals(session.interrupt), _load(one_core=loaded):
            session.prepare()
            for number in range(num_rounds):
                since, before = monotonic(), _others_busy_s()
                blocks = session.measure_blocks(frozenset(session.points))
                busy_cores = (_others_busy_s() - before) / (monotonic() - since)
                line = _line(blocks, busy_cores=busy_cores, code=code.code)
                with open(out, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
                took = f"{monotonic() - since:.1f} s, {busy_cores:.2f} cores used by other processes"
                say(f"{number + 1} of {num_rounds}: {took}, {len(blocks)} points -> {out}")


def checked_plan() -> Plan:
    """Return the plan that `retbench check --against` measures by default, on a CPU."""
    plan = make_plan("latency", profile="smoke", device="cpu")
    return timed_plan(plan, SessionLimits().blocks)


def _others_busy_s() -> float:
    """Return processor seconds of all processes except this one and its workers, which have ended."""
    times = psutil.cpu_times()
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(usage.ru_utime + usage.ru_stime for usage in spent)
    return times.user + times.nice + times.system + times.irq + times.softirq - own


def _line(blocks: Mapping[MeasurementPoint, Sequence[Pair]], *, busy_cores: float, code: str) -> str:
    """Return a round as JSON: per point its coordinates, and the seconds of both sides in each sample block."""
    points = [
        [
            *(point.workload, point.model, point.batch_size, point.context_len),
            [[_short(first), _short(second)] for first, second in pairs],
        ]
        for point, pairs in sorted(blocks.items())
    ]
    facts = {
        "busy_cores": round(busy_cores, 2),
        "started_at": utc_now(),
        "machine": machine_name("cpu"),
        "code": code,
    }
    return json.dumps(facts | {"points": points}, separators=(",", ":"))


def _short(seconds: float) -> float:
    """Round a time to the digits that exceed its noise."""
    return float(f"{seconds:.{SIGNIFICANT_DIGITS}g}")


@contextmanager
def _load(*, one_core: bool) -> Iterator[None]:
    """Keep one core busy with another process if requested."""
    if not one_core:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _refuse(holder: str) -> None:
    raise RetbenchError(f"{holder} is timing on this machine. Try again when it is done.")


def pack(source: Path, target: Path) -> int:
    """Compress the rounds of a file, reproducibly, and return their number."""
    content = source.read_bytes()
    target.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
    return len(content.splitlines())


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options, measure, pack, and return the exit code."""
    options = _parse(arguments)

    def do() -> int:
        if options.rounds:
            record(options.rounds, options.out, loaded=options.load)
        if options.pack is not None:
            say(f"{pack(options.out, options.pack)} rounds -> {options.pack}")
        return 0

    return end_well("aa", do, kept=f"the rounds in {options.out} are kept")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options; argparse exits with 2 for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aa",
        description="Rounds of the code against itself, appended to a file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=10, help="rounds to append (default 10)")
    parser.add_argument("--load", action="store_true", help="with a second process that keeps one core busy")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help=f"file (default {DEFAULT_OUT})")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="compress the rounds into this file too")
    options = parser.parse_args(arguments)
    if options.rounds < 0:
        parser.error(f"--rounds is {options.rounds}: give 0 or more")
    return options


if __name__ == "__main__":
    sys.exit(main())
