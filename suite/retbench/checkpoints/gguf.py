"""GGUF files, which llama.cpp runs, written as folders that transformers and this package read.

transformers reads the file and expands quantised weights to float32. The extra `hf` installs what it needs.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retbench.errors import CheckpointError, UnsupportedError, shown
from retbench.files import atomic_folder, sole_writer

SUFFIX = ".gguf"
NEEDED = ("accelerate", "gguf", "transformers")
"""Packages that transformers reads such a file with."""


def export_gguf(path: Path, folder: Path) -> int:
    """Write the model of a GGUF file, with its tokenizer, to a folder as `save_pretrained` does.

    Args:
        path: The file.
        folder: A new or empty folder.

    Returns:
        The number of parameters.

    Raises:
        ConfigError: the folder is not empty.
        CheckpointError: there is no such file, or transformers cannot read it.
        UnsupportedError: one of the packages `NEEDED` is not installed, or another process is writing the folder.
        StorageError: writing failed, and nothing is left in the folder.
    """
    with sole_writer(folder):
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such file.")
        model, tokenizer = _read(path)
        with atomic_folder(folder) as draft:
            _without_quantisation(model).save_pretrained(draft)
            tokenizer.save_pretrained(draft)
    return sum(weight.numel() for weight in model.parameters())


def _read(path: Path) -> tuple[Any, Any]:
    """Return the model of a file in float32, and its tokenizer; errors as of `export_gguf`."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UnsupportedError(
            f"{path}: a GGUF file needs packages that are not installed: {', '.join(missing)}. Install them: "
            "pip install 'retbench[hf]'."
        )
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
        )
        return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as error:  # transformers does not check a file, and a damaged one may raise anything
        raise CheckpointError(
            f"{path}: transformers cannot read it: {type(error).__name__}: {shown(str(error))}"
        ) from error


def _without_quantisation(model: Any) -> Any:
    """Return a model of the same weights that can be saved: transformers saves none that was quantised."""
    fields = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    plain = type(model)(type(model.config)(**fields))
    plain.load_state_dict(model.state_dict())
    return plain
