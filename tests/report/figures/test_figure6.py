"""The paper's Figure 6 redrawn: its panels from records that are there, its values only where conditions agree."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from report.synthetic_records import CPU, GPU, ROUNDS, SMALL, Machine, Maker, with_mixer
from report.words import check_words
from retbench.papers.figure6 import PaperPoint, keep_comparable, paper_points
from retbench.papers.papers import find_number, load_papers
from retbench.records.record import Record
from retbench.report.figures import looks, style
from retbench.report.figures.drawing import Drawing
from retbench.report.figures.figure6 import draw_figure6
from retbench.report.selection import select
from retbench.report.sweeps import make_sweeps

LENGTHS, BATCHES = (1024, 2048, 4096, 8192), (1, 2, 4, 8, 16)
CROWDED = replace(GPU, memory_bytes=40e9)


def figure6(records: list[Record]) -> Drawing | None:
    """The one figure of the paper's layout, if there is one."""
    with style.house_style():
        found = draw_figure6(make_sweeps(select(records)))
    assert len(found) <= 1
    return found[0] if found else None


def paper_records(machine: Any = GPU) -> list[Record]:
    """Return the records of the profile `paper` that this figure needs."""
    return Maker(machine).memory(batch_sizes=(1, 8)) + Maker(machine).throughput(LENGTHS, BATCHES)


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    found = figure6(paper_records())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def on_a_cpu() -> Drawing:
    found = figure6(Maker(CPU).memory() + Maker(SMALL).throughput())
    assert found is not None
    return found


def titles(drawing: Drawing) -> list[str]:
    return [axes.get_title(loc="left") for axes in drawing.figure.axes]


def hollow(axes: Axes) -> list[tuple[float, float]]:
    """The paper's points in some axes, in order."""
    found = [line.get_xydata() for line in axes.lines if line.get_markerfacecolor() == "none"]
    return sorted((float(x), float(y)) for pair in found for x, y in np.asarray(pair))


def lines(axes: Axes) -> dict[str, list[list[tuple[float, float]]]]:
    """The points of the lines that are measured, by colour."""
    found: dict[str, list[list[tuple[float, float]]]] = {}
    for line in axes.lines:
        if line.get_marker() in looks.HOLLOW and line.get_markerfacecolor() != "none":
            found.setdefault(str(line.get_color()), []).append(
                [tuple(point) for point in np.asarray(line.get_xydata())]
            )
    return found


def values(data: pd.DataFrame, **where: object) -> list[float]:
    """The values of the rows of a figure's data that have these fields."""
    for column, value in where.items():
        data = data[data[column] == value]
    return list(data["value"])


# ---- the panels ------------------------------------------------------------------------------------------------------


def test_panels_have_the_papers_order_axes_and_range(drawing: Drawing) -> None:
    assert titles(drawing) == [
        "(a) memory, GB, batch 8",
        "(b) throughput, tokens/s, batch 8",
        "(c) time per token, ms",
    ]
    assert drawing.experiments == ("memory", "throughput")
    assert drawing.data["context_len"].max() == 8192  # memory was measured to 32K
    assert drawing.data["batch_size"].max() == 8  # and throughput to a batch of 16
    words = [text.get_text() for text in drawing.figure.texts]
    assert words.count("context length, tokens") == 2
    assert words.count("batch size") == 1


def test_lines_are_the_data_beside_them(drawing: Drawing) -> None:
    ours = drawing.data[drawing.data["kind"] == "measured"]
    units = {"a": ("peak_bytes", 1e9), "b": ("tokens_per_s", 1.0)}
    for axes, (panel, (metric, size)) in zip(drawing.figure.axes, units.items(), strict=False):
        for index, model in enumerate(("retnet", "transformer")):
            (line,) = [each for each in lines(axes)[looks.look(index).line] if each]
            assert [x for x, _ in line] == list(LENGTHS)
            drawn = [y * size for _, y in line]
            assert drawn == pytest.approx(values(ours, panel=panel, metric=metric, model=model))


def test_latency_is_of_the_transformer_at_each_length_and_of_retnet_at_its_worst(drawing: Drawing) -> None:
    axes = drawing.figure.axes[2]
    ours = drawing.data[(drawing.data["kind"] == "measured") & (drawing.data["panel"] == "c")]
    assert set(ours[ours["model"] == "retnet"]["context_len"]) == {8192}
    assert set(ours[ours["model"] == "transformer"]["context_len"]) == set(LENGTHS)
    drawn = [line for line in lines(axes)[looks.look(1).line] if line]
    for line, length in zip(drawn, LENGTHS, strict=True):
        assert [x for x, _ in line] == [1, 2, 4, 8]
        expected = values(ours, model="transformer", context_len=length)
        assert [y / 1000 for _, y in line] == pytest.approx(expected)
    words = [text.get_text() for text in axes.texts]
    assert [word for word in words if "RetNet" in word] == ["RetNet 8K"]
    assert {f"Transformer {length // 1024}K" for length in LENGTHS} <= set(words)


