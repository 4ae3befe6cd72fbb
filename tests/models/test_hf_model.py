"""Models of transformers behind our interface: equal to transformers alone, in every way that a state is used."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retbench.checkpoints.loading import load_model
from retbench.checkpoints.reading import read_checkpoint
from retbench.errors import CapacityError, CheckpointError, ConfigError, UnsupportedError
from retbench.models.equivalence import check_equivalence
from retbench.models.hf import HfModel
from tests.models.hf_models import POSITIONS, VOCAB_SIZE, WINDOW, save_hf_model

pytestmark = pytest.mark.peers
pytest.importorskip("transformers")

NAMES = ("llama", "tied", "gpt2", "mistral", "gemma2", "mamba")
CLOSE = 1e-4


def load(folder: Path, dtype: torch.dtype = torch.float32, backend: str = "default") -> HfModel:
    model = load_model(read_checkpoint(str(folder), format="hf"), dtype=dtype, device="cpu", backend=backend)
    assert isinstance(model, HfModel)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = save_hf_model(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return get


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, saved: Callable[[str], Path]) -> HfModel:
    return load(saved(request.param))


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def text(batch_size: int = 1, length: int = 48) -> Tensor:
    return torch.randint(3, VOCAB_SIZE, (batch_size, length), generator=torch.Generator().manual_seed(1))


def alone(model: HfModel, tokens: Tensor) -> Tensor:
    """Logits of transformers without any of our code."""
    logits: Tensor = model.inner(input_ids=tokens, use_cache=False).logits
    return logits


def test_a_step_begins_at_a_depth_of_a_state_of_zeros(model: HfModel) -> None:
    """Each trial of the largest batch takes such a step."""
    state = model.init_state(3, 65)
    state.start_at(64)
    assert model(torch.zeros(3, 1, dtype=torch.int64), state).shape == (3, 1, VOCAB_SIZE)
    assert state.position == 65


def test_its_logits_are_those_of_transformers(model: HfModel) -> None:
    tokens = text(2)
    expected = alone(model, tokens)
    torch.testing.assert_close(model(tokens), expected)
    torch.testing.assert_close(model(tokens, last_only=True), expected[:, -1:])
    torch.testing.assert_close(model.logits_of(model.features(tokens))[0, 3:5], expected[0, 3:5])


def test_decoding_from_the_cache_equals_one_pass(model: HfModel) -> None:
    tokens = text(2)
    state = model.init_state(2, 48)
    found = [model.prefill(tokens[:, :30], state, segment_len=13)]
    found += [model(tokens[:, t : t + 1], state) for t in range(30, 48)]
    torch.testing.assert_close(torch.cat(found, dim=1), alone(model, tokens)[:, 29:], rtol=CLOSE, atol=CLOSE)
    assert state.position == 48


def test_a_window_that_a_model_brings_itself_stays(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import cache_utils

    class Own(cache_utils.StaticSlidingWindowLayer):  # type: ignore[misc]
        def update(self, *args: Tensor, **options: object) -> tuple[Tensor, Tensor]:
            found: tuple[Tensor, Tensor] = super().update(*args, **options)
            return found

    monkeypatch.setitem(cache_utils.STATIC_LAYER_TYPE_MAPPING, "sliding_attention", Own)
    cache = load(saved("mistral")).init_state(1, 48).cache  # type: ignore[attr-defined]
    assert {type(layer) for layer in cache.layers} == {Own}


def test_a_rewound_state_decodes_the_same_again(model: HfModel) -> None:
    tokens, state = text(), model.init_state(1, 48)
    model.prefill(tokens[:, :40], state)
    mark = state.mark()
    first = [model(tokens[:, t : t + 1], state) for t in (40, 41)]
    state.rewind(mark)
    assert all(torch.equal(model(tokens[:, t : t + 1], state), logits) for t, logits in enumerate(first, 40))


@pytest.mark.parametrize("start", [WINDOW - 4, WINDOW + 4])
def test_branches_go_on_from_a_shared_prefix(model: HfModel, start: int) -> None:
    prefix, tokens = text(2, start), text(3, 6)
    state = model.init_state(2, start)
    model.prefill(prefix, state)
    rows = torch.tensor([1, 0, 1])
    found = model(tokens, state.gather(rows, start + 6))
    expected = alone(model, torch.cat([prefix[rows], tokens], dim=1))[:, start:]
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)


def test_a_branch_without_room_for_the_prefix_is_refused(saved: Callable[[str], Path]) -> None:
    model = load(saved("llama"))
    state = model.init_state(1, 8)
    model.prefill(text(1, 8), state)
    with pytest.raises(CapacityError, match="do not fit its capacity of 7"):
        state.gather(torch.tensor([0]), 7)


def test_stored_tensors_restore_the_state(model: HfModel) -> None:
    tokens, state, other = text(), model.init_state(1, 48), model.init_state(1, 48)
    model.prefill(tokens[:, :30], state)
    other.load_tensors({name: tensor.clone() for name, tensor in state.tensors().items()})
    assert torch.equal(model(tokens[:, 30:31], state), model(tokens[:, 30:31], other))


def test_bytes_are_those_of_the_tensors(model: HfModel) -> None:
    for capacity in (8, 48):
        assert model.init_state(3, capacity).num_bytes == model.state_bytes(3, capacity)


def test_a_cache_has_the_bytes_of_its_keys_and_values(saved: Callable[[str], Path]) -> None:
    layers, heads, width, float32 = 2, 2, 8, 4
    assert load(saved("llama")).state_bytes(3, 48) == 3 * 48 * layers * heads * width * 2 * float32


def test_parameters_are_counted_as_transformers_has_them(model: HfModel) -> None:
    counts = model.config.whole_model
    assert counts is not None
    assert counts.num_params == model.inner.num_parameters()
    tied = model.inner.get_input_embeddings().weight is model.inner.get_output_embeddings().weight
    assert counts.num_params - counts.num_params_nonembedding == (1 if tied else 2) * VOCAB_SIZE * 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_equivalence_check_passes(
    model: HfModel, saved: Callable[[str], Path], dtype: torch.dtype
) -> None:
    gate = check_equivalence(load(saved("mistral"), dtype), text(1, 80), depth=80, lengths=(1, 17, 61))
    assert gate.passed
    assert {check.name for check in gate.checks} == {
        "default, short = long",
        "decode = default",
        "streamed state = whole",
    }


def test_the_equivalence_check_finds_a_cache_that_is_one_token_late(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(saved("llama"))
    step = model._compute

    def late(tokens: Tensor, state: object, last_only: bool) -> Tensor:
        if tokens.shape[1] == 1 and state is not None:
            state.position -= 1  # type: ignore[attr-defined]
            found = step(tokens, state, last_only)  # type: ignore[arg-type]
            state.position += 1  # type: ignore[attr-defined]
            return found
        return step(tokens, state, last_only)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "_compute", late)
    gate = check_equivalence(model, text(1, 80), depth=80, lengths=(1, 17, 61))
    assert [check.name for check in gate.checks if not check.passed]


def test_a_model_without_a_cache_is_refused_with_what_to_do(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HfModel, "_probe_cache", lambda self: [{}])
    with pytest.raises(UnsupportedError, match=r"hold no tensors\..* add another model as an architecture"):
        load(saved("llama"))


def test_a_model_that_cannot_be_built_is_refused_with_the_cause_alone(tmp_path: Path) -> None:
    """Code would not help a model that comes with none."""
    folder = save_hf_model("llama", tmp_path / "odd")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"num_attention_heads": 5}))
    with pytest.raises(CheckpointError, match=r"hidden size \(32\) is not a multiple .* heads \(5\)\.$"):
        load(folder)


def test_a_model_that_fails_with_a_static_cache_is_refused_with_the_cause(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import cache_utils

    monkeypatch.delitem(cache_utils.STATIC_LAYER_TYPE_MAPPING, "sliding_attention")
    with pytest.raises(
        UnsupportedError, match=r"'mistral' cannot be run .* \(KeyError: 'sliding_attention'\)"
    ):
        load(saved("mistral"))


def test_a_model_that_fails_with_free_room_in_a_cache_is_refused(saved: Callable[[str], Path]) -> None:
    """Falcon adds its ALiBi biases to the scores of a cache, which has more tokens than were read."""
    with pytest.raises(UnsupportedError, match="'falcon' cannot be run with the static cache"):
        load(saved("falcon"))


@pytest.mark.parametrize("name", ["gpt2", "gptj"])
def test_more_tokens_than_positions_are_refused(saved: Callable[[str], Path], name: str) -> None:
    model = load(saved(name))
    assert model.max_positions == POSITIONS
    with pytest.raises(UnsupportedError, match=f"embeddings of {POSITIONS} positions"):
        model.init_state(1, POSITIONS + 1)


def test_the_kernel_that_was_asked_for_runs(saved: Callable[[str], Path]) -> None:
    model = load(saved("llama"), backend="eager")
    model(text())
    assert model.executed_backends() == {"prefill": "transformers:eager"}
    with pytest.raises(ConfigError, match="loaded with 'eager'"):
        model.set_backend("sdpa")


def test_fused_decode_operators_are_refused(saved: Callable[[str], Path]) -> None:
    info = read_checkpoint(str(saved("llama")), format="hf")
    with pytest.raises(UnsupportedError, match="operators are those of another library"):
        load_model(info, dtype=torch.float32, device="cpu", backend="default", decode_operators="fused")


def test_code_of_a_checkpoint_runs_only_when_it_is_asked_for(tmp_path: Path) -> None:
    folder = save_hf_model("llama", tmp_path / "own")
    raw = json.loads((folder / "config.json").read_text())
    raw |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"},
    }
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(CheckpointError, match="`retbench run`: give --model with --trust-remote-code"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("rename", "named"),
    [
        (
            lambda name: f"_orig_mod.{name}",
            r"lm_head.weight and \d+ more are missing, and _orig_mod.lm_head.weight is no part",
        ),
        (
            lambda name: name.replace("0.mlp.up_proj", "0.mlp.up"),
            "model.layers.0.mlp.up_proj.weight is missing, and model.layers.0.mlp.up.weight is",
        ),
    ],
)
def test_weights_that_the_files_do_not_hold_are_never_random(
    tmp_path: Path, rename: Callable[[str], str], named: str
) -> None:
    folder = save_hf_model("llama", tmp_path / "renamed")
    stored = load_file(folder / "model.safetensors")
    save_file(
        {rename(name): tensor for name, tensor in stored.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(CheckpointError, match=named):
        load(folder)


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    folder = save_hf_model("llama", tmp_path / "wider")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"intermediate_size": 64}))
    with pytest.raises(CheckpointError, match=r"down_proj.weight' has shape \(32, 48\), expected \(32, 64\)"):
        load(folder)


def test_buffers_in_the_files_are_no_reason_to_refuse_a_model(saved: Callable[[str], Path]) -> None:
    """GLM-4 MoE stores the correction of each expert's score as a buffer."""
    model = load(saved("glm4_moe"))
    experts, counts = 4, model.config.whole_model
    assert counts is not None
    assert counts.num_params == model.inner.num_parameters() + experts
    torch.testing.assert_close(model(text()), alone(model, text()))


def test_another_number_of_parameters_than_the_files_hold_is_refused(saved: Callable[[str], Path]) -> None:
    info = read_checkpoint(str(saved("llama")), format="hf")
    block = info.config.blocks[0]
    wrong = block.model_copy(update={"mixer": block.mixer.model_copy(update={"total_params": 1})})
    info = info.model_copy(update={"config": info.config.model_copy(update={"blocks": (wrong,)})})
    with pytest.raises(CheckpointError, match="the files of the checkpoint hold 1"):
        load_model(info, dtype=torch.float32, device="cpu", backend="default")
