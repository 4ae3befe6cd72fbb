"""Figures: drawn from the data beside them, the same bytes each time, and no word cut or lost."""

import random
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from report.synthetic_records import CPU, GPU, SMALL, SMALL_TRAINER, TRAINER, Maker, with_mixer, write_results
from report.words import check_words
from retbench.architectures.registry import architectures
from retbench.errors import RecordError, StorageError
from retbench.records.record import Metric, Record
from retbench.report.contents import contents_of
from retbench.report.figures import looks, style
from retbench.report.figures.catalogue import make_drawings
from retbench.report.figures.drawing import Drawing, save_drawing
from retbench.report.figures.style import marks_of
from retbench.report.lineup import Lineup
from retbench.report.report import write_report
from retbench.report.selection import select
from retbench.workloads.workload import WORKLOADS, MetricSpec, Workload

NAMES = [
    "latency_decode_batch1",
    "latency_prefill_batch1",
    "memory_batch1",
    "memory_latency_figure6",
    "latency_roofline_batch1",
]


def noisy_records() -> list[Record]:
    """Rounds that differ by a factor of three."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        factor = 3 ** (arguments["round"] - 2)
        metrics = {
            name: metric.model_copy(update={"value": metric.value * factor})
            for name, metric in arguments["metrics"].items()
        }
        return arguments | {"metrics": metrics}

    return Maker(CPU, change=change).latency()


def failed_records() -> list[Record]:
    """Nothing has a value."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"status": "timeout", "metrics": {}, "error": "600 s"}

    maker = Maker(GPU, change=change)
    return maker.latency() + maker.memory()


def failed_training() -> list[Record]:
    """No training step fits."""
    return Maker(replace(TRAINER, memory_bytes=0.0)).training()


@pytest.fixture(scope="module")
def drawings(cpu_records: list[Record]) -> list[Drawing]:
    return make_drawings(contents_of(select(cpu_records)))


@pytest.mark.parametrize(
    ("name", "unit", "base"),
    [
        ("rank_ratio", "%", "ratio"),
        ("read_bytes", "MiB", "bytes"),
        ("footprint", "MiB", "bytes"),
        ("entropy_nats", None, "nats"),
    ],
)
def test_a_metric_of_any_unit_is_drawn_in_it_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, name: str, unit: str | None, base: str
) -> None:
    value = {"ratio": 0.8, "bytes": 5e7, "nats": 2.0}[base]
    theirs = Workload("ranks", "Ranks", (MetricSpec(name, name, has_interval=True, unit=base),), "rank")
    monkeypatch.setitem(WORKLOADS.__dict__, "_found", {**WORKLOADS, "ranks": theirs})
    metric = Metric(unit=base, value=value)
    records = Maker(
        CPU, change=lambda given: given | {"workload": "ranks", "metrics": {name: metric}}
    ).latency()
    drawings = make_drawings(contents_of(select([one for one in records if one.point.batch_size == 1])))
    found = [each for each in drawings if "ranks" in each.name]
    assert len(found) == (unit is not None)
    for each in found:
        assert each.figure.axes[0].get_ylim()[0] < value / {"%": 0.01, "MiB": 2**20}[str(unit)]
        assert f", {unit}, against" in each.caption


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """The files of every figure of the newest comparable records."""
    return [
        path
        for drawing in make_drawings(contents_of(select(records)))
        for path in save_drawing(drawing, folder)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, cpu_records: list[Record]) -> list[Path]:
    """The files of every figure, in a folder that was not there."""
    return draw(cpu_records, tmp_path_factory.mktemp("drawn") / "new" / "figures")


def test_every_figure_is_a_vector_a_bitmap_and_its_data(files: list[Path]) -> None:
    assert [path.name for path in files] == [
        f"{name}.{kind}" for name in NAMES for kind in ("svg", "png", "csv")
    ]
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".svg":
            root = ElementTree.fromstring(content)
            assert root.attrib["viewBox"].startswith("0 0 252 ")
        elif path.suffix == ".png":
            assert content.startswith(b"\x89PNG")
        else:
            assert len(pd.read_csv(path)) > 0


def test_the_same_records_give_the_same_bytes(
    files: list[Path], tmp_path: Path, cpu_records: list[Record]
) -> None:
    again = draw(list(reversed(cpu_records)), tmp_path)
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in again]


