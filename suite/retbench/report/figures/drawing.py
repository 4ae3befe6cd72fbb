"""A figure with everything that belongs to it, and the files that it is written to."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from retbench.files import write_atomic
from retbench.records.record import Record
from retbench.report.figures.style import house_style
from retbench.report.lineup import Lineup
from retbench.report.provenance import describe_conditions
from retbench.report.wording import csv_text


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write the figure as `stem`.svg and `stem`.png; the same figure gives the same bytes.

    Raises:
        StorageError: the folder cannot be written.
    """
    svg, png = BytesIO(), BytesIO()
    with house_style():
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "retbench"})
        # More compression takes a third of the time of drawing, for a tenth of the bytes.
        fast = {"compress_level": 3}
        figure.savefig(png, format="png", dpi=300, metadata={"Software": "retbench"}, pil_kwargs=fast)
    written = {stem.with_suffix(".svg"): svg, stem.with_suffix(".png"): png}
    for path, content in written.items():
        write_atomic(path, content.getvalue())
    return [*written]


@dataclass(frozen=True)
class Drawing:
    """A figure with everything that belongs to it.

    Attributes:
        name: Stem of its files.
        experiments: Experiments whose records are drawn.
        title: Its title.
        caption: What it shows, in one sentence or two.
        conditions: Conditions of the measurement, in one line.
        figure: The figure.
        data: Exactly what is drawn, in base units; a point that failed is there with its status.
        linear: The same on linear axes, for the page, where the figure has logarithmic ones; None without.
    """

    name: str
    experiments: tuple[str, ...]
    title: str
    caption: str
    conditions: str
    figure: Figure
    data: pd.DataFrame
    linear: Figure | None = None


@dataclass(frozen=True)
class View:
    """Name and words of a figure, and the records whose conditions it states: every drawing is made of one.

    Attributes:
        name: Stem of its files.
        title: Its title.
        subtitle: What its vertical axis has, and what its bars and markers are.
        caption: What it shows, in one sentence or two.
        records: Records whose conditions it states.
        models: Their models, where they are of cost.
    """

    name: str
    title: str
    subtitle: str
    caption: str
    records: Sequence[Record]
    models: Lineup | None = None

    @cached_property
    def conditions(self) -> str:
        """Conditions of the records, in one line."""
        return describe_conditions(self.records, self.models)

    @property
    def texts(self) -> tuple[str, str, str]:
        """Title, subtitle and conditions."""
        return self.title, self.subtitle, self.conditions

    def drawing(self, figure: Figure, data: pd.DataFrame, linear: Figure | None = None) -> Drawing:
        """Return the figure with everything that belongs to it."""
        experiments = tuple(dict.fromkeys(record.experiment for record in self.records))
        return Drawing(
            self.name, experiments, self.title, self.caption, self.conditions, figure, data, linear
        )


def save_drawing(drawing: Drawing, out_dir: Path) -> list[Path]:
    """Write a figure as SVG and PNG, and its data as CSV.

    Raises:
        StorageError: the folder cannot be written.
    """
    stem = out_dir / drawing.name
    data = stem.with_suffix(".csv")
    paths = save_figure(drawing.figure, stem)
    write_atomic(data, csv_text(drawing.data).encode())
    return [*paths, data]
