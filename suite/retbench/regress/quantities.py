"""The exact lane: everything about a model that does not depend on the machine, measured on tiny fixed weights.

A CPU is enough, and less than a minute. Closed forms are taken at the size of the paper's figures too.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources

import torch
from torch import Tensor
from torch.nn import functional as F

from retbench.architectures import costs, matching
from retbench.architectures.architecture import ModelSpec
from retbench.architectures.configs import ModelConfig
from retbench.measure.memory import measure_memory
from retbench.models.build import allocate_model
from retbench.models.decoder import Decoder
from retbench.models.gate import run_gate
from retbench.regress.exact import Quantities, Quantity
from retbench.regress.weights import fill_weights

SIZE, VOCAB_SIZE = "1m", 256
"""Of the models that are run; a token is a byte."""
PAPER_SIZE = "6.7b"
DEPTH = 1021
"""Tokens of the text that are read."""
GATE_LENGTHS = (1, 17, 127, 513)
STEP_DEPTH = 512
"""Context of the decode step whose operations, bytes and peak are counted."""
PROMPT_LEN, NUM_GREEDY = 64, 48

TINY = torch.finfo(torch.float64).tiny
NLL_TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
"""Relative: another order of the same additions moves a loss by less."""
MARGIN_TOLERANCE = 2e-3
"""Where the likeliest token is ahead of the next by no more than this share of the logits' rms, either is right."""


def measure_exact(specs: Mapping[str, ModelSpec]) -> Quantities:
    """Every exact quantity of some models, by "model/quantity"; the fixed text is read in full by each of them."""
    text = read_text()
    found: Quantities = {}
    for name, spec in specs.items():
        config = matching.resolve_model(spec, SIZE, vocab_size=VOCAB_SIZE)
        paper = matching.resolve_model(spec, PAPER_SIZE)
        with _one_thread():
            own = {
                **_closed_forms(config, paper, spec),
                **_counted(config, spec, text),
                **_computed(config, spec, text),
            }
        found |= {f"{name}/{quantity}": value for quantity, value in own.items()}
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """A product is cut into parts by the threads that there are, and the parts show in the peak of a step."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_text() -> Tensor:
    """The bytes of the fixed text, (1, DEPTH) int64."""
    text = resources.files("retbench.regress").joinpath("text.txt").read_bytes()
    assert len(text) >= DEPTH
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)[None, :DEPTH].to(torch.int64)


def build(config: ModelConfig, spec: ModelSpec, dtype: torch.dtype) -> Decoder:
    """A model with the fixed weights, on the CPU."""
    model = allocate_model(
        config, dtype=dtype, device="cpu", backend=spec.backend, chunk_size=spec.chunk_size
    )
    fill_weights(model)
    return model


def _closed_forms(config: ModelConfig, paper: ModelConfig, spec: ModelSpec) -> Quantities:
    """Parameters, operations and bytes by the closed forms, at the tiny and at the paper's size."""
    backend, chunk = spec.backend, spec.chunk_size
    forms: Quantities = {}
    for size, one, depth in ((SIZE, config, STEP_DEPTH), (PAPER_SIZE, paper, 8192)):
        counts = {
            "num_params_nonembedding": costs.num_params_nonembedding(one),
            "decode_flops": costs.decode_flops(one, 1, depth),
            "decode_bytes": costs.decode_bytes(one, "bfloat16", 1, depth),
            "prefill_flops": costs.prefill_flops(one, 1, depth, backend, chunk),
            "training_flops": costs.training_flops(one, 1, depth, backend, chunk),
            "state_bytes": costs.state_bytes(one, "bfloat16", 1, depth),
        }
        forms |= {
            f"{size} {name} at {depth}": Quantity(kind="count", value=count) for name, count in counts.items()
        }
    return forms


def _counted(config: ModelConfig, spec: ModelSpec, text: Tensor) -> Quantities:
    """What the real model has and needs: parameters, bytes of its state, peak tensor bytes of a step and a prompt."""
    model = build(config, spec, torch.float32)
    state = model.init_state(1, STEP_DEPTH + 2)
    state.position = STEP_DEPTH - 1
    with torch.inference_mode():
        model(text[:, :1], state)  # what is allocated once and kept is allocated here
        step = measure_memory(lambda: model(text[:, 1:2], state), torch.device("cpu"))
        model(text[:, :STEP_DEPTH])
        prompt = measure_memory(lambda: model(text[:, :STEP_DEPTH], last_only=True), torch.device("cpu"))
    return {
        "parameters": Quantity(kind="count", value=sum(one.numel() for one in model.parameters())),
        f"bytes of a state of {STEP_DEPTH + 2}": Quantity(kind="count", value=state.num_bytes),
        f"peak tensor bytes of a decode step at {STEP_DEPTH}": Quantity(
            kind="peak", value=step.workspace_bytes
        ),
        f"peak tensor bytes of a prompt of {STEP_DEPTH}": Quantity(kind="peak", value=prompt.workspace_bytes),
    }


@torch.no_grad()
def _computed(config: ModelConfig, spec: ModelSpec, text: Tensor) -> Quantities:
    """Form equality, the loss of the text, and the tokens that follow its beginning."""
    found: Quantities = {}
    for dtype in (torch.float64, torch.float32):
        model, name = build(config, spec, dtype), str(dtype).removeprefix("torch.")
        gate = run_gate(model, text, depth=DEPTH, lengths=GATE_LENGTHS)
        for check in gate.checks:
            label = f"{name} {check.name}, {check.length} tokens"
            found[label] = Quantity(kind="error", value=check.error, limit=check.limit)
        logits = model(text[:, :-1])
        loss = float(F.cross_entropy(logits[0].double(), text[0, 1:]))
        found[f"{name} nats per token"] = Quantity(kind="loss", value=loss, limit=NLL_TOLERANCE[name])
    return found | {"greedy tokens": _greedy(model, text[:, :PROMPT_LEN])}


def _greedy(model: Decoder, prompt: Tensor) -> Quantity:
    """Greedy tokens by decode steps, each with how far ahead of the next it was, over the rms of the logits."""
    state = model.init_state(1, PROMPT_LEN + NUM_GREEDY)
    logits = model.prefill(prompt, state)
    tokens, leads = [], []
    for _ in range(NUM_GREEDY):
        last = logits[0, -1].double()
        first, second = last.topk(2).values.tolist()
        lead = (first - second) / max(float(last.square().mean().sqrt()), TINY)
        # logits that are not finite have no likeliest token
        leads.append(lead if math.isfinite(lead) else 0.0)
        tokens.append(int(last.argmax()))
        logits = model(torch.tensor([[tokens[-1]]]), state)
    return Quantity(kind="tokens", tokens=tuple(tokens), leads=tuple(leads), limit=MARGIN_TOLERANCE)
