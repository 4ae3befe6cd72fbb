"""lm-eval's tasks with its own prompts and metrics, over local files where there are any, else over the hub's data."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from retbench.config.evaluation import FEWSHOT_SEED
from retbench.data.places import data_folder
from retbench.errors import ConfigError, UnsupportedError
from retbench.evaluation.catalogue import TASKS, TaskEntry, find_task
from retbench.evaluation.layouts import LocalSplit, find_layouts, looked_for, read_local


@dataclass(frozen=True)
class LoadedTask:
    """A task, ready to be evaluated.

    Attributes:
        entry: Its row in the catalogue.
        task: lm-eval's object.
        data_source: "local" or "hub".
        data_files: Local files, below the data folder; of the hub the dataset's name.
        data_note: In what local rows differ from the hub's so that prompts do; empty where nothing does.
        split: The split that is evaluated.
        num_fewshot: Examples before each document.
        fewshot_source: Where they are drawn from; None without any.
        seed: Of the draw.
    """

    entry: TaskEntry
    task: Any
    data_source: Literal["local", "hub"]
    data_files: tuple[str, ...]
    data_note: str
    split: str
    num_fewshot: int
    fewshot_source: str | None
    seed: int


def load_task(
    name: str,
    *,
    data_dir: Path | None = None,
    num_fewshot: int = 0,
    seed: int = FEWSHOT_SEED,
) -> LoadedTask:
    """A task with its documents.

    Examples are drawn anew for each document, as lm-eval does: from the training split where there is one, else from
    the validation split, else from the split that is evaluated, the document itself always left out.

    Args:
        name: In the catalogue.
        data_dir: Folder to look for local files in, see `layouts`; that of RETBENCH_DATA when None.
        num_fewshot: Examples before each document.
        seed: Of their draw.

    Raises:
        ConfigError: unknown task, unreadable files, or more examples than there are.
        UnsupportedError: neither local files nor the hub has the data.
    """
    entry = find_task(name)
    data_dir = data_folder(data_dir)
    _check_takes_shots(entry, num_fewshot)
    local = read_local(name, data_dir) if data_dir is not None else {}
    config = _definition(entry)
    if local:
        config |= _local_overrides(config, local)
    config["num_fewshot"] = num_fewshot
    if config.get("process_docs"):
        config["process_docs"] = _once(config["process_docs"])
    split = config.get("test_split") or config["validation_split"]
    source = config.get("training_split") or config.get("validation_split") or split
    if (
        source == split
    ):  # lm-eval leaves the document out of its own examples only where these two are the same
        config |= {"fewshot_split": config.get("test_split")}
    task = _build(entry, config, local, data_dir)
    _check_examples(task, entry, num_fewshot, source == split)
    task.set_fewshot_seed(seed)
    return LoadedTask(
        entry=entry,
        task=task,
        data_source="local" if local else "hub",
        data_files=_used(local, split, source if num_fewshot else None) or (str(config["dataset_path"]),),
        data_note=local[split].note if local else "",
        split=split,
        num_fewshot=num_fewshot,
        fewshot_source=_describe_source(source, split) if num_fewshot else None,
        seed=seed,
    )


def check_task(name: str, *, num_fewshot: int, data_dir: Path | None = None) -> None:
    """Refuse what is known to be impossible before the data is read; what lies in the data shows when it is.

    Args:
        name: In the catalogue.
        num_fewshot: The most examples before a document.
        data_dir: As of `load_task`.

    Raises:
        ConfigError: unknown task, or examples before documents that take none.
        UnsupportedError: the task has no local files, and the hub does not have its data or may not be asked.
    """
    entry = find_task(name)
    data_dir = data_folder(data_dir)
    _check_takes_shots(entry, num_fewshot)
    if data_dir is None or not find_layouts(name, data_dir):
        _require_hub(entry, data_dir)


def task_rows(data_dir: Path | None = None) -> list[tuple[str, str, str]]:
    """Every task: its name, the paper it is from, and "local", "hub" or the reason why it cannot be run."""
    data_dir = data_folder(data_dir)
    rows = []
    for entry in TASKS.values():
        if data_dir is not None and _has_documents(entry, data_dir):
            where = "local"
        elif not entry.on_hub:
            where = f"only from its authors; looked for: {looked_for(entry.name)}"
        elif _hub_is_off():
            where = f"the hub is switched off; looked for: {looked_for(entry.name)}"
        else:
            where = "hub"
        rows.append((entry.name, entry.source, where))
    return rows


def _has_documents(entry: TaskEntry, data_dir: Path) -> bool:
    """Whether a split that can be evaluated lies below a data folder."""
    return bool(find_layouts(entry.name, data_dir).keys() & {"validation", "test"})


def _definition(entry: TaskEntry) -> dict[str, Any]:
    """lm-eval's definition of a task. Its TaskManager reads all 14,000 to find one; this reads the one."""
    try:
        from lm_eval.tasks._yaml_loader import load_yaml
    except ImportError as error:
        raise UnsupportedError(
            "this lm-eval keeps its reader of task definitions elsewhere: pip install 'lm-eval>=0.4.13'"
        ) from error
    definition: dict[str, Any] = load_yaml(str(files("lm_eval.tasks") / entry.definition))
    return definition


