"""A user's architecture, as in examples/min_gru: it passes the equivalence check, and what is wrong in it is named."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from retbench.architectures.blame import blaming_package
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import architectures, named_specs
from retbench.cli import app
from retbench.data.text import read_tokens
from retbench.errors import ConfigError, GateError
from retbench.mixers.mixer import StateTensor
from retbench.models.build import build_model
from retbench.models.equivalence import check_equivalence
from retbench.records.record import Gate
from retbench.training.engine import GeneratedExamples, train_all
from retbench.training.planning import make_training_plan
from retbench.user_packages import ARCHITECTURES
from tests.checkpoints.stored import save_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "min_gru"
ENTRY = metadata.EntryPoint("min_gru", "min_gru.architecture:ARCHITECTURE", ARCHITECTURES)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example as an installed package, in place of any other architectures."""
    monkeypatch.syspath_prepend(EXAMPLE)
    others, mine = metadata.entry_points, {"group": ARCHITECTURES}
    monkeypatch.setattr(metadata, "entry_points", lambda **kw: [ENTRY] if kw == mine else others(**kw))
    architectures.cache_clear()
    yield
    architectures.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "min_gru"]:
        del sys.modules[name]


def mixer() -> Any:
    return sys.modules["min_gru.config"].MinGru


def module() -> Any:
    from min_gru.module import MinGruModule  # type: ignore[import-not-found]

    return MinGruModule


def checked(dtype: torch.dtype = torch.float32) -> Gate:
    config = resolve_model(named_specs()["min_gru"], "300k")
    with blaming_package(config):
        model = build_model(config, dtype=dtype, device="cpu", seed=0, backend="chunkwise")
        return check_equivalence(model, read_tokens(64)[None], depth=64, lengths=(1, 17, 33))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_example_is_equivalent_at_every_dtype(dtype: torch.dtype) -> None:
    gate = checked(dtype)
    assert gate.passed, gate.failures
    assert "recurrent = chunkwise" in {check.name for check in gate.checks}


def test_other_parameters_than_counted_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    architectures()
    monkeypatch.setattr(mixer(), "local_params", property(lambda self: 2 * self.d_model**2))
    with pytest.raises(ConfigError, match=r"counts 36,864 parameters, and its module has 27,648"):
        checked()


