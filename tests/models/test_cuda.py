"""Tests on a GPU: the forms in bfloat16, graphs equal to eager steps, and the kernels of other packages."""

import pytest
import torch

from retbench.config.experiment_files import load_experiment
from retbench.measure.clock import capture_graph
from retbench.models.build import build_model
from retbench.models.compiled import StepCompiler
from retbench.models.equivalence import LIMITS, check_equivalence, relative_error
from retbench.ops import attention, fused, kernels
from retbench.ops.decay import decay_schedule
from retbench.ops.linear_operator import linear_chunkwise, linear_recurrent
from retbench.planning.cells import resolve_models
from tests.models.fused_cases import fused_configs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # other packages' kernels warn of what is theirs to mend
]

CUDA = torch.device("cuda")
CONFIGS = resolve_models(load_experiment("latency", ["size=25m"]), "cpu")
GATED = resolve_models(load_experiment("latency", ["size=25m", "models.retnet.decay=gated"]), "cpu")["retnet"]
WIDE = resolve_models(load_experiment("latency", ["size=200m"]), "cpu")
"""Heads as wide as the paper's: keys 256, values 512."""

FUSED = CONFIGS | {
    name: config
    for name, config in fused_configs().items()
    if name in ("yoco", "gla", "linear-elu", "linear-taylor", "mamba2", "mla", "rwkv6", "convolution-first")
}
"""Models of which each adds a fused operator, or one compiled with other constants."""

