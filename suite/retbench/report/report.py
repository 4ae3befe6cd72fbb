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

from retbench.errors import StorageError
from retbench.files import check_writable
from retbench.records.record import Record
from retbench.report import ledger, page
from retbench.report.claim_section import ClaimSection, make_claim_section
from retbench.report.claims import judge_claims
from retbench.report.doubts import (
    absent_sentences,
    disturbance_sentences,
    failure_table,
    missing_sentences,
    noisy_sentences,
)
from retbench.report.figures import make_drawings
from retbench.report.findings import Finding, find
from retbench.report.formats import escape_markdown, markdown_table, readable_tables
from retbench.report.frames import Results, load_results, set_of, started
from retbench.report.points import lineup
from retbench.report.readings import QUALITY, question_of
from retbench.report.scenes import Scene, describe_conditions, make_scenes, scene_title
from retbench.report.score_findings import find_scores
from retbench.report.score_section import ScoreSection, Titled, make_section
from retbench.report.scores import Scores
from retbench.report.selection import Selection
from retbench.report.style import Drawing, save_drawing
from retbench.report.tables import cost_frame, find_newest


@dataclass(frozen=True)
class Matched:
    """How the models of some experiments are matched."""

    experiments: str
    mismatch: str
    table: pd.DataFrame
    gate: pd.DataFrame


@dataclass(frozen=True)
class Report:
    """Everything that both templates show, in their order; without records of cost there is no figure and no table."""

    conditions: str
    claims: ClaimSection
    findings: list[Finding]
    drawings: list[Drawing]
    tables: list[Titled]
    scores: ScoreSection | None
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

    @property
    def all_drawings(self) -> list[Drawing]:
        """The figures of cost and of quality."""
        return [*self.drawings, *(self.scores.drawings if self.scores else [])]


def write_report(results: Path, out: Path) -> list[Path]:
    """Write `index.html`, `report.md` and `figures/` into a folder.

    Args:
        results: A record file, or a folder of them.
        out: The folder; made if need be, files of an earlier report are overwritten.

    Returns:
        The files written.

    Raises:
        RecordError: there is nothing to report on; the message says what to run.
        ConfigError: the folder cannot be written to.
        StorageError: a file cannot be written.
    """
    found = load_results(results)
    check_writable(out, "--out")
    report = make_report(found)
    paths = [path for drawing in report.all_drawings for path in save_drawing(drawing, out / "figures")]
    templates = _templates()
    svgs = {
        drawing.name: Markup(
            page.inline_svg((out / "figures" / f"{drawing.name}.svg").read_text("utf-8"), drawing)
        )
        for drawing in report.all_drawings
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
            out.mkdir(parents=True, exist_ok=True)  # where there are no figures, nothing has made it
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"{path}: the report could not be written: {error.strerror}. Free some space or give another folder."
            ) from error
        paths.append(path)
    return paths


def make_report(results: Results) -> Report:
    """The contents of the report: claims are judged on all records, the rest is on the newest comparable ones."""
    found = find_newest(results.records, folders=results.folders)
    costs, scores = found.costs, found.scores
    scenes = make_scenes(costs) if costs else []
    records = (*(costs.records if costs else ()), *(scores.records if scores else ()))
    everything = Selection(set_of(max(records, key=started)), records, found.left_out)
    section = make_section(scores) if scores else None
    drawings = make_drawings(costs) if costs else []
    all_drawings = [*drawings, *(section.drawings if section else [])]
    return Report(
        conditions=_conditions(scenes) if scenes else "; ".join(section.conditions if section else []),
        claims=make_claim_section(judge_claims(results), all_drawings),
        findings=[*find(scenes), *(find_scores(scores) if scores else [])],
        drawings=drawings,
        tables=_tables(costs) if costs else [],
        scores=section,
        pairs=[_matched(pair) for pair in everything.pairs()],
        ran=[*_ran(scenes), *(_evaluated(scores) if scores else [])],
        environment=ledger.environment_table(records),
        failures=failure_table(everything),
        missing=[*missing_sentences(everything, scenes), *(section.missing if section else [])],
        noisy=noisy_sentences(scenes),
        disturbances=disturbance_sentences(costs) if costs else [],
        absent=absent_sentences(everything),
        left_out=list(found.left_out),
        problems=list(results.problems),
        commands=list(dict.fromkeys(record.command for record in sorted(records, key=started))),
        sources=_sources(everything),
    )


def _conditions(scenes: Sequence[Scene]) -> str:
    """Under which the models of the first scene were measured."""
    first = [scene for scene in scenes if scene.models == scenes[0].models]
    return describe_conditions([record for scene in first for record in scene.records], first[0].models)


def _matched(pair: Selection) -> Matched:
    """How the models of a selection of one pair are matched, and what its gate found."""
    records, models = pair.records, lineup(pair.records)
    sizes = {record.model.size for record in records if record.workload in QUALITY}
    return Matched(
        experiments=", ".join([*pair.experiments, *(sizes if len(sizes) == 1 else ())]),
        mismatch=ledger.mismatch_sentence(records, models),
        table=ledger.match_table(records, models),
        gate=ledger.gate_table(records, models),
    )


def _tables(selection: Selection) -> list[Titled]:
    """The tables of every experiment, one a workload."""
    return [
        Titled(scene_title(experiment, workload), table)
        for experiment in selection.experiments
        for workload, table in readable_tables(cost_frame(selection, experiment)).items()
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


def _evaluated(scores: Scores) -> list[Titled]:
    """What ran, one table an experiment and workload of quality."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(scores.records, key=lambda record: str(question_of(record))):
        groups.setdefault((record.experiment, record.workload), []).append(record)
    return [
        Titled(scene_title(*key), ledger.ran_table(records, scores.models)) for key, records in groups.items()
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
        loader=PackageLoader("retbench.report", "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Any] = {
        "cell": escape_markdown,
        "cells": page.cells,
        "markdown": markdown_table,
        "prose": page.prose,
        "rows": lambda table: table.itertuples(index=False),
    }
    environment.filters.update(filters)
    return environment
