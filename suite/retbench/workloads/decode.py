"""Time per output token at a depth: one step of one token for every sequence, the context being that deep.

Every timed step starts from the same point. The state stands one token before the depth. Ahead of each timed step,
outside the clock, it returns there and takes one untimed step, which leaves the processor's caches as continuous
generation would; then the step at exactly that depth is timed.

A retention state is that of one sequence, repeated for the whole batch: returning to it copies a single sequence, so
that a batch may be as large as the memory allows. Every sequence is fed tokens of a different text.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from retbench.errors import GateError
from retbench.planning.cells import Cell
from retbench.records.record import Ceilings
from retbench.workloads import metrics
from retbench.workloads.workload import Measurement, MetricSpec, Notes, Workload, without_gradients

if TYPE_CHECKING:
    from torch import Tensor

    from retbench.models.state import DecoderState, Mark
    from retbench.workloads.context import Context

Step = Callable[[], Any]


@without_gradients
def measure(context: "Context") -> Measurement:
    """Time at least `min_steps` decode steps at the cell's context length."""
    from retbench.measure.clock import time_steps

    settings, point = context.cell.settings, context.cell.point
    footprint_bytes = metrics.decode_bytes(context.cell)
    context.measure_read_rate(footprint_bytes)
    rows = context.read_tokens(2, start=point.context_len - 1)
    tokens = rows[:, :1].clone(), rows[:, 1:].clone()
    state, mark, notes = _start(context)
    context.reset_backend_log()
    depth = state.position_mark(mark.position + 1)
    advance, step, step_notes = _make_steps(context, state, mark, tokens)
    samples = time_steps(
        step,
        advance,
        device=context.device,
        warmup_s=settings.warmup_s,
        min_steps=settings.min_steps,
        sampled=True,
    )
    context.measure_read_rate(footprint_bytes, again=True)
    ceilings = context.ceilings_at(footprint_bytes)
    timed = metrics.decode_metrics(context.cell, samples, ceilings)

    def decode_on() -> None:
        """Decode one more token at the same depth; the values of a retention state evolve from token to token."""
        state.rewind(depth)
        step()

    energy = context.measure_energy(
        decode_on, step_s=timed.metrics["tpot_s"].value, tokens_per_step=point.batch_size
    )
    notes |= {**step_notes, "timed_steps": len(samples), **energy.backend}
    return Measurement(
        metrics={**timed.metrics, **energy.metrics},
        absent={**timed.absent, **energy.absent},
        backend=context.backend_with(notes, state),
        ceilings=ceilings,
    )


def _start(context: "Context") -> tuple["DecoderState", "Mark", Notes]:
    """Return the state one token before the depth, the mark to return to, and where the contents come from."""
    from retbench.workloads.states import cache_scales, fill_caches, fill_prefill_tokens, is_streamed

    model, point, position = context.model, context.cell.point, context.cell.point.context_len - 1
    if is_streamed(model):
        single = model.init_state(1, 0)
        context.states.load(context.cell, single, position)
        state, mark = model.init_state(point.batch_size, 0), single.mark()
        repeated = ", one sequence repeated" if point.batch_size > 1 else ""
        return state, mark, {"state_source": f"streamed prefill of real text{repeated}"}
    scales = cache_scales(model)  # before the cache is allocated: its prefill needs memory too
    # In compiled code a cache that is full after a step is another case than one that is not.
    spare = 1 if context.cell.settings.compile else 0
    state = model.init_state(point.batch_size, point.context_len + 1 + spare)
    fill_caches(model, state, position, context.cell.settings.seed)
    notes: Notes = {
        "state_source": "filled",
        "kv_fill": f"normal, std of a real prefill of {fill_prefill_tokens(model)} tokens in each layer",
    }
    for name in dict.fromkeys(name for layer in scales for name in layer):
        deviations = [f"{layer[name]:.3g}" for layer in scales if name in layer]
        notes[f"kv_fill_{name.removesuffix('s')}_std"] = " ".join(deviations)
    return state, state.mark(), notes


