"""Figures inside the page: small SVG with words, the page's colours, the models' names and the values of the points."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from report.synthetic_records import CPU, Maker
from retbench.records.record import Record
from retbench.report.contents import contents_of
from retbench.report.figures.catalogue import make_drawings
from retbench.report.figures.drawing import Drawing, save_drawing
from retbench.report.figures.style import marks_of, model_of
from retbench.report.figures.svg import describe, inline_svgs
from retbench.report.selection import select


@pytest.fixture(scope="module")
def drawings(cpu_records: list[Record]) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in make_drawings(contents_of(select(cpu_records)))}


def test_a_figure_takes_a_fraction_of_its_file_and_keeps_its_words(
    drawings: dict[str, Drawing], tmp_path: Path
) -> None:
    drawing = drawings["latency_decode_batch1"]
    svg, *_ = save_drawing(drawing, tmp_path)
    first, _ = inline_svgs(drawing, "f")
    assert len(first) < svg.stat().st_size / 5
    words = ["".join(node.itertext()) for node in ElementTree.fromstring(first).iter("text")]
    assert {"Decode latency", "RetNet", "Transformer", "1K", "32K"} <= {*words}
    assert not any(drawing.conditions[:20] in word for word in words)


def test_two_scales_share_no_id_and_only_the_first_is_seen(drawings: dict[str, Drawing]) -> None:
    first, linear = inline_svgs(drawings["latency_decode_batch1"], "f0-")
    assert 'data-scale="logarithmic"' in first
    assert "hidden" not in ElementTree.fromstring(first).attrib
    assert ElementTree.fromstring(linear).attrib["data-scale"] == "linear"
    assert "hidden" in ElementTree.fromstring(linear).attrib
    ids = re.findall(r' id="([^"]+)"', first + linear)
    assert len(ids) == len(set(ids))
    assert {*re.findall(r'(?:href="|url\()#([^")]+)', first + linear)} == {*ids}


@pytest.mark.parametrize("name", ["latency_decode_batch1", "latency_prefill_batch1", "memory_batch1"])
def test_each_value_stands_where_its_point_is_drawn(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    marks = marks_of(drawing.figure)
    measured = drawing.data[(drawing.data["status"] == "ok") & drawing.data["context_len"].notna()]
    assert {mark.model for mark in marks} == {"retnet", "transformer"}
    assert len(marks) == len(measured[["model", "context_len"]].drop_duplicates())
    picture = ElementTree.fromstring(inline_svgs(drawing, "f")[0])
    width, height = (float(size) for size in picture.attrib["viewBox"].split()[2:])
    for circle in picture.iter("circle"):
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height


def test_the_marker_of_a_point_lies_within_its_circle(drawings: dict[str, Drawing]) -> None:
    picture = ElementTree.fromstring(inline_svgs(drawings["latency_decode_batch1"], "f")[0])
    places = {(float(use.attrib["x"]), float(use.attrib["y"])) for use in picture.iter("use")}
    for circle in picture.iter("circle"):
        x, y = float(circle.attrib["cx"]), float(circle.attrib["cy"])
        assert any(abs(x - one) <= 0.1 and abs(y - other) <= 0.1 for one, other in places)


def test_the_alternative_text_has_the_last_value_of_each_model(drawings: dict[str, Drawing]) -> None:
    text = describe(drawings["memory_batch1"])
    assert text.startswith("Memory of inference. RetNet, 32K: 110 MiB (weights 104 MiB, state ")
    assert "; Transformer, 32K: 874 MiB (weights 104 MiB, KV cache 768 MiB" in text


def test_a_model_of_any_name_can_be_found_in_the_figure() -> None:
    name = 'a "b" <c> & $d$'

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        model = arguments["model"]
        is_retnet = model.name == "retnet"
        return arguments | ({"model": model.model_copy(update={"name": name})} if is_retnet else {})

    first, *_ = make_drawings(contents_of(select(Maker(CPU, change=change).latency((1024, 2048)))))
    picture = ElementTree.fromstring(inline_svgs(first, "f")[0])
    assert {node.attrib["data-model"] for node in picture.iter() if "data-model" in node.attrib} == {
        name,
        "transformer",
    }
    assert model_of("line2d_1") is None
