"""A causal language model of transformers behind the interface of `LanguageModel`, with transformers' own cache.

The tensors of the cache are those of a `DecoderState`, so that copying, rewinding, branching and counting bytes work
as for any other model. The extra `hf` installs transformers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retbench.architectures.configs import ModelConfig
from retbench.architectures.hf import DEFAULT_KERNEL
from retbench.errors import CheckpointError, ConfigError, UnsupportedError, unknown_name
from retbench.measure.limits import is_out_of_memory
from retbench.mixers.state import TOKEN_AXIS
from retbench.models.hf_cache import Slot, allocate, layer_state, new_cache, slots_of
from retbench.models.language_model import LanguageModel
from retbench.models.state import DecoderState

_PROBE = 2
"""Tokens of the passes that show the tensors of a cache and the input of the head."""


class HfState(DecoderState):
    """The state of a model of transformers: its cache, whose tensors are seen layer by layer.

    Setting the position sets the lengths that the cache itself keeps.
    """

    def __init__(self, model: "HfModel", cache: Any, batch_size: int, room: int | None) -> None:
        self.cache = cache
        self._model = model
        self._position = 0
        super().__init__([layer_state(layer) for layer in cache.layers])
        self.batch_size = batch_size
        self.capacity = room

    @property
    def position(self) -> int:
        """Number of tokens so far."""
        return self._position

    @position.setter
    def position(self, value: int) -> None:
        self._position = value
        for layer in self.cache.layers:
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length.fill_(value)
            if hasattr(layer, "cumulative_length_int"):
                layer.cumulative_length_int = value
            if hasattr(layer, "has_previous_state"):
                layer.has_previous_state = dict.fromkeys(layer.has_previous_state, value > 0)

    def advance(self, num_tokens: int) -> None:
        """Count tokens that the cache has taken in and counted itself."""
        self._position += num_tokens

    def snapshot(self) -> DecoderState:
        """Return a full copy of the tokens so far, which holds no cache."""
        return DecoderState([layer.snapshot(self.position) for layer in self.layers], self.position)

    def gather(self, indices: Tensor, capacity: int) -> DecoderState:
        """Return a new state whose sequence b is a copy of sequence indices[b]; see `DecoderState.gather`."""
        found = self._model.init_state(len(indices), capacity)
        found.require_room(self.position)
        for mine, theirs in zip(self.layers, found.layers, strict=True):
            for name, tensor in theirs.tensors.items():
                chosen = mine[name].index_select(0, indices)
                if mine.layout[name].kind == "fixed":
                    tensor.copy_(chosen)
                else:  # a window that is not full holds its tokens from the start, as a cache does
                    length = min(self.position, chosen.shape[TOKEN_AXIS], tensor.shape[TOKEN_AXIS])
                    tensor[:, :, :length] = chosen[:, :, :length]
        found.position = self.position
        return found


class HfModel(LanguageModel):
    """A causal language model of transformers.

    Args:
        config: The model, as `checkpoints.hf` describes it.
        inner: The model of transformers, on its device, in evaluation mode.
        backend: The attention kernel that was asked for.

    Raises:
        CheckpointError: its parameters or its state are not those that the configuration states.
        UnsupportedError: its cache is of a kind that is not known here.
    """

    def __init__(self, config: ModelConfig, inner: Any, backend: str) -> None:
        super().__init__()
        self.config = config
        self.inner = inner
        self.backend = backend
        self.max_positions = _most_positions(inner)
        self._executed: dict[str, str] = {}
        self._check_params()
        self._slots = self._probe_cache()
        self._check_growth()
        self._has_features = self._head_is_all()
        # transformers' recurrences of several tokens begin with an empty state, also after a first segment.
        self._continues = not any("recurrent" in name for slots in self._slots for name in slots)

    @property
    def is_quadratic(self) -> bool:
        """True: the attention of a prompt to a cache takes a mask of every pair of tokens."""
        return True

    def set_backend(self, name: str) -> None:
        """Forget which kernels were executed; the kernel itself is chosen when the model is loaded."""
        if name not in self.config.forms:
            raise unknown_name("backend of a transformers model", name, self.config.forms)
        if name != self.backend:
            raise ConfigError(f"backend '{name}': the model was loaded with '{self.backend}'. Load it again.")
        self._executed = {}

    def other_backends(self) -> list[str]:
        """Return none: another kernel would need another copy of the model."""
        return []

    def executed_backends(self) -> dict[str, str]:
        """Return the attention kernel of transformers in each phase since the backend was set."""
        return dict(sorted(self._executed.items()))

    def init_state(self, batch_size: int, capacity: int) -> DecoderState:
        """Return an empty state: transformers' static cache with room for `capacity` tokens.

        Raises:
            UnsupportedError: the model cannot read so many tokens.
        """
        self._check_positions(capacity)
        cache = new_cache(self.inner, capacity)
        for layer, slots in zip(cache.layers, self._slots, strict=True):
            allocate(layer, slots, batch_size, self.device)
        return HfState(self, cache, batch_size, capacity if self.config.grows else None)

    def state_bytes(self, batch_size: int, capacity: int) -> int:
        """Return the bytes of such a state, by the tensors of a cache that was allocated."""
        cache, total = new_cache(self.inner, capacity), 0
        for layer, slots in zip(cache.layers, self._slots, strict=True):
            for slot in slots.values():
                length = 1 if slot.kind == "fixed" else layer.max_cache_len
                total += length * torch.Size(slot.shape).numel() * slot.dtype.itemsize
        return batch_size * total

    def forward(
        self, tokens: Tensor, state: DecoderState | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Compute the logits of the following tokens, (B, T, N) or (B, 1, N); arguments as of `Decoder.forward`."""
        return self.logits_of(self.features(tokens, state, last_only=last_only))

    def features(
        self, tokens: Tensor, state: DecoderState | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Compute the input of the head; of a model that changes the logits after its head, the logits."""
        start = state.position if state is not None else 0
        if start and tokens.shape[1] > 1 and not self._continues:
            steps = [self._compute(token, state, last_only) for token in tokens.split(1, dim=1)]
            self._executed["prefill"] = f"{self._kernel}, token by token after the first segment"
            return steps[-1] if last_only else torch.cat(steps, dim=1)
        return self._compute(tokens, state, last_only)

    def logits_of(self, features: Tensor) -> Tensor:
        """Compute the logits (..., N) of any rows of features."""
        if not self._has_features:
            return features
        head = self.inner.get_output_embeddings()
        logits: Tensor = head(features.to(head.weight.dtype))
        return logits

    @property
    def _kernel(self) -> str:
        """Attention kernel that transformers runs."""
        return f"transformers:{getattr(self.inner.config, '_attn_implementation', None) or 'own'}"

    def _compute(self, tokens: Tensor, state: DecoderState | None, last_only: bool) -> Tensor:
        """Compute the features of tokens (B, T) in one call of transformers, and advance the state."""
        if self._has_features:
            hidden: Tensor = self._call(self.inner.base_model, tokens, state).last_hidden_state
            return hidden[:, -1:] if last_only else hidden
        logits: Tensor = self._call(self.inner, tokens, state, logits_to_keep=int(last_only)).logits
        return logits

    def _call(self, module: Any, tokens: Tensor, state: DecoderState | None, **options: Any) -> Any:
        """Call a module of transformers with tokens (B, T), and advance the state."""
        length = tokens.shape[1]
        if state is None:
            self._check_positions(length)
            found = module(input_ids=tokens, use_cache=False, **options)
        else:
            assert isinstance(state, HfState)
            state.require_room(length)
            found = module(input_ids=tokens, cache=state.cache, use_cache=True, **options)
            state.advance(length)
        self._executed["decode" if state is not None and length == 1 else "prefill"] = self._kernel
        return found

    def _check_positions(self, num_tokens: int) -> None:
        """Refuse more tokens than there are position embeddings."""
        if self.max_positions is not None and num_tokens > self.max_positions:
            raise UnsupportedError(
                f"the model has embeddings of {self.max_positions:,} positions and cannot read {num_tokens:,} tokens. "
                "Use a shorter context."
            )

    def _check_params(self) -> None:
        """Refuse a model with another number of parameters than its files were counted to have.

        Files may hold buffers too, such as the corrections by which DeepSeek-V3 balances its experts, and they look
        like weights there.
        """
        found, stated = sum(one.numel() for one in self.inner.parameters()), self.config.whole_model
        assert stated is not None
        buffers, stored = dict(self.inner.named_buffers()), self.inner.state_dict()
        most = found + sum(one.numel() for name, one in stored.items() if name in buffers)
        if not found <= stated.num_params <= most:
            raise CheckpointError(
                f"transformers built a model of {found:,} parameters, and the files of the checkpoint hold "
                f"{stated.num_params:,}. Save the model again with `save_pretrained` of this transformers."
            )

    @torch.inference_mode()
    def _probe_cache(self) -> list[dict[str, Slot]]:
        """Return the tensors of each layer of the cache, as a short pass leaves them.

        Raises:
            UnsupportedError: transformers has no such cache for the model, or the model fails with it.
        """
        tokens = torch.zeros(1, _PROBE, dtype=torch.int64, device=self.device)
        try:
            cache = new_cache(self.inner, _PROBE + 1)  # with free room, which some models cannot have
            self.inner(input_ids=tokens, cache=cache, use_cache=True)
        except Exception as error:  # whatever the code of a model raises
            if is_out_of_memory(error):
                raise
            raise UnsupportedError(
                f"a model of type '{self.config.variant}' cannot be run with the static cache of transformers "
                f"({_cause(error)}), and only such caches can be measured."
            ) from error
        return [slots_of(layer) for layer in cache.layers]

    def _check_growth(self) -> None:
        """Refuse a model whose state grows, or does not, against its description."""
        grows = any(slot.kind == "per_token" for slots in self._slots for slot in slots.values())
        if grows != self.config.grows or not any(self._slots):
            raise UnsupportedError(
                f"a model of type '{self.config.variant}' has no cache that is known here: its layers hold "
                f"{sorted({name for slots in self._slots for name in slots}) or 'no tensors'}. Only caches of "
                "transformers can be measured; add another model as an architecture of your own package "
                "(CONTRIBUTING.md)."
            )

    @torch.inference_mode()
    def _head_is_all(self) -> bool:
        """Return whether the logits are exactly what the head gives, without a scale or a cap after it."""
        head = self.inner.get_output_embeddings()
        if not isinstance(head, nn.Module):
            return False
        tokens = torch.arange(_PROBE, device=self.device)[None]
        hidden = getattr(self.inner.base_model(input_ids=tokens, use_cache=False), "last_hidden_state", None)
        logits = self.inner(input_ids=tokens, use_cache=False).logits
        return hidden is not None and torch.equal(head(hidden.to(head.weight.dtype)).to(logits.dtype), logits)


def load(
    config: ModelConfig,
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    backend: str,
    runs_code: bool = False,
) -> HfModel:
    """Load a checkpoint by transformers, from files that are on this machine.

    Args:
        config: Description of the checkpoint.
        path: Its folder.
        dtype: Dtype of the weights; stored weights are converted.
        device: torch's name or device.
        backend: Attention kernel.
        runs_code: Run code that comes with the checkpoint.

    Raises:
        UnsupportedError: transformers is not installed, or cannot run the model or the kernel here.
        CheckpointError: transformers cannot read the checkpoint.
    """
    kernel = {} if backend == DEFAULT_KERNEL else {"attn_implementation": backend}
    with _explained(path, runs_code=runs_code):
        from transformers import AutoModelForCausalLM

        inner, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=runs_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # the report names them
            output_loading_info=True,
            **kernel,
        )
    _check_filled(path, report)
    return HfModel(config, inner.to(device).eval().requires_grad_(False), backend)


def _check_filled(path: Path, report: Mapping[str, Any]) -> None:
    """Refuse a model with weights that transformers has drawn at random, as the files do not hold them.

    Args:
        path: Folder of the checkpoint.
        report: What transformers tells of the tensors that it has loaded.
    """
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise CheckpointError(
            f"{path}: tensor '{name}' has shape {tuple(found)}, expected {tuple(expected)}. Weights and configuration "
            "do not belong together."
        )
    missing, strange = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing:
        absent = f"{missing[0]} is" if len(missing) == 1 else f"{missing[0]} and {len(missing) - 1} more are"
        others = f", and {strange[0]} is no part of it" if strange else ""
        raise CheckpointError(
            f"{path}: of the tensors of the model, {absent} missing{others}. Save the model again with "
            "`save_pretrained`."
        )


def import_code(path: Path, *, runs_code: bool = False) -> None:
    """Import the code of a checkpoint's model, which takes some 200 MB that are not the model's.

    Raises:
        UnsupportedError: see `load`, as for CheckpointError.
    """
    with _explained(path, runs_code=runs_code):
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=runs_code)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, trust_remote_code=runs_code)


@contextmanager
def _explained(path: Path, *, runs_code: bool) -> Iterator[None]:
    """Raise what transformers raises for a checkpoint as an error with its cause, unless memory has run out."""
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise UnsupportedError(
            f"a model of transformers needs the package transformers ({error}). pip install 'retbench[hf]'"
        ) from error
    logging.disable_progress_bar()
    try:
        yield
    except ImportError as error:
        raise UnsupportedError(f"{path}: a package is missing: {_first_line(error)}") from error
    except Exception as error:  # a configuration of any content fails anywhere in transformers
        if is_out_of_memory(error):
            raise
        has_code = not runs_code and '"auto_map"' in (path / "config.json").read_text(encoding="utf-8")
        hint = (
            " Its code runs only in `retbench run`: give --model with --trust-remote-code, or "
            "--set models.NAME.trust_remote_code=true."
        )
        raise CheckpointError(
            f"{path}: transformers cannot load it: {_cause(error)}{hint if has_code else ''}"
        ) from error


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    """Return the first line of a message, and the second where it explains the first."""
    lines = str(error).strip().splitlines() or ["no message"]
    return " ".join(line.strip() for line in (lines[:2] if lines[0].endswith(":") else lines[:1]))


def _most_positions(inner: Any) -> int | None:
    """Return the rows of a table of position embeddings, learned or computed once; None if the model has none."""
    stated = getattr(inner.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if stated is None:
        return None
    words = inner.get_input_embeddings()
    tables = [one.weight for one in inner.modules() if isinstance(one, nn.Embedding) and one is not words]
    # GPT-J and CTRL keep sines as a buffer of this name; tables of rotary angles have others, and grow.
    buffers = [one for name, one in inner.named_buffers() if "pos" in name.rpartition(".")[2]]
    tables += [one for one in buffers if one.dim() == 2]
    has_table = any(0 <= len(table) - stated <= 2 for table in tables)  # OPT has two more rows
    return int(stated) if has_table else None
