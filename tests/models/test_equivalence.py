"""The equivalence check passes equivalent forms and fails a model whose forms differ."""

import pytest
import torch

from retbench.architectures.retnet import retnet_config
from retbench.config.experiment_files import load_experiment
from retbench.errors import ConfigError
from retbench.mixers import module as mixer_module
from retbench.mixers.state import LayerState
from retbench.models.build import build_model
from retbench.models.equivalence import LIMITS, check_equivalence, relative_error, step_error
from retbench.models.mixer_comparison import head_error
from retbench.ops import attention, linear_operator
from retbench.ops.position import Rotary
from retbench.planning.cells import resolve_models

TEXT = torch.randint(0, 256, (1, 600), generator=torch.Generator().manual_seed(0))
LENGTHS = (1, 17, 127, 301)
CONFIGS = {
    name: config.model_copy(update={"blocks": (config.blocks[0].model_copy(update={"count": 2}),)})
    for name, config in resolve_models(load_experiment("latency", ["size=1m"]), "cpu").items()
}
"""The pair, with two layers each."""


def build(name, dtype=torch.float32):
    backend = "chunkwise" if name == "retnet" else "sdpa"
    return build_model(CONFIGS[name], dtype=dtype, device="cpu", seed=0, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_equal_forms_pass(name, dtype):
    gate = check_equivalence(build(name, dtype), TEXT, depth=600, lengths=LENGTHS)
    assert gate.passed, [check for check in gate.checks if not check.passed]
    compared = {check.name for check in gate.checks}
    expected = {"parallel = chunkwise", "recurrent = chunkwise"} if name == "retnet" else {"reference = sdpa"}
    assert expected <= compared
    assert {check.length for check in gate.checks} == {*LENGTHS, 600}


@torch.no_grad()
def test_equal_forms_of_many_layers_pass_in_bfloat16():
    config = retnet_config(
        d_model=64,
        num_layers=32,
        num_heads=2,
        value_dim=128,
        ffn_dim=80,
        vocab_size=CONFIGS["retnet"].vocab_size,
    )
    model = build_model(config, dtype=torch.bfloat16, device="cpu", seed=4, backend="chunkwise")
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embedding" not in name:
            weight.mul_(8)  # products as large as those of a width of 4096
    gate = check_equivalence(model, TEXT, depth=301, lengths=LENGTHS)
    assert gate.passed, [check for check in gate.checks if not check.passed]
    assert max(check.error for check in gate.checks) < 0.01
    prompt = TEXT[:, :127]
    chunkwise = model(prompt)
    model.set_backend("recurrent")
    assert relative_error(model(prompt), chunkwise) > 0.1  # of which the logits know nothing


def forget_to_decay(monkeypatch):
    """A decode step without a decay."""
    honest = mixer_module.linear_decayed_step_
    monkeypatch.setattr(
        mixer_module,
        "linear_decayed_step_",
        lambda q, k, v, decay, state: honest(q, k, v, torch.ones_like(decay), state),
    )


def forget_to_decay_from_chunk_to_chunk(monkeypatch):
    """A chunkwise form that carries its state on undecayed."""
    honest = linear_operator.split_decay

    def factors(*args, **options):
        for made in honest(*args, **options):
            yield made._replace(total=torch.ones_like(made.total))

    monkeypatch.setattr(linear_operator, "split_decay", factors)


def keep_a_stale_state(monkeypatch):
    """The last block of a prompt computes a new state and keeps the old one."""
    honest = mixer_module.linear_last

    def stale(q, k, v, log_decay, state):
        return honest(q, k, v, log_decay, state)[0], state

    monkeypatch.setattr(mixer_module, "linear_last", stale)


def begin_from_nothing(monkeypatch):
    """The chunkwise form of a later segment takes the state for empty."""
    honest = mixer_module.linear_chunkwise
    monkeypatch.setattr(
        mixer_module,
        "linear_chunkwise",
        lambda q, k, v, g, state, **options: honest(q, k, v, g, None),
    )


def stand_one_too_far(monkeypatch):
    """Rotate tokens after a state by one position too much."""
    honest = Rotary.forward
    monkeypatch.setattr(
        Rotary,
        "forward",
        lambda self, start, *rest: honest(self, start + (start > 0), *rest)._replace(start=start),
    )


def write_one_too_early(monkeypatch):
    """Keys and values go where those of the token before are."""
    honest = LayerState.append
    monkeypatch.setattr(
        LayerState,
        "append",
        lambda state, name, entries, start: honest(state, name, entries, max(0, start - 1)),
    )


def read_one_too_few(monkeypatch):
    """A decode step does not see its own key."""
    honest = LayerState.append

    def short(state, name, entries, start):
        seen = honest(state, name, entries, start)
        return seen[:, :, :-1] if entries.shape[2] == 1 else seen

    monkeypatch.setattr(LayerState, "append", short)


def see_the_next_token(monkeypatch):
    """Queries behind a cache see one key too many."""
    honest = attention.attend_sdpa

    def late(q, k, v):
        if q.shape[2] in (1, k.shape[2]):
            return honest(q, k, v)
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2] + 1)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)

    monkeypatch.setitem(attention.BACKENDS, "sdpa", late)


