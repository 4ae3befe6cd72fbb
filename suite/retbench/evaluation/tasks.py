"""The zero-shot tasks, with lm-eval's prompts and metrics over local files if there are any, else the hub's data.

`task_entries` lists them. Importing this module imports neither torch nor lm-eval.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retbench.config.evaluation import FEWSHOT_SEED
from retbench.data.data_folder import data_folder
from retbench.errors import ConfigError, UnsupportedError
from retbench.evaluation import ruler
from retbench.evaluation.local_data import LocalSplit, describe_files, find_layouts, one_line, read_local
from retbench.evaluation.task_entries import TASKS, TaskEntry, find_task

if TYPE_CHECKING:
    from retbench.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class LoadedTask:
    """A task with its data, ready to be evaluated.

    Attributes:
        entry: Its entry in `TASKS`.
        task: lm-eval's object.
        data_source: "local", "hub", or "generated" if lm-eval makes the prompts.
        data_files: Local files below the data folder, or the name of the hub's data set.
        data_note: How prompts from local rows differ from those from the hub's; empty if they do not.
        split: The evaluated split.
        fewshot_source: Split of the examples, if there are any.
        seed: Seed of the choice of examples.
        extra_tokens: Tokens that a generated prompt may have beyond the length that it was made for.
    """

    entry: TaskEntry
    task: Any
    data_source: Literal["local", "hub", "generated"]
    data_files: tuple[str, ...]
    data_note: str
    split: str
    fewshot_source: str | None
    seed: int
    extra_tokens: int = 0


def load_task(
    name: str,
    *,
    data_dir: Path | None = None,
    num_fewshot: int = 0,
    seed: int = FEWSHOT_SEED,
    tokenizer: "Tokenizer | None" = None,
    context_len: int | None = None,
) -> LoadedTask:
    """Load a task with its documents.

    Examples are drawn anew for each document, as by lm-eval: from the training split, else from the validation split,
    else from the evaluated split, always without the document itself.

    Args:
        name: Name in `TASKS`.
        data_dir: Folder of local files, see `local_data`; None for that of RETBENCH_DATA.
        num_fewshot: Examples before each document.
        seed: Seed of their choice.
        tokenizer: The model's tokenizer, for a task that is generated.
        context_len: Tokens of its prompts and answers.

    Raises:
        ConfigError: unknown task, unreadable files, or more examples than there are.
        UnsupportedError: neither local files nor the hub has the data.
    """
    entry = find_task(name, num_fewshot)
    if entry.is_generated:
        if tokenizer is None or context_len is None:
            raise ConfigError(f"task {name} is generated for a tokenizer and a context_len; give both.")
        return _generate(entry, seed, tokenizer, context_len)
    data_dir = data_folder(data_dir)
    local = read_local(name, data_dir) if data_dir is not None else {}
    config = _definition(entry)
    if "class" in config:
        return _load_class(entry, seed, config["class"], local, data_dir)
    if local:
        config |= _local_overrides(config, local)
    config["num_fewshot"] = num_fewshot
    if config.get("process_docs"):
        config["process_docs"] = _process_once(config["process_docs"])
    split = config.get("test_split") or config["validation_split"]
    source = config.get("training_split") or config.get("validation_split") or split
    from_own_split = source == split
    if from_own_split:  # lm-eval excludes the document from its examples only if these two are the same
        config |= {"fewshot_split": config.get("test_split")}
    task = _build(entry, lambda: _configured(config), local, data_dir, str(config["dataset_path"]))
    # By this condition lm-eval draws one example more and takes out the document, also where both splits are None.
    draws_one_more = task.fewshot_cfg.split == task.config.test_split
    available = len(task.sampler.df) - draws_one_more
    if num_fewshot > available:
        raise ConfigError(f"task {name}: {num_fewshot} examples asked for, and there are {available}.")
    task.set_fewshot_seed(seed)
    used = [split, source] if num_fewshot else [split]
    data_files = dict.fromkeys(file for each in used if each in local for file in local[each].files)
    described = f"{source}, without the document itself" if from_own_split else source
    return LoadedTask(
        entry=entry,
        task=task,
        data_source="local" if local else "hub",
        data_files=tuple(data_files) or (str(config["dataset_path"]),),
        data_note=local[split].note if local else "",
        split=split,
        fewshot_source=described if num_fewshot else None,
        seed=seed,
    )


def _load_class(
    entry: TaskEntry, seed: int, kind: type, local: Mapping[str, LocalSplit], data_dir: Path | None
) -> LoadedTask:
    """Load a task that lm-eval defines as a class, which evaluates the split `validation`."""
    split, hub_name = "validation", str(kind.DATASET_PATH)  # type: ignore[attr-defined]
    if local:
        datasets = _datasets(entry.name, local, [split])

        def download(task: Any, _: object = None) -> None:
            task.dataset = datasets

        kind = type(kind.__name__, (kind,), {"download": download})
    task = _build(entry, kind, local, data_dir, hub_name)
    task.set_fewshot_seed(seed)
    return LoadedTask(
        entry=entry,
        task=task,
        data_source="local" if local else "hub",
        data_files=local[split].files if local else (hub_name,),
        data_note="",
        split=split,
        fewshot_source=None,
        seed=seed,
    )


def _generate(entry: TaskEntry, seed: int, tokenizer: "Tokenizer", context_len: int) -> LoadedTask:
    """Let lm-eval generate a task's prompts."""
    check_task(entry.name, num_fewshot=0)
    with quiet(), ruler.without_downloads():
        config = _definition(entry)
    config |= ruler.generate(config, tokenizer, context_len)
    with quiet():
        task = _configured(config)
    task.set_fewshot_seed(seed)
    return LoadedTask(
        entry=entry,
        task=task,
        data_source="generated",
        data_files=(ruler.ESSAYS,) if ruler.needs_essays(entry.name) else (),
        data_note="",
        split=config["test_split"],
        fewshot_source=None,
        seed=seed,
        extra_tokens=ruler.opening_tokens(task, tokenizer),
    )


