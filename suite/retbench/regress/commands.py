"""Interleaved comparison of any two shell commands, or of any two Python callables.

Rounds, interim analyses, verdicts and reports are those of the interleaved check. In each round the two run in pairs,
one directly after the other, and the order is reversed from pair to pair.
"""

import math
import os
import random
import signal
import subprocess
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from statistics import fmean
from typing import IO, Generic, Protocol, TypeVar

from retbench.errors import ConfigError, NotComparableError, printable, shown
from retbench.regress.interleaved import sample, with_rounds
from retbench.regress.items import WALL_TIME, MeasurementPoint, Pair, Times, combine_blocks
from retbench.regress.report import SIDES, CheckReport, MissingPoint
from retbench.regress.revisions import Notify
from retbench.regress.session import RoundLimits
from retbench.running.locks import LOCK_DIR_VARIABLE, Interrupted, catch_signals, lock_dir, timing_lock
from retbench.running.process import Inbox, Interrupt, describe_end, wait_or_stop
from retbench.stats.sequential import DecisionRules
from retbench.units import format_duration, format_items, format_seconds

_ROUND_S = 2.0
"""Time that the pairs of a round take, if it allows between one pair and `_MAX_PAIRS`.

Short rounds end a comparison early where there is little noise, and more of them are measured where there is much.
"""
_MAX_PAIRS = 10
_MAX_SAMPLE_S = 1.0
"""Longest sample, unless one run takes longer."""
_MIN_SAMPLE_S = 0.001
"""Least time of a sample of a callable in the warm-up: the clock's resolution must not count."""
_WARMUP_S = 0.5
"""Time for which each callable is called before the first sample."""
_SIDE_NAMES = ("first", "second")
_STDERR_LINES = 10
_STDERR_BYTES = 4000

Code = TypeVar("Code")
TimedCode = TypeVar("TimedCode", contravariant=True)


MAX_PAIRS = 1000
"""Most pairs of a round, which would otherwise have no end."""


@dataclass(frozen=True)
class PairLimits(RoundLimits):
    """Limits of a comparison.

    Attributes:
        pairs: Pairs of samples per round; None for as many, from 1 to 10, as take about 2 s.
    """

    max_rounds: int = 40
    pairs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs is not None and not 1 <= self.pairs <= MAX_PAIRS:
            raise ConfigError(f"{self.pairs:,} pairs per round: give 1 to {MAX_PAIRS:,}.")


class Timer(Protocol[TimedCode]):
    """Takes samples of a command or a callable.

    Attributes:
        noun: Name of what is timed.
        sample_s: Least seconds of a sample, for which short runs are repeated.
    """

    noun: str
    sample_s: float

    def prepare(self, code: TimedCode, /) -> float:
        """Run it until it is warm, and return the seconds of its fastest run."""

    def time(self, code: TimedCode, num_runs: int, /) -> float:
        """Return the seconds per run of one sample."""