def test_the_lines_are_the_data_beside_them(drawings: list[Drawing]) -> None:
    drawing = drawings[0]
    data = drawing.data[drawing.data["metric"] == "tpot_s"]
    lines = [line for line in drawing.figure.axes[0].lines if line.get_marker() in ("o", "s")]
    for line, model in zip(lines, ("retnet", "transformer"), strict=True):
        mine = data[data["model"] == model]
        assert np.asarray(line.get_xdata()).tolist() == list(mine["context_len"])
        assert np.asarray(line.get_ydata()).tolist() == pytest.approx(
            [1000 * value for value in mine["value"]]
        )


def test_the_crossover_is_in_the_data_and_in_the_figure(drawings: list[Drawing]) -> None:
    data = drawings[0].data
    (row,) = data[data["metric"] == "crossover_context_len"].to_dict(orient="records")
    assert (row["model"], row["unit"], row["status"]) == ("retnet", "tokens", "at")
    assert row["low"] < row["value"] < row["high"]
    (note,) = [text.get_text() for text in drawings[0].figure.axes[0].texts if "faster" in text.get_text()]
    assert "RetNet" in note
    assert re.search(r"\b2,430 (tokens )?\[2,310, 2,550\]", note.replace("\n", " "))


def test_a_model_that_is_never_ahead_is_said_to_be_so_where_longer_contexts_failed() -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["point"].context_len == 4096:
            return arguments | {"status": "oom", "metrics": {}, "error": "full"}
        seconds = {"retnet": 2.0, "transformer": 1.0}[arguments["model"].name]
        return arguments | {"metrics": {"tpot_s": Metric(unit="s", value=seconds)}}

    maker = Maker(CPU, change=change)
    records = [
        maker.record("latency", name, "decode", 1, length, number)
        for number in range(2)
        for name in CPU.models
        for length in (1024, 2048, 4096)
    ]
    drawing = make_drawings(contents_of(select(records)))[0]
    assert "ahead in no round up to 2K" in " ".join(" ".join(all_words(drawing)).split())


def test_bars_add_up_to_the_analytical_size_and_the_workspace(drawings: list[Drawing]) -> None:
    drawing = next(drawing for drawing in drawings if drawing.name == "memory_batch1")
    data = drawing.data.pivot(index=["model", "context_len"], columns="metric", values="value")
    assert (data["weight_bytes"] + data["state_bytes"] == data["expected_weight_and_state_bytes"]).all()
    areas = drawing.figure.axes[1].collections
    tops = [max(y for path in area.get_paths() for _, y in path.vertices) for area in areas]
    parts = data.loc[("transformer", 32768), ["weight_bytes", "state_bytes", "workspace_bytes"]]
    assert [top * 2**20 for top in tops] == pytest.approx(list(parts.cumsum()))


def test_curves_of_memory_have_their_own_values_as_data() -> None:
    """Three batch sizes of two models have no room for their parts."""
    (drawing,) = make_drawings(contents_of(select(Maker(CPU).memory(batch_sizes=(1, 8, 16)))))[:1]
    drawn = {
        float(y) * 2**30
        for axes in drawing.figure.axes
        for line in model_lines(axes)
        for y in np.asarray(line.get_ydata())
    }
    assert set(drawing.data["metric"]) == {"peak_bytes"}
    assert sorted(drawn) == pytest.approx(sorted(set(drawing.data["value"])))


@pytest.mark.parametrize("mixer", ["ring_attention", None])
def test_a_mixer_that_is_not_installed_here_has_no_analytical_size(mixer: str | None) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        model = arguments["model"]
        if model.name != "retnet":
            return arguments
        config = with_mixer(model.config, mixer=mixer)
        return arguments | {"model": model.model_copy(update={"config": config})}

    (drawing,) = make_drawings(contents_of(select(Maker(CPU, change=change).memory())))[:1]
    sized = drawing.data[drawing.data["metric"] == "expected_weight_and_state_bytes"]
    assert set(drawing.data["model"]) == {"retnet", "transformer"}
    assert set(sized["model"]) == {"transformer"}


def test_axes_do_not_bend_straight_lines(drawings: list[Drawing]) -> None:
    """Linear growth is a straight line: both axes are logarithmic, or both linear."""
    named = {drawing.name: drawing.figure.axes for drawing in drawings}
    for axes in (*named["latency_decode_batch1"], *named["latency_prefill_batch1"]):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    for axes in (*named["memory_batch1"], *named["memory_latency_figure6"]):
        assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")


