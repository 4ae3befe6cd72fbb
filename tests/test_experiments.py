"""Every shipped experiment is read, resolved and matched, and says what it reproduces and what to expect."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retbench.architectures import costs
from retbench.architectures.matching import MAX_MISMATCH, match_models, resolve_model
from retbench.cli import app
from retbench.cli.list import read_header
from retbench.config.evaluation import GridSpec
from retbench.config.experiment import Experiment
from retbench.config.experiment_files import list_experiments, load_experiment
from retbench.papers.papers import find_datasheet, find_number
from retbench.planning.cells import Cell, Evaluation, Settings, expand, resolve_models, seeded_models
from retbench.planning.plan import make_plan
from retbench.running.resume import Identity, identities_here
from retbench.workloads.workload import WORKLOADS

ROOT = Path(__file__).parents[1]
EXPERIMENTS = list_experiments()
PROFILES = [(name, profile) for name in EXPERIMENTS for profile in load_experiment(name).profiles]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_header_says_what_is_reproduced_and_what_to_expect(name: str) -> None:
    text = " ".join(read_header(EXPERIMENTS[name]))
    assert "arXiv:" in text
    assert "Expect " in text


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_every_training_run_leaves_snapshots_to_go_on_from(name: str, profile: str) -> None:
    training = load_experiment(name).profile(profile).training
    if training is not None and len(training.learning_rates) > 1:
        assert training.checkpoint_every < training.tuning_steps


@pytest.mark.parametrize("profile", ["smoke", "cpu"])
def test_another_model_leaves_the_measurements_of_the_others_what_they_are(profile: str) -> None:
    def identities(*overrides: str) -> dict[str, Identity]:
        plan = make_plan("latency", profile=profile, device="cpu", overrides=overrides)
        return identities_here(plan.cells)

    before = identities()
    after = identities("models.linear.architecture=linear")
    assert {cell_id: after.get(cell_id) for cell_id in before} == before
    assert len(after) == len(before) // 2 * 3


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_header_ends_with_what_it_costs_and_on_what(name: str) -> None:
    cost = read_header(EXPERIMENTS[name])[-1]
    assert re.search(r"`paper` needs .*GPU", cost)
    assert re.search(r"took|timed|an hour", cost)


def test_the_page_of_experiments_is_that_of_the_files() -> None:
    listed = CliRunner().invoke(app, ["list", "--page"])
    assert listed.exit_code == 0, listed.output
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert page == listed.stdout, "experiments/README.md is out of date: make pages"


def test_the_page_names_training_where_models_are_trained() -> None:
    page = CliRunner().invoke(app, ["list", "--page"]).stdout
    blocks = {name: page.partition(f"## [{name}](")[2].partition("\n## ")[0] for name in EXPERIMENTS}
    for name, block in blocks.items():
        assert f"retbench run {name}\n" in block
        assert read_header(EXPERIMENTS[name])[-1] in " ".join(block.split())
    assert "retbench train quality\nretbench run perplexity\n" in blocks["perplexity"]
    assert "retbench train ablations\nretbench run ablations\n" in blocks["ablations"]
    assert "retbench train" not in blocks["latency"]


@pytest.mark.parametrize("options", [["--page", "--sizes"], ["--page", "--json"]])
def test_the_page_is_asked_for_alone(options: list[str]) -> None:
    assert CliRunner().invoke(app, ["list", *options]).exit_code == 2


def test_the_header_of_quality_states_the_operations_of_its_training_on_gpus() -> None:
    """Six operations per parameter and token, at the sizes' names, for two models; 8 GPUs at 40 % of their peak."""
    spec = load_experiment("quality").profile("paper").training
    assert spec is not None
    tokens = spec.num_tokens + len(spec.learning_rates) * (spec.tuning_tokens or 0)
    params = sum(float(size.removesuffix("b")) * 1e9 for size in spec.sizes)
    operations = 2 * 6 * params * tokens
    days = {
        name: operations / (8 * 0.4 * find_datasheet(name).matmul_flops_per_s["bfloat16"]) / 86_400
        for name in ("a100-80gb", "h100-80gb")
    }
    cost = read_header(EXPERIMENTS["quality"])[-1]
    assert f"needs {operations:.1e} operations".replace("e+", "e") in cost
    assert round(days["a100-80gb"] / 30.4) == 5
    assert "five months of eight A100" in cost
    assert round(days["h100-80gb"] / 7) == 7
    assert "seven weeks of eight H100" in cost
    assert float(spec.sizes[0].removesuffix("b")) * 1e9 / params == pytest.approx(1 / 8, rel=0.1)
    assert "an eighth of that" in cost


