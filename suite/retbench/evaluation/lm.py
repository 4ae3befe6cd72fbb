"""A decoder as a language model of lm-eval, for all three kinds of request.

Texts are split into context and continuation, and truncated, as by lm-eval's own HFLM; only the computation differs
(`scoring`). Importing this module imports lm-eval.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from retbench.data.tokenizers import Tokenizer, check_bos_token, check_vocabulary, prefix_token
from retbench.errors import ConfigError, UnsupportedError, shown
from retbench.evaluation import PassProgress, ignore_progress
from retbench.evaluation.batching import MIN_SAVED
from retbench.evaluation.scoring import Scorer, ScoringRequest
from retbench.models.generation import decode_steps
from retbench.models.language_model import LanguageModel

MAX_GEN_TOKENS = 256
"""New tokens of a generation whose task sets no number, as in HFLM."""
GENERATION_BATCH = 16


class DecoderLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no type information
    """A model and its tokenizer behind lm-eval's interface.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        max_length: Maximum tokens that the model reads, the same for every model of a comparison.
        batch_tokens: Tokens of one forward pass; None: by device.
        add_bos: Begin every context with the begin-of-text token, for models trained so.
        min_saved: See `batching.build_tree`; None computes every request separately.
        truncates: Cut the start off a prompt that is too long; otherwise it is an error.

    Attributes:
        num_truncated: Requests whose context lost tokens at its start, since this was last set to 0.
        num_input_tokens: Tokens of all requests, of a generation those of its prompt, likewise.
        num_computed_tokens: Tokens of them that the model read, likewise.
        report: Called after every pass over requests and after every batch of generations.

    Raises:
        ConfigError: the tokenizer has more tokens than the model, or no token for `add_bos`.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_tokens: int | None = None,
        add_bos: bool = False,
        min_saved: int | None = MIN_SAVED,
        truncates: bool = True,
    ) -> None:
        super().__init__()
        check_vocabulary(tokenizer, model.config.vocab_size)
        if add_bos:
            check_bos_token(tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.add_bos = add_bos
        self.truncates = truncates
        self._max_length = max_length
        self._scorer = Scorer(model, max_length=max_length, batch_tokens=batch_tokens, min_saved=min_saved)
        self._encode = lru_cache(maxsize=2**16)(lambda text: tuple(tokenizer.encode(text)))
        self.num_truncated = 0
        self.num_input_tokens = 0
        self.num_computed_tokens = 0
        self.report: PassProgress = ignore_progress

    @property
    def device(self) -> Any:
        """Device of the model."""
        return self.model.device

    @property
    def max_length(self) -> int:
        """Maximum tokens that the model reads."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """New tokens of a generation whose task sets no number."""
        return MAX_GEN_TOKENS

    @property
    def eot_token_id(self) -> int | None:
        """The tokenizer's end-of-text token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        return prefix_token(self.tokenizer)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text, after a begin-of-text token if `add_bos` is set and the call allows it."""
        tokens = list(self._encode(string))
        wanted = self.add_bos if add_special_tokens is None else add_special_tokens and self.add_bos
        bos = self.tokenizer.bos_token_id
        if not wanted or bos is None or tokens[:1] == [bos]:
            return tokens
        return [bos, *tokens]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, nats, in lm-eval's disjoint windows."""
        windows: list[ScoringRequest] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append(ScoringRequest(*make_disjoint_window(window)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (total, _) in zip(owners, self._score(windows), strict=True):
            totals[owner] += total
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return greedy continuations, each up to the first of its stop sequences.

        Raises:
            UnsupportedError: a task asks for sampling.
            ConfigError: the new tokens leave no room for a prompt, or for the whole of it where it must not be cut.
        """
        groups: dict[tuple[int, str], list[int]] = defaultdict(list)
        prompts: list[list[int]] = []
        for index, request in enumerate(requests):
            text, settings = request.args
            prompts.append(self._prompt(text, normalize_gen_kwargs(settings, self.max_gen_toks)))
            groups[len(prompts[-1]), repr(settings)].append(index)
        texts = [""] * len(requests)
        for members in groups.values():
            for first in range(0, len(members), GENERATION_BATCH):
                batch = members[first : first + GENERATION_BATCH]
                generated = self._generate([prompts[index] for index in batch], requests[batch[0]].args[1])
                for index, text in zip(batch, generated, strict=True):
                    texts[index] = text
                num_tokens = sum(len(prompts[index]) for index in batch)
                self.num_input_tokens += num_tokens
                self.num_computed_tokens += num_tokens
                self.report(num_tokens)
        return texts

    def _prompt(self, text: str, settings: Any) -> list[int]:
        """Return the tokens of a prompt, its start cut off to leave room for the new tokens."""
        if settings["do_sample"]:
            raise UnsupportedError(
                f"a task asks for sampling (temperature {settings['temperature']}); this package decodes greedily only."
            )
        room = self.max_length - settings["max_gen_toks"]
        if room < 1:
            raise ConfigError(
                f"max_length {self.max_length} leaves no room for a prompt beside "
                f"{settings['max_gen_toks']} new tokens. Raise max_length."
            )
        tokens = self.tok_encode(text) or [self.prefix_token_id]
        if len(tokens) > room and not self.truncates:
            raise ConfigError(
                f"a prompt of {len(tokens):,} tokens and {settings['max_gen_toks']} new ones take more than max_length "
                f"{self.max_length:,}, and the answer may stand in the part that would be cut off: "
                f"{shown(text[:40])}. Raise max_length (context_len)."
            )
        self.num_truncated += len(tokens) > room
        return tokens[-room:]

    def _generate(self, prompts: Sequence[Sequence[int]], raw_settings: Any) -> list[str]:
        """Return the texts that follow prompts of equal length under the same settings."""
        settings = normalize_gen_kwargs(raw_settings, self.max_gen_toks)
        eos = self.tokenizer.eos_token_id
        end = None if eos is None else self.tokenizer.decode([eos])
        until = [stop for stop in handle_stop_sequences(list(settings["until"]), eos=end or None) if stop]

        def is_done(tokens: Sequence[int]) -> bool:
            if tokens[-1] == eos:
                return True
            text = self.tokenizer.decode(tokens)
            return any(stop in text for stop in until)

        steps = decode_steps(
            self.model,
            torch.tensor(prompts, device=self.model.device),
            max_tokens=settings["max_gen_toks"],
            choose=lambda logits: logits[:, : self.tokenizer.vocab_size].argmax(dim=-1).tolist(),
        )
        found: list[list[int]] = [[] for _ in prompts]
        ongoing = set(range(len(prompts)))
        for tokens in steps:
            for row in ongoing:
                found[row].append(tokens[row])
            ongoing = {row for row in ongoing if not is_done(found[row])}
            if not ongoing:
                break
        kept = [tokens[:-1] if tokens[-1] == eos else tokens for tokens in found]
        return [postprocess_generated_text(self.tokenizer.decode(tokens), until, None) for tokens in kept]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score tokenized requests, as lm-eval's base class asks for."""
        for (context, continuation), _, scored in requests:
            if not scored:
                raise ConfigError(
                    f"tokenizer '{self.tokenizer.name}' joins the end of the context {shown(context[-40:])} with the "
                    f"whole of the continuation {shown(continuation[:40])}, so no token of it can be scored by itself."
                )
            if len(scored) > self.max_length:
                raise ConfigError(
                    f"a continuation of {len(scored):,} tokens is longer than max_length {self.max_length:,}: "
                    f"{shown(continuation[:40])}. Raise max_length."
                )
        return self._score([ScoringRequest(context, scored) for _, context, scored in requests])

    def _score(self, requests: Sequence[ScoringRequest]) -> list[tuple[float, bool]]:
        """Score requests and count their tokens."""
        result = self._scorer.score(requests, self.report)
        self.num_truncated += result.num_truncated
        self.num_input_tokens += result.num_input_tokens
        self.num_computed_tokens += result.num_computed_tokens
        return [(score.loglikelihood, score.is_greedy) for score in result.scores]
