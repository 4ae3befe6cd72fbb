"""The Python interface: `retbench.load`, `run` and `compare`, imported on first use by `retbench/__init__.py`."""

import os
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from retbench.regress.report import CheckReport
    from retbench.running.events import RunSummary


def load(path: str | Path = "results") -> "pd.DataFrame":
    """Return the records in a file or below a folder: one row per measured value, in base units.

    docs/results.md explains the columns. A line that cannot be read is left out with a warning.

    Raises:
        RecordError: the path does not exist, or holds no record that can be read.
        ConfigError: `path` is neither a text nor a path, or is empty.
    """
    from retbench.report.frames import results_frame
    from retbench.report.results import load_results

    results = load_results(_path("path", path))
    for problem in results.problems:
        warnings.warn(problem, stacklevel=2)
    return results_frame(results)


def run(
    experiment: str | Path,
    *,
    profile: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    models: Sequence[str | Path] = (),
    trust_remote_code: bool = False,
    limit: int | None = None,
    compiled: bool | None = None,
    out: str | Path = "results",
    overrides: Sequence[str] = (),
    data_dir: str | Path | None = None,
    fresh: bool = False,
    shard: str | None = None,
) -> "RunSummary":
    """Measure an experiment, or continue where it stopped, as `retbench run` does, with progress on stderr.

    Args:
        experiment: A name from `retbench list`, or the path of a TOML file.
        profile: A profile of it; None for its only one, or of several `paper` on a GPU of 70 GB or more, else `cpu`.
        device: `cpu`, `cuda` or `cuda:N`; None for the first GPU, else the CPU.
        dtype: Replaces the profile's.
        models: Models of transformers to measure in place of the experiment's; folders, or names on the hub.
        trust_remote_code: Run code that comes with `models`.
        limit: Keeps only the first context lengths, or documents.
        compiled: Replaces the profile's `compile`.
        out: Folder that records are appended to.
        overrides: Fields to replace, as "rounds=3".
        data_dir: Where local data is looked for; RETBENCH_DATA when None.
        fresh: Measure again the cells that are on disk.
        shard: One part of the cells, as "2/8"; None for all.

    Returns:
        The counts of records by status, of this run and of those that were on disk, the record file of this run (None
        if nothing was left to measure), and whether a signal interrupted it.

    Raises:
        RetbenchError: as `planning.plan.make_plan` and `running.runner.run_plan`.
    """
    from retbench.cli.progress import show_events, view_run
    from retbench.data.data_folder import data_folder
    from retbench.planning.plan import make_plan
    from retbench.planning.shards import Shard
    from retbench.running.events import RunSummary
    from retbench.running.runner import run_plan

    _require((str, os.PathLike), "a text or a path", experiment=experiment)
    results = _path("out", out)
    data = None if data_dir is None else data_folder(_path("data_dir", data_dir))
    _require((str, type(None)), "a text or None", profile=profile, device=device, dtype=dtype, shard=shard)
    _require((Integral, type(None)), "a whole number or None", limit=limit)
    _require((bool,), "True or False", trust_remote_code=trust_remote_code, fresh=fresh)
    _require((bool, type(None)), "True, False or None", compiled=compiled)
    plan = make_plan(
        str(experiment),
        profile=profile,
        device=device,
        dtype=dtype,
        limit=limit,
        overrides=_texts("overrides", overrides, "rounds=3"),
        compiled=compiled,
        checkpoints=_texts("models", models, "FOLDER"),
        trust_remote_code=trust_remote_code,
        results=results,
        data_dir=data,
    )
    part = plan if shard is None else plan.part(Shard.parse(shard))
    if part is None:  # there are fewer parts than shards
        return RunSummary()
    with show_events(view_run) as notify:
        return run_plan(part, results, fresh=fresh, notify=notify)


