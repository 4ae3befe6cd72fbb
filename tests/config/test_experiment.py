import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.config.experiment_files import list_experiments, load_experiment
from retbench.errors import ConfigError


def test_reads_a_file_with_its_defaults(tiny_experiment: Path) -> None:
    experiment = load_experiment(str(tiny_experiment))
    assert experiment.name == "tiny"
    profile = experiment.profile("smoke")
    assert (profile.dtype, profile.seed, profile.cuda_graph) == ("float32", 0, False)
    assert profile.workloads.decode.context_len == (64, 128)
    assert profile.workloads.decode.batch_size == (1,)


def test_reads_a_file_as_an_editor_on_windows_writes_it(tiny_experiment: Path) -> None:
    expected = load_experiment(str(tiny_experiment))
    text = tiny_experiment.read_text(encoding="utf-8").replace("\n", "\r\n")
    tiny_experiment.write_bytes(text.encode("utf-8-sig"))
    assert load_experiment(str(tiny_experiment)) == expected


def test_a_name_finds_the_shipped_file() -> None:
    assert load_experiment("latency").name == "latency"


def test_what_was_read_cannot_be_changed(tiny_experiment: Path) -> None:
    experiment = load_experiment(str(tiny_experiment))
    with pytest.raises(ValueError, match="frozen"):
        experiment.title = "another"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("latncy", r"unknown experiment 'latncy'\. Did you mean 'latency'\?"),
        ("", "unknown experiment ''"),
        ("a/b", "unknown experiment 'a/b'"),
        ("absent.toml", "no experiment file at 'absent.toml'"),
        ("x" * 5000 + ".toml", "no experiment file"),
        ("nul\0.toml", r"no experiment file at 'nul\\x00.toml'"),
        (".toml", "no experiment file"),
    ],
)
def test_a_wrong_name_is_explained(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(name)


def test_a_folder_is_no_experiment(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match="no experiment file"):
        load_experiment(str(tmp_path / "folder.toml"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_explained(tiny_experiment: Path) -> None:
    tiny_experiment.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_experiment(str(tiny_experiment))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Tiny"', "title = ", "not valid TOML"),
        ('title = "Tiny"', 'titel = "Tiny"', r"\[top level\] has no field 'titel'\. Did you mean 'title'\?"),
        ('title = "Tiny"', 'title = "Tiny"\nzzz = 1', r"no field 'zzz'\. Its fields are title, "),
        ('title = "Tiny"', 'title = "Tiny"\nnames = 1', r"no field 'names'\. Its fields are title, "),
        ('title = "Tiny"', "", "the field 'title' is missing"),
        ('title = "Tiny"', 'name = "x"\ntitle = "Tiny"', "'name' is not allowed"),
        ("warmup_s", "warmups", r"\[profiles\.smoke\] has no field 'warmups'\. Did you mean 'warmup_s'\?"),
        ("warmup_s = 0.0", "warmup_s = inf", "finite"),
        ("rounds = 1", "rounds = 0", "'profiles.smoke.rounds' is 0"),
        ("rounds = 1", 'rounds = "many"', "'profiles.smoke.rounds' is 'many'"),
        ("rounds = 1", "rounds = true", "'profiles.smoke.rounds' is true: give a number"),
        ("[64, 128]", "[true, 64]", r"decode.context_len' is \[True, 64\]: give a number"),
        ("[64, 128]", "[]", r"is \[\]: give a list of at least 1\."),
        ("rounds = 1", 'rounds = 1\ncompile = "maybe"', "is 'maybe': give true or false or 'auto'"),
        ("[64, 128]", "[0]", "give 1 or more"),
        ("[64, 128]", "[64, 64]", "a value stands in it twice"),
        ('"retnet"', '"retnte"', "'architecture' is 'retnte'"),
        ('architecture = "retnet"', "", r"\[models.retnet\] lacks the field 'architecture'"),
        ('architecture = "retnet"', 'architecture = "retnet"\nnum_head = 2', "has no field 'num_head'"),
        ('architecture = "retnet"', 'architecture = "retnet"\nbackend = "sdpa"', "is 'sdpa'"),
    ],
)
def test_a_fault_in_the_file_names_file_place_and_cure(
    tiny_experiment: Path, old: str, new: str, message: str
) -> None:
    text = tiny_experiment.read_text(encoding="utf-8")
    assert old in text
    tiny_experiment.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        load_experiment(str(tiny_experiment))
    assert str(tiny_experiment) in str(caught.value)


def test_a_file_that_is_no_text_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_experiment(str(path))


def test_overrides_go_into_the_named_profile_only() -> None:
    experiment = load_experiment("latency", ["rounds=9", "dtype=bfloat16"], profile="smoke")
    assert (experiment.profile("smoke").rounds, experiment.profile("smoke").dtype) == (9, "bfloat16")
    assert experiment.profile("cpu").rounds != 9


def test_a_fault_of_a_model_that_profiles_complete_is_said_once() -> None:
    with pytest.raises(ConfigError, match=r"'models\.retnet\.variant' is 'foo'") as caught:
        load_experiment("latency", ["models.retnet.variant=foo"], profile="smoke")
    assert str(caught.value).count("'foo'") == 1


def test_overrides_reach_models_and_workloads() -> None:
    experiment = load_experiment(
        "latency",
        ["models.retnet.variant=torchscale", "workloads.decode.context_len=[7]", 'size="1m"'],
        profile="smoke",
    )
    assert experiment.models["retnet"].variant == "torchscale"
    assert experiment.profile("smoke").workloads.decode.context_len == (7,)
    assert experiment.profile("smoke").size == "1m"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("rounds", "not of the form key=value"),
        ("round=3", r"has no field 'round'\. Did you mean 'rounds'\?"),
        ("rounds=abc", "'profiles.smoke.rounds' is 'abc'"),
        ("rounds=nan", "finite"),
        ("seed=99999999999999999999999999", "does not fit into 64"),
        ("seed=9223372036854775808", "give less than"),
        ("rounds=1000000000000000000", "'profiles.smoke.rounds' is 1000000000000000000: give at most"),
        ("timeout_s=1e300", "give at most"),
        ("workloads.decode.batch_size=[1000000000000000000]", "batch_size.0' is 1000000000000000000"),
        ("models.retnet.ffn_dim=1000000000000000000", r"\[models\].* 1,000,000,000,000,000,000"),
        ("rounds=" + "[" * 5000, "nested more than 64 levels"),
        ("a." * 5000 + "b=1", "the key has 5001 parts"),
        ("rounds=" + "9" * 5000, "--set 'rounds=9+"),
        ("size=\udcff", r"--set 'size=\\udcff'"),
        ("models.a/b.architecture=retnet", r"'models.a/b' is 'a/b', and becomes part of a path"),
        ("trained_by=../x/smoke", r"'profiles.smoke.trained_by' is '../x/smoke'"),
        ("size.x=1", "'size' is not a table"),
        ("models=3", "takes the names of the models to keep"),
        ("models=[]", "takes the names of the models to keep"),
        ("models=[retnet, 3]", "takes the names of the models to keep"),
        ("models=[retnett]", "--set models: unknown model 'retnett'. Did you mean 'retnet'?"),
        ("models.retnett.variant=fla", r"\[models.retnett\] lacks the field 'architecture'"),
        (
            "models.retnet.chunck_size=3",
            r"\[models.retnet\] has no field 'chunck_size'. Did you mean 'chunk_size'",
        ),
        ("models.foo.variant=fla", r"'architecture'\. Add it.* Those that have it: retnet, transformer\."),
        ("models.retnet.variant=zzz", r"'models\.retnet\.variant' is 'zzz'"),
        ("models.transformer.chunk_size=8", r"'models\.transformer\.chunk_size' is 8: leave it out"),
        (
            "models.retnet.revision=main",
            r"\[models\.retnet\]: revision is 'main', and there is no checkpoint",
        ),
        ("models.retnet.ffn_dim=1", r"'models\.retnet\.ffn_dim' is 1"),
        ("prefil=3", r"\[profiles\.smoke\] has no field 'prefil'\. Its fields are "),
        ("prefill=3", r"has no field 'prefill'\. Its fields are "),
        ("profiles=3", r"has no field 'profiles'\. Its fields are "),
        ("device=cuda", r"has no field 'device'\. It is set by the option --device\."),
        ("workloads.decod.context_len=[1]", r"\[profiles\.smoke\.workloads\] .* Did you mean 'decode'"),
        ("workloads.decode.context_len=1024", r"context_len' is 1024, and takes a list, e\.g\. \[1024\]"),
        ("workloads.decode.context_len=[-1]", r"context_len\.0' is -1: give 1 or more[^\n]*$"),
    ],
)
def test_a_wrong_override_is_explained(tiny_experiment: Path, item: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_experiment(str(tiny_experiment), [item], profile="smoke")
    assert "--set" in str(caught.value)


def test_a_key_that_is_set_twice_is_refused(tiny_experiment: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--set rounds: given 2 times\. Give it once\.$"):
        load_experiment(str(tiny_experiment), ["rounds=1", "rounds = 2"], profile="smoke")


def test_a_fault_of_a_whole_table_does_not_print_the_table() -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment("quality", ["training.num_tokens=10"], profile="smoke")
    assert "[profiles.smoke.training]: num_tokens is 10 and a step takes" in str(caught.value)
    assert "learning_rates" not in str(caught.value)


@pytest.mark.parametrize("text", ["profiles = 3", "profiles = []", "profiles.smoke = 3", "models = 3", ""])
def test_an_override_of_what_is_no_table_is_explained(tiny_experiment: Path, text: str) -> None:
    tiny_experiment.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_experiment(str(tiny_experiment), ["rounds=3", "models.retnet.size=1m"], profile="smoke")


def test_an_unknown_profile_is_explained(tiny_experiment: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"experiment 'tiny': unknown profile 'smok'\. Did you mean 'smoke'\?"
    ):
        load_experiment(str(tiny_experiment)).profile("smok")


@pytest.mark.parametrize(
    "name", ["../up", "/tmp/absolute", ".hidden", "a b", "", "..", "x" * 101, "line\nbreak", "\x1b[31mred"]
)
@pytest.mark.parametrize("table", ["models.retnet", "profiles.smoke"])
def test_a_name_that_leaves_its_folder_is_refused(tiny_experiment: Path, table: str, name: str) -> None:
    kind = table.partition(".")[0]
    text = tiny_experiment.read_text(encoding="utf-8").replace(f"[{table}", f"[{kind}.{json.dumps(name)}")
    tiny_experiment.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"becomes part of a path|cannot be printed") as caught:
        load_experiment(str(tiny_experiment))
    assert str(caught.value).replace("\n", "").isprintable()
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("stem", ["my experiment", "-x", "x" * 101])
def test_an_experiment_s_file_is_called_by_a_name(tiny_experiment: Path, stem: str) -> None:
    path = tiny_experiment.rename(tiny_experiment.with_name(f"{stem}.toml"))
    with pytest.raises(ConfigError, match=r"called after its file, and .* Rename the file\. Use"):
        load_experiment(str(path))


def test_a_file_with_thousands_of_faults_is_explained_in_some_lines(tiny_experiment: Path) -> None:
    faults = "".join(f"x{number} = 1\n" for number in range(3000))
    tiny_experiment.write_text(faults + tiny_experiment.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ConfigError, match="2980 more faults") as caught:
        load_experiment(str(tiny_experiment))
    assert len(str(caught.value).splitlines()) < 50


@given(st.text(), st.text())
def test_no_override_whatsoever_gives_a_traceback(key: str, value: str) -> None:
    with contextlib.suppress(ConfigError):
        load_experiment("latency", [f"{key}={value}"], profile="smoke")


# Whole lines shuffled, dropped and doubled reach much deeper into the reader than random characters do.
LINES = list_experiments()["latency"].read_text(encoding="utf-8").splitlines()


@given(st.lists(st.sampled_from([*LINES, "x = 1", "models = 1", "[[profiles]]", "[profiles]", "a.b = []"])))
def test_no_file_whatsoever_gives_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "shuffled.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with contextlib.suppress(ConfigError):
        load_experiment(str(path), ["rounds=2"], profile="smoke")


def test_listed_experiments_are_files_called_after_themselves() -> None:
    experiments = list_experiments()
    assert {"latency", "memory"} <= set(experiments)
    assert all(path.is_file() and path.stem == name for name, path in experiments.items())


def test_a_batch_size_that_is_to_be_found_cannot_be_given(tiny_experiment: Path) -> None:
    search = ["workloads.largest_batch.context_len=[64]", "workloads.largest_batch.batch_size=[1, 8]"]
    with pytest.raises(ConfigError, match=r"batch_size is \[1, 8\] in workload 'largest_batch', which finds"):
        load_experiment(str(tiny_experiment), search, profile="smoke")


OWN_MODELS = """
[profiles.gpu]
size = "1m"
[profiles.gpu.models.retnet]
backend = "fla"
[profiles.gpu.models.other]
architecture = "retnet"
workloads = ["prefill"]
[profiles.gpu.workloads.decode]
context_len = [64]
"""


@pytest.fixture
def with_own_models(tiny_experiment: Path) -> str:
    """An experiment one of whose profiles replaces a field of a model, and adds a model."""
    with tiny_experiment.open("a", encoding="utf-8") as file:
        file.write(OWN_MODELS)
    return str(tiny_experiment)


def test_a_profile_replaces_fields_of_models_and_adds_models(with_own_models: str) -> None:
    experiment = load_experiment(with_own_models)
    models = experiment.of_profile("gpu").models
    assert {name: spec.backend for name, spec in models.items()} == {
        "retnet": "fla",
        "transformer": "auto",
        "other": "chunkwise",
    }
    assert experiment.of_profile("smoke").models == experiment.models
    assert experiment.models["retnet"].backend == "chunkwise"
    assert experiment.of_profile("gpu").of_profile("gpu").models == models


def test_an_override_of_a_model_wins_over_its_profile(with_own_models: str) -> None:
    overrides = ["models.retnet.backend=recurrent", "models.other.decay=single"]
    models = load_experiment(with_own_models, overrides, profile="gpu").of_profile("gpu").models
    assert models["retnet"].backend == "recurrent"
    assert models["other"].decay == "single"
    with pytest.raises(ConfigError, match=r"\[models.other\] lacks the field 'architecture'"):
        load_experiment(with_own_models, overrides, profile="smoke")


@pytest.mark.parametrize(
    ("item", "kept"),
    [
        ("models=[transformer, other]", ["transformer", "other"]),
        ("models=['other', 'retnet']", ["retnet", "other"]),  # in the order of the experiment
        ("models = retnet", ["retnet"]),
    ],
)
def test_an_override_keeps_the_models_that_it_lists(with_own_models: str, item: str, kept: list[str]) -> None:
    overrides = [item, "models.other.decay=single"]
    whole = load_experiment(with_own_models, overrides[1:], profile="gpu").of_profile("gpu").models
    models = load_experiment(with_own_models, overrides, profile="gpu").of_profile("gpu").models
    assert models == {name: whole[name] for name in kept}
    assert list(models) == kept


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'workloads = ["prefill"]',
            'workloads = ["prefil"]',
            "models.other names the workload 'prefil'; known are",
        ),
        ('backend = "fla"', 'backend = "flash"', r"profiles\.gpu\.models\.retnet.*'flash'"),
        ('backend = "fla"', 'backnd = "fla"', "has no field 'backnd'"),
    ],
)
def test_a_fault_in_the_models_of_a_profile_is_explained(
    with_own_models: str, old: str, new: str, message: str
) -> None:
    path = Path(with_own_models)
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_experiment(with_own_models)
