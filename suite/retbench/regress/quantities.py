"""Measurement of machine-independent quantities, on small models with fixed weights.

A CPU and less than a minute are enough. Analytical costs are also taken at the size of the paper's figures.
"""

import hashlib
import math
from collections.abc import Mapping
from importlib import resources

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retbench.architectures import costs, matching
from retbench.architectures.architecture import ModelSpec
from retbench.architectures.configs import ModelConfig
from retbench.measure.memory import measure_memory
from retbench.models.build import allocate_model
from retbench.models.decoder import Decoder
from retbench.models.equivalence import check_equivalence
from retbench.ops.linear import RowProducts
from retbench.regress.machine_independent import Quantities, Quantity

SIZE, VOCAB_SIZE = "1m", 256
"""Size and vocabulary of the models that run; a token is a byte."""
PAPER_SIZE = "6.7b"
DEPTH = 1021
"""Tokens of the text."""
GATE_LENGTHS = (1, 17, 127, 513)
STEP_DEPTH = 512
"""Context of the decode step whose operations, bytes and peak are counted."""
PROMPT_LEN, NUM_GREEDY = 64, 48

TINY = torch.finfo(torch.float64).tiny
NLL_TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
"""Relative: another order of the same additions changes a loss by less."""
MARGIN_TOLERANCE = 2e-3
"""Lead of the likeliest token over the next, as a share of the logits' rms, up to which either is right."""

_NORM_SPREAD = 0.25
"""Weights of norms are spread by this about 1, and biases about 0, so that each of them changes the result."""


def measure_quantities(specs: Mapping[str, ModelSpec]) -> Quantities:
    """Measure every machine-independent quantity of some models, by "model/quantity"."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each thread computes a part of a product, which shows in the peak of a step
    try:
        return {
            f"{name}/{quantity}": value
            for name, spec in specs.items()
            for quantity, value in _measure_model(spec).items()
        }
    finally:
        torch.set_num_threads(threads)


def _measure_model(spec: ModelSpec) -> Quantities:
    config = matching.resolve_model(spec, SIZE, vocab_size=VOCAB_SIZE)
    paper, text = matching.resolve_model(spec, PAPER_SIZE), read_text()
    return _analytical(config, paper, spec) | _allocated(config, spec, text) | _computed(config, spec, text)


def read_text() -> Tensor:
    """Return the bytes of the fixed text, (1, DEPTH) int64."""
    text = resources.files("retbench.regress").joinpath("text.txt").read_bytes()
    assert len(text) >= DEPTH
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)[None, :DEPTH].to(torch.int64)


def build(config: ModelConfig, spec: ModelSpec, dtype: torch.dtype) -> Decoder:
    """Build a model with the fixed weights on the CPU, and torch's products, however fast others are here."""
    model = allocate_model(
        config,
        dtype=dtype,
        device="cpu",
        backend=spec.backend,
        chunk_size=spec.chunk_size,
        products=RowProducts(),
    )
    fill_weights(model)
    return model


@torch.no_grad()
def fill_weights(model: nn.Module) -> None:
    """Fill every parameter with numbers that depend on its name and shape alone, and on no generator of torch.

    Matrices get the standard deviation that preserves the scale of activations, so that every layer counts.
    """
    for name, parameter in model.named_parameters():
        digest = hashlib.shake_256(f"{name} {tuple(parameter.shape)}".encode()).digest(4 * parameter.numel())
        values = np.frombuffer(digest, dtype="<u4").astype(np.float64) / 2**31 - 1  # between -1 and 1
        if parameter.dim() == 1:
            values = (0.0 if name.endswith("bias") else 1.0) + _NORM_SPREAD * values
        elif "embedding" not in name:
            values *= math.sqrt(3 / parameter.shape[-1])
        parameter.copy_(torch.from_numpy(values.reshape(parameter.shape)))


def _analytical(config: ModelConfig, paper: ModelConfig, spec: ModelSpec) -> Quantities:
    """Return analytical parameters, operations and bytes, at the small and at the paper's size."""
    backend, chunk = spec.backend, spec.chunk_size
    found: Quantities = {}
    for size, one, depth in ((SIZE, config, STEP_DEPTH), (PAPER_SIZE, paper, 8192)):
        counts = {
            "num_params_nonembedding": costs.num_params_nonembedding(one),
            "decode_flops": costs.decode_flops(one, 1, depth),
            "decode_bytes": costs.decode_bytes(one, "bfloat16", 1, depth),
            "prefill_flops": costs.prefill_flops(one, 1, depth, backend, chunk),
            "training_flops": costs.training_flops(one, 1, depth, backend, chunk),
            "state_bytes": costs.state_bytes(one, "bfloat16", 1, depth),
        }
        found |= {
            f"{size} {name} at {depth}": Quantity(kind="count", value=count) for name, count in counts.items()
        }
    return found


def _allocated(config: ModelConfig, spec: ModelSpec, text: Tensor) -> Quantities:
    """Measure parameters, bytes of the state, and peak tensor bytes of a decode step and of a prompt."""
    model = build(config, spec, torch.float32)
    state = model.init_state(1, STEP_DEPTH + 2)
    state.start_at(STEP_DEPTH - 1)
    with torch.inference_mode():
        model(text[:, :1], state)  # allocates everything that is allocated once
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
    """Measure the errors of the equivalence check, the loss of the text, and the greedy tokens after its beginning."""
    found: Quantities = {}
    for dtype in (torch.float64, torch.float32):
        model, name = build(config, spec, dtype), str(dtype).removeprefix("torch.")
        gate = check_equivalence(model, text, depth=DEPTH, lengths=GATE_LENGTHS)
        for check in gate.checks:
            label = f"{name} {check.name}, {check.length} tokens"
            found[label] = Quantity(kind="error", value=check.error, limit=check.limit)
        logits = model(text[:, :-1])
        loss = float(F.cross_entropy(logits[0].double(), text[0, 1:]))
        found[f"{name} nats per token"] = Quantity(kind="loss", value=loss, limit=NLL_TOLERANCE[name])
    return found | {"greedy tokens": _greedy(model, text[:, :PROMPT_LEN])}


def _greedy(model: Decoder, prompt: Tensor) -> Quantity:
    """Return greedy tokens by decode steps, each with its lead over the next, over the rms of the logits."""
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
