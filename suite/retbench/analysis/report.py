"""The report: one page that stands alone, the same as Markdown, and the figures, all from records.

The same records give the same bytes: nothing in it tells when or where it was written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from retbench.analysis import ledger, page
from retbench.analysis.doubts import (
    absent_sentences,
    disturbance_sentences,
    failure_table,
    missing_sentences,
    noisy_sentences,
)
from retbench.analysis.figures import Drawing, make_drawings, save_drawing
from retbench.analysis.findings import Finding, find
from retbench.analysis.formats import markdown_table, readable_tables
from retbench.analysis.frames import Results, load_results, started
from retbench.analysis.points import lineup
from retbench.analysis.scenes import Scene, bind_units, describe_conditions, make_scenes, scene_title
from retbench.analysis.selection import Selection, select
from retbench.analysis.tables import table_of
from retbench.errors import StorageError


@dataclass(frozen=True)
class Titled:
    """A table under its heading."""

    title: str
    table: pd.DataFrame


@dataclass(frozen=True)
class Matched:
    """How the models of some experiments are matched."""

    experiments: str
    mismatch: str
    table: pd.DataFrame
    gate: pd.DataFrame


@dataclass(frozen=True)
class Report:
    """Everything that both templates show, in their order."""

    conditions: str
    findings: list[Finding]
    drawings: list[Drawing]
    tables: list[Titled]
    pairs: list[Matched]
    ran: list[Titled]
    environment: pd.DataFrame
    failures: pd.DataFrame
    missing: list[str]
    noisy: list[str]
    disturbances: list[str]
    absent: list[str]
    left_out: list[str]
    problems: list[str]
    commands: list[str]
    sources: pd.DataFrame


def write_report(results: Path, out: Path) -> list[Path]:
    """Write `index.html`, `report.md` and `figures/` into a folder.

    Args:
        results: A record file, or a folder of them.
        out: The folder; made if need be, files of an earlier report are overwritten.

    Returns:
        The files written.

    Raises:
        RecordError: there is nothing to report on; the message says what to run.
        StorageError: a file cannot be written.
    """
    report = make_report(load_results(results))
    paths = [path for drawing in report.drawings for path in save_drawing(drawing, out / "figures")]
    templates = _templates()
    svgs = {
        drawing.name: Markup(
            page.inline_svg((out / "figures" / f"{drawing.name}.svg").read_text("utf-8"), drawing)
        )
        for drawing in report.drawings
    }
    texts = {
        "index.html": templates.get_template("index.html.j2").render(
            report=report, svgs=svgs, colours=page.colour_rules()
        ),
        "report.md": templates.get_template("report.md.j2").render(report=report),
    }
    for name, text in texts.items():
        path = out / name
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"{path}: the report could not be written: {error.strerror}. Free some space or give another folder."
            ) from error
        paths.append(path)
    return paths


def make_report(results: Results) -> Report:
    """The contents of the report on the newest comparable records."""
    selection = select(results.records)
    scenes = make_scenes(selection)
    records = selection.records
    first = [scene for scene in scenes if scene.models == scenes[0].models]
    return Report(
        conditions=describe_conditions([r for scene in first for r in scene.records], first[0].models),
        findings=find(scenes),
        drawings=make_drawings(selection),
        tables=_tables(selection),
        pairs=[_matched(pair) for pair in selection.pairs()],
        ran=_ran(scenes),
        environment=ledger.environment_table(records),
        failures=failure_table(selection),
        missing=missing_sentences(selection, scenes),
        noisy=noisy_sentences(scenes),
        disturbances=disturbance_sentences(selection),
        absent=absent_sentences(selection),
        left_out=list(selection.left_out),
        problems=list(results.problems),
        commands=list(dict.fromkeys(record.command for record in sorted(records, key=started))),
        sources=_sources(selection),
    )


def _matched(pair: Selection) -> Matched:
    """How the models of a selection of one pair are matched, and what its gate found."""
    records, models = pair.records, lineup(pair.records)
    return Matched(
        experiments=", ".join(pair.experiments),
        mismatch=ledger.mismatch_sentence(records, models),
        table=ledger.match_table(records, models),
        gate=ledger.gate_table(records, models),
    )


def _tables(selection: Selection) -> list[Titled]:
    """The tables of every experiment, one a workload."""
    return [
        Titled(scene_title(experiment, workload), table)
        for experiment in selection.experiments
        for workload, table in readable_tables(table_of(selection, experiment)).items()
    ]


def _ran(scenes: Sequence[Scene]) -> list[Titled]:
    """What ran, one table an experiment and workload."""
    groups: dict[tuple[str, str], list[Scene]] = {}
    for scene in scenes:
        groups.setdefault((scene.experiment, scene.workload), []).append(scene)
    return [
        Titled(
            scene_title(experiment, workload),
            ledger.ran_table([record for scene in group for record in scene.records], group[0].models),
        )
        for (experiment, workload), group in groups.items()
    ]


def _sources(selection: Selection) -> pd.DataFrame:
    """The record files behind the report."""
    counts: dict[tuple[str, str, str], int] = {}
    for record in selection.records:
        key = (str(record.environment.get("machine")), record.experiment, record.run_id)
        counts[key] = counts.get(key, 0) + 1
    rows = [
        [f"{machine}/{experiment}/{run}.jsonl", str(count)]
        for (machine, experiment, run), count in counts.items()
    ]
    return pd.DataFrame(sorted(rows), columns=["file below the results folder", "records used"])


def _templates() -> Environment:
    """The templates; what is missing in one is an error, and only HTML is escaped."""
    environment = Environment(
        loader=PackageLoader("retbench.analysis", "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Any] = {
        "bound": bind_units,
        "markdown": markdown_table,
        "rows": lambda table: table.itertuples(index=False),
    }
    environment.filters.update(filters)
    return environment
