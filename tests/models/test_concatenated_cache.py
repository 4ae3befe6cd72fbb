"""A cache that is concatenated to a copy at every token computes what a preallocated one computes, and costs more."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from retbench.architectures import costs
from retbench.architectures.configs import parse_model_config
from retbench.architectures.matching import resolve_model
from retbench.architectures.transformer import TransformerSpec
from retbench.models.build import build_model
from retbench.models.equivalence import check_equivalence
from retbench.models.generation import generate

PROMPT, DECODED = 37, 6


def pair(variant="llama", num_kv_heads=None, backend="sdpa", dtype=torch.float64):
    """Return a model with a preallocated cache and one with a concatenated cache, of the same weights."""
    models = []
    for cache in ("preallocated", "concat"):
        fields = {"variant": variant, "num_kv_heads": num_kv_heads, "cache": cache}
        config = resolve_model(TransformerSpec(architecture="transformer", **fields), "1m")
        models.append(build_model(config, dtype=dtype, device="cpu", seed=0, backend=backend))
    return models


def text(batch, length, seed=0):
    return torch.randint(0, 1024, (batch, length), generator=torch.Generator().manual_seed(seed))


def prefilled(model, batch=2):
    """Return the state after a prompt that is taken in segments."""
    state = model.init_state(batch, PROMPT + 4 * DECODED)
    model.prefill(text(batch, PROMPT), state, segment_len=16)
    return state


@torch.inference_mode()
def decode(model, state, seed=1):
    batch = state.layers[0]["keys"].shape[0]
    tokens = text(batch, DECODED, seed).split(1, dim=1)
    return torch.cat([model(token, state) for token in tokens], dim=1)


def logits_after(model, change):
    """Return the logits of decoding from the state that `change` makes of a prefilled one."""
    state = prefilled(model)
    decode(model, state, seed=2)
    return decode(model, change(model, state))


def restored(model, state):
    saved = state.snapshot()
    decode(model, state, seed=3)
    state.restore(saved)
    return state


def restored_elsewhere(model, state):
    other = model.init_state(2, PROMPT + 4 * DECODED)
    other.restore(state.snapshot())
    return other


def rewound(model, state):
    mark = state.mark()
    decode(model, state, seed=3)
    state.rewind(mark)
    return state


def reordered(model, state):
    state.reorder(torch.tensor([1, 1]))
    return state


def gathered(model, state):
    return state.gather(torch.tensor([1, 0, 1]), PROMPT + 4 * DECODED)


def loaded(model, state):
    other = model.init_state(2, PROMPT + 4 * DECODED)
    other.load_tensors(state.tensors())
    return other


def repeated(model, state):
    """One stored sequence becomes every sequence of a batch."""
    other = model.init_state(3, PROMPT + 4 * DECODED)
    other.restore(state.gather(torch.tensor([1]), state.position).snapshot())
    return other


@pytest.mark.parametrize("backend", ["reference", "sdpa", "products"])
@pytest.mark.parametrize(("variant", "num_kv_heads"), [("llama", None), ("llama", 1), ("gpt", None)])
def test_logits_are_those_of_a_preallocated_cache(variant, num_kv_heads, backend):
    found = [decode(model, prefilled(model)) for model in pair(variant, num_kv_heads, backend)]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "change", [restored, restored_elsewhere, rewound, reordered, gathered, loaded, repeated]
)
def test_states_are_copied_and_returned_to_as_preallocated_ones(change):
    found = [logits_after(model, change) for model in pair()]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


def test_a_state_holds_exactly_the_tokens_so_far_and_has_no_capacity():
    _, model = pair(dtype=torch.float32)
    state = model.init_state(2, 8)
    assert (state.capacity, state.num_bytes) == (None, 0)
    state = prefilled(model)
    decode(model, state)
    assert state.position == PROMPT + DECODED
    assert state.num_bytes == costs.state_bytes(model.config, "float32", 2, state.position)


class Concatenations(TorchDispatchMode):
    """Counts the concatenations along the tokens, and the bytes that they write."""

    def __init__(self):
        super().__init__()
        self.count = self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.cat.default and args[1:] == (2,):
            self.count, self.num_bytes = self.count + 1, self.num_bytes + out.nbytes
        return out


def test_every_token_copies_the_whole_cache():
    plain, concat = pair(dtype=torch.float32)
    token = text(2, 1)
    for model, copies in ((plain, 0), (concat, 2 * concat.config.num_layers)):
        state = prefilled(model)
        with torch.no_grad(), Concatenations() as found:
            model(token, state)
        assert found.count == copies
        assert found.num_bytes == (state.num_bytes if copies else 0)


def test_a_position_without_its_tokens_is_an_error():
    _, model = pair()
    state = model.init_state(1, 8)
    state.position = 5
    with pytest.raises(ValueError, match=r"holds 0 tokens, and the position is 5"):
        decode(model, state)


def test_a_new_state_is_put_at_a_position():
    found = []
    for model in pair():
        state = model.init_state(2, 40)
        state.start_at(20)
        found.append(decode(model, state))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


def test_the_equivalence_check_passes():
    _, model = pair(dtype=torch.float32)
    assert check_equivalence(model, text(1, 96), depth=96, lengths=(1, 17, 64)).passed


def test_generated_text_is_the_same():
    plain, concat = (list(generate(model, text(1, PROMPT), max_tokens=12)) for model in pair())
    assert plain == concat


def test_configurations_state_the_cache_only_where_it_is_chosen():
    plain, concat = (model.config for model in pair())
    assert "cache" not in plain.model_dump_json()
    assert concat.model_dump()["blocks"][0]["mixer"]["cache"] == "concat"
    assert parse_model_config(plain.model_dump(mode="json")) == plain
    assert parse_model_config(concat.model_dump(mode="json")) == concat
    assert plain.fingerprint != concat.fingerprint
    assert (plain.concatenates, concat.concatenates) == (False, True)