class PairedRounds(Generic[Code]):
    """A source of rounds of two commands or callables.

    Attributes:
        missing: The point with the reason, if the second command has failed; then nothing more is measured.
    """

    def __init__(
        self, codes: tuple[Code, Code], timer: Timer[Code], limits: PairLimits, notify: Notify
    ) -> None:
        self._codes = codes
        self._timer = timer
        self._notify = notify
        self._random = random.Random(0)
        self._num_rounds = 0
        self._budget_s = limits.budget_s
        self.point = MeasurementPoint("compare-commands", WALL_TIME, f"the {timer.noun}", 0, 0)
        self.missing: tuple[MissingPoint, ...] = ()
        self._num_runs = self._pairs = 1
        with suppress(CommandFailed):
            self._prepare(limits)
        self._begun = time.monotonic()

    def _prepare(self, limits: PairLimits) -> None:
        """Run both sides before the first round, and choose the numbers of runs and of pairs by their times."""
        seconds = []
        for side, code in enumerate(self._codes):
            self._notify(f"preparing the {_SIDE_NAMES[side]} {self._timer.noun}")
            with self._naming(side, "before the first round"):
                seconds.append(self._timer.prepare(code))
        # One number of runs for both sides: what disturbs long samples more than short ones must meet both alike.
        most = int(_MAX_SAMPLE_S / max(seconds))
        self._num_runs = max(1, min(math.ceil(self._timer.sample_s / min(seconds)), most))
        most = int(_ROUND_S / (self._num_runs * sum(seconds)))
        self._pairs = limits.pairs or max(1, min(_MAX_PAIRS, most))

    @contextmanager
    def _naming(self, side: int, when: str) -> Iterator[None]:
        """Name the side of a command that fails.

        Without the first there is nothing to compare with: NotComparableError. A failure of the second is a result.
        """
        try:
            yield
        except CommandFailed as failure:
            text = f"The {_SIDE_NAMES[side]} command failed {when}: {failure}"
            if side == 0:
                raise NotComparableError(text) from failure
            self._notify(text)
            reason = f"failed {when} ({failure.reason})"
            self.missing = (MissingPoint(self.point, SIDES["broken"], reason, "broken"),)
            raise

    def has_budget(self) -> bool:
        """Return whether another round may begin."""
        return time.monotonic() - self._begun < self._budget_s

    def measure(self, points: frozenset[MeasurementPoint]) -> Times:
        """Measure one more round, which has no times once the second command has failed."""
        if self.missing:
            return {}
        since = time.monotonic()
        is_reversed = self._random.random() < 0.5
        pairs = []
        for _ in range(self._pairs):
            try:
                pairs.append(self._measure_pair(is_reversed))
            except CommandFailed:
                return {}
            is_reversed = not is_reversed  # so that drift affects both sides alike
        self._num_rounds += 1
        pair, now = combine_blocks(pairs), time.monotonic()
        times = f"{format_seconds(pair[0])} and {format_seconds(pair[1])}"
        took, spent = format_duration(now - since), format_duration(now - self._begun)
        taken = f"{format_items(len(pairs), 'pair')} in {took}, {spent} in all"
        self._notify(f"round {self._num_rounds}: {times}; {taken}")
        return dict.fromkeys(points, pair)

    def _measure_pair(self, is_reversed: bool) -> Pair:
        seconds = {}
        for side in (1, 0) if is_reversed else (0, 1):
            with self._naming(side, f"in round {self._num_rounds + 1}"):
                seconds[side] = self._timer.time(self._codes[side], self._num_runs)
        return seconds[0], seconds[1]


class CommandFailed(Exception):  # noqa: N818 - an outcome, not an error: whose command it is decides what it means
    """A command ended with a failure.

    Attributes:
        reason: The way in which it ended, with the end of its stderr, on one line.
    """

    def __init__(self, command: str, ending: str, stderr: Sequence[str]) -> None:
        end = "; the end of its stderr:" if stderr else ""
        lines = "".join(f"\n  {line}" for line in stderr) or "."
        super().__init__(f"`{printable(command)}` {ending}{end}{lines}")
        self.reason = f"{ending}{end} {' / '.join(stderr)}".strip()


class CommandTimer:
    """Wall time of shell commands, from the start of `sh -c` to its end.

    Stdout is discarded, and stderr goes to a temporary file, whose end is shown if a command fails.

    Each command runs in a process session, which an interrupt kills whole. A command that runs retbench takes its
    timing lock in another folder, because this process holds the lock of the machine.
    """

    noun = "command"
    sample_s = 0.0

    def __init__(self) -> None:
        self.inbox: Inbox = SimpleQueue()
        # One folder for all comparisons: none is left behind, and the commands of two wait for each other if they must.
        self._variables = {**os.environ, LOCK_DIR_VARIABLE: str(lock_dir().absolute() / "commands")}
        self._process: subprocess.Popen[bytes] | None = None

    def interrupt(self) -> None:
        """Stop at once; safe inside a signal handler."""
        self.inbox.put(Interrupt())
        self._kill()

    def prepare(self, code: str) -> float:
        """Run a command twice, because the first run fills the caches of files."""
        return min(self._run(code) for _ in range(2))

    def time(self, code: str, num_runs: int) -> float:
        """Return the mean seconds of some runs; raises what a run raises."""
        return fmean(self._run(code) for _ in range(num_runs))

    def _run(self, code: str) -> float:
        """Return the seconds of one run.

        Raises:
            CommandFailed: the command fails.
            Interrupted: the user requested a stop.
        """
        with tempfile.TemporaryFile() as stderr:
            begun = time.perf_counter()
            self._process = process = subprocess.Popen(
                code,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=self._variables,
                start_new_session=True,
            )
            try:
                # Without a timeout: with one, Python asks in intervals of up to 50 ms, which would be measured.
                if self.inbox.empty():
                    process.wait()
                seconds = time.perf_counter() - begun
            finally:
                self._kill()
                process.wait()
                self._process = None
            if not self.inbox.empty():
                raise Interrupted
            if process.returncode:
                raise CommandFailed(code, describe_end(process.returncode), _last_lines(stderr))
        return seconds

    def _kill(self) -> None:
        """Kill the running command with all that it has started."""
        process = self._process
        if process is not None:
            with suppress(ProcessLookupError, PermissionError):  # all of them have ended
                os.killpg(process.pid, signal.SIGKILL)