def test_the_header_of_recall_tasks_has_every_number_of_the_two_models_in_its_table() -> None:
    def printed(place: str) -> str:
        return f"{100 * find_number(place).value:.1f}"

    text = " ".join(read_header(ROOT / "experiments" / "recall_tasks.toml"))
    for task in ("fda", "swde", "squad"):
        retnet, transformer = (
            printed(f"gla/recall/{name}_1.3b/{task}") for name in ("retnet", "transformer")
        )
        assert re.search(rf"{retnet}( % for RetNet)? and {transformer}\b", text), task
    others = [printed(f"gated_deltanet/recall/{name}/squad") for name in ("retnet", "transformer")]
    assert f"has RetNet behind, with {' and '.join(others)}" in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_source_names_a_table_or_figure(name: str) -> None:
    experiment = load_experiment(name)
    assert "Figure" in experiment.source or "Table" in experiment.source
    assert experiment.expect.endswith(".")
    assert len(experiment.title) <= 70


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_there_is_a_profile_for_every_machine(name: str) -> None:
    assert {"smoke", "cpu", "paper"} <= load_experiment(name).profiles.keys()


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_every_profile_resolves_and_matches(name: str, profile: str) -> None:
    experiment = load_experiment(name)
    cells = cells_of(experiment, profile)
    assert {cell.model_name for cell in cells} == matched(experiment.of_profile(profile)).models.keys()
    assert {cell.workload for cell in cells} <= WORKLOADS.keys()


def test_the_readme_names_the_models_that_are_more_than_1_percent_apart() -> None:
    apart: dict[str, str] = {}
    for name, profile in PROFILES:
        experiment = matched(load_experiment(name).of_profile(profile))
        if any(entry.checkpoint for entry in experiment.models.values()):
            continue  # they are as they were published
        chosen = experiment.profile(profile)
        for size in chosen.training.sizes if chosen.training else (chosen.size,):
            models = {entry: resolve_model(spec, size) for entry, spec in experiment.models.items()}
            mismatch = match_models(models, allow_mismatch=True, where=name)
            if mismatch > MAX_MISMATCH:
                apart[f"`{name}` at {size.upper()}"] = f"{100 * mismatch:.1f} %"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"within 1 % ({', '.join(apart)}: {' to '.join(sorted(set(apart.values())))})" in readme


@pytest.mark.parametrize("name", ["latency", "kin"])
def test_on_a_gpu_prompts_are_read_by_a_kernel_and_the_own_form_is_a_row_of_prefill_alone(name: str) -> None:
    cells = cells_of(load_experiment(name), "paper")
    backends = {(cell.model_name, cell.workload): cell.backend for cell in cells}
    assert backends["retnet", "prefill"] == "fla"
    assert backends["retnet_chunkwise", "prefill"] == "chunkwise"
    assert ("retnet_chunkwise", "decode") not in backends
    for profile in ("smoke", "cpu"):
        found = {cell.backend for cell in cells_of(load_experiment(name), profile)}
        assert "chunkwise" in found
        assert "fla" not in found


@pytest.mark.parametrize("name", ["latency", "kin"])
def test_on_a_gpu_every_linear_recurrence_runs_by_a_kernel_if_there_is_one(name: str) -> None:
    cells = cells_of(load_experiment(name), "paper")
    others = {"retnet_chunkwise", "linear"}  # the kernel takes no linear attention with a normaliser
    for cell in cells:
        forms = {form.rpartition("=")[2] for form in cell.model.forms}
        asked = {part.rpartition("=")[2] for part in cell.backend.split("+")}
        assert ("fla" in asked) == ("fla" in forms and cell.model_name not in others), cell.model_name
    assert all(cell.settings.cuda_graph for cell in cells)


