"""A figure with all that belongs to it, and the files it is kept in."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from retbench.errors import StorageError
from retbench.report import style


@dataclass(frozen=True)
class Drawing:
    """A figure with all that belongs to it.

    Attributes:
        name: Stem of its files.
        experiments: Whose records are drawn.
        title: Its heading.
        caption: What it shows, in a sentence or two.
        conditions: Under which it was measured, in one line.
        figure: The figure.
        data: Exactly what is drawn, in base units; a point that failed is there with its status.
    """

    name: str
    experiments: tuple[str, ...]
    title: str
    caption: str
    conditions: str
    figure: Figure
    data: pd.DataFrame

    @property
    def is_tall(self) -> bool:
        """Whether it is as high as two others."""
        return float(self.figure.get_figheight()) > 1.5 * float(self.figure.get_figwidth())


def save_drawing(drawing: Drawing, out_dir: Path) -> list[Path]:
    """Write a figure as SVG and PNG, and its data as CSV.

    Raises:
        StorageError: the folder cannot be written.
    """
    stem = out_dir / drawing.name
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        paths = style.save_figure(drawing.figure, stem)
        data = stem.with_suffix(".csv")
        drawing.data.to_csv(data, index=False, na_rep="NA")
    except OSError as error:
        raise StorageError(
            f"{stem}: the figure could not be written: {error.strerror}. Free some space or give another folder."
        ) from error
    return [*paths, data]
