"""RWKV-6 in the files of BlinkDL, of the hub and of flash-linear-attention: each gives the logits of the formulas."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from retbench.checkpoints.loading import load_checkpoint
from retbench.checkpoints.reading import read_checkpoint
from retbench.checkpoints.weights import save_tensors
from retbench.errors import CheckpointError
from retbench.models.equivalence import relative_error
from tests.mixers import plain_rwkv

D, HEADS, LAYERS, WORDS, WIDTH = 32, 2, 2, 53, 96
TOKENS = torch.randint(0, WORDS, (1, 23), generator=torch.Generator().manual_seed(0))
HUB_CONFIG = {
    "architectures": ["Rwkv6ForCausalLM"],
    "model_type": "rwkv6",
    "hidden_size": D,
    "attention_hidden_size": D,
    "head_size": D // HEADS,
    "head_size_divisor": 8,
    "intermediate_size": WIDTH,
    "layer_norm_epsilon": 1e-5,
    "num_attention_heads": 64,
    "num_hidden_layers": LAYERS,
    "vocab_size": WORDS,
    "context_length": 4096,
    "tie_word_embeddings": False,
}
FLA_CONFIG = {
    "model_type": "rwkv6",
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_heads": HEADS,
    "expand_k": 1.0,
    "expand_v": 1.0,
    "intermediate_size": WIDTH,
    "hidden_act": "sqrelu",
    "proj_low_rank_dim": 32,
    "gate_low_rank_dim": 64,
    "norm_eps": 1e-5,
    "vocab_size": WORDS,
}
TIME = {  # of BlinkDL's tensors
    **{f"time_maa_{letter}": (1, 1, D) for letter in "xwkvrg"},
    "time_maa_w1": (D, 5 * 32),
    "time_maa_w2": (5, 32, D),
    "time_decay": (1, 1, D),
    "time_decay_w1": (D, 64),
    "time_decay_w2": (64, D),
    "time_faaaa": (HEADS, D // HEADS),
    **{f"{name}.weight": (D, D) for name in ("receptance", "key", "value", "output", "gate")},
    "ln_x.weight": (D,),
    "ln_x.bias": (D,),
}
CHANNEL = {
    "time_maa_k": (1, 1, D),
    "time_maa_r": (1, 1, D),
    "key.weight": (WIDTH, D),
    "receptance.weight": (D, D),
    "value.weight": (D, WIDTH),
}


def draw() -> dict[str, Tensor]:
    """Weights as BlinkDL names them, so large that every part shows."""
    norms = ["blocks.0.ln0", "ln_out", *(f"blocks.{layer}.ln{n}" for layer in range(LAYERS) for n in (1, 2))]
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (WORDS, D), "head.weight": (WORDS, D)}
    shapes |= {f"{norm}.{part}": (D,) for norm in norms for part in ("weight", "bias")}
    for layer in range(LAYERS):
        shapes |= {f"blocks.{layer}.att.{name}": shape for name, shape in TIME.items()}
        shapes |= {f"blocks.{layer}.ffn.{name}": shape for name, shape in CHANNEL.items()}
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(shape, generator=generator)
        * (shape[-1] ** -0.5 if "_w" in name or len(shape) == 2 else 0.5)
        for name, shape in shapes.items()
    }


def to_hub(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of `RWKV/rwkv-6-world-*`."""
    changes = {
        "emb.": "rwkv.embeddings.",
        "ln_out": "rwkv.ln_out",
        "blocks.": "rwkv.blocks.",
        "ln0": "pre_ln",
    }
    changes |= {".att.": ".attention.", ".ffn.": ".feed_forward."}
    found = {}
    for name, weight in weights.items():
        for old, new in changes.items():
            name = name.replace(old, new)
        found[name] = weight
    return found


