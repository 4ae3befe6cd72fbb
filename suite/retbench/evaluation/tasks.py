"""The zero-shot tasks, with lm-eval's prompts and metrics over local files if there are any, else the hub's data.

They are the tasks of the RetNet paper and of the GLA paper's table. Importing this module imports neither torch nor
lm-eval.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from retbench.config.evaluation import FEWSHOT_SEED
from retbench.data.places import data_folder
from retbench.errors import ConfigError, UnsupportedError, shown, unknown_name
from retbench.evaluation.local_data import LocalSplit, describe_files, find_layouts, one_line, read_local

RETNET = "RetNet (arXiv:2307.08621) Table 3"
GLA = "GLA (arXiv:2312.06635) Table 2"


@dataclass(frozen=True)
class TaskEntry:
    """One task.

    Attributes:
        name: lm-eval's name, which users give.
        definition: lm-eval's file of the task, below its folder of tasks.
        metric: The metric to show first. GLA's table has acc_norm for HellaSwag, ARC-challenge and OpenBookQA; the
            RetNet paper does not say which one it shows for HellaSwag.
        source: The papers whose tables have the task.
        on_hub: False if the data must come from the user's own files.
        takes_shots: True if examples can precede a document.
    """

    name: str
    definition: str
    metric: str
    source: str
    on_hub: bool = True
    takes_shots: bool = True


TASKS: dict[str, TaskEntry] = {
    entry.name: entry
    for entry in (
        TaskEntry("hellaswag", "hellaswag/hellaswag.yaml", "acc_norm", f"{RETNET}; {GLA}"),
        TaskEntry("boolq", "super_glue/boolq/default.yaml", "acc", f"{RETNET}; {GLA}"),
        TaskEntry("copa", "super_glue/copa/default.yaml", "acc", f"{RETNET}; {GLA}"),
        TaskEntry("piqa", "piqa/piqa.yaml", "acc", f"{RETNET}; {GLA}"),
        TaskEntry("wsc273", "wsc273/default.yaml", "acc", RETNET),
        TaskEntry("winogrande", "winogrande/default.yaml", "acc", f"{RETNET}; {GLA}"),
        TaskEntry("storycloze_2016", "storycloze/storycloze_2016.yaml", "acc", RETNET, on_hub=False),
        TaskEntry("lambada_openai", "lambada/lambada_openai.yaml", "acc", GLA),
        TaskEntry("arc_easy", "arc/arc_easy.yaml", "acc", GLA),
        TaskEntry("arc_challenge", "arc/arc_challenge.yaml", "acc_norm", GLA),
        TaskEntry("openbookqa", "openbookqa/openbookqa.yaml", "acc_norm", GLA),
        TaskEntry("sciq", "sciq/sciq.yaml", "acc", GLA),
        TaskEntry("wikitext", "wikitext/wikitext.yaml", "word_perplexity", GLA, takes_shots=False),
    )
}


@dataclass(frozen=True)
class LoadedTask:
    """A task with its data, ready to be evaluated.

    Attributes:
        entry: Its entry in `TASKS`.
        task: lm-eval's object.
        data_source: "local" or "hub".
        data_files: Local files below the data folder, or the name of the hub's data set.
        data_note: How prompts from local rows differ from those from the hub's; empty if they do not.
        split: The evaluated split.
        fewshot_source: Split of the examples, if there are any.
        seed: Seed of the choice of examples.
    """

    entry: TaskEntry
    task: Any
    data_source: Literal["local", "hub"]
    data_files: tuple[str, ...]
    data_note: str
    split: str
    fewshot_source: str | None
    seed: int


def load_task(
    name: str,
    *,
    data_dir: Path | None = None,
    num_fewshot: int = 0,
    seed: int = FEWSHOT_SEED,
) -> LoadedTask:
    """Load a task with its documents.

    Examples are drawn anew for each document, as by lm-eval: from the training split, else from the validation split,
    else from the evaluated split, always without the document itself.

    Args:
        name: Name in `TASKS`.
        data_dir: Folder of local files, see `local_data`; None for that of RETBENCH_DATA.
        num_fewshot: Examples before each document.
        seed: Seed of their choice.

    Raises:
        ConfigError: unknown task, unreadable files, or more examples than there are.
        UnsupportedError: neither local files nor the hub has the data.
    """
    entry = _find_task(name, num_fewshot)
    data_dir = data_folder(data_dir)
    local = read_local(name, data_dir) if data_dir is not None else {}
    config = _definition(entry)
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
    task = _build(entry, config, local, data_dir)
    available = len(task.sampler.df) - from_own_split
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


def check_task(name: str, *, num_fewshot: int, data_dir: Path | None = None) -> None:
    """Refuse a task that cannot be loaded, as far as that shows before its data is read.

    Args:
        name: Name in `TASKS`.
        num_fewshot: Most examples before a document.
        data_dir: See `load_task`.

    Raises:
        ConfigError: unknown task, or examples for a task that takes none.
        UnsupportedError: the task has no local files, and the hub does not have its data or is switched off.
    """
    entry = _find_task(name, num_fewshot)
    data_dir = data_folder(data_dir)
    if data_dir is None or not find_layouts(name, data_dir):
        _require_hub(entry, data_dir)


def task_rows(data_dir: Path | None = None) -> list[tuple[str, str, str]]:
    """List every task: its name, its paper, and "local", "hub" or the reason why it cannot be run."""
    data_dir = data_folder(data_dir)
    rows = []
    for entry in TASKS.values():
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


def _find_task(name: str, num_fewshot: int) -> TaskEntry:
    """Return the task called `name`; ConfigError if there is none, or if it does not take examples."""
    if name.startswith(("niah_", "ruler")):
        raise UnsupportedError(
            f"task {shown(name)}: lm-eval generates RULER's prompts with packages that download texts when they are "
            "loaded, and with transformers' tokenizers only. The workload 'needle' has its single needle: retbench run "
            "needle."
        )
    if name not in TASKS:
        raise unknown_name("zero-shot task", name, TASKS)
    entry = TASKS[name]
    if num_fewshot and not entry.takes_shots:
        raise ConfigError(
            f"task {name} scores whole texts; it takes no examples, and num_fewshot is {num_fewshot}. Set it to 0, or "
            "leave the task out."
        )
    return entry


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
        except Exception as error:  # from arrow, whose columns have one type each
            raise ConfigError(
                f"task {config['task']}: {', '.join(found.files)}: the rows do not make a table ({one_line(error)}). "
                "A field must be of one type in all of them."
            ) from error
    return {**present, "custom_dataset": lambda **_: datasets, "dataset_kwargs": None}


def _build(
    entry: TaskEntry, config: dict[str, Any], local: Mapping[str, LocalSplit], data_dir: Path | None
) -> Any:
    """Build lm-eval's task object, with its data."""
    from lm_eval.api.task import ConfigurableTask

    if not local:
        _require_hub(entry, data_dir)
    try:
        with quiet():
            return ConfigurableTask(config=config)
    except Exception as error:  # whatever the hub's client may raise
        if local:
            used = ", ".join(file for found in local.values() for file in found.files)
            raise ConfigError(
                f"task {entry.name}: {used}: lm-eval cannot make its prompts of these rows "
                f"({one_line(error)}). Their fields must be those of {config['dataset_path']}."
            ) from error
        reason = f"{config['dataset_path']} cannot be had from the hub ({one_line(error)})"
        raise _no_data(entry, data_dir, reason) from error


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