DEFECTS = [
    ("retnet", forget_to_decay, "decode = chunkwise"),
    ("retnet", forget_to_decay_from_chunk_to_chunk, "recurrent = chunkwise"),
    ("retnet", keep_a_stale_state, "decode = chunkwise"),
    ("retnet", begin_from_nothing, "decode = chunkwise"),
    ("retnet", stand_one_too_far, "decode = chunkwise"),
    ("transformer", stand_one_too_far, "streamed state = whole"),
    ("transformer", write_one_too_early, "streamed state = whole"),
    ("transformer", read_one_too_few, "decode = sdpa"),
    ("transformer", see_the_next_token, "decode = sdpa"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "defect", "check"), DEFECTS)
def test_a_model_whose_forms_differ_is_stopped(monkeypatch, name, defect, check, dtype):
    defect(monkeypatch)
    gate = check_equivalence(build(name, dtype), TEXT, depth=301, lengths=LENGTHS)
    assert not gate.passed
    assert check in {found.name for found in gate.checks if not found.passed}


def test_the_token_at_which_a_product_vanishes_says_nothing_and_any_other_does():
    whole = torch.randn(1, 2, 40, 8, generator=torch.Generator().manual_seed(0))
    whole[0, 0, 0] *= 1e-6
    flipped, wrong = whole.clone(), whole.clone()
    flipped[0, 0, 0] *= -1
    wrong[0, 1, 39] *= -1
    assert head_error(flipped, whole, whole) < 1e-5
    assert head_error(wrong, whole, whole) > 1


def test_nothing_but_numbers_passes():
    nothing = torch.full((3,), torch.nan)
    assert relative_error(nothing, torch.ones(3)) == float("inf")
    heads = torch.ones(1, 2, 3, 4)
    assert head_error(heads * torch.nan, heads, heads) == float("inf")
    assert head_error(heads, heads / 0, heads / 0) == float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hybrid_is_checked_in_each_other_form_of_each_mixer_and_not_in_its_own(dtype):
    blocks = tuple(next(CONFIGS[name].layers) for name in ("retnet", "transformer"))
    config = CONFIGS["retnet"].model_copy(update={"blocks": blocks})
    model = build_model(config, dtype=dtype, device="cpu", seed=0, backend="chunkwise+sdpa")
    gate = check_equivalence(model, TEXT, depth=301, lengths=LENGTHS)
    assert gate.passed, [check for check in gate.checks if not check.passed]
    compared = {
        check.name.split(" = ")[0] for check in gate.checks if check.name.endswith(" = chunkwise+sdpa")
    }
    available = {name for name, reason in model.backends().items() if reason is None}
    # These read prompts as the model's own forms do: such a check could not fail.
    alike = {"retention=chunkwise", "attention=auto", "attention=sdpa", "attention=products"}
    alike |= {"retention=chunkwise_fp32"} if dtype == torch.float32 else set()
    assert alike <= available
    assert compared - {"decode"} == available - alike


def test_too_little_text_is_refused():
    with pytest.raises(ConfigError, match="needs 2047 tokens of text and got 600"):
        check_equivalence(build("retnet"), TEXT, depth=10)


def test_the_backend_is_what_it_was():
    model = build("retnet")
    model.set_backend("parallel")
    check_equivalence(model, TEXT, depth=600, lengths=LENGTHS)
    assert model.backend == "parallel"


def test_the_backend_is_what_it_was_even_where_a_form_finds_no_memory(monkeypatch):
    def starve(*_):
        raise MemoryError

    model = build("retnet")
    monkeypatch.setattr(model.mixers[0], "forms", model.mixers[0].forms | {"recurrent": starve})
    with pytest.raises(MemoryError):
        check_equivalence(model, TEXT, depth=600, lengths=LENGTHS)
    assert model.backend == "chunkwise"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_whose_logits_are_those_of_another_token_in_one_sequence_is_found(dtype):
    generator = torch.Generator().manual_seed(0)
    eager, other = (torch.randn(8, 1, 4096, generator=generator).to(dtype) for _ in range(2))
    assert step_error(eager.clone(), eager) == 0
    wrong = eager.clone()
    wrong[3] = other[3]
    assert step_error(wrong, eager) > 2 * LIMITS[dtype]
    wrong[3] = torch.nan
    assert step_error(wrong, eager) == float("inf")


def test_a_single_logit_that_rounding_moves_does_not_fail_a_step_in_16_bits():
    eager = torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = eager.clone()
    found[0, 0, 7] += 1
    assert relative_error(found, eager) > LIMITS[torch.bfloat16]
    assert step_error(found, eager) < 0.1 * LIMITS[torch.bfloat16]
