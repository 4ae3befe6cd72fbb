"""Optional observer of training: learning curves go to Weights & Biases or to trackio as well.

Both libraries have the same three calls: `init`, and `log` and `finish` of the run that it returns. Records do not
depend on them. Modes such as offline are set by the libraries' own variables (WANDB_MODE).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from typing import Any

from retbench.errors import UnsupportedError, unknown_name
from retbench.training.events import PointAdded, RunResult, RunStarted
from retbench.training.plan import TrainingPlan, TrainingRun

TRACKERS = ("wandb", "trackio")
PROJECT = "retbench"

Notify = Callable[[Any], None]


def load_tracker(library: str) -> Any:
    """Return a library that learning curves are logged to.

    Raises:
        ConfigError: another library.
        UnsupportedError: it is not installed.
    """
    if library not in TRACKERS:
        raise unknown_name("library", library, TRACKERS, where="--track")
    try:
        return import_module(library)
    except ImportError as error:
        raise UnsupportedError(
            f"--track {library}: the package cannot be imported here ({error}). "
            f"Install it: pip install 'retbench[{library}]'"
        ) from error


@contextmanager
def track_runs(library: str, plan: TrainingPlan, notify: Notify) -> Iterator[Notify]:
    """Return a function that passes events on to `notify`, and points of learning curves to a library as well.

    Each run of the training is a run there. An interrupted one is finished when the block ends. Errors are those of
    `load_tracker`.
    """
    module = load_tracker(library)
    tracked: dict[TrainingRun, Any] = {}

    def observe(event: Any) -> None:
        notify(event)
        match event:
            case RunStarted(run=run):
                tracked[run] = module.init(project=PROJECT, name=run.name, config=_config(plan, run))
            case PointAdded(run=run, point=point) if run in tracked:
                values = asdict(point)
                tracked[run].log(
                    {name: one for name, one in values.items() if one is not None}, step=point.step
                )
            case RunResult(run=run) if run in tracked:
                tracked.pop(run).finish()

    try:
        yield observe
    finally:
        for run in tracked.values():
            run.finish()


def _config(plan: TrainingPlan, run: TrainingRun) -> dict[str, Any]:
    """Return the settings of a run, as a library shows them."""
    words = {"experiment": plan.experiment.name, "profile": plan.profile_name, "device": plan.device}
    return {**words, **asdict(run), "training": plan.spec.model_dump(mode="json")}
