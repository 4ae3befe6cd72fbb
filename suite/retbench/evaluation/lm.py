"""Any model of ours as a language model of lm-eval: all three kinds of request.

Texts are split into context and continuation as lm-eval's own HFLM splits them, and truncated as it truncates them;
only the computing is ours (`scoring`). Importing this module imports lm-eval.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from retbench.data.tokenizers import Tokenizer, check_bos_token, check_vocabulary, prefix_token
from retbench.errors import ConfigError, UnsupportedError
from retbench.evaluation.generation import generate_greedy
from retbench.evaluation.prefixes import MIN_SAVED
from retbench.evaluation.progress import Report, tell_nobody
from retbench.evaluation.scoring import Request, Scorer
from retbench.models.decoder import Decoder

MAX_GEN_TOKENS = 256
"""New tokens of a generation whose task sets no number: HFLM's."""
GENERATION_BATCH = 16


class DecoderLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no type information
    """A model and its tokenizer, as lm-eval sees them.

    Args:
        model: Any model.
        tokenizer: Its tokenizer.
        max_length: Tokens the model reads at most, the same for every model that is compared.
        batch_tokens: Tokens of one forward pass; by the device when None.
        add_bos: Begin every context with the tokenizer's first-token mark, as models trained so need it.
        min_saved: See `prefixes.build_tree`; None computes every request on its own.

    Attributes:
        num_truncated: Requests whose context lost tokens at its start, since it was last set to 0.
        num_input_tokens: Tokens of all log-likelihood requests, likewise.
        num_computed_tokens: Those that the model had to read, likewise.
        report: Told of every pass over requests and of every batch of generations; nobody is unless it is set.

    Raises:
        ConfigError: the tokenizer has more tokens than the model; or no mark for `add_bos`.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_tokens: int | None = None,
        add_bos: bool = False,
        min_saved: int | None = MIN_SAVED,
    ) -> None:
        super().__init__()
        check_vocabulary(tokenizer, model.config.vocab_size)
        if add_bos:
            check_bos_token(tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.add_bos = add_bos
        self._max_length = max_length
        self._scorer = Scorer(model, max_length=max_length, batch_tokens=batch_tokens, min_saved=min_saved)
        self._encode = lru_cache(maxsize=2**16)(lambda text: tuple(tokenizer.encode(text)))
        self.num_truncated = 0
        self.num_input_tokens = 0
        self.num_computed_tokens = 0
        self.report: Report = tell_nobody

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self.model.device

    @property
    def max_length(self) -> int:
        """Tokens the model reads at most."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """New tokens of a generation whose task sets no number."""
        return MAX_GEN_TOKENS

    @property
    def eot_token_id(self) -> int | None:
        """The tokenizer's end mark."""
        token: int | None = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        return prefix_token(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """Name and fingerprint."""
        return f"{self.tokenizer.name}@{self.tokenizer.fingerprint}"

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval notes of a model beside its results."""
        return {
            "model_num_parameters": sum(weight.numel() for weight in self.model.parameters()),
            "model_dtype": str(self.model.dtype).removeprefix("torch."),
            "backend": self.model.backend,
            "tokenizer": self.tokenizer_name,
            "max_length": self.max_length,
            "add_bos": self.add_bos,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text; with the first-token mark where `add_bos` asks for it and the call does not refuse it."""
        tokens = list(self._encode(string))
        wanted = self.add_bos if add_special_tokens is None else add_special_tokens and self.add_bos
        bos = self.tokenizer.bos_token_id
        if not wanted or bos is None or tokens[:1] == [bos]:
            return tokens
        return [bos, *tokens]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, nats, in lm-eval's windows: disjoint, the last with full context."""
        windows: list[Request] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append(Request(*make_disjoint_window(window)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (total, _) in zip(owners, self._score(windows), strict=True):
            totals[owner] += total
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, each up to the first of its stop sequences.

        Raises:
            UnsupportedError: a task asks for sampling.
            ConfigError: no room for a prompt beside the new tokens.
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
                self.report(sum(len(prompts[index]) for index in batch))
        return texts

    def _prompt(self, text: str, settings: Any) -> list[int]:
        """Tokens of a prompt, their start cut off where the new tokens would find no room."""
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
        self.num_truncated += len(tokens) > room
        return tokens[-room:]

    def _generate(self, prompts: Sequence[Sequence[int]], raw_settings: Any) -> list[str]:
        """Texts that follow prompts of one length under the same settings."""
        settings = normalize_gen_kwargs(raw_settings, self.max_gen_toks)
        eos = self.tokenizer.eos_token_id
        mark = None if eos is None else self.tokenizer.decode([eos])
        until = [stop for stop in handle_stop_sequences(list(settings["until"]), eos=mark or None) if stop]

        def is_done(tokens: Sequence[int]) -> bool:
            if tokens[-1] == eos:
                return True
            text = self.tokenizer.decode(tokens)
            return any(stop in text for stop in until)

        found = generate_greedy(
            self.model,
            prompts,
            max_new_tokens=settings["max_gen_toks"],
            is_done=is_done,
            vocab_size=self.tokenizer.vocab_size,
        )
        kept = [tokens[:-1] if tokens[-1] == eos else tokens for tokens in found]
        return [postprocess_generated_text(self.tokenizer.decode(tokens), until, None) for tokens in kept]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """What lm-eval calls with every request as tokens."""
        for (context, continuation), _, scored in requests:
            if not scored:
                raise ConfigError(
                    f"tokenizer '{self.tokenizer.name}' joins the end of the context {context[-40:]!r} with the whole "
                    f"of the continuation {continuation[:40]!r}, so no token of it can be scored by itself."
                )
            if len(scored) > self.max_length:
                raise ConfigError(
                    f"a continuation of {len(scored):,} tokens is longer than max_length {self.max_length:,}: "
                    f"{continuation[:40]!r}. Raise max_length."
                )
        return self._score([Request(context, scored) for _, context, scored in requests])

    def _score(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Score and count."""
        scored = self._scorer.score(requests, self.report)
        self.num_truncated += scored.num_truncated
        self.num_input_tokens += scored.num_input_tokens
        self.num_computed_tokens += scored.num_computed_tokens
        return [(score.loglikelihood, score.is_greedy) for score in scored.scores]
