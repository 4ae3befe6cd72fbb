"""Rounds of the code against itself, for the replay test of the checks: `python -m benchmarks.aa`.

Each round is one of `retbench check --against`: two workers of each model side by side, their cells in turn, of the
profile `smoke` of latency. Nothing differs between the sides, so that whatever a rule finds in it is a false alarm.
How many cores other processes kept busy meanwhile is measured and kept with it, whether --load or anyone's work did.
Every round is appended as soon as it is measured: end it whenever you like, and run it again for more.

Exit codes: 0 the rounds are there, 1 something failed, 2 the request is impossible, 130 interrupted.
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
from retbench.regress.against import timed_plan
from retbench.regress.items import Pair, Place
from retbench.regress.revisions import checkout_root, working_tree
from retbench.regress.sitting import Limits, Sitting
from retbench.run.locks import catch_signals, timing_lock

DEFAULT_OUT = Path("reports") / "aa-rounds.jsonl"
SIGNIFICANT_DIGITS = 5

EPILOG = """\
Examples: python -m benchmarks.aa --rounds 100, then python -m benchmarks.aa --rounds 100 --load
          python -m benchmarks.aa --rounds 0 --pack tests/comparing/aa_rounds.jsonl.gz
"""


def record(num_rounds: int, out: Path, *, loaded: bool) -> None:
    """Append rounds to a file, one JSON line each.

    Raises:
        RetbenchError: nothing can be measured, or another run is timing on this machine.
        Interrupted: the user ended it; the rounds that were done are kept.
    """
    plan = checked_plan()
    code = working_tree(checkout_root())
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="retbench-aa-") as folder,
        timing_lock("benchmarks.aa", wait=_refuse),
    ):
        sitting = Sitting(plan, (code, code), Path(folder), Limits(), say)
        with catch_signals(sitting.interrupt), _load(one_core=loaded):
            sitting.prepare()
            for number in range(num_rounds):
                since, before = monotonic(), _busy_elsewhere_s()
                visits = sitting.visit(frozenset(sitting.places))
                busy_cores = (_busy_elsewhere_s() - before) / (monotonic() - since)
                line = _line(visits, busy_cores=busy_cores, code=code.code)
                with open(out, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
                took = f"{monotonic() - since:.1f} s, {busy_cores:.2f} cores busy elsewhere"
                say(f"{number + 1} of {num_rounds}: {took}, {len(visits)} points -> {out}")


def checked_plan() -> Plan:
    """What `retbench check --against` measures by default, on a CPU."""
    plan = make_plan("latency", profile="smoke", device="cpu", dtype=None, limit=None, overrides=())
    return timed_plan(plan, Limits().visits)


def _busy_elsewhere_s() -> float:
    """Seconds of processor time that every process has spent but this one and its workers, which have ended."""
    times = psutil.cpu_times()
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(usage.ru_utime + usage.ru_stime for usage in spent)
    return times.user + times.nice + times.system + times.irq + times.softirq - own


def _line(visits: Mapping[Place, Sequence[Pair]], *, busy_cores: float, code: str) -> str:
    """A round as JSON: of each point where it lies, and the seconds of both sides in each visit."""
    points = [
        [
            *(place.workload, place.model, place.batch_size, place.context_len),
            [[_short(first), _short(second)] for first, second in pairs],
        ]
        for place, pairs in sorted(visits.items())
    ]
    facts = {
        "busy_cores": round(busy_cores, 2),
        "started_at": utc_now(),
        "machine": machine_name("cpu"),
        "code": code,
    }
    return json.dumps(facts | {"points": points}, separators=(",", ":"))


def _short(seconds: float) -> float:
    """As many digits as noise leaves of a time."""
    return float(f"{seconds:.{SIGNIFICANT_DIGITS}g}")


@contextmanager
def _load(*, one_core: bool) -> Iterator[None]:
    """Another process that keeps one core busy, where that is asked for."""
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
    """Compress the rounds of a file; the same rounds give the same bytes. Returns how many there are."""
    content = source.read_bytes()
    target.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
    return len(content.splitlines())


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, pack; returns the exit code."""
    options = _parse(arguments)

    def do() -> int:
        if options.rounds:
            record(options.rounds, options.out, loaded=options.load)
        if options.pack is not None:
            say(f"{pack(options.out, options.pack)} rounds -> {options.pack}")
        return 0

    return end_well("aa", do, kept=f"the rounds in {options.out} are kept")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options; argparse ends the process with 2 where they are wrong."""
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
