"""Plans for models of another library: `--model`, tables with a checkpoint, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from retbench.config.own_models import OwnModels, replace_models
from retbench.errors import ConfigError
from retbench.planning.plan import Plan, make_plan
from retbench.records.record import Ceilings
from retbench.running import estimates
from tests.checkpoints.hf_folder import write_hf_folder

CEILINGS = Ceilings(read_bandwidth_bytes_per_s=10e9, matmul_flops_per_s=100e9)


def make(experiment: object, *folders: Path, trust: bool = False, **changes: Any) -> Plan:
    options = {"profile": "smoke", "device": "cpu"}
    chosen = {"checkpoints": tuple(map(str, folders)), "trust_remote_code": trust}
    return make_plan(str(experiment), **{**options, **chosen, **changes})


def test_a_model_takes_the_place_of_the_experiments(tiny_experiment: Path, tmp_path: Path) -> None:
    folder = write_hf_folder(tmp_path / "My model-0.6B")
    found = make(tiny_experiment, folder)
    assert [one.model_name for one in found.models] == ["My-model-0.6B"]
    assert {cell.model.variant for cell in found.cells} == {"llama"}
    assert f"--model '{folder}'" in found.command


def test_the_models_of_the_profile_are_replaced_too(tmp_path: Path) -> None:
    folder = write_hf_folder(tmp_path / "own")
    found = make("latency", folder, profile="paper", overrides=["cuda_graph=false", "rounds=1"])
    assert [one.model_name for one in found.models] == ["own"]


def test_a_model_without_tokenizer_does_not_take_the_one_of_the_replaced_models(tmp_path: Path) -> None:
    folder = write_hf_folder(tmp_path / "own")
    with pytest.raises(ConfigError, match="comes without a tokenizer"):
        make("needle", folder)
    found = make("needle", folder, overrides=["workloads.needle.tokenizer=bytes"])
    assert {cell.evaluation.tokenizer for cell in found.cells} == {"bytes"}  # type: ignore[union-attr]


def test_it_can_be_measured_with_matched_models(tiny_experiment: Path, tmp_path: Path) -> None:
    folder = write_hf_folder(tmp_path / "own")
    found = make(
        tiny_experiment, overrides=["models.mine.architecture=hf", f"models.mine.checkpoint={folder}"]
    )
    assert [one.model_name for one in found.models] == ["retnet", "transformer", "mine"]


def test_its_cost_is_not_estimated(tiny_experiment: Path, tmp_path: Path) -> None:
    found = estimates.estimate_with(make(tiny_experiment, write_hf_folder(tmp_path / "own")), CEILINGS)
    assert {(one.seconds, one.memory_bytes) for one in found} == {(None, None)}


def test_code_of_the_checkpoint_is_part_of_the_cell_and_of_the_command(
    tiny_experiment: Path, tmp_path: Path
) -> None:
    folder = write_hf_folder(tmp_path / "own")
    plain, trusting = (make(tiny_experiment, folder, trust=trust) for trust in (False, True))
    assert [plan.cells[0].under_test.trained_weights.runs_code for plan in (plain, trusting)] == [False, True]
    assert "--trust-remote-code" in trusting.command
    assert "--trust-remote-code" not in plain.command
    assert plain.cells[0].cell_id != trusting.cells[0].cell_id


@pytest.mark.parametrize("place", ["models", "profiles.smoke.models"])
def test_an_experiment_file_cannot_permit_code_to_run(
    tiny_experiment: Path, tmp_path: Path, place: str
) -> None:
    folder = write_hf_folder(tmp_path / "own")
    table = f'[{place}.mine]\narchitecture = "hf"\ncheckpoint = "{folder}"\n'
    text = tiny_experiment.read_text(encoding="utf-8")
    tiny_experiment.write_text(f"{text}\n{table}trust_remote_code = true\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--set models\.mine\.trust_remote_code=true"):
        make(tiny_experiment)
    tiny_experiment.write_text(f"{text}\n{table}", encoding="utf-8")
    found = make(tiny_experiment, overrides=["models.mine.trust_remote_code=true"])
    assert found.models[-1].trained_weights is not None
    assert found.models[-1].trained_weights.runs_code


def test_steps_are_left_eager_where_the_profile_leaves_it_to_the_machine(tmp_path: Path) -> None:
    found = make("latency", write_hf_folder(tmp_path / "own"), profile="cpu")
    assert not found.settings.compile
    assert found.note is not None
    assert "not compiled" in found.note


def test_contexts_that_a_model_was_not_made_for_are_named(tiny_experiment: Path, tmp_path: Path) -> None:
    folder = write_hf_folder(tmp_path / "own", max_position_embeddings=128)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("A text of some words. " * 20, encoding="utf-8")
    scored = f'corpora = ["{tmp_path / "texts"}"], split = "all", tokenizer = "bytes"'

    def note(workload: str) -> str:
        return make(tiny_experiment, folder, overrides=[f"workloads={{{workload}}}"]).note or ""

    text = "perplexity = {{{}, protocols = {{whole = {}}}}}"
    assert note(text.format(scored, [64, 128])) == ""
    assert "own was made for 128 tokens and may be given 4,096" in note(text.format(scored, [64, 4096]))
    assert note(f"recall_slices = {{{scored}, document_bytes = [4096]}}") == "", "its lengths are bytes"
    assert note("decode = {context_len = [4096]}") == "", "its cost does not depend on what it was trained on"


@pytest.mark.parametrize(
    ("experiment", "changes", "message"),
    [
        ("latency", {"compiled": True}, "whose steps are not compiled"),
        ("training_cost", {}, "workload 'training' trains, and 'own'"),
    ],
)
def test_what_is_not_there_for_it_is_refused(
    tmp_path: Path, experiment: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(experiment, write_hf_folder(tmp_path / "own"), **changes)


def test_two_models_of_one_name_are_refused(tiny_experiment: Path, tmp_path: Path) -> None:
    folders = [write_hf_folder(tmp_path / parent / "own") for parent in ("a", "b")]
    with pytest.raises(ConfigError, match="another --model has the name 'own' too"):
        make(tiny_experiment, *folders)


@pytest.mark.parametrize(
    ("folder", "given", "name"),
    [
        ("mine", ".", "mine"),
        ("mine/inner", "..", "mine"),
        ("mine", "../mine/", "mine"),
        ("žlutý kůň", "../žlutý kůň", "zluty-kun"),
        ("模型", ".", "model"),
    ],
)
def test_a_folder_names_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, given: str, name: str
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    raw: dict[str, Any] = {}
    replace_models(raw, OwnModels((given,)))
    assert list(raw["models"]) == [name]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("models.mine.size=25m", "size"),
        ("models.mine.backend=chunkwise", "give 'default', 'sdpa', 'eager' or 'flash_attention_2'"),
        ("models.mine.trust_remote_cod=true", "trust_remote_code"),
    ],
)
def test_a_field_that_it_does_not_have_is_refused(
    tiny_experiment: Path, tmp_path: Path, override: str, message: str
) -> None:
    folder = write_hf_folder(tmp_path / "own")
    table = ["models.mine.architecture=hf", f"models.mine.checkpoint={folder}", override]
    with pytest.raises(ConfigError, match=message):
        make(tiny_experiment, overrides=table)
