"""`retbench list`: the experiments, sizes, models and tasks that have a name."""

import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from retbench.cli.layout import output_format, print_json, print_table
from retbench.cli.options import AsJson, DataDir, OutputFormat, new_app
from retbench.units import format_count, format_size

app = new_app()

_PAGE_HEAD = """\
# Experiments

Each file here repeats a table or figure of a paper and has the profiles `smoke` (a check that everything works), `cpu`
(two cores; the default without a GPU of 70 GB) and `paper` (the paper's sizes), some a further one. Its header says how
it differs from the paper. This page is made from the files by `make pages`; the times are those that the files state.
"""


@app.command("list", epilog="Example: retbench list --sizes")
def list_(
    sizes: Annotated[bool, typer.Option("--sizes", help="List the named model sizes instead.")] = False,
    models: Annotated[bool, typer.Option("--models", help="List the models that `verify` takes.")] = False,
    tasks: Annotated[
        bool, typer.Option("--tasks", help="List the zero-shot tasks, with the place of their data.")
    ] = False,
    page: Annotated[
        bool, typer.Option("--page", help="Print the experiments with command and cost, as Markdown.")
    ] = False,
    data_dir: DataDir = None,
    form: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """List the experiments, the model sizes, the models or the tasks."""
    if sizes + models + tasks + page > 1:
        raise typer.BadParameter("give one of --sizes, --models, --tasks and --page")
    if page and (as_json or form not in (None, "md")):
        raise typer.BadParameter("--page is Markdown: give it without another format")
    if data_dir is not None and not tasks:
        raise typer.BadParameter("--data-dir is the place of the data of --tasks: give both, or leave it out")
    if page:
        _print_page()
        return
    key, rows, columns = (
        _tasks(data_dir) if tasks else _sizes() if sizes else _models() if models else _experiments()
    )
    form = output_format(form, as_json=as_json)
    if form == "json":
        print_json({key: rows})
        return
    cells = [[_cell(row.get(field, "–")) for field in columns.values()] for row in rows]
    if sizes:
        cells = [[format_size(name), *rest] for name, *rest in cells]
    print_table([*columns], cells, form)


_Listing = tuple[str, list[dict[str, Any]], dict[str, str]]
"""One kind of names: the key of the JSON object, its rows, and the field of each printed column."""


def _cell(value: Any) -> str:
    """Return a field as text: a list as words, and the parameters of each model as those of the first."""
    if isinstance(value, dict):
        return format_count(next(iter(value.values())))
    if isinstance(value, list | tuple):
        return " ".join(_by_mixer([str(one) for one in value])) or "–"
    return "–" if value is None else str(value)


def _by_mixer(names: list[str]) -> list[str]:
    """Join the backends of each mixer of a hybrid: retention=parallel and retention=fla as retention=parallel|fla."""
    found: dict[str, list[str]] = {}
    for name in names:
        mixer, _, form = name.rpartition("=")
        found.setdefault(mixer, []).append(form)
    return [
        word
        for mixer, forms in found.items()
        for word in ([f"{mixer}={'|'.join(forms)}"] if mixer else forms)
    ]


def _experiments() -> _Listing:
    from retbench.config.experiment_files import list_experiments, load_experiment

    experiments = [load_experiment(name) for name in list_experiments()]
    rows = [
        {"name": e.name, "title": e.title, "source": e.source, "profiles": [*e.profiles]} for e in experiments
    ]
    return "experiments", rows, {"experiment": "name", "profiles": "profiles", "title": "title"}


def _sizes() -> _Listing:
    """Return every named size, with the parameters of its models."""
    from retbench.architectures import costs, matching
    from retbench.architectures.registry import named_specs
    from retbench.architectures.sizes import SIZES
    from retbench.errors import ConfigError

    rows: list[dict[str, Any]] = []
    for name, size in SIZES.items():
        counts: dict[str, int] = {}
        for model, spec in named_specs().items():
            with suppress(ConfigError):  # a hybrid may have more kinds of layers than the size has layers
                counts[model] = costs.num_params_nonembedding(matching.resolve_model(spec, name))
        rows.append({"name": name, **vars(size), "num_params_nonembedding": counts})
    columns = {
        "size": "name",
        "width": "d_model",
        "layers": "num_layers",
        "retention heads": "retention_heads",
        "attention heads": "attention_heads",
        "vocabulary": "vocab_size",
        "parameters": "num_params_nonembedding",
        "source": "source",
    }
    return "sizes", rows, columns


def _models() -> _Listing:
    from retbench.architectures.registry import named_specs
    from retbench.cli.in_process import backends_of

    named = {"architecture", "variant", "backend", "pattern"}
    rows = [
        {
            "name": name,
            **spec.model_dump(),
            "options": [
                f"{key}={value}"
                for key, value in spec.model_dump(exclude_defaults=True, exclude=named).items()
            ],
            "backends": backends_of(spec),
        }
        for name, spec in named_specs().items()
    ]
    columns = {"model": "name", **{name: name for name in ("architecture", "variant", "options", "backends")}}
    return "models", rows, columns


def _tasks(data_dir: Path | None) -> _Listing:
    """Return every zero-shot task with the paper that reports it and the place of its data."""
    from retbench.evaluation.tasks import task_rows

    rows = [{"name": name, "source": source, "data": place} for name, source, place in task_rows(data_dir)]
    return "tasks", rows, {"task": "name", "data": "data", "source": "source"}


def _print_page() -> None:
    """Print every experiment with its command and its cost, as the page `experiments/README.md`."""
    from retbench.config.experiment_files import list_experiments, load_experiment

    blocks = [_PAGE_HEAD]
    for name, path in list_experiments().items():
        experiment = load_experiment(name)
        commands = [
            *(f"retbench train {origin}" for origin in experiment.trained_in(experiment.profiles)),
            f"retbench run {experiment.name}",
        ]
        blocks += [
            f"## [{name}]({path.name}): {experiment.title}\n",
            _wrap(f"{experiment.source}. {experiment.expect}"),
            "```sh\n" + "\n".join(commands) + "\n```\n",
            _wrap(f"Cost: {read_header(path)[-1]}"),
        ]
    typer.echo("\n".join(blocks), nl=False)


def _wrap(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def read_header(path: Path) -> list[str]:
    """Return the paragraphs of an experiment file's opening comment; the last one states cost and machine."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    text = "\n".join(line.removeprefix("#").strip() for line in lines[:end])
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