def check_task(name: str, *, num_fewshot: int, data_dir: Path | None = None) -> None:
    """Refuse a task that cannot be loaded, as far as that shows without downloading or generating anything.

    Local files are read, which takes up to two seconds for the tasks here.

    Args:
        name: Name in `TASKS`.
        num_fewshot: Most examples before a document.
        data_dir: See `load_task`.

    Raises:
        ConfigError: unknown task, examples for a task that takes none, unreadable local files, or more examples than
            they have.
        UnsupportedError: the task has no local files, and the hub does not have its data or is switched off.
    """
    entry = find_task(name, num_fewshot)
    if entry.is_generated:
        if reason := _cannot_generate(name):
            raise UnsupportedError(f"task {name}: {reason}.")
        return
    data_dir = data_folder(data_dir)
    if data_dir is None or not find_layouts(name, data_dir):
        _require_hub(entry, data_dir)
    else:
        load_task(name, data_dir=data_dir, num_fewshot=num_fewshot)


def _cannot_generate(name: str) -> str:
    """Return why the prompts of a task cannot be generated here; empty if they can, as far as is known."""
    if reason := ruler.missing_packages():
        return reason
    if ruler.needs_essays(name) and _hub_is_off():
        return f"its texts are {ruler.ESSAYS} on the hub, and HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set"
    return ""


def task_rows(data_dir: Path | None = None) -> list[tuple[str, str, str]]:
    """List every task: its name, its paper, and "local", "hub", "generated" or the reason why it cannot be run."""
    data_dir = data_folder(data_dir)
    rows = []
    for entry in TASKS.values():
        if entry.is_generated:
            rows.append((entry.name, entry.source, _cannot_generate(entry.name) or "generated"))
            continue
        splits = find_layouts(entry.name, data_dir).keys() if data_dir is not None else set()
        if splits & {"validation", "test"}:
            where = "local"
        elif not entry.on_hub:
            where = f"only from its authors; looked for: {describe_files(entry.name)}"
        elif _hub_is_off():
            where = f"the hub is switched off; looked for: {describe_files(entry.name)}"
        else:
            where = "hub"
        rows.append((entry.name, entry.source, where))
    return rows


