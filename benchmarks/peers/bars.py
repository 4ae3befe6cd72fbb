"""Every bar by name. Only a bar that runs imports torch or a peer."""

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.peers.outcomes import Outcome

PACKAGES = {
    "torchscale": "torchscale",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "yet_another_retnet": "yet-another-retnet",
}
"""Import name of each peer, and its name on the package index."""


@dataclass(frozen=True)
class Bar:
    """One comparison with a limit.

    Attributes:
        title: The comparison and its limit, with the names of arguments in braces.
        module: Module of its package that measures it.
        function: Function of the module: takes rounds and `arguments`, and yields outcomes.
        arguments: Further arguments by name.
        peers: Import names of the projects that it needs.
        timed: It times something, and so takes rounds.
        package: Package of the bar.
    """

    title: str
    module: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    peers: tuple[str, ...] = ()
    timed: bool = True
    package: str = "benchmarks.peers"

    @property
    def heading(self) -> str:
        """The title with the values of the arguments."""
        return self.title.format_map(self.arguments)

    def missing(self) -> list[str]:
        """Return the packages that must be installed before it can run."""
        return [PACKAGES[name] for name in self.peers if importlib.util.find_spec(name) is None]

    def measure(self, rounds: int) -> "Iterator[Outcome]":
        """Yield every outcome of the bar, equality before speed."""
        module = importlib.import_module(f"{self.package}.{self.module}")
        measure: Callable[..., Iterator[Outcome]] = getattr(module, self.function)
        return measure(rounds, **self.arguments) if self.timed else measure(**self.arguments)


def _llama(depth: int, limit: float) -> Bar:
    title = (
        f"decode at {depth // 1024}K: compiled Transformer's time per token over Llama's generate, at most "
        "{limit}, and over its generate with a static cache and compiled steps, at most {static_limit}"
    )
    arguments = {"depth": depth, "limit": limit, "static_limit": 1.0}
    return Bar(title, "decode", "decode_llama", arguments, ("transformers",))


def _hf(depth: int) -> Bar:
    title = (
        f"decode at {depth // 1024}K: time per token of transformers' Llama of SmolLM2-135M's shape through retbench, "
        "over transformers' own loop with a static cache, at most {limit}"
    )
    return Bar(title, "decode", "decode_hf", {"depth": depth, "limit": 1.05}, ("transformers",))


def _batch(size: str) -> Bar:
    title = "batch 8, size {size}: compiled bfloat16 step over eager float32, at most {limit} for each model of kin"
    return Bar(title, "batch", "batch", {"size": size, "limit": 0.60})


def _bandwidth(size: str, limit: float) -> Bar:
    title = "size {size}: share of the read bandwidth that a compiled step reaches, at least {limit} for each model"
    return Bar(title, "decode", "bandwidth", {"size": size, "limit": limit})


def _operators(decay: str, per: str, limit: float) -> Bar:
    title = (
        f"prefill of 8,192 tokens, operators alone at equal state: time of those with one decay per {per} over "
        "retention's, at most {limit}"
    )
    return Bar(title, "operators", "prefill_operators", {"decay": decay, "limit": limit})


