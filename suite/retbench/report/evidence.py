"""The second page of the report: what supports the numbers of the first, for one selection of records.

Every metric with its intervals, how the models are matched, which kernels executed, the equivalence checks, the
environment, the limitations, and the commands and files.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from retbench.records.dates import started
from retbench.records.record import Record
from retbench.report import diagnostics, provenance
from retbench.report.contents import Contents
from retbench.report.evaluations import Evaluations
from retbench.report.findings.costs import find_costs
from retbench.report.findings.quality import find_quality
from retbench.report.lineup import lineup
from retbench.report.points import group
from retbench.report.results import Results
from retbench.report.selection import matched_groups
from retbench.report.tables.experiments import cost_table, quality_table
from retbench.report.tables.readable import readable_tables
from retbench.report.trainings import weights_table
from retbench.report.wording import section_title
from retbench.units import format_items
from retbench.workloads.workload import measures_cost

BlockKind = Literal[
    "text",
    "warning",
    "sentences",
    "findings",
    "table",
    "compact",
    "figures",
    "claims",
    "details",
    "commands",
    "summary",
]
"""Kinds of blocks: the templates have a branch for each."""


class Block(NamedTuple):
    """One part of a section; the content is text, sentences, findings, a table, figures or claims, as the kind says."""

    kind: BlockKind
    content: Any
    title: str = ""


class Section(NamedTuple):
    """One section of a page.

    Attributes:
        name: Its anchor.
        title: Its title.
        blocks: What it shows.
        records: Title of the records that it is on, where they are not the first ones of the page.
    """

    name: str
    title: str
    blocks: list[Block]
    records: str = ""

    @property
    def heading(self) -> str:
        """The title, with the records that it is on."""
        return f"{self.title}: {self.records.lower()}" if self.records else self.title

    @property
    def note(self) -> str:
        """Name of its explanation."""
        return self.name.partition("-published")[0]


class SummaryLine(NamedTuple):
    """One sentence on a section of the second page."""

    text: str
    section: str
    title: str


def evidence_sections(contents: Contents, results: Results) -> list[Section]:
    """Return the sections of one selection."""
    records = contents.selection.records
    return [
        _findings(contents),
        *_full_tables(contents),
        *_matching_sections(records),
        Section("environment", "Environment", [Block("table", provenance.environment_table(records))]),
        _limitations(contents, results.problems),
        _commands(records, results),
    ]


def summarise_evidence(records: Sequence[Record], evidence: Sequence[Section]) -> list[SummaryLine]:
    """Return one line per section of the second page that supports the numbers of the first."""
    found = {section.note: section for section in evidence}
    executed = [word for block in found["executed"].blocks for word in block.content["difference"]]
    num_differing = executed.count(provenance.DIFFERS)
    agree = "All models ran with the same settings, apart from those of their architecture."
    differing = f"{num_differing} settings differ that should be equal."
    limitations = [block for block in found["limitations"].blocks if block.title]
    counts = ", ".join(f"{block.title.lower()} {len(block.content)}" for block in limitations)
    runs = len({record.run_id for record in records})
    texts = {
        "equivalence": provenance.equivalence_sentence(records),
        "limitations": f"Limitations, by number: {counts}." if counts else "No limitations.",
        "matching": provenance.matching_sentence(matched_groups(records)),
        "executed": differing if num_differing else agree,
        "environment": "Hardware, software and load of each run.",
        "commands": f"{len(records):,} records of {format_items(runs, 'run')}: commands and files.",
        "all-tables": "Every metric with its intervals and rounds.",
        "findings": "All findings in sentences.",
    }
    return [
        SummaryLine(text, found[name].name, found[name].title)
        for name, text in texts.items()
        if name in found
    ]


def _findings(contents: Contents) -> Section:
    evaluations = contents.evaluations
    found = [*find_costs(contents.sweeps), *(find_quality(evaluations) if evaluations else [])]
    nothing = "No two models were measured at the same point, so there is nothing to compare."
    return Section("findings", "Findings", [Block("findings", found) if found else Block("warning", nothing)])


def _full_tables(contents: Contents) -> list[Section]:
    """Return every metric of every workload, with the conditions and weights of the evaluations."""
    costs = [
        Block("table", table.frame, section_title(experiment, workload))
        for experiment, sweeps in group(contents.sweeps, lambda sweep: sweep.experiment).items()
        for workload, table in readable_tables(cost_table(sweeps), contents.labels).items()
    ]
    found = [Section("all-tables", "Tables of all metrics", costs)] if costs else []
    return [*found, *([_quality_section(contents.evaluations)] if contents.evaluations else [])]


def _quality_section(evaluations: Evaluations) -> Section:
    """Return the tables of quality, the origin of the weights, and refused comparisons."""
    experiments = sorted({record.experiment for record in evaluations.records})
    blocks = [
        Block("sentences", evaluations.conditions, "Conditions"),
        Block("table", weights_table(evaluations), "Evaluated models"),
        Block("sentences", diagnostics.overlap_sentences(evaluations), "Evaluated on training text"),
        *(
            Block("table", table.frame, section_title(experiment, workload))
            for experiment in experiments
            for workload, table in readable_tables(quality_table(evaluations, experiment)).items()
        ),
        Block("sentences", evaluations.refusals, "Not compared"),
    ]
    return Section("quality", "Quality", [block for block in blocks if len(block.content)])


def _matching_sections(records: Sequence[Record]) -> list[Section]:
    """Return how the models are matched, which kernels executed, and the equivalence checks."""
    matching: list[Block] = []
    checks: list[Block] = []
    groups = matched_groups(records)
    by_experiment = group(records, lambda record: record.experiment)
    lineups = {experiment: lineup(mine) for experiment, mine in by_experiment.items()}
    for members in groups:
        models = lineup(members)
        title = _group_title(members) if len(groups) > 1 else ""
        matching.append(Block("text", provenance.mismatch_sentence(members, models), title))
        matching.append(Block("table", provenance.match_table(members, models)))
        table = provenance.equivalence_table(members, models)
        missing = Block("warning", "No record here holds an equivalence check.", title)
        checks.append(Block("table", table, title) if len(table) else missing)
    ordered = sorted(records, key=lambda r: (not measures_cost(r), r.experiment, r.workload))
    executed = [
        Block("table", provenance.executed_table(mine, lineups[key[0]]), section_title(*key))
        for key, mine in group(ordered, lambda record: (record.experiment, record.workload)).items()
    ]
    return [
        Section("matching", "Model matching", matching),
        Section("executed", "Executed kernels", executed),
        Section("equivalence", "Equivalence checks", checks),
    ]


def _group_title(records: Sequence[Record]) -> str:
    """Return the experiments of matched models, and the size where they are of quality."""
    sizes = {record.model.size for record in records if not measures_cost(record)}
    return ", ".join([*sorted({record.experiment for record in records}), *sorted(sizes)])


def _limitations(contents: Contents, problems: Sequence[str]) -> Section:
    """Return everything that is missing, failed, noisy, disturbed, unavailable, left out or unreadable."""
    selection, evaluations = contents.selection, contents.evaluations
    records = selection.records
    missing = diagnostics.missing_sentences(records, contents.sweeps)
    missing += diagnostics.missing_evaluations(evaluations) if evaluations else []
    refused = [] if evaluations and evaluations.refusals == contents.refusals else contents.refusals
    blocks = [
        Block("table", diagnostics.failure_table(records), "Failed"),
        Block("sentences", missing, "Missing"),
        Block(
            "sentences", diagnostics.truncation_sentences(evaluations) if evaluations else [], "Prompts cut"
        ),
        Block("sentences", refused, "Not compared"),
        Block("sentences", diagnostics.noisy_sentences(contents.sweeps), "Noisy"),
        Block("sentences", diagnostics.disturbance_sentences(selection.costs), "Disturbed"),
        Block("sentences", diagnostics.absent_sentences(records), "Not available here"),
        Block("sentences", selection.left_out, "Left out"),
        Block("sentences", problems, "Files with problems"),
    ]
    found = [block for block in blocks if len(block.content)]
    none = Block("text", "None: every point of every round has a value, and nothing was left out.")
    return Section("limitations", "Limitations", found or [none])


def _commands(records: Sequence[Record], results: Results) -> Section:
    commands = dict.fromkeys(record.command for record in sorted(records, key=started))
    sources = provenance.source_table(records, results)
    return Section(
        "commands", "Commands", [Block("commands", [*commands, "retbench report"]), Block("table", sources)]
    )