def _make_steps(
    context: "Context", state: "DecoderState", mark: "Mark", tokens: tuple["Tensor", "Tensor"]
) -> tuple[Step, Step, Notes]:
    """Return the untimed step back to the depth, the timed one, and notes on how they run.

    Steps that are compiled or replayed are first compared with the eager ones.

    Raises:
        GateError: their logits differ by more than the equivalence check allows at this dtype.
    """
    settings = context.cell.settings
    notes: Notes = {"cuda_graph": settings.cuda_graph, "compile": settings.compile}
    if context.device.type == "cpu" and not settings.compile:
        notes["weight_product"] = context.model.weight_product
    lead: Step = partial(context.model, tokens[0], state)
    step: Step = partial(context.model, tokens[1], state)
    if settings.compile or settings.cuda_graph:
        state.rewind(mark)
        lead()
        eager = step()
        if settings.compile:
            lead, step, found = _compiled_steps(context, state, mark, tokens, eager)
            notes |= found
        if settings.cuda_graph:
            lead, step, found = _captured_steps(context, state, mark, (lead, step), eager)
            notes |= found

    def lead_from_mark() -> None:
        state.rewind(mark)
        lead()

    return lead_from_mark, step, notes


def _compiled_steps(
    context: "Context",
    state: "DecoderState",
    mark: "Mark",
    tokens: tuple["Tensor", "Tensor"],
    eager: "Tensor",
) -> tuple[Step, Step, Notes]:
    """Return both steps, by the same compiled code."""
    lead, token = tokens
    state.rewind(mark)
    step = context.compiler.prepare(lead, state)
    notes: Notes = {
        "compile_error": _checked_error("compiled", step.run(token, state), eager),
        "compile_s": step.seconds,
    }
    if context.device.type == "cpu":
        notes["weight_layout"] = "packed" if step.packs_weights else context.model.weight_layout
        notes["weight_product"] = step.product
    return partial(step.run, lead, state), partial(step.run, token, state), notes


def _captured_steps(
    context: "Context", state: "DecoderState", mark: "Mark", steps: tuple[Step, Step], eager: "Tensor"
) -> tuple[Step, Step, Notes]:
    """Return both steps as CUDA graphs; a graph has its position built in, so each has its own."""
    from retbench.measure.clock import capture_graph

    lead, step = steps
    kept: list[Any] = []

    def keep_logits() -> None:
        kept[:] = [step()]

    depth = state.position_mark(mark.position + 1)
    lead = capture_graph(lead, device=context.device, before=lambda: state.rewind(mark))
    replay = capture_graph(keep_logits, device=context.device, before=lambda: state.rewind(depth))
    state.rewind(mark)
    lead()
    replay()
    return lead, replay, {"cuda_graph_error": _checked_error("replayed", kept[0], eager)}


def _checked_error(how: str, logits: "Tensor", eager: "Tensor") -> float:
    """Return the distance of a step's logits from the eager step's; GateError where it is too large."""
    from retbench.models.equivalence import LIMITS, step_error

    error, limit = step_error(logits, eager), LIMITS[eager.dtype]
    if not error <= limit:
        raise GateError(f"the {how} decode step differs from the eager one by {error:.3g}, limit {limit:g}.")
    return error


def estimate(cell: Cell, ceilings: Ceilings) -> float:
    """Estimate the seconds of a cell in one round."""
    settings, step_s = cell.settings, metrics.estimated_step_seconds(cell, ceilings)
    steps_s = settings.warmup_s + 2 * (settings.min_steps + 1) * step_s
    rates_s = metrics.estimated_read_rates_seconds(cell)
    return steps_s + rates_s + metrics.estimated_energy_seconds(cell, step_s)


WORKLOAD = Workload(
    name="decode",
    title="Decode latency",
    metrics=(
        MetricSpec("tpot_s", "time per token", True, has_interval=True, better="faster"),
        metrics.TOKENS_PER_S,
        *metrics.OF_DECODE_STEPS,
    ),
    quantity="time per output token",
    measure=measure,
    estimate=estimate,
    order=1,
    starts_from_state=True,
    compiles=True,
)