def to_fla(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights as fla's `utils/convert_from_rwkv6.py` does."""
    found = {"model.embeddings.weight": weights["emb.weight"], "lm_head.weight": weights["head.weight"]}
    norms = {"ln_out": "model.norm", "blocks.0.ln0": "model.layers.0.pre_norm"}
    for layer in range(LAYERS):
        own, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        norms |= {f"{own}.ln1": f"{theirs}.attn_norm", f"{own}.ln2": f"{theirs}.ffn_norm"}
        norms |= {f"{own}.att.ln_x": f"{theirs}.attn.g_norm"}
        att = {name: weights[f"{own}.att.{name}"] for name in TIME}
        ffn = {name: weights[f"{own}.ffn.{name}"] for name in CHANNEL}
        w, k, v, r, g = att["time_maa_w1"].split(32, dim=1)
        up = att["time_maa_w2"]
        attn = {
            "x_proj.0.mu": att["time_maa_x"].flatten(),
            "x_proj.0.linear.weight": torch.cat([r, w, k, v, g], dim=1).t(),
            "x_proj.2.weight": torch.cat([up[3], up[0], up[1], up[2], up[4]]).t(),
            "x_bias": torch.cat([att[f"time_maa_{letter}"].flatten(1) for letter in "rwkvg"]),
            "w_proj.linear.lora.0.weight": att["time_decay_w1"].t(),
            "w_proj.linear.lora.2.weight": att["time_decay_w2"].t(),
            "w_proj.linear.lora.2.bias": att["time_decay"].flatten(),
            "bonus": att["time_faaaa"],
            "o_proj.weight": att["output.weight"],
            **{
                f"{name[0]}_proj.linear.weight": att[f"{name}.weight"]
                for name in ("receptance", "key", "value", "gate")
            },
        }
        found |= {f"{theirs}.attn.{name}": weight for name, weight in attn.items()}
        for name in ("key", "receptance"):
            found[f"{theirs}.ffn.{name}.mu"] = ffn[f"time_maa_{name[0]}"].flatten()
            found[f"{theirs}.ffn.{name}.linear.weight"] = ffn[f"{name}.weight"]
        found[f"{theirs}.ffn.value.weight"] = ffn["value.weight"]
    for own, theirs in norms.items():
        found |= {f"{theirs}.{part}": weights[f"{own}.{part}"] for part in ("weight", "bias")}
    return found


def write(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> Path:
    save_tensors(
        {name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def load(folder: Path, **options: Any) -> torch.nn.Module:
    return load_checkpoint(str(folder), dtype=torch.float64, device="cpu", backend="chunkwise", **options)


def plain_logits(weights: dict[str, Tensor], divisor: float = 1.0) -> Tensor:
    """The logits of BlinkDL's weights by the formulas; `divisor` scales the read-outs before their norm, beside 8."""
    array = {name: weight.double().numpy() for name, weight in weights.items()}
    names = {"emb.weight": "embedding.weight", "head.weight": "head.weight"}
    ours = {own: array[theirs] for theirs, own in names.items()}
    for theirs, own in (("blocks.0.ln0", "embedding_norm"), ("ln_out", "norm")):
        ours |= {f"{own}.{part}": array[f"{theirs}.{part}"] for part in ("weight", "bias")}
    for layer in range(LAYERS):
        own, att, ffn = (f"blocks.{layer}{end}" for end in ("", ".att", ".ffn"))
        for theirs, norm in (
            (f"{own}.ln1", "mixer_norm"),
            (f"{own}.ln2", "ffn_norm"),
            (f"{att}.ln_x", "mixer.head_norm"),
        ):
            ours |= {f"{own}.{norm}.{part}": array[f"{theirs}.{part}"] for part in ("weight", "bias")}
        same = {
            "mix_input": "time_maa_x",
            "mix_down": "time_maa_w1",
            "mix_up": "time_maa_w2",
            "log_rate": "time_decay",
        }
        same |= {"decay_down": "time_decay_w1", "decay_up": "time_decay_w2", "bonus": "time_faaaa"}
        same |= {f"{name}_proj.weight": f"{name}.weight" for name in ("receptance", "key", "value", "gate")}
        ours |= {f"{own}.mixer.{mine}": array[f"{att}.{theirs}"] for mine, theirs in same.items()}
        ours[f"{own}.mixer.out_proj.weight"] = array[f"{att}.output.weight"]
        ours[f"{own}.mixer.mix"] = np.concatenate(
            [array[f"{att}.time_maa_{letter}"].ravel() for letter in "wkvrg"]
        )
        ours[f"{own}.mixer.value_proj.weight"] = ours[f"{own}.mixer.value_proj.weight"] / divisor
        for name in ("mix_input", "log_rate"):
            ours[f"{own}.mixer.{name}"] = ours[f"{own}.mixer.{name}"].ravel()
        for name in ("key", "receptance", "value"):
            ours[f"{own}.ffn.{name}_proj.weight"] = array[f"{ffn}.{name}.weight"]
        for name in ("key", "receptance"):
            ours[f"{own}.ffn.{name}_mix"] = array[f"{ffn}.time_maa_{name[0]}"].ravel()
    return torch.from_numpy(plain_rwkv.logits(ours, TOKENS[0].tolist(), HEADS, LAYERS))


@pytest.mark.parametrize("names", ["blinkdl", "hub"])
@torch.inference_mode()
def test_the_published_names_give_the_logits_of_the_formulas(tmp_path: Path, names: str) -> None:
    weights = draw()
    write(tmp_path, to_hub(weights) if names == "hub" else weights, HUB_CONFIG)
    assert read_checkpoint(str(tmp_path)).format == "rwkv6"
    assert relative_error(load(tmp_path)(TOKENS)[0], plain_logits(weights)) < 1e-9


def test_a_state_dict_of_torch_is_read_with_a_configuration_by_hand(tmp_path: Path) -> None:
    weights = draw()
    torch.save(weights, tmp_path / "rwkv.pth")
    needed = (
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "head_size",
        "intermediate_size",
    )
    (tmp_path / "config.json").write_text(
        json.dumps({name: HUB_CONFIG[name] for name in needed}), encoding="utf-8"
    )
    with torch.inference_mode():
        found = load(tmp_path, allow_pickle=True)(TOKENS)[0]
    assert relative_error(found, plain_logits(weights)) < 1e-9


@torch.inference_mode()
def test_flas_names_give_the_logits_of_the_formulas_with_its_epsilon(tmp_path: Path) -> None:
    """The formulas divide a read-out by 8 before a norm with an epsilon of 1e-5; fla does not."""
    weights = draw()
    write(tmp_path, to_fla(weights), FLA_CONFIG)
    assert read_checkpoint(str(tmp_path)).format == "fla_rwkv6"
    assert relative_error(load(tmp_path)(TOKENS)[0], plain_logits(weights, divisor=1 / 8)) < 1e-9


def test_every_tensor_must_be_there_and_no_other(tmp_path: Path) -> None:
    weights = draw()
    write(tmp_path, weights | {"blocks.0.att.time_state": torch.zeros(3)}, HUB_CONFIG)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.att\.time_state is not part of a rwkv6"):
        load(tmp_path)
    del weights["blocks.1.att.time_decay_w2"]
    write(tmp_path, weights, HUB_CONFIG)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.att\.time_decay_w2 is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (HUB_CONFIG, {"head_size": 5}, "head_size 5"),
        (HUB_CONFIG, {"attention_hidden_size": 64}, "attention_hidden_size 64"),
        (HUB_CONFIG, {"tie_word_embeddings": True}, "tie_word_embeddings"),
        (FLA_CONFIG, {"expand_k": 0.5}, "expand_k 0.5"),
        (FLA_CONFIG, {"norm_first": False}, "norm_first"),
    ],
)
def test_models_that_there_are_none_of_are_refused(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    write(tmp_path, draw(), config | changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(str(tmp_path))