def test_the_crossover_is_marked_where_the_drawn_lines_meet(cpu_records: list[Record]) -> None:
    for drawing in make_drawings(contents_of(select(cpu_records))):
        crossings = drawing.data[drawing.data["metric"] == "crossover_context_len"]
        if crossings.empty or crossings["value"].isna().all():
            continue
        (value,) = crossings["value"]
        mine, theirs = (
            np.log(np.asarray(line.get_xydata())) for line in model_lines(drawing.figure.axes[0])[:2]
        )
        gaps = [np.interp(np.log(value), line[:, 0], line[:, 1]) for line in (mine, theirs)]
        assert gaps[0] == pytest.approx(gaps[1], abs=0.005)
        assert "interpolated" in " ".join(all_words(drawing))
        assert "nterpolated between the measured lengths" in drawing.caption


def test_batch_sizes_are_panels_of_one_figure() -> None:
    maker = Maker(GPU)
    found = make_drawings(
        contents_of(select(maker.latency(batch_sizes=(1, 8)) + maker.memory(batch_sizes=(1, 8))))
    )
    named = {drawing.name: drawing for drawing in found}
    assert list(named)[:3] == ["latency_decode", "latency_prefill", "memory"]
    assert [axes.get_title(loc="left") for axes in named["latency_decode"].figure.axes] == [
        "batch 1",
        "batch 8",
    ]
    assert set(named["memory"].data["batch_size"]) == {1, 8}
    limits = {axes.get_ylim() for axes in named["latency_decode"].figure.axes}
    assert len(limits) == 1


def test_training_shows_speed_above_memory_and_the_lines_through_it(training_records: list[Record]) -> None:
    drawing = make_drawings(contents_of(select(training_records)))[0]
    assert drawing.name == "training_cost_training_batch1"
    speed, memory = drawing.figure.axes
    data = drawing.data
    for axes, metric, size in ((speed, "tokens_per_s", 1e3), (memory, "peak_bytes", 2**30)):
        for line, model in zip(model_lines(axes), TRAINER.models, strict=True):
            drawn = dict(zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True))
            mine = data[(data["metric"] == metric) & (data["model"] == model)]
            expected = dict(zip(mine["context_len"], mine["value"], strict=True))
            assert {int(x): y * size for x, y in drawn.items()} == pytest.approx(expected)
    fitted = drawing.data[drawing.data["metric"] == "fitted_slope_bytes_per_token"].set_index("model")
    assert dict(fitted["status"]) == {
        "retnet_chunkwise": "linear",
        "retnet_parallel": "not linear",
        "transformer_fused": "linear",
        "transformer_plain": "not linear",
    }
    dotted = [line for line in memory.lines if line.get_marker() == "None" and len(line.get_xdata()) == 2]  # type: ignore[arg-type]
    rises = [np.ptp(np.asarray(line.get_ydata())) * 2**30 / 8192 for line in dotted]
    assert rises == pytest.approx(list(fitted[fitted["status"] == "linear"]["value"]))
    words = [text.get_text() for text in memory.texts]
    assert "chunkwise RetNet\n564 MiB\n68.5 KiB per token" in words
    assert "parallel RetNet\n6.55 GiB, above" in words  # it leaves the plot, its value is named all the same


def model_lines(axes: Axes) -> list[Line2D]:
    """The lines of models, in their order."""
    return [line for line in axes.lines if line.get_marker() in looks.HOLLOW]


def all_words(drawing: Drawing) -> list[str]:
    """Everything written in a figure, but for ticks and titles of panels."""
    texts = [text for axes in drawing.figure.axes for text in axes.texts] + drawing.figure.texts
    return [text.get_text() for text in texts]


def test_points_that_failed_are_in_the_data_and_in_the_figure(gpu_records: list[Record]) -> None:
    for drawing in make_drawings(contents_of(select(gpu_records))):
        failed = drawing.data[drawing.data["status"] == "oom"]
        words = " ".join(all_words(drawing))
        if "prefill" in drawing.name or "figure6" in drawing.name:  # no longer than 8K
            assert failed.empty
        else:
            assert set(failed["context_len"]) == {16384, 32768}
            assert failed["value"].isna().all()
            assert "out of memory" in words