KERNEL_LIMITS = {torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest error of an operator against its definition in float32: products of rounded numbers, rounded again. The
largest value of a gradient is many times the root mean square that it is divided by. A wrong one is off by 1 and more.
"""


def build(name, dtype=torch.bfloat16, backend=None, config=None):
    backend = backend or ("chunkwise" if name == "retnet" else "sdpa")
    return build_model(config or CONFIGS[name], dtype=dtype, device="cuda", seed=0, backend=backend)


def text(length, batch=1):
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(0)).cuda()


def needs_fla(dtype=torch.bfloat16):
    reason = kernels.missing_reason(CUDA, dtype)
    if reason is not None:
        pytest.skip(reason)


def needs_flash(dtype=torch.bfloat16):
    reason = attention.missing_reason("flash", CUDA, dtype)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_gate_is_green(name, dtype):
    gate = check_equivalence(build(name, dtype), text(4096), depth=4096)
    assert gate.passed, [check for check in gate.checks if not check.passed]


@pytest.mark.parametrize("name", sorted(WIDE))
def test_the_gate_is_green_with_heads_as_wide_as_the_papers(name):
    gate = check_equivalence(build(name, config=WIDE[name]), text(2047), depth=2047)
    assert gate.passed, [check for check in gate.checks if not check.passed]


def test_the_gate_is_green_with_a_gated_decay():
    gate = check_equivalence(build("retnet", config=GATED), text(2047), depth=2047)
    assert gate.passed, [check for check in gate.checks if not check.passed]


@pytest.mark.parametrize("name", sorted(FUSED))
@torch.no_grad()
def test_fused_steps_are_eager_steps(name):
    pytest.importorskip("triton")
    # Installed kernels that cannot be launched would leave every measurement with eager steps.
    assert fused.missing_reason(CUDA, torch.float32) is None
    prompt, found = text(64, batch=3), []
    forms = FUSED[name].forms
    backend = next(form for form in ("chunkwise", "sdpa", *forms) if form in forms)
    model = build(name, torch.float32, backend, FUSED[name])
    assert model.decode_operators == "fused"
    for operators in ("fused", "eager"):
        model.set_decode_operators(operators)
        model.set_backend(model.backend)
        state = model.init_state(3, 64)
        model.prefill(prompt[:, :50], state)
        found.append(torch.cat([model(prompt[:, t : t + 1], state) for t in range(50, 64)], dim=1))
        assert ("fused" in model.executed_backends()["decode"]) == (operators == "fused")
    assert relative_error(*found) < LIMITS[torch.float32]


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@torch.no_grad()
def test_a_gpu_computes_what_a_cpu_does(name, dtype):
    backend = "chunkwise" if name == "retnet" else "sdpa"
    here = build_model(CONFIGS[name], dtype=dtype, device="cpu", seed=0, backend=backend)
    there = build(name, dtype)
    there.load_state_dict(here.state_dict())
    prompt = text(300)
    assert relative_error(there(prompt).cpu(), here(prompt.cpu())) < LIMITS[dtype]


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_replayed_step_equals_an_eager_one(name, mode):
    model = build(name)
    with mode():
        state = model.init_state(1, 1025)
        model.prefill(text(1024), state)
        mark, token, held = state.mark(), text(1), {}

        def step():
            held["logits"] = model(token, state)

        step()
        expected = held["logits"].clone()
        replay = capture_graph(step, device=CUDA, before=lambda: state.rewind(mark))
        for _ in range(3):
            state.rewind(mark)
            replay()
            torch.cuda.synchronize()
            assert relative_error(held["logits"], expected) < LIMITS[torch.bfloat16] / 10


@torch.no_grad()
def test_steps_replayed_one_after_the_other_walk_on_as_eager_ones_do():
    model, tokens = build("retnet", torch.float32), text(8)
    eager, captured = model.init_state(1, 0), model.init_state(1, 0)
    replays = []
    for position in range(8):
        token = tokens[:, position : position + 1].clone()
        model(token, eager)

        def back(position=position):
            captured.position = position

        replays.append(
            (capture_graph(lambda token=token: model(token, captured), device=CUDA, before=back), token)
        )
    for layer in captured.layers:
        layer["values"].zero_()
    for replay, _ in replays:
        replay()
    torch.cuda.synchronize()
    for one, other in zip(captured.layers, eager.layers, strict=True):
        assert relative_error(one["values"], other["values"]) < 1e-5


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # in what inductor loads
@pytest.mark.parametrize("name", sorted(CONFIGS))
@torch.inference_mode()
def test_a_compiled_step_is_an_eager_one_captured_or_not_and_serves_every_depth(name):
    config = CONFIGS[name]
    (block,) = config.blocks
    one_layer = config.model_copy(update={"blocks": (block.model_copy(update={"count": 1}),)})
    model = build(name, torch.float32, config=one_layer)
    compiler, seconds = StepCompiler(model), []
    for depth in (64, 700):
        state, token = model.init_state(2, depth + 2), text(1, batch=2)
        model.prefill(text(depth, batch=2), state)
        mark = state.mark()
        eager, expected = model(token, state), state.snapshot().tensors()
        state.rewind(mark)
        step = compiler.prepare(token, state)
        seconds.append(step.seconds)
        assert relative_error(step.logits, eager) < LIMITS[torch.float32]
        held = []
        replay = capture_graph(
            lambda step=step, token=token, state=state, held=held: held.append(step.run(token, state)),
            device=CUDA,
            before=lambda state=state, mark=mark: state.rewind(mark),
        )
        state.rewind(mark)
        replay()
        torch.cuda.synchronize()
        state.position = depth + 1  # a replay advances nothing on the host
        assert relative_error(held[-1], eager) < LIMITS[torch.float32]
        for key, tensor in state.tensors().items():
            assert key == "position" or relative_error(tensor, expected[key]) < 1e-4
    assert seconds[0] == seconds[1]  # of the only compilation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_flash_equals_sdpa_equals_reference(dtype):
    needs_flash(dtype)
    model = build("transformer", dtype, backend="reference")
    prompt = text(700)
    expected = model(prompt)
    for backend in ("sdpa", "flash"):
        model.set_backend(backend)
        state = model.init_state(1, 700)
        logits = [model.prefill(prompt[:, :690], state, segment_len=300)]
        logits += [model(prompt[:, t : t + 1], state) for t in range(690, 700)]
        assert relative_error(torch.cat(logits, dim=1), expected[:, 689:]) < LIMITS[dtype]
        assert model.executed_backends()["prefill"].startswith(backend)


@pytest.mark.parametrize(("length", "keys"), [(1, 65), (65, 65), (7, 40)])
@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("backend", ["sdpa", "flash"])
def test_attention_backends_equal_the_reference_with_gradients(backend, kv_heads, length, keys):
    if backend == "flash":
        needs_flash()
    generator = torch.Generator(CUDA).manual_seed(0)
    shapes = [(2, 8, length, 64), (2, kv_heads, keys, 64), (2, kv_heads, keys, 64)]
    inputs = [torch.randn(shape, generator=generator, device=CUDA).bfloat16() for shape in shapes]
    found = with_gradients(attention.BACKENDS[backend], inputs)
    expected = with_gradients(attention.attend_reference, [x.float() for x in inputs])
    for ours, reference in zip(found, expected, strict=True):
        assert relative_error(ours, reference) < KERNEL_LIMITS[torch.bfloat16]


def with_gradients(function, inputs):
    """Outputs and the gradients of all inputs, for one fixed weighting of the outputs."""
    leaves = [x.clone().requires_grad_(x.dtype != torch.float64) for x in inputs]
    outs = function(*leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    total = sum(
        (out.float() * torch.arange(out.numel(), device=CUDA).view(out.shape).sin()).sum() for out in outs
    )
    total.backward()
    return [*(out.detach() for out in outs), *(x.grad for x in leaves if x.grad is not None)]


@torch.no_grad()
def test_fla_streams_a_state_over_segments_and_decodes_on_in_place():
    needs_fla()
    model, prompt = build("retnet", backend="fla"), text(513)
    state, whole = model.init_state(1, 0), model.init_state(1, 0)
    expected = model(prompt, whole)[:, -1:]
    model.prefill(prompt[:, :512], state, segment_len=199)
    places = [layer["values"].data_ptr() for layer in state.layers]
    assert relative_error(model(prompt[:, 512:], state), expected) < LIMITS[torch.bfloat16]
    assert places == [layer["values"].data_ptr() for layer in state.layers]
    decode = "fused" if model.decode_operators == "fused" else "recurrent"
    assert model.executed_backends() == {"prefill": "fla", "decode": decode}


@pytest.mark.parametrize("length", [1, 63, 200])
@pytest.mark.parametrize(  # below the lengths, so that a kernel is tested whole before the next one is compiled
    ("key_dim", "value_dim", "kind", "dtype"),
    [  # few, for Triton compiles its kernels anew for each: those of the paper's heads, and one more
        (256, 512, "fixed", torch.bfloat16),
        (256, 512, "gated", torch.bfloat16),
        (64, 128, "fixed", torch.float16),
        (256, 512, "channels", torch.bfloat16),
        (256, 512, "channels, token by token", torch.bfloat16),
    ],
)
def test_fla_equals_the_definition_with_gradients(length, key_dim, value_dim, kind, dtype):
    needs_fla(dtype)
    generator = torch.Generator(CUDA).manual_seed(0)
    shapes = [(2, length, 4, key_dim)] * 2 + [
        (2, length, 4, value_dim),
        (2, length, 4, key_dim) if kind.startswith("channels") else (2, length, 4),
        (2, 4, key_dim, value_dim),
    ]
    kernel = {"channels": kernels.gla_fla, "channels, token by token": kernels.gla_fla_recurrent}.get(
        kind, kernels.retention_fla
    )
    q, k, v, gate, state = (torch.randn(shape, generator=generator, device=CUDA) for shape in shapes)
    k = k * key_dim**-0.5
    log_decay = (
        decay_schedule("eq8", 4).cuda() if kind == "fixed" else torch.nn.functional.logsigmoid(gate) / 16
    )
    rounded = [x.to(dtype) for x in (q, k, v)]
    found = with_gradients(kernel, [*rounded, log_decay, state])
    expected = with_gradients(linear_recurrent, [*(x.float() for x in rounded), log_decay, state])
    assert len(found) == len(expected) == 2 + 4 + (kind != "fixed")
    for ours, reference in zip(found, expected, strict=True):
        assert relative_error(ours, reference) < KERNEL_LIMITS[dtype]
    assert found[0].dtype == dtype
    assert found[1].dtype == torch.float32


def test_fla_trains_as_the_chunkwise_form_does():
    """In float16: in bfloat16 the gradients of two equivalent forms have a cosine of .94."""
    needs_fla(torch.float16)
    prompt, gradients = text(300, batch=2), {}
    for backend in ("chunkwise", "fla"):
        model = build("retnet", torch.float16, backend)
        logits = model(prompt)
        assert model.executed_backends() == {"prefill": backend}
        # The sum: gradients of the mean would vanish in float16.
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), prompt.flatten(), reduction="sum"
        ).backward()
        gradients[backend] = {name: weight.grad for name, weight in model.named_parameters()}
    for name, expected in gradients["chunkwise"].items():
        found = gradients["fla"][name]
        cosine = torch.nn.functional.cosine_similarity(
            found.float().flatten(), expected.float().flatten(), dim=0
        )
        assert cosine > 0.99, name


def test_the_forms_agree_at_the_widths_of_the_paper_in_bfloat16():
    generator = torch.Generator(CUDA).manual_seed(0)
    shapes = [(1, 500, 4, 256), (1, 500, 4, 256), (1, 500, 4, 512)]
    q, k, v = (torch.randn(shape, generator=generator, device=CUDA).bfloat16() for shape in shapes)
    log_decay = decay_schedule("eq8", 4).cuda()
    expected, expected_state = linear_recurrent(q, k / 16, v, log_decay)
    for wide_products, limit in ((True, 1e-4), (False, 0.05)):
        out, state = linear_chunkwise(q, k / 16, v, log_decay, wide_products=wide_products)
        assert relative_error(out, expected) < 0.05  # rounded at least once, from float32
        assert relative_error(state, expected_state) < limit