def test_records_decide_which_panels_there_are() -> None:
    maker = Maker(CPU)
    for records, letters in (
        (maker.memory(), "a"),
        (maker.latency(), "b"),
        (maker.latency(batch_sizes=(1, 2)), "bc"),
        (Maker(SMALL).throughput((2048,), (1, 2, 4)), "c"),
        (maker.memory() + maker.latency(), "ab"),
    ):
        found = figure6(records)
        assert found is not None
        assert [title[1] for title in titles(found)] == list(letters)


def test_one_length_beyond_the_paper_or_nothing_measured_is_no_figure() -> None:
    def fail(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"status": "failed", "metrics": {}}

    assert figure6(Maker(CPU).memory((1024,)) + Maker(CPU).latency((1024,))) is None
    assert figure6(Maker(CPU).memory((16384, 32768))) is None
    assert figure6(Maker(CPU, change=fail).memory()) is None


def test_what_ran_out_of_memory_is_in_the_data_and_in_the_figure() -> None:
    found = figure6(paper_records(CROWDED))
    assert found is not None
    failed = found.data[found.data["status"] == "oom"]
    assert set(failed["panel"]) == {"a", "b", "c"}
    assert set(failed["model"]) == {"transformer"}
    for axes in found.figure.axes:
        assert "out of memory" in [text.get_text() for text in axes.texts]
    assert "Transformer\n31.1 GB, 4K" in [text.get_text() for text in found.figure.axes[0].texts]
    lengths = sorted(set(failed[failed["panel"] == "c"]["context_len"]))
    assert f"(crosses: Transformer at {', '.join(f'{n // 1024}K' for n in lengths)})" in found.caption


# ---- the paper's values ----------------------------------------------------------------------------------------------


def test_the_papers_values_are_drawn_where_nothing_stated_contradicts(drawing: Drawing) -> None:
    for axes, points, size in zip(
        drawing.figure.axes,
        (paper_points("a"), paper_points("b"), paper_points("c")),
        (1e9, 1.0, 1e-3),
        strict=True,
    ):
        along = "batch_size" if points == paper_points("c") else "context_len"
        expected = sorted((getattr(point, along), point.number.value / size) for point in points)
        assert hollow(axes) == expected
    assert "hollow: paper, decoded from the PDF" in drawing.figure.texts[1].get_text()
    words = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert {"□ paper 47.3 GB", "○ paper 13.9 GB"} <= set(words)


def test_the_data_has_the_papers_values_with_their_source(drawing: Drawing) -> None:
    paper = drawing.data[drawing.data["kind"] != "measured"]
    assert values(paper, panel="a", model="transformer", context_len=8192) == pytest.approx([47.286e9])
    assert values(paper, panel="b", model="retnet", context_len=2048) == [310.4]
    assert len(paper) == len(paper_points("a")) + len(paper_points("b")) + len(paper_points("c"))
    assert dict(zip(paper["panel"], zip(paper["kind"], paper["source"], strict=True), strict=True)) == {
        "a": ("decoded from the PDF", "RetNet (arXiv:2307.08621) Figure 6(a)"),
        "b": ("decoded from the PDF", "RetNet (arXiv:2307.08621) Figure 6(b)"),
        "c": ("decoded from the PDF", "RetNet (arXiv:2307.08621) Figure 6(c)"),
    }
    ours = drawing.data[drawing.data["kind"] == "measured"]
    assert set(ours["source"]) == {"memory", "throughput"}
    assert set(ours[ours["panel"] != "a"]["num_rounds"]) == {ROUNDS}


def test_the_caption_names_what_the_paper_does_not_state_and_how_ours_ran(drawing: Drawing) -> None:
    caption = drawing.caption.replace("\u00a0", " ")
    for words in (
        "6.7B, NVIDIA A100-SXM4-80GB, bfloat16, plain attention",
        "Not stated there: dtype, batch, prompt and generated length, attention kernel, library version, position at",
        "6(a): RetNet has 0.40 GB above the weights",
        "The batch is printed nowhere.",
        "6(b): 36.7 at batch 8 is 218 ms per step",
    ):
        assert words in caption


def test_a_cpu_has_none_and_says_nothing_of_them(on_a_cpu: Drawing) -> None:
    assert [title[1] for title in titles(on_a_cpu)] == ["a", "b", "c"]
    assert all(hollow(axes) == [] for axes in on_a_cpu.figure.axes)
    assert set(on_a_cpu.data["kind"]) == {"measured"}
    said = on_a_cpu.caption + " ".join(text.get_text() for text in on_a_cpu.figure.texts)
    assert "hollow" not in said.lower()
    assert "not stated" not in said.lower()


def test_another_batch_than_the_papers_has_none_along_the_length() -> None:
    found = figure6(Maker(GPU).memory(batch_sizes=(1,)) + Maker(GPU).latency(batch_sizes=(1, 2)))
    assert found is not None
    first, second, third = found.figure.axes
    assert hollow(first) == hollow(second) == []
    assert {x for x, _ in hollow(third)} == {1.0, 2.0}  # (c) has the paper's batches along its axis
    assert "printed nowhere" not in found.caption