TRAINED = [
    (name, gpus) for name, gpus in (("quality", 8), ("kin_quality", 1), ("mqar", 1), ("length_recall", 1))
]


@pytest.mark.parametrize(("name", "gpus"), TRAINED)
def test_training_in_paper_fits_the_gpus_of_its_header(name: str, gpus: int) -> None:
    """Weights, gradients and averages are sharded; activations are those of each GPU's own sequences."""
    experiment = load_experiment(name)
    spec = experiment.profile("paper").training
    assert spec is not None
    words = {1: "one", 8: "eight"}[gpus]
    assert re.search(rf"`paper` needs .*\b{words} .*GPU", read_header(EXPERIMENTS[name])[-1])
    usable = find_datasheet("a100-80gb").usable_bytes
    for size in spec.sizes:
        sized = load_experiment(name, [f'size="{size}"'], profile="paper")
        entries = sized.of_profile("paper").models
        for model_name, config in resolve_models(sized, "paper").items():
            sharded = 4 * costs.weight_bytes(config, "float32")
            whole = costs.training_memory_bytes(
                config,
                "float32",
                spec.micro_batch_size or spec.batch_size,
                spec.seq_len,
                entries[model_name].backend,
                checkpointing=experiment.profile("paper").activation_checkpointing,
            )
            assert sharded / gpus + whole - sharded < 0.9 * usable, (model_name, size)


def test_the_cost_of_training_has_a_row_of_each_kernel_on_a_gpu() -> None:
    backends = {cell.model_name: cell.backend for cell in cells_of(load_experiment("training_cost"), "paper")}
    assert backends["retnet_fla"] == "fla"
    assert backends["retnet_chunkwise"] == "chunkwise"
    assert "retnet_fla" not in load_experiment("training_cost").models


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_timed_profiles_have_the_rounds_that_an_interval_needs(name: str, profile: str) -> None:
    experiment = load_experiment(name)
    chosen = experiment.profile(profile)
    tables = chosen.workloads.specs.items()
    timed = {workload for workload, table in tables if isinstance(table, GridSpec)} - {"memory"}
    # A smoke run of more than a pair would not end within its 45 seconds: it shows that everything works, once.
    smoke = 3 if len(experiment.of_profile(profile).models) == 2 else 1
    assert chosen.rounds >= (0 if not timed else smoke if profile == "smoke" else 5)
    assert chosen.min_steps >= 20


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_profiles_grow(name: str) -> None:
    """Smoke is the smallest in size and length, the paper's the largest."""
    smoke, cpu, paper = (work_of(load_experiment(name), profile) for profile in ("smoke", "cpu", "paper"))
    assert smoke < cpu < paper


def work_of(experiment: Experiment, profile: str) -> int:
    """Parameters times the deepest context: a rough measure of what a profile costs."""
    return max(
        cell.model.d_model**2 * cell.model.num_layers * cell.point.context_len
        for cell in cells_of(experiment, profile)
    )


def matched(experiment: Experiment) -> Experiment:
    """The experiment without models that only their own checkpoint describes."""
    models = {name: entry for name, entry in experiment.models.items() if entry.architecture != "hf"}
    return experiment.model_copy(update={"models": models})


def cells_of(experiment: Experiment, profile: str) -> list[Cell]:
    """Every cell of the matched models of a profile, with drawn weights where it measures trained ones."""
    experiment = matched(experiment.of_profile(profile))
    chosen = experiment.profile(profile)
    settings = Settings(
        dtype=chosen.dtype,
        device="cpu",
        threads=2,
        seed=chosen.seed,
        warmup_s=chosen.warmup_s,
        min_steps=chosen.min_steps,
        cuda_graph=chosen.cuda_graph,
    )
    subjects = seeded_models(experiment, profile)
    evaluation = Evaluation(tokenizer="bytes", tokenizer_fingerprint="0")
    inputs = {
        name: {
            (subject.label, point.task or ""): evaluation for subject in subjects for point in spec.points()
        }
        for name, spec in chosen.workloads.specs.items()
    }
    return expand(experiment, profile, settings, models=subjects, inputs=inputs)
