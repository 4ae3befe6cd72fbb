"""Check that the words of a figure can be read: each inside of it, and none on another."""

from matplotlib.backends.backend_agg import FigureCanvasAgg

from retbench.report.figures import style
from retbench.report.figures.drawing import Drawing


def check_words(drawing: Drawing) -> None:
    """AssertionError where a word leaves the figure or covers another."""
    figure = drawing.figure
    with style.house_style():
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        words = [text for axes in figure.axes for text in axes.texts] + figure.texts
        words += [text for legend in figure.legends for text in legend.get_texts()]
        words += [tick for axes in figure.axes for tick in axes.get_xticklabels()]
        words += [text for axes in figure.axes for text in (axes._left_title,)]  # type: ignore[attr-defined]
        notes = [(t.get_text(), t.get_window_extent(renderer)) for t in words if t.get_text().strip()]
    for text, box in notes:
        assert box.x0 >= -1, (drawing.name, text)
        assert box.x1 <= figure.bbox.x1 + 1, (drawing.name, text)
        assert box.y0 >= -1, (drawing.name, text)
        assert box.y1 <= figure.bbox.y1 + 1, (drawing.name, text)
    for number, (text, box) in enumerate(notes):
        for other, another in notes[number + 1 :]:
            overlap = (
                min(box.x1, another.x1) - max(box.x0, another.x0),
                min(box.y1, another.y1) - max(box.y0, another.y0),
            )
            assert min(overlap) < 1.5, (drawing.name, text, other)