def test_throughput_is_drawn_against_the_batch_size_with_what_ran_out_of_memory(
    swept_records: list[Record],
) -> None:
    drawing = make_drawings(contents_of(select(swept_records)))[0]
    assert drawing.name == "throughput_decode_throughput"
    assert "crosses: out of memory" in drawing.figure.texts[1].get_text()
    panels = drawing.figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["1K", "4K"]
    for axes, length in zip(panels, (1024, 4096), strict=True):
        here = drawing.data[drawing.data["context_len"] == length]
        lines = [line for line in axes.lines if line.get_marker() in ("o", "s")]
        for line, model in zip(lines, ("retnet", "transformer"), strict=True):
            mine = here[(here["model"] == model) & (here["status"] == "ok")]
            assert np.asarray(line.get_xdata()).tolist() == list(mine["batch_size"])
            assert np.asarray(line.get_ydata()).tolist() == pytest.approx(list(mine["value"]))
        (crosses,) = [line for line in axes.lines if line.get_marker() == "x"]
        failed = here[here["status"] == "oom"]
        assert set(failed["model"]) == {"transformer"}
        assert np.asarray(crosses.get_xdata()).tolist() == list(failed["batch_size"])
    assert list(drawing.data[drawing.data["status"] == "oom"]["batch_size"]) == [16, 32, 64, 64]
    longest = here[(here["model"] == "transformer") & (here["status"] == "ok")]["batch_size"].max()
    assert f", batch {longest}" in " ".join(all_words(drawing))  # the other model has a value at batch 64
    words = [mark.text for mark in marks_of(drawing.figure)]
    assert all(re.fullmatch(r"\w+, batch \d+: [\d,.]+ \[[\d,.]+, [\d,.]+\] tokens/s", text) for text in words)


def test_the_subtitle_has_the_rounds_of_every_interval(cpu_records: list[Record]) -> None:
    """One model of an interrupted run has a round fewer."""
    last = max(record.round for record in cpu_records)
    kept = [record for record in cpu_records if record.round < last or record.model.name == "retnet"]
    latency = [d for d in make_drawings(contents_of(select(kept))) if d.name.startswith("latency_")]
    assert len(latency) == 3
    for drawing in latency:
        assert f"bars: 95 % interval of {last} to {last + 1} rounds" in drawing.figure.texts[1].get_text()


def test_crosses_of_one_model_have_each_reason_beside_them() -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        length = arguments["point"].context_len
        if arguments["model"].name == "retnet" or length < 4096:
            return arguments
        return arguments | {
            "status": "oom" if length > 4096 else "timeout",
            "metrics": {},
            "error": "too long",
        }

    records = Maker(CPU, change=change).latency((1024, 2048, 4096, 8192))
    drawing = make_drawings(contents_of(select(records)))[0]
    assert "timed out, out of memory" in all_words(drawing)


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
)
def test_whatever_failed_and_why_has_room_and_is_said(seed: int) -> None:
    """Reasons stand beside their crosses, or in the subtitle where they have no room there."""
    chance = random.Random(seed)
    words = {"oom": "out of memory", "timeout": "timed out", "gate_failed": "forms disagree"}
    lengths = (1024, 2048, 4096, 8192, 16384, 32768)
    lost = {
        (model, length): chance.choice(list(words))
        for model in ("retnet", "transformer")
        for length in lengths
        if chance.random() < (0.9 if seed == 0 else 0.5)
    }

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        status = lost.get((arguments["model"].name, arguments["point"].context_len), "ok")
        none = {} if status == "ok" else {"metrics": {}, "error": status}
        return arguments | {"status": status} | none

    maker = Maker(CPU, change=change)
    for drawing in make_drawings(contents_of(select(maker.latency(lengths) + maker.memory(lengths)))):
        statuses = set(drawing.data["status"]) & set(words)
        assert statuses or "prefill" in drawing.name or "figure6" in drawing.name
        for figure in filter(None, (drawing.figure, drawing.linear)):
            drawn = replace(drawing, figure=figure)
            check_words(drawn)
            assert {words[status] for status in statuses} == {
                reason for reason in words.values() if reason in " ".join(all_words(drawn))
            }


