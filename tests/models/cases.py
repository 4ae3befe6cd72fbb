"""Every variant and every ablation, as an experiment file would ask for it."""

from retbench.architectures.configs import ModelConfig
from retbench.config.experiment_files import load_experiment
from retbench.planning.cells import resolve_models

CASES: dict[str, tuple[str, list[str]]] = {
    "fla": ("retnet", ["variant=fla"]),
    "torchscale": ("retnet", ["variant=torchscale"]),
    "paper": ("retnet", ["variant=paper"]),
    "yoco": ("retnet", ["variant=yoco"]),
    "fla-gated": ("retnet", ["variant=fla", "decay=gated"]),
    # arXiv:2307.08621, Table 6
    "paper-no-swish-gate": ("retnet", ["variant=paper", "swish_gate=false"]),
    "paper-no-head-norm": ("retnet", ["variant=paper", "head_norm=false"]),
    "paper-no-decay": ("retnet", ["variant=paper", "decay=none"]),
    "paper-single-decay": ("retnet", ["variant=paper", "decay=single"]),
    "paper-small-heads": ("retnet", ["variant=paper", "head_dim=16"]),
    "llama": ("transformer", []),
    "llama-grouped-query": ("transformer", ["num_kv_heads=1"]),
    "llama-concat": ("transformer", ["cache=concat"]),
    "gpt": ("transformer", ["variant=gpt"]),
    "yoco-gated": ("yoco", ["architecture=yoco", "num_kv_heads=1"]),
    "yoco-sw": ("yoco", ["architecture=yoco", "variant=sw", "window=9"]),
    "mla": ("mla", ["architecture=mla"]),
    "mla-compressed": ("mla", ["architecture=mla", "variant=compressed"]),
}


def config_of(case: str, size: str = "1m", profile: str = "cpu") -> ModelConfig:
    """The configuration of a case at a size."""
    name, settings = CASES[case]
    overrides = [f"models.{name}.{setting}" for setting in settings]
    experiment = load_experiment("latency", [f"size={size}", "allow_mismatch=true", *overrides])
    return resolve_models(experiment, profile)[name]


BACKENDS = {
    "retnet": ("parallel", "chunkwise", "recurrent"),
    "transformer": ("reference", "sdpa", "products"),
    "mla": ("reference", "sdpa", "absorbed"),
    "yoco-gated": ("parallel+reference", "chunkwise+sdpa", "recurrent+products"),
    "yoco-sw": ("reference", "blocks+sdpa", "blocks+products"),
}


def backends_of(case: str) -> tuple[str, ...]:
    """The backends of a case that run everywhere."""
    return BACKENDS[case if case in BACKENDS else CASES[case][0]]
