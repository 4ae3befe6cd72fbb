"""HTML of the page's parts: figures as inline SVG in the page's colours, sentences, and cells with their sort keys."""

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
    """Return the SVG of a drawing for use inside HTML.

    Its colours become the page's variables, so that it is legible on a dark page. The strip with the conditions is cut
    off, because the page shows them as text. Its ids get the figure's name as a prefix.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    head = _HEAD.match(svg)
    if head is None:
        raise ValueError(f"figure {drawing.name}: no <svg> with a viewBox at its beginning")
    width, height = float(head[1]), float(head[2]) - style.FOOTER_IN * style.POINTS_PER_IN
    label = f"{drawing.title}. {drawing.caption}".translate(
        {ord("&"): "&amp;", ord('"'): "&quot;", ord("<"): "&lt;"}
    )
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
    """Return the CSS variable of a palette colour; any other colour unchanged."""
    names = {light: name for name, (light, _) in style.css_colours().items()}
    name = names.get(match[0])
    return f"var(--{name})" if name else match[0]


def prose(text: str) -> Markup:
    """Return a sentence as HTML: numbers keep to their units, `text` is code, and [text](#anchor) is a link."""
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(bind_units(text))))
    return Markup(re.sub(r"\[([^\]]+)\]\((#[\w-]+)\)", r'<a href="\2">\1</a>', coded))


def colour_rules() -> dict[str, str]:
    """Return the CSS declarations of the colour variables for the light and the dark page."""
    colours = style.css_colours()
    return {
        "light": " ".join(f"--{name}: {light};" for name, (light, _) in colours.items()),
        "dark": " ".join(f"--{name}: {dark};" for name, (_, dark) in colours.items()),
    }


def cells(table: pd.DataFrame) -> Iterator[list[tuple[str, str | None]]]:
    """Yield the rows of a table of text, each cell with its sort key in base units; None where it has no number."""
    columns = [[str(cell) for cell in table.iloc[:, position]] for position in range(table.shape[1])]
    keys = [[None if key is None else f"{key:.6g}" for key in read_column(texts)] for texts in columns]
    rows = zip(zip(*columns, strict=True), zip(*keys, strict=True), strict=True)
    return (list(zip(*row, strict=True)) for row in rows)