BARS: dict[str, Bar] = {
    "forms-float64": Bar(
        "parallel = chunkwise = recurrent to 1e-12", "forms", "forms", {"dtype": "float64"}, timed=False
    ),
    "forms-float32": Bar(
        "parallel = chunkwise = recurrent to 1e-4", "forms", "forms", {"dtype": "float32"}, timed=False
    ),
    "forms-bfloat16": Bar(
        "error of decoding at 32K at most twice that of chunkwise", "forms", "forms_bfloat16", timed=False
    ),
    "equal-loop": Bar("operator = float64 loop to 1e-12", "equality", "loop_equality", timed=False),
    "equal-fla": Bar("logits = fla's published formula to 1e-4", "equality", "fla_equality", timed=False),
    "equal-torchscale": Bar(
        "logits = torchscale's RetNetDecoder to 1e-4",
        "equality",
        "torchscale_equality",
        {},
        ("torchscale",),
        timed=False,
    ),
    "equal-llama": Bar(
        "logits = transformers' Llama to 1e-4",
        "equality",
        "llama_equality",
        {},
        ("transformers",),
        timed=False,
    ),
    "equal-mistral": Bar(
        "logits = transformers' Mistral, with a sliding window, to 1e-4",
        "equality",
        "mistral_equality",
        {},
        ("transformers",),
        timed=False,
    ),
    "equal-deepseek": Bar(
        "logits = transformers' DeepSeek-V2, with latent attention and without experts, to 1e-4",
        "equality",
        "deepseek_equality",
        {},
        ("transformers",),
        timed=False,
    ),
    "equal-yar": Bar(
        "logits = yet-another-retnet's, with the paper's blocks and decays, to 1e-4",
        "equality",
        "yar_equality",
        {},
        ("yet_another_retnet",),
        timed=False,
    ),
    "equal-gpt-neox": Bar(
        "logits = transformers' GPT-NeoX to 1e-4",
        "equality",
        "gpt_neox_equality",
        {},
        ("transformers",),
        timed=False,
    ),
    "equal-mamba2": Bar(
        "logits = transformers' Mamba-2 to 1e-4",
        "equality",
        "mamba2_equality",
        {},
        ("transformers",),
        timed=False,
    ),
    "decode-torchscale": Bar(
        "decode at 1K: RetNet's time per token over torchscale's, at most {eager}, compiled {compiled}",
        "decode",
        "decode_torchscale",
        {"eager": 0.80, "compiled": 0.60},
        ("torchscale",),
    ),
    "decode-llama-1k": _llama(1024, 0.55),
    "decode-llama-4k": _llama(4096, 0.50),
    "decode-llama-8k": _llama(8192, 0.47),
    "decode-hf-1k": _hf(1024),
    "decode-hf-4k": _hf(4096),
    "decode-mamba2": Bar(
        "decode at 1K: Mamba-2's time per token over that of transformers' Mamba-2, both eager, at most {limit}",
        "decode",
        "decode_mamba2",
        {"limit": 0.60},
        ("transformers",),
    ),
    "depth": Bar(
        "time per token at depth 32K over depth 1K of each model whose state is fixed, within {low} to {high}",
        "kin",
        "depth",
        {"low": 0.95, "high": 1.05},
    ),
    "bandwidth-eager-125m": Bar(
        "size {size}: share of the read bandwidth that an eager step reaches, at least {limit} for each model of kin",
        "kin",
        "bandwidth",
        {"size": "125m", "limit": 0.50},
    ),
    "bandwidth-25m": _bandwidth("25m", 0.60),
    "bandwidth-125m": _bandwidth("125m", 0.75),
    "batch-8-25m": _batch("25m"),
    "batch-8-125m": _batch("125m"),
    "prefill-torchscale": Bar(
        "prefill of 8,192 tokens over torchscale's chunkwise, at most {limit}",
        "prefill",
        "prefill_torchscale",
        {"limit": 0.65},
        ("torchscale",),
    ),
    "prefill-mamba2": Bar(
        "prefill of 1,024 tokens over transformers' Mamba-2, at most {limit}",
        "prefill",
        "prefill_mamba2",
        {"limit": 0.30},
        ("transformers",),
    ),
    "prefill-scalar-decay": _operators("scalar", "head or none", 1.1),
    "prefill-vector-decay": _operators("vector", "channel", 2.5),
    "training": Bar(
        "forward + backward at 2,048 over the peers' best form, at most {limit}",
        "training",
        "training",
        {"limit": 1.0},
        ("torchscale", "yet_another_retnet"),
    ),
    "training-throughput-2048": Bar(
        "training at 2,048: RetNet's tokens/s over those of the matched Transformer with fused attention, "
        "at least {limit}",
        "training_pair",
        "throughput",
        {"limit": 0.80},
    ),
}


def missing_packages(bars: Iterable[Bar]) -> list[str]:
    """Return the packages that any of the bars lacks, each once."""
    return sorted({package for bar in bars for package in bar.missing()})
