"""Models of another library: those that replace an experiment's, and the permission to run their code."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.architectures.registry import architectures
from retbench.config.overrides import tables_with_models
from retbench.errors import ConfigError, shown


@dataclass(frozen=True)
class OwnModels:
    """Models of another library that are measured in place of an experiment's, as given to `--model`.

    Attributes:
        checkpoints: Folders, or names on the hub; with none the experiment keeps its models.
        trust_remote_code: Run code that comes with them.
    """

    checkpoints: tuple[str, ...]
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError where there is no model whose code could run."""
        if self.trust_remote_code and not self.checkpoints:
            raise ConfigError(
                "--trust-remote-code: there is no --model whose code could run. Add --model, or set "
                "models.NAME.trust_remote_code=true for a model of the experiment."
            )


NO_OWN_MODELS = OwnModels(())


def replace_models(raw: dict[str, Any], own: OwnModels) -> None:
    """Replace the models of the parsed TOML, in place, by checkpoints that their own library runs.

    The tokenizers that its workloads name go too: they are for the weights of the replaced models.
    """
    reader = next(name for name, each in architectures().items() if each.reads_any_model)
    trusts = {"trust_remote_code": True} if own.trust_remote_code else {}
    tables: dict[str, dict[str, str | bool]] = {}
    for checkpoint in own.checkpoints:
        name = _name(checkpoint)
        if name in tables:
            raise ConfigError(
                f"--model {shown(checkpoint)}: another --model has the name '{name}' too. Measure each into another "
                "folder (--out), or name both in an experiment file: records of one name are shown as one model."
            )
        tables[name] = {"architecture": reader, "checkpoint": checkpoint, **trusts}
    for holder in tables_with_models(raw):
        holder.pop("models", None)
        workloads = holder.get("workloads")
        for workload in workloads.values() if isinstance(workloads, dict) else ():
            if isinstance(workload, dict):
                workload.pop("tokenizer", None)
    raw["models"] = tables


def _name(checkpoint: str) -> str:
    """Return the name of a model in records: the last part of its path, in characters that a name may have."""
    path = Path(checkpoint.partition("@")[0])
    last = path.name if path.name not in {"", ".."} else path.resolve().name
    plain = unicodedata.normalize("NFKD", last).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", plain).lstrip(".+-") or "model"


def check_trust(raw: dict[str, Any], place: str) -> None:
    """Raise ConfigError where the parsed TOML of a file permits code of a checkpoint to run.

    An experiment file may come from anyone: only the command line permits that.
    """
    for holder in tables_with_models(raw):
        models = holder.get("models")
        for name, table in models.items() if isinstance(models, dict) else ():
            if isinstance(table, dict) and table.get("trust_remote_code"):
                raise ConfigError(
                    f"{place}: [models.{name}] has trust_remote_code, and a file cannot permit code to run. Remove it, "
                    f"and give --set models.{name}.trust_remote_code=true if you trust the checkpoint."
                )