def test_names_of_parts_of_memory_stand_beside_a_peak_at_the_left() -> None:
    records = [
        record
        for record in Maker(CPU).memory()
        if record.model.name == "retnet" or record.point.context_len <= 8192
    ]
    (drawing,) = [
        each for each in make_drawings(contents_of(select(records))) if each.name == "memory_batch1"
    ]
    check_words(drawing)
    for axes, is_left in zip(drawing.figure.axes, (True, False), strict=True):
        names = [text for text in axes.texts if text.get_text().startswith(("weights", "workspace"))]
        assert {name.get_ha() for name in names} == {"left" if is_left else "right"}


def test_long_lengths_leave_the_next_panel_its_ticks() -> None:
    lengths = (1024, 8192, 131_072, 524_288, 1_048_576, 2_000_000)
    maker = Maker(CPU)
    for drawing in make_drawings(contents_of(select(maker.latency(lengths) + maker.memory(lengths)))):
        for figure in filter(None, (drawing.figure, drawing.linear)):
            check_words(replace(drawing, figure=figure))
            assert all(axes.get_xticks().size for axes in figure.axes)


@pytest.mark.slow
def test_figures_of_names_that_differ_in_signs_or_letters_only_have_files_of_their_own(
    tmp_path: Path,
) -> None:
    names = ("a b", "a-b", "A-b", "红楼梦", "三国演义")
    records = [
        record.model_copy(update={"experiment": name, "cell_id": f"{record.cell_id}{number}"})
        for number, name in enumerate(names)
        for record in Maker(CPU, seed=number).latency((1024, 2048))
    ]
    write_results(tmp_path / "results", records)
    paths = write_report(tmp_path / "results", tmp_path / "out").paths
    assert len({str(path).lower() for path in paths}) == len(paths)
    decode = [path for path in paths if path.name.endswith(".csv") and "_decode_" in path.name]
    assert len({path.read_text() for path in decode}) == len(names)
    assert all(len(path.name.encode()) < 200 for path in paths)


def test_batch_sizes_and_large_rates_have_room_as_numbers() -> None:
    """A batch of 1,024 sequences is no context of 1K, and neither its tick nor that of 100,000 tokens/s is cut."""

    def faster(arguments: dict[str, Any]) -> dict[str, Any]:
        metrics = arguments["metrics"]
        rates = {"tokens_per_s": metrics["tokens_per_s"].value * 100} if "tokens_per_s" in metrics else {}
        changed = {name: Metric(unit="tokens/s", value=value) for name, value in rates.items()}
        return arguments | {"metrics": {**metrics, **changed}}

    machine = replace(SMALL, memory_bytes=2**33)
    records = Maker(machine, change=faster).throughput((1024, 4096), (1, 32, 1024, 2048, 4096))
    drawing = make_drawings(contents_of(select(records)))[0]
    assert ", batch 1024" in " ".join(all_words(drawing))
    for figure in (drawing.figure, drawing.linear):
        assert figure is not None
        check_words(replace(drawing, figure=figure))
        for axes in figure.axes:
            assert {tick.get_text() for tick in axes.get_xticklabels()} <= {"1", "32", "1024", "2048", "4096"}
            assert all(len(tick.get_text()) <= len("50,000") for tick in axes.get_yticklabels())


def test_throughput_of_one_batch_is_drawn_against_the_bytes_of_the_state() -> None:
    maker = Maker(SMALL)
    records = [
        maker.record("kin", model, "throughput", 32, length, number)
        for number in range(3)
        for model in maker.machine.models
        for length in (1024, 2048, 4096)
    ]
    (drawing, *_) = make_drawings(contents_of(select(records)))
    assert drawing.name == "kin_throughput_batch32_by_state"
    assert drawing.figure.axes[0].get_title(loc="left") == "batch 32"
    sizes = {model: rows["state_bytes"] for model, rows in drawing.data.groupby("model")}
    assert sizes["retnet"].nunique() == 1
    assert sizes["transformer"].is_monotonic_increasing
    assert sizes["transformer"].nunique() == 3
    failed = drawing.data[drawing.data["status"] == "oom"]
    assert set(failed["model"]) == {"transformer"}
    assert failed["value"].isna().all()
    assert "out of memory" in " ".join(all_words(drawing))
    check_words(drawing.figure)