def _local_overrides(config: Mapping[str, Any], local: Mapping[str, LocalSplit]) -> dict[str, Any]:
    """What local data changes in a definition: where the rows are from, and the splits that there are not."""
    from datasets import Dataset, DatasetDict

    named = {key: config.get(key) for key in ("training_split", "validation_split", "test_split")}
    present = {key: split if split in local else None for key, split in named.items()}
    if not (present["validation_split"] or present["test_split"]):
        raise ConfigError(
            f"task {config['task']}: only the split {', '.join(local)} is there, which is not evaluated. Add one of "
            f"{', '.join(str(split) for split in named.values() if split)}."
        )
    datasets = DatasetDict()
    for split, found in local.items():
        try:
            datasets[split] = Dataset.from_list(found.rows)
        except (ValueError, TypeError) as error:  # of arrow, whose columns have one type each
            raise ConfigError(
                f"task {config['task']}: {', '.join(found.files)}: the rows do not make a table ({_one_line(error)}). "
                "A field must be of one type in all of them."
            ) from error
    return {**present, "custom_dataset": lambda **_: datasets, "dataset_kwargs": None}


def _build(
    entry: TaskEntry, config: dict[str, Any], local: Mapping[str, LocalSplit], data_dir: Path | None
) -> Any:
    """lm-eval's task object, its data loaded."""
    from lm_eval.api.task import ConfigurableTask

    if not local:
        _require_hub(entry, data_dir)
    try:
        with quiet():
            return ConfigurableTask(config=config)
    except Exception as error:  # whatever the hub's client may raise; local rows are checked below
        if local:
            raise ConfigError(
                f"task {entry.name}: {', '.join(_all_files(local))}: lm-eval cannot make its prompts of these rows "
                f"({type(error).__name__}: {error}). Their fields must be those of {config['dataset_path']}."
            ) from error
        raise UnsupportedError(
            f"task {entry.name}: {config['dataset_path']} cannot be had from the hub ({_one_line(error)}), and "
            f"{_nothing_local(entry, data_dir)}"
        ) from error


def _check_takes_shots(entry: TaskEntry, num_fewshot: int) -> None:
    """ConfigError for examples before documents that take none."""
    if num_fewshot and not entry.takes_shots:
        raise ConfigError(
            f"task {entry.name} scores whole texts; it takes no examples, and num_fewshot is {num_fewshot}. Set it to "
            "0, or leave the task out."
        )


def _require_hub(entry: TaskEntry, data_dir: Path | None) -> None:
    """UnsupportedError where the hub cannot or may not be asked."""
    if not entry.on_hub:
        raise UnsupportedError(
            f"task {entry.name}: its data is given out by its authors only, and {_nothing_local(entry, data_dir)}"
        )
    if _hub_is_off():
        raise UnsupportedError(
            f"task {entry.name}: HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set, and {_nothing_local(entry, data_dir)}"
        )


def _hub_is_off() -> bool:
    """Whether the user has switched the hub off, as its own clients understand it."""
    switches = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    return any(switch.upper() in {"1", "ON", "YES", "TRUE"} for switch in switches)


def _nothing_local(entry: TaskEntry, data_dir: Path | None) -> str:
    """The end of a message: that there are no local files, and which would do."""
    where = (
        f"nothing of it lies below {data_dir}"
        if data_dir
        else "no data folder is given (--data-dir, RETBENCH_DATA)"
    )
    return f"{where}. Looked for: {looked_for(entry.name)}."


def _once(process: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Process a split the first time it is asked for; lm-eval does so every time that it asks for a document."""
    processed: dict[str, Any] = {}

    def process_docs(dataset: Any) -> Any:
        if dataset._fingerprint not in processed:
            processed[dataset._fingerprint] = process(dataset)
        return processed[dataset._fingerprint]

    return process_docs


def _check_examples(task: Any, entry: TaskEntry, num_fewshot: int, from_own_split: bool) -> None:
    """ConfigError where there are too few examples."""
    available = len(task.sampler.df) - from_own_split
    if num_fewshot > available:
        raise ConfigError(f"task {entry.name}: {num_fewshot} examples asked for, and there are {available}.")


def _describe_source(source: str, split: str) -> str:
    """Where examples are from, in words."""
    return f"{source}, without the document itself" if source == split else source


def _used(local: Mapping[str, LocalSplit], *splits: str | None) -> tuple[str, ...]:
    """Files of these splits, each once."""
    return tuple(
        dict.fromkeys(file for split in splits if split and split in local for file in local[split].files)
    )


def _all_files(local: Mapping[str, LocalSplit]) -> Sequence[str]:
    """Files of every split."""
    return [file for found in local.values() for file in found.files]


def _one_line(error: Exception) -> str:
    """Kind and message of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and warnings of lm-eval and datasets from the screen; errors stay."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("lm_eval")
    level, bars_were_off = logger.level, are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars_were_off:
            enable_progress_bars()