def _require(kinds: tuple[Any, ...], needed: str, **given: object) -> None:
    """Raise ConfigError for an argument that has none of the types; True and False are no numbers.

    Wrong values could mean another request: the text "no" is true, and would let the code of a checkpoint run.

    Args:
        kinds: The types that are taken.
        needed: What to give, in words.
        given: Arguments by name.
    """
    from retbench.errors import ConfigError, shown

    for name, value in given.items():
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigError(f"{name} is {shown(value)}. Give {needed}.")


def _path(name: str, given: str | os.PathLike[str]) -> Path:
    """Return an argument as a path; ConfigError unless it is one, or if it is empty, which is the current folder."""
    from retbench.errors import ConfigError, shown

    _require((str, os.PathLike), "a text or a path", **{name: given})
    if given == "":
        raise ConfigError(f"{name} is empty. Give a path; '.' is the current folder.")
    path = Path(given)
    if "\0" in str(path):
        raise ConfigError(f"{name} is {shown(str(path))}. Give a path; none has the character of number 0.")
    return path


def _texts(name: str, given: object, example: str) -> tuple[str, ...]:
    """Return the items of an argument; ConfigError unless it is a sequence of texts or paths.

    A single text would be taken for the sequence of its letters.
    """
    from retbench.errors import ConfigError, shown

    if (
        isinstance(given, str)
        or not isinstance(given, Sequence)
        or not all(isinstance(item, str | Path) for item in given)
    ):
        raise ConfigError(f"{name} is {shown(given)}. Give a list of texts, such as {name}=[{example!r}].")
    return tuple(map(str, given))


def compare(
    first: "str | Callable[[], object]",
    second: "str | Callable[[], object]",
    *,
    margin: float = 0.02,
    rounds: int = 40,
    pairs: int | None = None,
    budget_s: float = 1200.0,
    notify: Callable[[str], None] = lambda text: None,
) -> "CheckReport":
    """Compare the wall times of two shell commands, or of two callables without arguments: is the second slower?

    Callables run in this process, after a warm-up, with the garbage collector off. Rounds, interim analyses and
    verdicts are those of `retbench check --against`.

    Args:
        first: What to compare with, a command as `sh -c` takes it or a callable.
        second: What is judged, of the same kind.
        margin: Share by which a time must have moved to count.
        rounds: Maximum number of rounds, without repeats of a flagged change.
        pairs: Samples of each side per round; None for as many, from 1 to 10, as take about 2 s.
        budget_s: Seconds after which no round begins but those of a flagged change.
        notify: Receives progress messages, also that another run is timing, for whose end the comparison waits.

    Returns:
        A report of one item, `report.items[0]`: its `verdict` is "regressed", "improved", "same" or "inconclusive", its
        `change` the ratio with its interval. `report.exit_code(strict=False)` is that of the command. If the second
        command fails, there is no item, and `report.missing[0]` has the reason.

    Raises:
        ConfigError: a value is out of range, or a command is compared with a callable.
        NotComparableError: the first command fails. Exceptions of a callable are not caught.
        Interrupted: the user stopped the comparison of two commands.
    """
    from retbench.errors import ConfigError
    from retbench.regress.commands import PairLimits, compare_callables, compare_commands
    from retbench.running.locks import Interrupted
    from retbench.stats.sequential import DecisionRules

    _require((Integral,), "a whole number", rounds=rounds)
    _require((Integral, type(None)), "a whole number or None", pairs=pairs)
    _require((Real,), "a number", margin=margin, budget_s=budget_s)
    _require((Callable,), "a function of a text", notify=notify)
    limits = PairLimits(max_rounds=rounds, pairs=pairs, budget_s=budget_s)
    if isinstance(first, str) and isinstance(second, str):
        report = compare_commands(first, second, limits, DecisionRules(margin=margin), notify)
        if report.is_interrupted:
            raise Interrupted
        return report
    if callable(first) and callable(second):
        # A sample of a short callable is the mean of many calls, to which the floor of a single time does not apply.
        return compare_callables(first, second, limits, DecisionRules(margin=margin, floor_s=0.0), notify)
    kinds = f"{type(first).__name__} and {type(second).__name__}"
    raise ConfigError(f"compare takes two commands or two callables, and not {kinds}.")
