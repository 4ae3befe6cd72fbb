"""`retbench list`: the experiments, sizes and models that have a name."""

import textwrap
from pathlib import Path
from typing import Any

import typer

from retbench.architectures import costs, matching
from retbench.architectures.architecture import ModelSpec
from retbench.architectures.registry import architectures, named_specs
from retbench.architectures.sizes import SIZES
from retbench.cli.layout import print_columns, print_json
from retbench.config.experiment import Experiment, list_experiments, load_experiment
from retbench.units import format_count

named_models = named_specs


def backends_of(spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of the forms of a model."""
    return tuple(matching.resolve_model(spec, "1m").forms)


def list_shipped(*, as_json: bool) -> None:
    """Print every experiment."""
    experiments = [load_experiment(name) for name in list_experiments()]
    if as_json:
        rows = [
            {"name": e.name, "title": e.title, "source": e.source, "profiles": [*e.profiles]}
            for e in experiments
        ]
        print_json({"experiments": rows})
        return
    print_columns(
        ("experiment", "profiles", "title"), [(e.name, " ".join(e.profiles), e.title) for e in experiments]
    )


_PAGE_HEAD = """\
# Experiments

Each file here repeats a table or figure of a paper and has three profiles: `smoke` (a check that everything works),
`cpu` (two cores; the default without a GPU of 70 GB) and `paper` (the paper's sizes). Its header says how it differs
from the paper. This page is made from the files by `make pages`; the times are those that the files state.
"""


def print_page() -> None:
    """Print every experiment with its command and its cost, as the page `experiments/README.md`."""
    blocks = [_PAGE_HEAD]
    for name, path in list_experiments().items():
        experiment = load_experiment(name)
        commands = "\n".join(_commands(experiment))
        blocks += [
            f"## [{name}]({path.name}): {experiment.title}\n",
            _wrap(f"{experiment.source}. {experiment.expect}"),
            f"```sh\n{commands}\n```\n",
            _wrap(f"Cost: {read_header(path)[-1]}"),
        ]
    typer.echo("\n".join(blocks), nl=False)


def _commands(experiment: Experiment) -> list[str]:
    """Those that make its records: training first where its models are trained."""
    profiles = experiment.profiles.values()
    origins = [experiment.name for profile in profiles if profile.training]
    origins += [profile.trained_by.partition("/")[0] for profile in profiles if profile.trained_by]
    return [*(f"retbench train {name}" for name in dict.fromkeys(origins)), f"retbench run {experiment.name}"]


def _wrap(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def read_header(path: Path) -> list[str]:
    """The paragraphs of the comment that an experiment file opens with; the last one says what it costs and on what."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    text = "\n".join(line.removeprefix("#").strip() for line in lines[:end])
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def list_sizes(*, as_json: bool) -> None:
    """Print every named size, with the parameters of its RetNet and its matched Transformer."""
    rows: list[dict[str, Any]] = []
    for name, size in SIZES.items():
        counts = {
            model: costs.num_params_nonembedding(matching.resolve_model(spec, name))
            for model, spec in named_models().items()
        }
        rows.append({"name": name, **vars(size), "num_params_nonembedding": counts})
    if as_json:
        print_json({"sizes": rows})
        return
    print_columns(
        (
            "size",
            "width",
            "layers",
            "retention heads",
            "attention heads",
            "vocabulary",
            "parameters",
            "source",
        ),
        [
            (
                row["name"],
                *(
                    str(row[field])
                    for field in ("d_model", "num_layers", "retention_heads", "attention_heads")
                ),
                str(row["vocab_size"]),
                format_count(row["num_params_nonembedding"][next(iter(architectures()))]),
                row["source"],
            )
            for row in rows
        ],
    )


def list_models(*, as_json: bool) -> None:
    """Print every model that `verify` takes."""
    models = named_models()
    if as_json:
        rows = [
            {"name": name, **spec.model_dump(), "backends": backends_of(spec)}
            for name, spec in models.items()
        ]
        print_json({"models": rows})
        return
    print_columns(
        ("model", "architecture", "variant", "backends"),
        [
            (name, m.architecture, getattr(m, "variant", "–"), " ".join(backends_of(m)))
            for name, m in models.items()
        ],
    )


def list_tasks(data_dir: Path | None, *, as_json: bool) -> None:
    """Print every zero-shot task, the paper that has it, and where its data is."""
    from retbench.evaluation.tasks import task_rows

    rows = task_rows(data_dir)
    if as_json:
        print_json(
            {"tasks": [{"name": name, "source": source, "data": where} for name, source, where in rows]}
        )
        return
    print_columns(("task", "data", "source"), [(name, where, source) for name, source, where in rows])