@pytest.mark.parametrize("status", ["timeout", "ok"])
def test_throughput_without_a_value_or_a_known_state_is_no_error(status: str) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if status == "timeout":
            return arguments | {"status": status, "metrics": {}, "error": "600 s"}
        unknown = {"architecture": "of another package"}
        return arguments | {"model": arguments["model"].model_copy(update={"config": unknown})}

    maker = Maker(CPU, change=change)
    records = [
        maker.record("kin", model, "throughput", batch_size, 1024, number)
        for number in range(3)
        for model in maker.machine.models
        for batch_size in (2, 8)
    ]
    names = [
        drawing.name for drawing in make_drawings(contents_of(select(records))) if "by_state" in drawing.name
    ]
    assert names == (["kin_throughput_by_state"] if status == "timeout" else [])


def test_conditions_stand_at_the_foot(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        foot = (
            " ".join(text.get_text() for text in drawing.figure.texts)
            .replace("\n", " ")
            .replace("\u00a0", " ")
        )
        for fact in (
            "AMD EPYC 9B14",
            "float32",
            "2 threads",
            "RetNet 18.9 M, Transformer 18.9 M",
            "0.1.0+src.0123456789ab",
            "torch 2.13.0",
            "2026-01-02",
        ):
            assert fact in foot, (drawing.name, fact)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Maker(CPU).latency() + Maker(CPU).memory(),
        lambda: Maker(GPU).latency(batch_sizes=(1, 8)) + Maker(GPU).memory(batch_sizes=(1, 8)),
        lambda: Maker(CPU).latency(lengths=(1024,)) + Maker(CPU).memory(lengths=(1024,)),
        lambda: Maker(SMALL).throughput(),
        lambda: Maker(GPU).throughput((1024, 2048, 4096, 8192), (1, 2, 4, 8, 16, 32, 64, 128)),
        lambda: [r for r in Maker(CPU).latency() if r.model.name == "retnet"],
        noisy_records,
        failed_records,
        lambda: Maker(TRAINER).training(),
        lambda: Maker(SMALL_TRAINER).training(),
        lambda: Maker(TRAINER).training(lengths=(1024,)),
        failed_training,
    ],
    ids=[
        "cpu",
        "gpu",
        "one length",
        "batches",
        "gpu batches",
        "one model",
        "noisy",
        "failed",
        "training",
        "training out of memory",
        "training at one length",
        "training failed",
    ],
)
def test_no_word_leaves_its_figure_or_covers_another(make: Any) -> None:
    for drawing in make_drawings(contents_of(select(make()))):
        check_words(drawing)


def test_an_interval_far_wider_than_the_values_does_not_flatten_them() -> None:
    drawing = make_drawings(contents_of(select(noisy_records())))[0]
    highest = drawing.data[drawing.data["metric"] == "tpot_s"]["value"].max()
    assert drawing.data["high"].max() > 3 * highest
    assert drawing.figure.axes[0].get_ylim()[1] / 1000 < 2 * highest


def test_nothing_measured_is_drawn_as_failures_not_as_a_crash() -> None:
    drawings = make_drawings(contents_of(select(failed_records())))
    assert len(drawings) == 3
    assert all("timed out" in " ".join(all_words(drawing)) for drawing in drawings)


