from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from typer.testing import CliRunner

from retbench.architectures import costs
from retbench.cli import app
from retbench.errors import ConfigError
from retbench.planning.shards import Shard
from retbench.training.plan import TrainingPlan, TrainingRun
from retbench.training.planning import make_training_plan
from tests.training.conftest import PlanOf

GRID = "training.learning_rates=[1e-3, 3e-3, 1e-2]"


def test_every_model_runs_the_same_grid(plan_of: PlanOf) -> None:
    plan = plan_of(GRID, 'training.sizes=["300k", "1m"]', 'training.tuning_sizes=["300k", "1m"]')
    grid = Counter((run.size, run.learning_rate, run.seed, run.num_steps) for run in plan.tuning_runs)
    assert len(grid) == 6
    assert set(grid.values()) == {2}


def test_one_rate_needs_no_grid(plan: TrainingPlan) -> None:
    assert not plan.tuning_runs
    assert [run.learning_rate for run in plan.final_runs] == [0.003, 0.003]


@pytest.mark.parametrize(
    ("change", "unused"),
    [
        ("training.tuning_tokens=192", "tuning_tokens"),
        ('training.tuning_sizes=["300k"]', "tuning_sizes"),
        ("training.tuning_sizes=[]", None),
        ("threads=2", None),
    ],
)
def test_a_field_of_the_grid_without_one_is_said_to_have_no_effect(
    experiment: Path, change: str, unused: str | None
) -> None:
    def stderr_of(*words: str) -> str:
        command = ["train", str(experiment), "--profile", "cpu", "--device", "cpu", "--dry-run", *words]
        return CliRunner().invoke(app, command).stderr

    message = stderr_of("--set", change)
    assert message == "" if unused is None else f"no effect of {unused}: no grid is run" in message
    assert stderr_of("--set", change, "--set", GRID) == ""


def test_a_tokenizer_without_begin_and_end_is_said_to_join_documents(
    experiment: Path, tmp_path: Path
) -> None:
    pieces = Tokenizer(WordLevel({"the": 0, "?": 1}, unk_token="?"))
    pieces.save(str(tmp_path / "tokenizer.json"))
    command = ["train", str(experiment), "--profile", "cpu", "--device", "cpu", "--dry-run"]
    told = CliRunner().invoke(app, [*command, "--set", f"training.tokenizer={tmp_path}"]).stderr
    assert "neither a begin-of-text nor an end-of-text token" in told
    assert "neither" not in CliRunner().invoke(app, command).stderr


def test_tokens_by_size(plan_of: PlanOf) -> None:
    plan = plan_of('training.sizes=["300k", "1m"]', "training.num_tokens_by_size={1m=1920}", GRID)
    assert {(run.size, run.role, plan.num_tokens(run)) for run in plan.runs} == {
        ("300k", "tuning", 1152),
        ("300k", "final", 1152),
        ("1m", "final", 1920),
    }


def test_sizes_are_chosen_from_a_table_by_size(plan_of: PlanOf) -> None:
    """A profile's table has tokens for each of its sizes; with one of them the others have no effect."""
    chosen = plan_of('training.sizes=["300k"]', "training.num_tokens_by_size={1m=1920}", GRID)
    assert [run.size for run in chosen.runs] == ["300k"] * len(chosen.runs)


def test_seeds_by_size(plan_of: PlanOf) -> None:
    plan = plan_of('training.sizes=["300k", "1m"]', "training.seeds_by_size={300k=[0, 1, 2]}")
    seeds = [(run.size, run.seed) for run in plan.final_runs if run.model_name == "retnet"]
    assert seeds == [("300k", 0), ("300k", 1), ("300k", 2), ("1m", 0)]


@pytest.mark.parametrize(("size", "expected"), [("300k", "1m"), ("1m", "1m"), ("3m", "1m"), ("6m", "6m")])
def test_a_size_takes_the_rate_of_the_nearest_tuned_size_below(
    plan_of: PlanOf, size: str, expected: str
) -> None:
    plan = plan_of(GRID, 'training.sizes=["300k", "1m", "3m", "6m"]', 'training.tuning_sizes=["6m", "1m"]')
    assert plan.tuned_at(TrainingRun("retnet", size, 0, 1, "final", None)) == expected


def test_models_have_the_tokenizers_vocabulary_and_are_matched(plan: TrainingPlan) -> None:
    configs = list(plan.models.values())
    assert {config.vocab_size for config in configs} == {257}
    few, many = sorted(costs.num_params_nonembedding(config) for config in configs)
    assert many / few < 1.01


@pytest.mark.parametrize(
    "change",
    [
        "training.batch_size=3",
        "training.seq_len=47",
        "training.num_tokens=960",
        "training.learning_rates=[0.004]",
        "training.recipe=gla",
        "training.seeds=[1]",
        "training.micro_batch_size=1",
        "training.autocast=bfloat16",
        "models.retnet.chunk_size=16",
        "models.retnet.decay=paper",
        "training.corpus=python",
    ],
)
def test_what_determines_a_run_changes_its_fingerprint(plan_of: PlanOf, change: str) -> None:
    assert fingerprint(plan_of(change)) != fingerprint(plan_of())


@pytest.mark.parametrize(
    "change", ["training.validate_every=2", "training.checkpoint_every=1", "training.keep_last=5"]
)
def test_what_only_watches_a_run_does_not(plan_of: PlanOf, change: str) -> None:
    assert fingerprint(plan_of(change)) == fingerprint(plan_of())