def _definition(entry: TaskEntry) -> dict[str, Any]:
    """Read lm-eval's definition of a task, without its TaskManager, which reads all 14,000 to find one."""
    try:
        from lm_eval.tasks._yaml_loader import load_yaml
    except ImportError as error:
        raise UnsupportedError(
            "this lm-eval keeps its reader of task definitions elsewhere: pip install 'lm-eval>=0.4.13'"
        ) from error
    definition: dict[str, Any] = load_yaml(str(files("lm_eval.tasks") / entry.definition))
    return definition


def _local_overrides(config: Mapping[str, Any], local: Mapping[str, LocalSplit]) -> dict[str, Any]:
    """Return the fields of a definition that local data changes: the source of the rows, and absent splits."""
    named = {key: config.get(key) for key in ("training_split", "validation_split", "test_split")}
    present = {key: split if split in local else None for key, split in named.items()}
    evaluated = [str(named[key]) for key in ("validation_split", "test_split") if named[key]]
    datasets = _datasets(config["task"], local, evaluated)
    return {**present, "custom_dataset": lambda **_: datasets, "dataset_kwargs": None}


def _datasets(name: str, local: Mapping[str, LocalSplit], evaluated: Sequence[str]) -> Any:
    """Return local rows as a DatasetDict; ConfigError unless one of the splits that are evaluated is there."""
    from datasets import Dataset, DatasetDict

    if not local.keys() & set(evaluated):
        raise ConfigError(
            f"task {name}: only the split {', '.join(local)} is there, which is not evaluated. Add one of "
            f"{', '.join(evaluated)}."
        )
    datasets = DatasetDict()
    for split, found in local.items():
        try:
            datasets[split] = Dataset.from_list(found.rows)
        except Exception as error:  # from arrow, whose columns have one type each
            raise ConfigError(
                f"task {name}: {', '.join(found.files)}: the rows do not make a table ({one_line(error)}). "
                "A field must be of one type in all of them."
            ) from error
    return datasets


def _build(
    entry: TaskEntry,
    build: Callable[[], Any],
    local: Mapping[str, LocalSplit],
    data_dir: Path | None,
    hub_name: str,
) -> Any:
    """Build lm-eval's task object, with its data."""
    if not local:
        _require_hub(entry, data_dir)
    try:
        with quiet():
            return build()
    except Exception as error:  # whatever the hub's client may raise
        if local:
            used = ", ".join(file for found in local.values() for file in found.files)
            raise ConfigError(
                f"task {entry.name}: {used}: lm-eval cannot make its prompts of these rows "
                f"({one_line(error)}). Their fields must be those of {hub_name}."
            ) from error
        raise _no_data(
            entry, data_dir, f"{hub_name} cannot be had from the hub ({one_line(error)})"
        ) from error


def _configured(config: dict[str, Any]) -> Any:
    """Return lm-eval's object of a task that a definition configures."""
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(config=config)


def _require_hub(entry: TaskEntry, data_dir: Path | None) -> None:
    """Raise an UnsupportedError if the hub does not have a task's data or is switched off."""
    if not entry.on_hub:
        raise _no_data(entry, data_dir, "its data is given out by its authors only")
    if _hub_is_off():
        raise _no_data(entry, data_dir, "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set")


def _hub_is_off() -> bool:
    """Return True if the user has switched the hub off, by the rules of huggingface_hub and datasets."""
    switches = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    return any(switch.upper() in {"1", "ON", "YES", "TRUE"} for switch in switches)


def _no_data(entry: TaskEntry, data_dir: Path | None, reason: str) -> UnsupportedError:
    """Explain why neither the hub nor local files have the data of a task."""
    where = (
        f"nothing of it lies below {data_dir}"
        if data_dir
        else "no data folder is given (--data-dir, RETBENCH_DATA)"
    )
    return UnsupportedError(
        f"task {entry.name}: {reason}, and {where}. Looked for: {describe_files(entry.name)}."
    )


def _process_once(process: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Cache the processing of a split, which lm-eval repeats for every document."""
    processed: dict[str, Any] = {}

    def process_docs(dataset: Any) -> Any:
        if dataset._fingerprint not in processed:
            processed[dataset._fingerprint] = process(dataset)
        return processed[dataset._fingerprint]

    return process_docs


@contextmanager
def quiet() -> Iterator[None]:
    """Hide progress bars and warnings of lm-eval and datasets; errors are still shown."""
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
