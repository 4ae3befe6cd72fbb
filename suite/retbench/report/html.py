"""Figures and tables made part of a page.

A figure's SVG goes in without what only a file of its own needs, in the page's colours; a cell goes in with the number
that it is sorted by.
"""

import re
from collections.abc import Iterator

import pandas as pd
from markupsafe import Markup, escape

from retbench.report import style
from retbench.report.style import Drawing
from retbench.report.wording import bind_units
from retbench.units import read_column

_HEAD = re.compile(r"<svg\b[^>]*?viewBox=\"0 0 ([\d.]+) ([\d.]+)\"[^>]*>")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")


def inline_svg(svg: str, drawing: Drawing) -> str:
    """The SVG of a drawing for use inside HTML.

    Its colours become the page's variables, so that it is legible on a dark page; the strip with the conditions is
    cut off, for the page gives them as text; its ids are made its own, since figures share a page.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    head = _HEAD.match(svg)
    if head is None:
        raise ValueError(f"figure {drawing.name}: no <svg> with a viewBox at its beginning")
    width, height = float(head[1]), float(head[2]) - style.FOOTER_IN * style.POINTS_PER_IN
    label = f"{drawing.title}. {drawing.caption}".replace("&", "&amp;").replace('"', "&quot;")
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="0 0 {width:g} {height:g}" aria-label="{label}">'
    )
    body = re.sub(r'\bid="', f'id="{drawing.name}-', svg[head.end() :])
    body = body.replace('xlink:href="#', f'xlink:href="#{drawing.name}-').replace(
        "url(#", f"url(#{drawing.name}-"
    )
    return start + _COLOUR.sub(_variable, body)


def _variable(match: re.Match[str]) -> str:
    """The variable of a colour of the house; another colour stays."""
    names = {light: name for name, (light, _) in style.css_colours().items()}
    name = names.get(match[0])
    return f"var(--{name})" if name else match[0]


def prose(text: str) -> Markup:
    """Return a sentence as HTML: numbers keep to their units, `text` is code, and [text](#anchor) is a link."""
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(bind_units(text))))
    return Markup(re.sub(r"\[([^\]]+)\]\((#[\w-]+)\)", r'<a href="\2">\1</a>', coded))


def colour_rules() -> dict[str, str]:
    """Declarations of the colour variables for a style sheet: of the light page and of the dark one."""
    colours = style.css_colours()
    return {
        "light": " ".join(f"--{name}: {light};" for name, (light, _) in colours.items()),
        "dark": " ".join(f"--{name}: {dark};" for name, (_, dark) in colours.items()),
    }


def cells(table: pd.DataFrame) -> Iterator[list[tuple[str, str | None]]]:
    """The rows of a table of text, each cell with the number it is sorted by, in base units; None where it has none."""
    columns = []
    for position in range(table.shape[1]):
        texts = [str(cell) for cell in table.iloc[:, position]]
        values = read_column(texts)
        columns.append(
            [
                (text, None if value is None else f"{value:.6g}")
                for text, value in zip(texts, values, strict=True)
            ]
        )
    return (list(row) for row in zip(*columns, strict=True))