def _last_lines(stderr: IO[bytes]) -> list[str]:
    """Return the last lines of what a command wrote to stderr."""
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - _STDERR_BYTES))
    lines = stderr.read().decode(errors="replace").splitlines()
    return [printable(line) for line in lines[-_STDERR_LINES:]]


class CallableTimer:
    """Wall time per call of Python callables in this process, with Python's garbage collector off."""

    noun = "callable"
    sample_s = 0.02

    def prepare(self, code: Callable[[], object]) -> float:
        """Call it for half a second, in samples that grow to a millisecond, and return the seconds of a call."""
        end = time.perf_counter() + _WARMUP_S
        num_calls, fastest = 1, math.inf
        while time.perf_counter() < end:
            seconds = self.time(code, num_calls)
            fastest = min(fastest, seconds)
            if seconds * num_calls < _MIN_SAMPLE_S:
                num_calls *= 2
        return fastest

    def time(self, code: Callable[[], object], num_runs: int) -> float:
        """Return the seconds per call; an exception of the callable is the caller's."""
        return timeit.Timer(code).timeit(num_runs) / num_runs


def compare_commands(
    first: str, second: str, limits: PairLimits, rules: DecisionRules, notify: Notify
) -> CheckReport:
    """Measure two shell commands in turn until it is decided whether the second is slower.

    If the second fails, the report has it as missing, kind "broken".

    Raises:
        ConfigError: a command is empty.
        NotComparableError: the first command fails.
        Interrupted: the user requested a stop before the end of the first round.
    """
    for command in (first, second):
        if not command.strip() or "\0" in command:
            raise ConfigError(f"{shown(command)} is not a command. Give a line that `sh -c` can run.")
    timer = CommandTimer()
    with (
        catch_signals(timer.interrupt),
        timing_lock(first, "cpu", wait=_waiting(timer.inbox, notify)),
    ):
        return _compare((first, second), timer, (first, second), limits, rules, notify)


def compare_callables(
    first: Callable[[], object],
    second: Callable[[], object],
    limits: PairLimits,
    rules: DecisionRules,
    notify: Notify,
) -> CheckReport:
    """Measure two callables without arguments in turn, in this process, as `compare_commands`."""
    names = _name(first), _name(second)
    with timing_lock(names[0], "cpu", wait=_waiting(SimpleQueue(), notify)):
        return _compare((first, second), CallableTimer(), names, limits, rules, notify)


def _waiting(inbox: Inbox, notify: Notify) -> Callable[[str], None]:
    """Return the function that waits for another run's lock, and notifies who holds it."""
    return wait_or_stop(inbox, lambda holder: notify(f"waiting for {holder}"))


def _name(code: Callable[[], object]) -> str:
    """Return module and name of a callable."""
    name = getattr(code, "__qualname__", None)
    return f"{code.__module__}:{name}" if name else shown(code)


def _compare(
    codes: tuple[Code, Code],
    timer: Timer[Code],
    names: tuple[str, str],
    limits: PairLimits,
    rules: DecisionRules,
    notify: Notify,
) -> CheckReport:
    source = PairedRounds(codes, timer, limits, notify)
    sampled = sample([source.point], None, source, rules, limits.max_rounds)
    method = f"both {timer.noun}s in turn, in one measurement session"
    report = CheckReport(first=names[0], second=names[1], method=method)
    return with_rounds(report, sampled, source.missing)