def test_a_model_looks_the_same_in_every_figure(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        colours = {
            text.get_color()
            for axes in drawing.figure.axes
            for text in axes.texts
            if text.get_text().startswith("Transformer")
        }
        assert colours <= {looks.look(1).text}


def test_no_two_of_many_models_look_the_same() -> None:
    found = [looks.look(number) for number in range(100)]
    assert len({(look.line, look.marker, look.dash) for look in found}) == len(found)
    assert len({look.line for look in found[:8]}) == 8


def look_of_each(kinds: dict[str, str]) -> dict[str, looks.Look]:
    lineup = Lineup(tuple(kinds), None, kinds, kinds)
    return {name: looks.look_of(lineup, name) for name in kinds}


def test_an_architecture_has_one_look_beside_any_other_models() -> None:
    pair = look_of_each({"retnet": "retnet", "transformer": "transformer"})
    assert list(pair.values()) == [looks.look(0), looks.look(1)]
    variants = {"retnet": "retnet", "wide": "retnet", "gated_retnet": "retnet"}
    others = {"gla": "gla", "mamba2": "mamba2", "own": "another library's", "transformer": "transformer"}
    many = look_of_each(variants | others)
    assert len({look.line for look in many.values()}) == len(many)
    assert pair.items() <= many.items()
    for name in ("gla", "mamba2"):
        assert look_of_each({name: name, "transformer": "transformer"})[name] == many[name]


def test_as_many_models_as_there_are_differ_in_their_look() -> None:
    every = {name: name for name in architectures()} | {f"retnet_{number}": "retnet" for number in range(90)}
    assert len(set(look_of_each(every).values())) == len(every)


def ten_models(records: list[Record]) -> list[Record]:
    """Ten copies of the Transformer, which runs out of memory."""
    return [
        record.model_copy(
            update={
                "model": record.model.model_copy(update={"name": f"model{number}"}),
                "cell_id": f"{record.cell_id}{number}",
            }
        )
        for number in range(10)
        for record in records
        if record.model.name == "transformer"
    ]


def test_ten_models_have_looks_and_names_of_their_own() -> None:
    maker = Maker(GPU)
    records = maker.latency(batch_sizes=(8,)) + maker.memory(batch_sizes=(8,))
    records += maker.throughput((1024, 2048, 4096, 8192), (1, 4, 16))
    for drawing in make_drawings(contents_of(select(ten_models(records)))):
        check_words(drawing)
        if drawing.name == "latency_decode_batch8":
            lines = model_lines(drawing.figure.axes[0])
            drawn = {(line.get_color(), line.get_marker(), str(line.get_linestyle())) for line in lines}
            assert len(lines) == len(drawn) == 10
            names = [text.get_text() for text in drawing.figure.axes[0].texts]
            assert {name[0] for name in names} >= {looks.FILLED[str(line.get_marker())] for line in lines}
        if drawing.name == "throughput_decode_throughput":
            widths_in = [axes.get_position().width * style.WIDTH_IN for axes in drawing.figure.axes]
            assert min(widths_in) > 0.45
        assert "2026-01-02" in drawing.figure.texts[2].get_text().replace("\n", "")


@pytest.mark.parametrize("lengths", [(2048,), (1024, 4096)])
def test_the_intervals_of_many_models_stand_side_by_side(lengths: tuple[int, ...]) -> None:
    records = [one for one in Maker(CPU).latency() if one.point.context_len in lengths]
    drawing = next(
        d
        for d in make_drawings(contents_of(select(ten_models(records))))
        if d.name == "latency_decode_batch1"
    )
    (axes,) = drawing.figure.axes
    places = [line.get_transform().transform(line.get_xydata()) for line in model_lines(axes)]
    firsts = sorted((float(at[0][0]), float(at[0][1])) for at in places)
    apart = [right - left for (left, _), (right, _) in pairwise(firsts)]
    assert min(apart) > 0.015 * axes.bbox.width
    assert all(axes.bbox.x0 < x < axes.bbox.x1 for x, _ in firsts)
    if len(lengths) == 1:  # in the order of their labels
        heights = [y for _, y in firsts]
        assert heights == sorted(heights, reverse=True)
        middle = (axes.bbox.x0 + axes.bbox.x1) / 2
        assert (firsts[0][0] + firsts[-1][0]) / 2 == pytest.approx(middle, rel=0.02)
    check_words(drawing)


@pytest.mark.parametrize("lengths", [(1024, 4096), (1024, 32768)])
def test_points_side_by_side_stay_inside_of_their_axes(lengths: tuple[int, ...]) -> None:
    records = [one for one in Maker(CPU).latency() if one.point.context_len in lengths]
    drawings = {drawing.name: drawing for drawing in make_drawings(contents_of(select(ten_models(records))))}
    for name in {"latency_decode_batch1", "latency_figure6"} & drawings.keys():
        (axes,) = drawings[name].figure.axes
        for line in model_lines(axes):
            x = line.get_transform().transform(line.get_xydata())[:, 0]
            assert axes.bbox.x0 < x.min() < x.max() < axes.bbox.x1, name


def test_the_values_beside_several_panels_are_those_of_the_last() -> None:
    drawings = make_drawings(contents_of(select(Maker(GPU).latency(batch_sizes=(1, 8)))))
    figure = next(drawing.figure for drawing in drawings if drawing.name == "latency_decode")
    first, last = figure.axes
    assert not first.texts
    heading, *labels = sorted(last.texts, key=lambda text: -text.get_window_extent().y1)
    assert heading.get_text() == "batch 8:"
    assert len(labels) == 2


@pytest.mark.parametrize(
    ("kib", "ticks"),
    [
        ((13.5, 54, 1120), ["16 KiB", "64 KiB", "256 KiB", "1 MiB"]),
        ((2**10, 2**20), ["1 MiB", "16 MiB", "256 MiB"]),
        ((108,), ["108 KiB"]),
    ],
)
def test_an_axis_of_bytes_has_ticks_at_powers_of_two(kib: tuple[float, ...], ticks: list[str]) -> None:
    _, (axes,) = style.new_panels(("", "", ""), [1], [""], row_in=1.0, right_in=1.0)
    style.set_bytes_axis(axes, [1024 * size for size in kib])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ticks


@pytest.mark.parametrize("rates", [(0.5, 1, 2, 4, 8, 16), (1, 2, 4, 8, 16, 32)])
def test_each_of_six_learning_rates_has_a_label_where_three_panels_stand_side_by_side(
    rates: tuple[float, ...],
) -> None:
    _, (axes, *_) = style.new_panels(("", "", ""), [1] * 3, [""], row_in=1.0)
    style.set_count_axis(axes, rates, "{:g}".format)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [f"{rate:g}" for rate in rates]


def test_a_name_of_any_length_leaves_room_for_the_curves(cpu_records: list[Record]) -> None:
    longest = "long_name_" * 20
    records = [
        record.model_copy(update={"model": record.model.model_copy(update={"name": longest})})
        if record.model.name == "retnet"
        else record
        for record in [*cpu_records, *Maker(SMALL).throughput((1024, 2048), (1, 2))]
    ]
    other = [
        record.model_copy(
            update={
                "model": record.model.model_copy(update={"name": "other"}),
                "cell_id": f"{record.cell_id}other",
            }
        )
        for record in records
        if record.model.name == longest
    ]
    drawings = make_drawings(contents_of(select([*records, *other])))
    assert len(drawings) > 4
    for drawing in drawings:
        for axes in drawing.figure.axes:
            assert axes.get_position().width > 0.05, drawing.name
            assert all(len(line) < 60 for text in axes.texts for line in text.get_text().split("\n"))


def test_no_state_is_left_behind(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib as mpl\n"
        "from pathlib import Path\n"
        "from report.synthetic_records import Maker\n"
        "from retbench.report.figures.drawing import save_drawing\n"
        "from retbench.report.figures.catalogue import make_drawings\n"
        "from retbench.report.selection import select\n"
        "from retbench.report.contents import contents_of\n"
        "before = mpl.rcParams.copy()\n"
        "for drawing in make_drawings(contents_of(select(Maker().memory()))):\n"
        f"    save_drawing(drawing, Path({str(tmp_path)!r}))\n"
        "assert mpl.rcParams.copy() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    tests = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tests, check=True, timeout=120)


def test_the_users_own_settings_do_not_change_a_figure(tmp_path: Path, cpu_records: list[Record]) -> None:
    memory = [record for record in cpu_records if record.workload == "memory"]
    plain = draw(memory, tmp_path / "plain")
    with mpl.rc_context({"font.size": 20, "axes.grid": True, "savefig.dpi": 30}):
        changed = draw(memory, tmp_path / "changed")
    assert [path.read_bytes() for path in plain] == [path.read_bytes() for path in changed]


def test_no_records_and_no_room_are_clear_errors(tmp_path: Path, cpu_records: list[Record]) -> None:
    with pytest.raises(RecordError):
        draw([], tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match=r"file/latency_decode_batch1\.svg: cannot be written"):
        draw(cpu_records, tmp_path / "file")


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_words_and_lines_stand_out_from_the_paper(dark: bool) -> None:
    colours = {name: pair[dark] for name, pair in looks.css_colours().items()}
    paper = luminance(colours["paper"])
    for name, colour in colours.items():
        bright, dim = sorted((luminance(colour), paper), reverse=True)
        contrast = (bright + 0.05) / (dim + 0.05)
        least = (
            4.5 if name.startswith(("text", "ink", "muted")) else 3.0 if name in ("line0", "line1") else 1.0
        )
        assert contrast >= least, (name, contrast)


def test_seconds_are_drawn_in_a_unit_that_fits() -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"metrics": {"tpot_s": Metric(unit="s", value=42e-6)}}

    drawing = make_drawings(contents_of(select(Maker(CPU, change=change).latency())))[0]
    assert any(text.get_text().startswith("µs, batch 1") for text in drawing.figure.texts)
