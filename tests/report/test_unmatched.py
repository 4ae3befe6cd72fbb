"""A model of another library in a report: shown with the matched models, named as unmatched, and never compared."""

from typing import Any

import pytest

from report.synthetic_records import Maker
from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.architectures.hf import TransformersLayers
from retbench.cli.report import print_answer
from retbench.records.record import ModelInfo, Record
from retbench.report.contents import contents_of
from retbench.report.figures.catalogue import make_drawings
from retbench.report.figures.memory import memory_rows
from retbench.report.findings.answer import find_answer
from retbench.report.lineup import lineup, mismatch
from retbench.report.provenance import matching_sentence, mismatch_sentence
from retbench.report.selection import matched_groups, select
from retbench.report.sweeps import make_sweeps

NUM_PARAMS = 123_456


def own_model() -> ModelInfo:
    layers = TransformersLayers(
        d_model=64,
        model_type="qwen3",
        config_fingerprint="0123456789ab",
        total_params=2 * NUM_PARAMS,
        nonembedding_params=NUM_PARAMS,
        has_cache=True,
    )
    config = ModelConfig(
        architecture="hf",
        variant="qwen3",
        d_model=64,
        vocab_size=300,
        blocks=(BlockConfig(count=2, mixer=layers),),
    )
    return ModelInfo(
        name="mine",
        architecture="hf",
        variant="qwen3",
        size="checkpoint",
        num_params=2 * NUM_PARAMS,
        num_params_nonembedding=NUM_PARAMS,
        config=config.model_dump(mode="json"),
    )


def with_own_model(records: list[Record]) -> list[Record]:
    """Add a model that is as the Transformer in all but its size and its analytical costs."""
    copies = [
        record.model_copy(update={"model": own_model(), "cell_id": f"own-{record.cell_id}"})
        for record in records
        if record.model.name == "transformer"
    ]
    return records + copies


@pytest.fixture(scope="module")
def records() -> list[Record]:
    maker = Maker()
    return with_own_model(maker.latency(lengths=(1024, 2048)) + maker.memory(lengths=(1024, 2048)))


def test_it_is_selected_with_models_of_any_size(records: list[Record]) -> None:
    selection = select(records)
    assert {record.model.name for record in selection.records} == {"mine", "retnet", "transformer"}
    assert selection.left_out == ()


def test_it_is_left_out_where_it_ran_with_other_settings(records: list[Record]) -> None:
    def change(record: Record) -> Record:
        if record.model.name != "mine":
            return record
        return record.model_copy(update={"settings": {**record.settings, "compile": True}})

    selection = select([change(record) for record in records], "latency")
    assert {record.model.name for record in selection.records} == {"retnet", "transformer"}
    assert len(selection.left_out) == 1


def test_it_is_shown_alone_where_nothing_else_was_measured(records: list[Record]) -> None:
    alone = [record for record in records if record.model.name == "mine"]
    assert len(select(alone).records) == len(alone)
    assert lineup(alone).refusals == {}


def test_it_is_named_as_unmatched_and_not_compared(records: list[Record]) -> None:
    models = lineup(records)
    assert models.labels["mine"] == "mine (unmatched)"
    assert models.challengers == ("retnet",)
    assert "not matched" in models.refusals["mine"]
    mine, theirs = (next(r for r in records if r.model.name == name) for name in ("mine", "transformer"))
    assert mismatch(mine, theirs) == models.refusals["mine"]


def test_its_curves_are_in_the_figures_of_the_others(records: list[Record]) -> None:
    for sweep in make_sweeps(select(records)):
        assert set(sweep.models.models) == {"mine", "retnet", "transformer"}


def test_it_has_no_analytical_size(records: list[Record]) -> None:
    (sweep,) = [sweep for sweep in make_sweeps(select(records)) if sweep.workload == "memory"]
    rows: Any = memory_rows(sweep)
    with_size = set(rows[~rows["metric"].isin(["weight_bytes", "state_bytes", "workspace_bytes"])]["model"])
    assert with_size == {"retnet", "transformer"}


@pytest.mark.parametrize("is_alone", [False, True])
def test_a_figure_of_memory_explains_an_analytical_size_where_it_draws_one(
    records: list[Record], is_alone: bool
) -> None:
    shown = [record for record in records if record.model.name == "mine" or not is_alone]
    drawn = next(one for one in make_drawings(contents_of(select(shown))) if one.name.startswith("memory"))
    texts = (drawn.caption, *(text.get_text() for text in drawn.figure.texts))
    assert any("analytical" in text for text in texts) != is_alone


def test_the_printed_answer_has_its_name_as_it_is(
    records: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    alone = [record for record in records if record.model.name == "mine"]
    print_answer(find_answer(contents_of(select(alone))))
    assert capsys.readouterr().out.startswith("mine (unmatched).")


def test_its_parameters_do_not_count_as_a_mismatch(records: list[Record]) -> None:
    (members,) = [group for group in matched_groups(records) if group[0].experiment == "latency"]
    matched = [record for record in members if record.model.name != "mine"]
    assert matching_sentence([members]) == matching_sentence([matched])
    assert "compared models" in matching_sentence([matched]), "an experiment may allow any mismatch"
    assert "mine (unmatched) is not compared" in mismatch_sentence(members, lineup(members))


def test_the_answer_names_it(records: list[Record]) -> None:
    found = find_answer(contents_of(select(records)))
    assert found.models == "RetNet compared with the Transformer; mine (unmatched) not compared"
    assert "123" not in found.setting