def test_a_mixer_that_mixes_nothing_is_not_equivalent(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = module().forward
    monkeypatch.setattr(module(), "forward", lambda self, *args, **named: 0 * forward(self, *args, **named))
    gate = checked()
    assert not gate.passed
    assert [check.name for check in gate.checks if not check.passed] == [
        "a changed token changes the next output"
    ]


def test_outputs_that_are_no_numbers_are_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = module().forward
    monkeypatch.setattr(
        module(), "forward", lambda self, *args, **named: torch.nan * forward(self, *args, **named)
    )
    assert checked().failures == "its outputs are not finite"


def test_a_mixer_must_note_the_executed_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = module().forward

    def silent(self: nn.Module, *args: Any, **named: Any) -> torch.Tensor:
        out: torch.Tensor = forward(self, *args, **named)
        self.executed = {}  # type: ignore[assignment]
        return out

    monkeypatch.setattr(module(), "forward", silent)
    with pytest.raises(ConfigError, match=r"minGRU: its module does not note the executed backend"):
        checked()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda out: out[0], r"\(2, 96\) in torch\.float32"),  # a batch of one hides it
        (lambda out: out[:, :1], r"\(1, 1, 96\) in torch\.float32"),
        (lambda out: out.double(), r"\(1, 2, 96\) in torch\.float64"),
        (lambda out: (out, None), "tuple"),
        (lambda out: None, "NoneType"),
    ],
)
def test_another_kind_of_tensor_than_the_input_is_refused(
    change: Callable[[torch.Tensor], object], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = module().forward
    monkeypatch.setattr(module(), "forward", lambda *args, **named: change(forward(*args, **named)))
    with pytest.raises(ConfigError, match=rf"returns {found} for an input of \(1, 2, 96\) in torch\.float32"):
        checked()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sequences_that_mix_in_a_batch_are_not_equivalent(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reshape that takes the batch for the heads does this: every pass over one sequence is right."""
    forward = module().forward
    monkeypatch.setattr(module(), "forward", lambda *args, **named: forward(*args, **named).flip(0))
    gate = checked(dtype)
    assert [check.name for check in gate.checks if not check.passed] == [
        "a sequence does not depend on the others of its batch"
    ]


def test_an_incomplete_mixer_is_refused_with_the_missing_names(monkeypatch: pytest.MonkeyPatch) -> None:
    architectures()
    architectures.cache_clear()
    monkeypatch.delattr(mixer(), "decode_flops")
    monkeypatch.delattr(mixer(), "title")
    with pytest.raises(ConfigError, match=r"min_gru\.config\.MinGru does not define title, decode_flops"):
        architectures()


@pytest.mark.parametrize("of", [lambda kind: kind, lambda kind: (kind(d_model=8),), lambda kind: None])
def test_what_is_no_tuple_of_mixers_is_refused(of: Callable[[Any], object]) -> None:
    """A tuple of one class without its comma is the class."""
    object.__setattr__(architectures()["min_gru"], "mixers", of(mixer()))
    architectures.cache_clear()
    result = CliRunner().invoke(app, ["list", "--models"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("retbench: architecture 'min_gru': mixers is ")
    assert result.stderr.endswith("with a comma after a single one: mixers = (MyMixer,).\n")


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("presets", {}),  # neither `list --models` nor `verify` would find it
        ("presets", ["plain"]),
        ("presets", {"plain": "wide"}),
        ("spec", dict),
        ("resolve", "resolve"),
    ],
)
def test_a_field_that_cannot_be_used_is_refused(field: str, given: object) -> None:
    object.__setattr__(architectures()["min_gru"], field, given)
    architectures.cache_clear()
    result = CliRunner().invoke(app, ["verify", "min_gru"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"retbench: architecture 'min_gru': {field} is {given!r}. Give a")


def test_a_default_form_that_a_mixer_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    architectures()
    monkeypatch.setattr(mixer(), "default_form", "chunked")
    architectures.cache_clear()
    result = CliRunner().invoke(app, ["verify", "min_gru"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "default_form is 'chunked', and its forms are chunkwise, recurrent. Name one" in result.stderr


@pytest.mark.parametrize("taken", ["linear_attention", "min_gru"])
def test_a_mixer_with_the_name_of_another_is_refused(taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration names its mixers: that of the other class would be measured."""
    found = architectures()["min_gru"]
    architectures.cache_clear()
    namesake = type("Namesake", (mixer(),), {"__annotations__": {"mixer": str}, "mixer": taken})
    monkeypatch.setitem(vars(found), "mixers", (mixer(), mixer(), namesake))
    with pytest.raises(ConfigError, match=rf"Namesake: its name, mixer = '{taken}', is taken by \S+\.[A-Z]"):
        architectures()


def test_a_preset_that_its_tables_do_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = architectures()["min_gru"]
    architectures.cache_clear()
    monkeypatch.setitem(found.presets, "wide", {"widht": 3})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"presets\['wide'\].*no field 'widht'"):
        architectures()


def test_a_recipe_that_returns_nothing_is_named() -> None:
    object.__setattr__(architectures()["min_gru"], "resolve", lambda spec, size: None)
    result = CliRunner().invoke(app, ["list", "--models"])
    assert (result.exit_code, result.stdout) == (2, "")
    expected = "architecture 'min_gru': its `resolve` returned None. Return a ModelConfig."
    assert result.stderr == f"retbench: {expected}\n"


def test_a_model_that_calls_itself_another_architecture_is_refused() -> None:
    """A recipe that was copied would be recorded, and compared, as what it was copied from."""
    found = architectures()["min_gru"]
    resolve = found.resolve
    copied = {"architecture": "transformer"}
    object.__setattr__(found, "resolve", lambda spec, size: resolve(spec, size).model_copy(update=copied))
    with pytest.raises(ConfigError, match=r"'min_gru': its `resolve` .* architecture = 'transformer'"):
        resolve_model(named_specs()["min_gru"], "300k")


def test_a_chunk_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        architectures()["min_gru"].spec.model_validate({"architecture": "min_gru", "chunk_size": -1})


def test_a_mixer_that_is_not_listed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    object.__setattr__(architectures()["min_gru"], "mixers", ())
    with pytest.raises(ConfigError, match=r"its mixer 'min_gru' is not known here"):
        resolve_model(named_specs()["min_gru"], "300k")


@pytest.mark.parametrize(("name", "width"), [("hiden", 96), ("hidden", 1)])
def test_a_state_that_the_module_does_not_have_is_reported_with_what_is_declared(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    architectures()
    monkeypatch.setattr(mixer(), "state", (StateTensor(name, (width,), wide=True),))
    with pytest.raises(ConfigError, match=rf"minGRU has the forms .* and the state {name} \({width},\)\."):
        checked()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_tensor_that_nothing_writes_is_refused(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes would be reported as those of the model's state."""
    architectures()
    declared = (StateTensor("hidden", (96,), wide=True), StateTensor("spare", (96,)))
    monkeypatch.setattr(mixer(), "state", declared)
    with pytest.raises(ConfigError, match=r"minGRU: after 64 tokens its state tensor 'spare' is still zero"):
        checked(dtype)


@pytest.mark.parametrize("given", [-3, None, float("nan")])
def test_a_cost_that_is_no_number_from_0_on_is_refused(
    given: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = named_specs()["min_gru"]
    monkeypatch.setattr(mixer(), "decode_flops", lambda self, context_len: given)
    with pytest.raises(ConfigError, match=rf"min_gru\.config\.MinGru\.decode_flops gives {given}"):
        resolve_model(spec, "300k")


@pytest.mark.parametrize("command", ["predict", "verify"])
def test_a_cost_that_fails_is_told_with_its_line_by_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    architectures()
    monkeypatch.setattr(sys.modules["min_gru.config"], "CHUNK_SIZE", None)
    result = CliRunner().invoke(app, [command, "min_gru", "--size", "300k"])
    assert result.exit_code == 2
    assert re.fullmatch(
        r"retbench: package 'min_gru': TypeError: .* \(in .*config\.py, line \d+\)\. .*\n", result.stderr
    )


def test_a_cost_that_takes_other_arguments_is_told_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    architectures()
    monkeypatch.setattr(mixer(), "decode_flops", lambda self: 0)
    result = CliRunner().invoke(app, ["verify", "min_gru", "--size", "300k"])
    assert result.exit_code == 2
    assert re.match(r"retbench: package 'min_gru': TypeError: .* takes 1 positional argument", result.stderr)


def test_a_missing_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    architectures()
    monkeypatch.setattr(mixer(), "implementation", "min_gru.modul:MinGruModule")
    with pytest.raises(ConfigError, match=r"'min_gru\.modul:MinGruModule' cannot be imported"):
        checked()


def test_what_fails_in_the_package_is_told_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["min_gru.module"] if module() else None, "_mix", lambda *args: args[99])
    with pytest.raises(ConfigError, match=r"package 'min_gru': IndexError: .*module\.py, line \d+\)"):
        checked()


def test_what_fails_in_a_checkpoint_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = resolve_model(named_specs()["min_gru"], "25k", vocab_size=257)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise")
    save_model(tmp_path / "mine", model, tokenizer="bytes")
    forward = module().forward
    monkeypatch.setattr(module(), "forward", lambda *args, **named: forward(*args, **named)[..., 1:])
    result = CliRunner().invoke(app, ["generate", str(tmp_path / "mine"), "--prompt", "A", "--device", "cpu"])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("retbench: package 'min_gru': RuntimeError: The size of")


TRAINED = """
title = "A tiny training"
source = "none: a test"
expect = "It ends."
[models.mine]
architecture = "retnet"
[profiles.smoke]
size = "25k"
threads = 1
[profiles.smoke.training]
sizes = ["25k"]
seq_len = 32
batch_size = 4
num_tokens = 512
recipe = "recall"
learning_rates = [4e-3]
validation_tokens = 128
validate_every = 4
checkpoint_every = 4
[profiles.smoke.training.task]
name = "mqar"
vocab_size = 64
num_pairs = [2]
[profiles.smoke.workloads.mqar]
num_pairs = { 32 = [2] }
limit = 4
"""


def test_a_mixer_is_checked_before_it_is_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(TRAINED, encoding="utf-8")
    plan = make_training_plan(str(tmp_path / "own.toml"), device="cpu")
    config = resolve_model(named_specs()["min_gru"], "25k", vocab_size=64)
    plan = replace(plan, models=dict.fromkeys(plan.models, config))
    train = partial(
        train_all, plan, GeneratedExamples(), tmp_path, notify=lambda event: None, stop=lambda: False
    )
    forward = module().forward
    with monkeypatch.context() as changed:
        changed.setattr(module(), "forward", lambda *args, **named: forward(*args, **named).flip(0))
        with pytest.raises(GateError, match=r"of 'mine' at size 25k are not equivalent: a sequence"):
            train()
    assert [path.name for path in tmp_path.iterdir()] == ["own.toml"]
    assert {result.status for result in train().runs} == {"ok"}