# ---- the words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: paper_records(CROWDED),
        lambda: [r for r in paper_records() if r.model.name == "retnet"],
        lambda: [r for r in paper_records() if r.model.name == "transformer"],
        lambda: Maker(CPU).memory(),
        lambda: Maker(CPU).memory() + Maker(CPU).latency((1024, 2048, 3072, 4096, 5120, 6144, 7168, 8192)),
        lambda: Maker(SMALL).throughput(),
    ],
    ids=["out of memory", "retnet", "transformer", "memory", "eight lengths", "throughput"],
)
def test_no_word_leaves_the_figure_or_covers_another(make: Callable[[], list[Record]]) -> None:
    found = figure6(make())
    assert found is not None
    check_words(found)


def test_no_word_of_the_usual_ones_does(drawing: Drawing, on_a_cpu: Drawing) -> None:
    check_words(drawing)
    check_words(on_a_cpu)


# ---- which of the paper's values are comparable ----------------------------------------------------------------------

LETTERS = ("a", "b", "c")
H100 = replace(GPU, processor="NVIDIA H100 80GB HBM3")
SMALL_A100 = replace(GPU, processor="NVIDIA A100-SXM4-40GB")
SLICE = replace(GPU, processor="NVIDIA A100-SXM4-80GB MIG 3g.40gb")


def memory(
    machine: Machine, change: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> list[Record]:
    return Maker(machine, change=change or (lambda arguments: arguments)).memory((2048, 8192), (8,))


def fewer_key_heads(arguments: dict[str, Any]) -> dict[str, Any]:
    """Grouped queries, which the paper's parameters of attention leave no room for."""
    model = arguments["model"]
    if model.architecture == "retnet":
        return arguments
    heads = model.config["blocks"][0]["mixer"]["num_heads"]
    config = with_mixer(model.config, num_kv_heads=heads // 4)
    return arguments | {"model": model.model_copy(update={"config": config})}


def test_every_value_is_that_of_the_papers_file() -> None:
    sheets = load_papers()["retnet"].sheets
    names = ("figure6a", "figure6b", "figure6c_transformer", "figure6c_retnet")
    places = [point.number.place for letter in LETTERS for point in paper_points(letter)]
    assert places == [
        f"retnet/{name}/{row}/{column}"
        for name in names
        for row in sheets[name].rows
        for column in sheets[name].columns
    ]
    for point in (point for letter in LETTERS for point in paper_points(letter)):
        assert point.number == find_number(point.number.place)


def test_points_stand_where_the_paper_has_them() -> None:
    def at(points: list[PaperPoint], *place: object) -> list[float]:
        return [p.number.value for p in points if (p.architecture, p.batch_size, p.context_len) == place]

    assert at(paper_points("a"), "transformer", 8, 8192) == pytest.approx([47.286e9])
    assert at(paper_points("b"), "retnet", 8, 2048) == [310.4]
    assert at(paper_points("c"), "transformer", 8, 8192) == pytest.approx([0.3777])
    assert at(paper_points("c"), "retnet", 1, 8192) == pytest.approx([0.0232])


@pytest.mark.parametrize("letter", LETTERS)
def test_a_machine_and_a_size_of_the_paper_have_its_values(letter: str) -> None:
    assert keep_comparable(paper_points(letter), memory(GPU)) == paper_points(letter)


@pytest.mark.parametrize("machine", [CPU, H100, SMALL_A100, SLICE, replace(GPU, size="1.3b")])
@pytest.mark.parametrize("letter", LETTERS)
def test_another_machine_or_size_has_none(letter: str, machine: Machine) -> None:
    assert keep_comparable(paper_points(letter), memory(machine)) == []


def test_grouped_queries_contradict_the_papers_transformer_alone() -> None:
    kept = keep_comparable(paper_points("a"), memory(GPU, fewer_key_heads))
    assert {point.architecture for point in kept} == {"retnet"}


def test_what_failed_has_none() -> None:
    def fail(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"status": "failed", "metrics": {}}

    assert keep_comparable(paper_points("a"), memory(GPU, fail)) == []


def test_the_figure_says_whose_measurements_it_shows_and_which_panel_is_absent(
    cpu_records: list[Record],
) -> None:
    """Latency and memory at one batch size, as a first run leaves them."""
    (drawing,) = draw_figure6(make_sweeps(select(cpu_records)))
    assert drawing.title == "Our measurements in the layout of RetNet Figure 6"
    assert set(drawing.data["panel"]) == {"a", "b"}
    assert "Panel (c) is absent" in drawing.caption
    command = f"`retbench run throughput --profile {cpu_records[0].profile}`"
    assert command.replace(" ", "") in drawing.caption.replace(" ", "").replace("\u00a0", "")
