"""Figures as small SVG inside the page: words stay words, colours are the page's variables, points carry their values.

The files of a figure hold the outlines of their letters, to look the same everywhere. Inside the page the same figure
is written with text, fewer digits and without unused names, which takes about a tenth of the bytes.
"""

import io
import re
from itertools import count
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from retbench.report.figures import style
from retbench.report.figures.drawing import Drawing
from retbench.report.figures.looks import css_colours
from retbench.report.figures.style import marks_of, model_of

_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_DECIMAL = re.compile(r"-?\d+\.\d+")
_FONT = re.compile(r"font-family:[^;]*;?|text-anchor:start;?")
_NAMESPACE = re.compile(r"^\{[^}]*\}")
_REFERENCE = re.compile(r"#([\w.-]+)")
_TRANSLATION = re.compile(r"translate\(\S+ ([\d.]+)\)")
_SPOT_PT = 4
"""Radius of the circle that holds the value of a point."""


def inline_svgs(drawing: Drawing, prefix: str) -> list[Markup]:
    """Return a figure as SVG for use inside HTML; after it, hidden, the same on linear axes if there is one.

    Args:
        drawing: The drawing.
        prefix: Beginning of all ids, unique in the page.
    """
    if drawing.linear is None:
        return [_inline_svg(drawing, drawing.figure, prefix, {})]
    first = _inline_svg(drawing, drawing.figure, prefix, {"data-scale": "logarithmic"})
    return [
        first,
        _inline_svg(drawing, drawing.linear, f"{prefix}l", {"data-scale": "linear", "hidden": "hidden"}),
    ]


def _inline_svg(drawing: Drawing, figure: Figure, prefix: str, attributes: dict[str, str]) -> Markup:
    """Return one figure of a drawing.

    The strip with the conditions is cut off, because the page shows them as text. What belongs to one model has its
    name in `data-model`, and each point has a circle whose title is its value.
    """
    root = ElementTree.fromstring(_draw(figure))
    width, height = (float(inches) * style.POINTS_PER_IN for inches in figure.get_size_inches())
    shown = height - style.FOOTER_IN * style.POINTS_PER_IN
    used = {
        name for node in root.iter() for text in node.attrib.values() for name in _REFERENCE.findall(text)
    }
    numbers = count()
    ids = {name: f"{prefix}{next(numbers)}" for node in root.iter() if (name := node.get("id", "")) in used}
    size = {"role": "img", "viewBox": f"0 0 {width:g} {shown:g}", "aria-label": describe(drawing)}
    picture = Element("svg", size | attributes)
    for node in root:
        picture.extend(_tidy(node, ids, shown))
    picture.append(_values(figure, height))
    return Markup(ElementTree.tostring(picture, encoding="unicode"))


def _values(figure: Figure, height: float) -> Element:
    """Return a circle per point, with its value as the title."""
    values = Element("g", {"class": "spots"})
    for mark in marks_of(figure):
        x, y = mark.place(figure)
        where = {"cx": f"{x:.1f}", "cy": f"{height - y:.1f}", "r": str(_SPOT_PT)}
        SubElement(SubElement(values, "circle", where | {"data-model": mark.model}), "title").text = mark.text
    return values


def describe(drawing: Drawing) -> str:
    """Return the alternative text of a figure: its title and the last value of each of its curves."""
    last = {(mark.model, mark.text.partition(",")[0]): mark.text for mark in marks_of(drawing.figure)}
    return f"{drawing.title}. {'; '.join(last.values()) or drawing.caption}"


def _draw(figure: Figure) -> str:
    written = io.StringIO()
    with style.house_style(), mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def _tidy(node: Element, ids: dict[str, str], height: float) -> list[Element]:
    """Return what a page needs of an element: no metadata, no empty or plain groups, no words below `height`."""
    tag = _NAMESPACE.sub("", node.tag)
    if tag in ("metadata", "style") or (tag == "text" and _top(node) > height):
        return []
    mine = Element(tag, dict(filter(None, (_tidy_attribute(*each, ids) for each in node.items()))))
    mine.text = node.text if tag == "text" else None
    mine.extend(one for child in node for one in _tidy(child, ids, height))
    if tag not in ("g", "defs"):
        return [mine]
    if tag == "g" and not mine.attrib:
        return list(mine)
    styles = {child.get("style") for child in mine}
    if len(mine) > 1 and len(styles) == 1 and {child.tag for child in mine} == {"use"}:
        for child in mine:  # the markers of a curve: they share one style
            mine.set("style", child.attrib.pop("style"))
    return [mine] if len(mine) else []


def _top(text: Element) -> float:
    """Return the vertical place of words; those of several lines have it in their transform."""
    moved = _TRANSLATION.match(text.get("transform", ""))
    return float(moved[1] if moved else text.get("y", "0"))


def _tidy_attribute(name: str, text: str, ids: dict[str, str]) -> tuple[str, str] | None:
    """Return an attribute as the page has it; None if the page needs none."""
    name = _NAMESPACE.sub("", name)
    if name == "id":
        model = model_of(text)
        return ("id", ids[text]) if text in ids else None if model is None else ("data-model", model)
    if name == "style":
        plain = _FONT.sub("", re.sub(r"\s+", "", text).replace("sans-serif", "")).strip(";")
        return ("style", _COLOUR.sub(_variable, plain)) if plain else None
    text = _REFERENCE.sub(lambda found: f"#{ids.get(found[1], found[1])}", text)
    short = re.sub(r"\s+", " ", _DECIMAL.sub(lambda number: f"{round(float(number[0]), 1):g}", text)).strip()
    if name == "d":
        short = re.sub(r" ?([A-Za-z]) ?", r"\1", short)
    return None if short.startswith(("rotate(0 ", "rotate(-0 ")) else (name, short)


def _variable(match: re.Match[str]) -> str:
    """Return the CSS variable of a palette colour; any other colour unchanged."""
    names = {light: name for name, (light, _) in css_colours().items()}
    name = names.get(match[0])
    return f"var(--{name})" if name else match[0]
