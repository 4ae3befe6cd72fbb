import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.config.experiment_files import load_experiment
from retbench.errors import ConfigError
from retbench.planning.cells import Cell, Settings, expand

SETTINGS = Settings(
    dtype="float32", device="cpu", threads=2, seed=0, warmup_s=0.1, min_steps=20, cuda_graph=False
)


def cells_of(name: str, overrides: tuple[str, ...] = (), settings: Settings = SETTINGS) -> list[Cell]:
    return expand(load_experiment(name, overrides, profile="smoke"), "smoke", settings)


def test_a_profile_expands_to_models_times_points(tiny_experiment: Path) -> None:
    cells = cells_of(str(tiny_experiment), ("workloads.decode.batch_size=[1,4]",))
    found = [(c.model_name, c.workload, c.point.batch_size, c.point.context_len) for c in cells]
    assert found == [
        (model, "decode", batch_size, context_len)
        for model in ("retnet", "transformer")
        for batch_size in (1, 4)
        for context_len in (64, 128)
    ]


def test_only_a_model_with_chunks_has_a_chunk_size(tiny_experiment: Path) -> None:
    chunks = {cell.model_name: cell.chunk_size for cell in cells_of(str(tiny_experiment))}
    assert chunks == {"retnet": 128, "transformer": None}


def test_ids_are_distinct_and_the_same_in_every_process(tiny_experiment: Path) -> None:
    cells = cells_of(str(tiny_experiment))
    assert len({cell.cell_id for cell in cells}) == len(cells)
    assert [cell.cell_id for cell in cells] == [cell.cell_id for cell in cells_of(str(tiny_experiment))]


def test_the_usual_cache_is_not_in_an_id_and_another_one_is(tiny_experiment: Path) -> None:
    usual, stated, concat = (
        {cell.model_name: cell.cell_id for cell in cells_of(str(tiny_experiment), overrides)}
        for overrides in (
            (),
            ("models.transformer.cache=preallocated",),
            ("models.transformer.cache=concat",),
        )
    )
    assert usual == stated
    assert usual["retnet"] == concat["retnet"]
    assert usual["transformer"] != concat["transformer"]


def test_ids_are_those_of_records_from_before_the_cache_could_be_chosen(tiny_experiment: Path) -> None:
    cells = cells_of(
        str(tiny_experiment),
        ("workloads.decode.context_len=[64]", "size=1m", "models.transformer.backend=sdpa"),
    )
    found = {cell.model_name: cell.cell_id for cell in cells}
    assert found == {"retnet": "049f435915a29b6a", "transformer": "2bb5f5644f0ae5dc"}


def test_a_cell_survives_json_with_its_id(tiny_experiment: Path) -> None:
    for cell in cells_of(str(tiny_experiment)):
        again = Cell.model_validate_json(cell.model_dump_json())
        assert again == cell
        assert again.cell_id == cell.cell_id


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"device": "cuda:0"},
        {"threads": 1},
        {"seed": 1},
        {"warmup_s": 0.2},
        {"min_steps": 21},
        {"cuda_graph": True},
        {"decode_operators": "eager"},
        {"activation_checkpointing": True},
    ],
)
def test_every_setting_is_in_the_id(tiny_experiment: Path, change: dict[str, Any]) -> None:
    before = {cell.cell_id for cell in cells_of(str(tiny_experiment))}
    changed = SETTINGS.model_copy(update=change)
    assert before.isdisjoint(cell.cell_id for cell in cells_of(str(tiny_experiment), settings=changed))


@pytest.mark.parametrize(
    "override",
    [
        "size=6m",
        "models.retnet.variant=torchscale",
        "models.retnet.backend=parallel",
        "models.retnet.chunk_size=64",
        "models.retnet.decay=paper",
        "workloads.decode.batch_size=[2]",
        "workloads.decode.context_len=[65]",
    ],
)
def test_everything_about_the_model_and_the_point_is_in_the_id(tiny_experiment: Path, override: str) -> None:
    def ids(*overrides: str) -> set[str]:
        return {c.cell_id for c in cells_of(str(tiny_experiment), overrides) if c.model_name == "retnet"}

    assert ids().isdisjoint(ids(override))


@given(st.integers(min_value=1, max_value=2**24), st.integers(min_value=1, max_value=2**24))
def test_the_id_tells_any_two_lengths_apart(first: int, second: int) -> None:
    one, other = (
        cells_of("memory", (f"workloads.memory.context_len=[{length}]",))[0] for length in (first, second)
    )
    assert (one.cell_id == other.cell_id) == (first == second)


def test_the_id_does_not_depend_on_other_models(tmp_path: Path, tiny_experiment: Path) -> None:
    """Adding a model to an experiment leaves the cells of the others, and so their records, as they are."""
    wider = tmp_path / "wider.toml"
    more = '[models.linear]\narchitecture = "retnet"\ndecay = "none"\n\n[profiles.smoke]'
    text = tiny_experiment.read_text(encoding="utf-8")
    wider.write_text(text.replace("[profiles.smoke]", more, 1), encoding="utf-8")
    before, after = ({cell.cell_id for cell in cells_of(str(path))} for path in (tiny_experiment, wider))
    assert before < after


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (("models.retnet.ffn_dim=800",), 'Use ffn_dim = "matched"'),
        (("models.retnet.size=1m",), "Give all models one size"),
        (("size=25k", "models.retnet.variant=torchscale"), "matched already.* Use a larger size"),
    ],
)
def test_an_unmatched_pair_has_no_cells_and_the_message_says_what_helps(
    overrides: tuple[str, ...], remedy: str
) -> None:
    where = "experiment 'latency', profile 'smoke'"
    with pytest.raises(
        ConfigError, match=f"{where}: the models are not matched.*{remedy}, or set allow_mism"
    ):
        cells_of("latency", overrides)


def test_a_model_alone_needs_no_match(tmp_path: Path, tiny_experiment: Path) -> None:
    text = tiny_experiment.read_text(encoding="utf-8")
    alone = tmp_path / "alone.toml"
    alone.write_text(
        text.replace('[models.transformer]\narchitecture = "transformer"\n', ""), encoding="utf-8"
    )
    assert {cell.model_name for cell in cells_of(str(alone))} == {"retnet"}


def test_messages_and_ids_keep_the_old_name_of_the_model_under_test() -> None:
    """Workers of earlier revisions read these messages, and records of earlier revisions have these ids."""
    settings = SETTINGS.model_copy(update={"threads": 1, "warmup_s": 0.0, "min_steps": 2})
    cell = cells_of("latency", settings=settings)[0]
    assert cell.cell_id == "9b7e6221f3c0f131"
    message = cell.model_dump_json(by_alias=True)
    assert "subject" in json.loads(message)
    assert Cell.model_validate_json(message) == cell
