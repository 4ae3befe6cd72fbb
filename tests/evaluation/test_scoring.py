"""Scores are those of one request at a time, whatever is shared, cut, padded or batched."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retbench.evaluation.scoring import Scorer, ScoringRequest
from retbench.models.decoder import Decoder
from retbench.models.state import DecoderState
from retbench.units import GIB
from tests.evaluation.conftest import small_model
from tests.models.cases import CASES

MODELS = ["fla", "paper", "fla-gated", "llama", "llama-grouped-query"]


def build(case):
    """In float64, so that a wrong token shows and rounding does not."""
    return small_model(case, chunk_size=8, dtype=torch.float64)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    assert request.param in CASES
    return build(request.param)


@torch.no_grad()
def score_alone(model, request, max_length):
    """By the definition, from one pass over one request."""
    tokens = [*request.context, *request.continuation][-(max_length + 1) :]
    logits = model(torch.tensor([tokens[:-1]]))[0]
    wanted = torch.tensor(request.continuation)
    scored = logits[-len(wanted) :]
    total = scored.log_softmax(-1).gather(1, wanted[:, None]).sum().item()
    return total, bool((scored.argmax(-1) == wanted).all())


def check(model, requests, max_length=64, **settings):
    found = Scorer(model, max_length=max_length, **settings).score(requests)
    for score, request in zip(found.scores, requests, strict=True):
        total, is_greedy = score_alone(model, request, max_length)
        assert score.loglikelihood == pytest.approx(total, rel=1e-9, abs=1e-9)
        assert score.is_greedy == is_greedy
    return found


def questions(num_questions, num_choices, seed=0, prefix=()):
    """Contexts of different lengths, each with choices of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(0, 256, (length,), generator=generator).tolist()

    found = []
    for _ in range(num_questions):
        context = [*prefix, *draw(3, 40)]
        found += [ScoringRequest(context, draw(1, 12)) for _ in range(num_choices)]
    return found


def test_choices_of_questions(model):
    found = check(model, questions(9, 4), batch_tokens=128, min_saved=8)
    assert found.num_computed_tokens < found.num_input_tokens


def test_a_prefix_of_all_questions_is_computed_once(model):
    prefix = torch.randint(0, 256, (50,), generator=torch.Generator().manual_seed(7)).tolist()
    requests = questions(5, 3, prefix=prefix)
    found = check(model, requests, max_length=200, batch_tokens=128)
    assert found.num_input_tokens - found.num_computed_tokens > 14 * 50 - 128


def test_states_hold_no_more_than_they_may(model, monkeypatch):
    states, peaks = weakref.WeakSet(), []

    def watched(make):
        def call(*args):
            states.add(state := make(*args))
            peaks.append(sum(each.num_bytes for each in states))
            return state

        return call

    monkeypatch.setattr(Decoder, "init_state", watched(Decoder.init_state))
    monkeypatch.setattr(DecoderState, "gather", watched(DecoderState.gather))
    requests = questions(8, 4, prefix=range(20))
    budget = 10 * model.init_state(1, 70).num_bytes
    check(model, requests, batch_tokens=512, min_saved=8)
    assert max(peaks) > budget
    peaks.clear()
    check(model, requests, batch_tokens=512, state_bytes=budget, min_saved=8)
    assert max(peaks) <= budget


@pytest.mark.parametrize(("gpu", "most"), [(24 * 10**9, 6 * 10**9), (85 * 10**9, 16 * GIB)])
def test_a_small_gpu_keeps_room_for_the_weights(monkeypatch, gpu, most):
    """A model of 7B takes 13.9 of 24 GB, and 16 GiB of states do not fit there."""
    found = SimpleNamespace(total_memory=gpu)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    on_gpu = SimpleNamespace(device=torch.device("cuda:0"))
    assert Scorer(on_gpu, max_length=64).state_bytes == most
    assert Scorer(on_gpu, max_length=64, state_bytes=10**6).state_bytes == 10**6


def test_likeliest_continuations_are_greedy(model):
    context, continuation = [5, 6, 7], []
    with torch.no_grad():
        for _ in range(4):
            logits = model(torch.tensor([[*context, *continuation]]))
            continuation.append(int(logits[0, -1].argmax()))
    found = check(
        model,
        [ScoringRequest(context, continuation), ScoringRequest(context, [*continuation[:-1], 9])],
        min_saved=1,
    )
    assert [score.is_greedy for score in found.scores] == [True, continuation[-1] == 9]


def test_long_contexts_lose_their_start_and_are_counted(model):
    short, long = ScoringRequest([1, 2, 3], [4]), ScoringRequest(list(range(100)), [1, 2])
    assert check(model, [short, long, long], max_length=16).num_truncated == 2
    assert check(model, [ScoringRequest(list(range(16)), [1])], max_length=16).num_truncated == 0


def test_logits_taken_a_slice_at_a_time(model, monkeypatch):
    monkeypatch.setattr("retbench.evaluation.scoring.LOGITS_AT_ONCE", 3 * model.config.vocab_size)
    check(model, questions(4, 3))


SMALL = st.lists(st.integers(0, 2), min_size=1, max_size=10)


@pytest.mark.parametrize("case", ["fla", "llama"])
def test_any_requests_in_any_batches(case):
    model = build(case)

    @settings(max_examples=30)
    @given(
        st.lists(st.builds(ScoringRequest, SMALL, SMALL), min_size=1, max_size=12),
        st.integers(1, 40),
        st.integers(1, 20),
        st.integers(10, 20),
    )
    def holds(requests, batch_tokens, min_saved, max_length):
        check(model, requests, max_length, batch_tokens=batch_tokens, min_saved=min_saved)

    holds()