@pytest.mark.parametrize(("backend", "same"), [("sdpa", True), ("products", True), ("reference", False)])
def test_what_decode_steps_alone_run_by_does_not_either(plan_of: PlanOf, backend: str, same: bool) -> None:
    def of_transformer(plan: TrainingPlan) -> str:
        return next(plan.fingerprint(run) for run in plan.final_runs if run.model_name == "transformer")

    plan = plan_of(f"models.transformer.backend={backend}")
    assert (of_transformer(plan) == of_transformer(plan_of())) is same


def fingerprint(plan: TrainingPlan) -> str:
    return plan.fingerprint(plan.final_runs[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("models.retnet.size=1m", "models.retnet has the size '1m' of its own"),
        ('training.sizes=["2m"]', "unknown size '2m'"),
        ("models.transformer.ffn_dim=800", "not matched"),
        ("training.num_tokens=95", "there must be one step"),
        ("training.num_tokens_by_size={1m=95}", "num_tokens is 95 .* there must be one step"),
        ("training.tuning_tokens=95", "tuning_tokens is 95 .* there must be one step"),
        ("training.num_tokens_by_size={2m=960}", "num_tokens_by_size has '2m', which is no size"),
        ("training.seeds=[0, 0]", "a value stands in it twice"),
        ("training.seeds_by_size={300k=[1, 1]}", "a value stands in it twice"),
        ("training.seeds_by_size={300k=[]}", "seeds_by_size.300k"),
        ("dtype=bfloat16", "dtype=bfloat16': no training reads 'dtype'. Set training.autocast"),
        ("compile=true", "no training reads 'compile'. Set training.compile"),
        ("size=1m", "no training reads 'size'. Set training.sizes"),
        ("rounds=2", "no training reads 'rounds'. Give it to `retbench run`"),
        ("training.corpus=nowhere", "unknown corpus 'nowhere'"),
        ("training.tokenizer=nothing", "unknown tokenizer 'nothing'"),
    ],
)
def test_what_cannot_be_trained_is_refused(plan_of: PlanOf, change: str, message: str) -> None:
    grid = (GRID,) if "tuning" in change else ()
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        plan_of(change, *grid)


@pytest.mark.parametrize("revision", [None, "0123abc"])
def test_how_much_is_packed_of_a_data_set_of_the_hub_determines_a_run(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    monkeypatch.setattr("retbench.data.corpora.FileCorpus.revision", revision)
    plans = [plan_of(GRID, "training.tuning_tokens=192", f"training.num_tokens={n}") for n in (960, 1152)]
    short, long = (plan.fingerprint(plan.tuning_runs[0]) for plan in plans)
    assert (short == long) == (revision is None)  # files are packed whole


def test_as_much_is_packed_of_a_data_set_of_the_hub_as_the_longest_run_reads_once(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retbench.data.corpora.FileCorpus.revision", "0123abc")
    plan = plan_of('training.sizes=["300k", "1m"]', "training.num_tokens_by_size={1m=1920}")
    assert plan.max_packed_tokens is not None
    assert plan.max_packed_tokens // (plan.spec.seq_len + 1) == 20 * plan.spec.batch_size


def test_a_model_with_a_checkpoint_is_not_trained(plan_of: PlanOf) -> None:
    assert plan_of("models.retnet.checkpoint=somewhere").model_names == ["transformer"]


def test_shards_of_a_training_are_sizes_and_seeds_with_all_models(plan_of: PlanOf) -> None:
    plan = plan_of('training.sizes=["300k", "1m"]', "training.seeds=[0, 1]")
    parts = [replace(plan, shard=Shard(number, 3)) for number in (1, 2, 3)]
    found = [run for part in parts for run in part.runs]
    assert len(found) == len(plan.runs) == 8
    assert set(found) == set(plan.runs)
    for part in parts:
        names: dict[tuple[str, int], set[str]] = {}
        for run in part.runs:
            names.setdefault((run.size, run.seed), set()).add(run.model_name)
        assert all(models == {"retnet", "transformer"} for models in names.values())
        assert all(part.fingerprint(run) == plan.fingerprint(run) for run in part.runs)


def test_with_a_grid_shards_are_models_with_all_their_runs(plan_of: PlanOf) -> None:
    plan = plan_of(GRID, 'training.sizes=["300k", "1m"]', "training.seeds=[0, 1]")
    parts = [replace(plan, shard=Shard(number, 2)) for number in (1, 2)]
    assert [{run.model_name for run in part.runs} for part in parts] == [{"retnet"}, {"transformer"}]
    assert {run for part in parts for run in part.runs} == set(plan.runs)
    assert [len(part.tuning_runs) for part in parts] == [3, 3]


def test_a_shard_without_runs_says_so(experiment: Path, tmp_path: Path) -> None:
    words = ["train", str(experiment), "--profile", "cpu", "--device", "cpu", "--shard", "2/2"]
    for more in ([], ["--dry-run"], ["--json"]):
        done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), *more])
        assert done.exit_code == 0, done.output
        text = " ".join(done.stdout.split())
        assert "hard 2/2 has no runs, so there is nothing to train" in text
        assert "The plan has 1 pair of size and seed." in text
    assert not (tmp_path / "out").exists()


def test_published_weights_are_another_run_only_for_models_that_have_such() -> None:
    plain = make_training_plan("kin_quality", "smoke", "cpu", ())
    published = make_training_plan("kin_quality", "smoke", "cpu", ("training.initialisation=published",))
    changed = {
        one.model_name
        for one, other in zip(plain.final_runs, published.final_runs, strict=True)
        if plain.fingerprint(one) != published.fingerprint(other)
    }
    assert changed == {"mamba2", "rwkv6", "retnet", "gated_retnet", "hybrid", "yoco"}
