"""Time per output token at a depth: one step of one token for every sequence, the context being that deep.

Every timed step starts from the same point. The state stands one token before the depth; ahead of each timed
step, outside the clock, it returns there and takes one untimed step, which leaves in the processor's caches
what continuous generation would; then the step at exactly that depth is timed. A compiled step belongs to its depth, so
there the untimed step is the same step once more.

A retention state is that of one sequence, repeated for the whole batch: returning to it takes a copy of one, so that
a batch may be as large as the memory allows. The tokens fed are of a different text in every sequence.
"""

from collections.abc import Callable

import torch

from retbench.data import text
from retbench.errors import GateError
from retbench.measure.clock import capture_graph, time_steps
from retbench.measure.compiled import compile_step
from retbench.models.equivalence import LIMITS, relative_error
from retbench.models.state import DecoderState, Mark
from retbench.workloads.context import Context, Measurement, Notes
from retbench.workloads.energy import weigh_energy
from retbench.workloads.metrics import decode_metrics
from retbench.workloads.states import FILL_PREFILL_TOKENS, cache_scales, fill_caches, is_streamed

Step = Callable[[], object]


@torch.inference_mode()
def measure(context: Context) -> Measurement:
    """Seconds of at least `min_steps` decode steps at the cell's context length."""
    settings, point = context.cell.settings, context.cell.point
    rows = text.read_rows(point.batch_size, 2, start=point.context_len - 1).to(context.device)
    tokens = rows[:, :1].clone(), rows[:, 1:].clone()
    state, mark, notes = _start(context)
    context.forget_what_ran()
    depth = Mark(mark.position + 1)  # for the position alone
    advance, step, step_notes = _make_steps(context, state, mark, tokens)
    samples = time_steps(
        step, advance, device=context.device, warmup_s=settings.warmup_s, min_steps=settings.min_steps
    )
    metrics = decode_metrics(context.cell, samples, context.ceilings)

    def decode_on() -> None:
        """One token more at the same depth; what a retention state holds goes on from token to token."""
        state.rewind(depth)
        step()

    energy = weigh_energy(
        context, decode_on, step_s=metrics["tpot_s"].value, tokens_per_step=point.batch_size
    )
    notes |= {**step_notes, "timed_steps": len(samples), **energy.notes}
    if state.capacity is not None:
        notes["kv_capacity"] = state.capacity
    return Measurement(
        metrics={**metrics, **energy.metrics},
        absent=energy.absent,
        backend={**context.model.executed_backends(), **notes},
    )


def _start(context: Context) -> tuple[DecoderState, Mark, Notes]:
    """The state that stands one token before the depth, how to return to it, and where its contents come from."""
    model, point, position = context.model, context.cell.point, context.cell.point.context_len - 1
    if is_streamed(model):
        single = model.init_state(1, 0)
        context.states.load(context.cell, single, position)
        state, mark = model.init_state(point.batch_size, 0), single.mark()
        repeated = ", one sequence repeated" if point.batch_size > 1 else ""
        return state, mark, {"state_source": f"streamed prefill of real text{repeated}"}
    scales = cache_scales(model)  # first, because the prefill that it takes needs room of its own
    state = model.init_state(point.batch_size, point.context_len + 1)
    fill_caches(model, state, position, context.cell.settings.seed)
    notes: Notes = {
        "state_source": "filled",
        "kv_fill": f"normal, std of a real prefill of {FILL_PREFILL_TOKENS} tokens in each layer",
    }
    for name in dict.fromkeys(name for layer in scales for name in layer):
        deviations = [f"{layer[name]:.3g}" for layer in scales if name in layer]
        notes[f"kv_fill_{name.removesuffix('s')}_std"] = " ".join(deviations)
    return state, state.mark(), notes


def _make_steps(
    context: Context, state: DecoderState, mark: Mark, tokens: tuple[torch.Tensor, torch.Tensor]
) -> tuple[Step, Step, Notes]:
    """The untimed step back to the depth, the timed one, and how they run."""
    settings = context.cell.settings
    notes: Notes = {"cuda_graph": settings.cuda_graph, "compile": settings.compile}
    if settings.compile:
        advance, step, found = _compiled_steps(context, state, mark, tokens)
        return advance, step, notes | found
    make = _captured_steps if settings.cuda_graph else _eager_steps
    return *make(context, state, mark, tokens), notes


def _eager_steps(
    context: Context, state: DecoderState, mark: Mark, tokens: tuple[torch.Tensor, torch.Tensor]
) -> tuple[Step, Step]:
    """The untimed step back to the depth, and the timed one."""
    model, (lead, token) = context.model, tokens

    def advance() -> None:
        state.rewind(mark)
        model(lead, state)

    def step() -> None:
        model(token, state)

    return advance, step


def _captured_steps(
    context: Context, state: DecoderState, mark: Mark, tokens: tuple[torch.Tensor, torch.Tensor]
) -> tuple[Step, Step]:
    """The same two steps as CUDA graphs; a position is fixed in each, so each belongs to its depth."""
    model, (lead, token) = context.model, tokens
    depth = Mark(mark.position + 1)  # for the position alone

    def lead_step() -> None:
        model(lead, state)

    def timed_step() -> None:
        model(token, state)

    replay_lead = capture_graph(lead_step, device=context.device, before=lambda: state.rewind(mark))
    replay = capture_graph(timed_step, device=context.device, before=lambda: state.rewind(depth))

    def advance() -> None:
        state.rewind(mark)
        replay_lead()

    return advance, replay


def _compiled_steps(
    context: Context, state: DecoderState, mark: Mark, tokens: tuple[torch.Tensor, torch.Tensor]
) -> tuple[Step, Step, Notes]:
    """The timed step compiled, twice over, and how far it is from the eager one.

    Raises:
        GateError: its logits differ from the eager step's by more than the gate allows at this dtype.
    """
    model, (lead, token) = context.model, tokens
    state.rewind(mark)
    model(lead, state)
    depth = state.mark(1)
    stay = Mark(depth.position)  # for the position alone
    state.rewind(depth)
    eager = model(token, state)
    state.rewind(depth)
    compiled = compile_step(lambda: model(token, state))
    error, limit = relative_error(compiled.first, eager), LIMITS[model.dtype]
    if not error <= limit:
        raise GateError(
            f"the compiled decode step differs from the eager one by {error:.3g}, limit {limit:g}."
        )
    step: Step = compiled.run
    if context.cell.settings.cuda_graph:
        step = capture_graph(compiled.run, device=context.device, before=lambda: state.rewind(depth))

    def advance() -> None:
        state.rewind(depth)
        step()
        state.rewind(stay)  # a copy would leave the whole retention state in the processor's caches

    return advance, step, {"compile_error": error, "compile_s": compiled.seconds}
