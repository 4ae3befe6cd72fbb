"""Plausible records of quality without a model: trained pairs of three sizes, their documents, tasks and curves."""

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from report.synthetic_records import CPU, matched_pair, pair_id
from retbench.architectures import costs
from retbench.records.documents import write_documents
from retbench.records.record import Metric, ModelInfo, Point, Record, Series, WeightsInfo
from retbench.records.store import append_record
from retbench.report.evaluations import Evaluations, make_evaluations
from retbench.report.results import load_results
from retbench.report.selection import select

SIZES = ("1m", "6m", "25m")
SEEDS = {"1m": (0, 1, 2), "6m": (0,), "25m": (0,)}
TRAINED_LEN = 2048
NUM_TOKENS = 20_000_000
BITS = {
    "retnet": {"1m": 1.74, "6m": 1.55, "25m": 1.415},
    "transformer": {"1m": 1.71, "6m": 1.54, "25m": 1.43},
}
"""Bits per byte of each model: RetNet falls behind at first and is ahead at the largest size."""
RECALL_TASKS = ("swde", "fda", "squad_completion")
"""Tasks whose answer contains the value or does not."""
TASKS = {"hellaswag": (400, 0.27), "piqa": (300, 0.56), "copa": (100, 0.55), "lambada_openai": (300, 0.12)}
"""Questions and the Transformer's accuracy."""
KIN = {
    "retnet": {"1m": 1.74},
    "retnet_wide": {"1m": 1.70},
    "transformer": {"1m": 1.71},
    "transformer_gqa": {"1m": 1.75},
}
"""Bits per byte of more models than stand side by side, for `ScoreMaker.bits`."""

Change = Callable[[dict[str, Any]], dict[str, Any]]


def answer_better(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Change rows so that RetNet answers three of four questions rightly, and the Transformer two of these."""
    right = {"retnet": (1, 1, 1, 0), "transformer": (1, 1, 0, 0)}[model]
    return [
        row | dict.fromkeys(row.keys() & {"acc", "acc_norm"}, right[number % 4])
        for number, row in enumerate(rows)
    ]


@dataclass
class ScoreMaker:
    """Writes records of quality and their documents as the runner does, below `root`.

    `change` is given each record's arguments before it is made, and `change_rows` its documents' rows.
    """

    root: Path
    seeds: Mapping[str, Sequence[int | None]] = field(default_factory=lambda: dict(SEEDS))
    started: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    code_revision: str = CPU.code_revision
    num_documents: int = 60
    bits: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: BITS)
    change: Change = lambda arguments: arguments
    change_rows: Callable[[str, list[dict[str, Any]]], list[dict[str, Any]]] = lambda model, rows: rows
    records: list[Record] = field(init=False, default_factory=list)

    def everything(self) -> list[Record]:
        """Trainings, two corpora by two protocols, and four tasks with and without examples."""
        self.trainings()
        for corpus in ("litbank/original", "wikitext-103"):
            for context_len in (2048, 8192):
                self.perplexities(corpus, "whole", context_len)
            self.perplexities(corpus, "last", 2048)
        for num_fewshot in (0, 4):
            self.zeroshots(num_fewshot)
        return self.records

    def trainings(self) -> list[Record]:
        """The grid of three rates at the smallest size, whose best every final run takes: one of each subject."""
        for model in self.bits:
            for rate in (1e-3, 2e-3, 4e-3):
                self._training(model, "1m", 0, rate, "tuning")
        for model, size, seed in self._subjects():
            self._training(model, size, seed, 2e-3, "final")
        return self.records

    def perplexities(self, corpus: str, protocol: str, context_len: int) -> list[Record]:
        """Every subject on one corpus."""
        for model, size, seed in self._subjects():
            self._perplexity(model, size, seed, corpus, protocol, context_len)
        return self.records

    def zeroshots(
        self, num_fewshot: int, tasks: Iterable[str] = tuple(TASKS), context_len: int = 2048
    ) -> list[Record]:
        """Every subject on every task."""
        for model, size, seed in self._subjects():
            for task in tasks:
                self._zeroshot(model, size, seed, task, num_fewshot, context_len)
        return self.records

    def slices(self, corpus: str, document_bytes: int) -> list[Record]:
        """Every subject on one corpus; on repeated pairs a model loses what its bits are above 1, in nats per word."""
        for model, size, seed in self._subjects():
            self._slices(model, size, seed, corpus, document_bytes)
        return self.records

    def needles(self, haystack: str, found: Mapping[str, float]) -> list[Record]:
        """Every subject in 512 and 1,024 tokens at three depths; a model finds a share at 512, and none at 1,024."""
        for model, size, seed in self._subjects():
            for context_len in (512, 1024):
                self._needle(model, size, seed, haystack, context_len, found[model] * (context_len == 512))
        return self.records

    def recalls(self, solved: float = 1.0, *, by_distance: bool = False) -> list[Record]:
        """Every subject on examples of 4 and of 16 pairs; the Transformer solves the share `solved` of both.

        By distance RetNet's accuracy halves each time from 4 tokens to 8 and 16, and each seed has a tenth less.
        """
        for model, size, seed in self._subjects():
            for num_pairs in (4, 16):
                self._recall(model, size, seed, num_pairs, solved, by_distance=by_distance)
        return self.records

    def lengths(self, solved: float = 1.0, learnt: float = 1.0) -> list[Record]:
        """Every subject on two tasks at 1, 4 and 16 times the trained length of 32.

        The Transformer solves the share `solved` at the trained length and a tenth of that beyond it. RetNet solves the
        share `learnt` at every length in induction, and loses a tenth in copying each time.
        """
        for model, size, seed in self._subjects():
            for task in ("copy", "induction"):
                for place, ratio in enumerate((1, 4, 16)):
                    falls = learnt - 0.1 * place if task == "copy" else learnt
                    share = solved * (1.0 if ratio == 1 else 0.1) if model == "transformer" else falls
                    self._length(model, size, seed, task, 32 * ratio, share)
        return self.records

    def write(self) -> Path:
        """Append the records beside their documents; the results folder."""
        for record in self.records:
            append_record(self._folder(record.experiment) / f"{record.run_id}.jsonl", record)
        return self.root

    def _folder(self, experiment: str) -> Path:
        return self.root / CPU.name / experiment

    def _subjects(self) -> list[tuple[str, str, int | None]]:
        return [
            (model, size, seed) for size, seeds in self.seeds.items() for seed in seeds for model in self.bits
        ]

    def _perplexity(
        self, model: str, size: str, seed: int | None, corpus: str, protocol: str, context_len: int
    ) -> None:
        draw = random.Random(f"{corpus}/{protocol}/{context_len}")  # the same documents for all
        own = random.Random(f"{corpus}/{model}/{size}/{seed}")
        level = (
            self.bits[model][size]
            * (1 + 0.004 * own.gauss(0, 1))
            * (0.95 if corpus.startswith("lit") else 1.05)
        )
        rows = []
        for number in range(self.num_documents):
            in_text = protocol != "last"  # whose parts may begin within a character
            num_tokens = min(context_len, draw.randrange(3000, 20000)) if in_text else 128 * 40
            hardness = draw.gauss(1, 0.08)
            nll = num_tokens * level * hardness * (1 + 0.01 * own.gauss(0, 1)) * math.log(2)
            rows.append(
                {
                    "name": f"book {number}",
                    "num_tokens": num_tokens,
                    "num_bytes": num_tokens if in_text else None,
                    "num_words": num_tokens // 6 if in_text else None,
                    "nll_nats": nll,
                }
            )
        rows = self.change_rows(model, rows)
        losses, num_tokens = sum(row["nll_nats"] for row in rows), sum(row["num_tokens"] for row in rows)
        metrics = {
            "nats_per_token": Metric(unit="nats", value=losses / num_tokens),
            "num_tokens": Metric(unit="count", value=num_tokens),
            "tokens_per_s": Metric(unit="tokens/s", value=12_000 + own.random()),
        }
        if protocol != "last":
            num_bytes, words = (sum(row[name] for row in rows) for name in ("num_bytes", "num_words"))
            metrics |= {
                "bits_per_byte": Metric(unit="bits", value=losses / num_bytes / math.log(2)),
                "word_perplexity": Metric(unit="ratio", value=math.exp(losses / words)),
                "num_bytes": Metric(unit="count", value=num_bytes),
                "num_words": Metric(unit="count", value=words),
            }
        ends = [end for end in (128, 256, 512, 1024, 2048, 4096, 8192) if end <= context_len]
        at_ends = [level * math.log(2) * self._rise(model, end) for end in ends]
        self._add(
            model,
            size,
            seed,
            {
                "experiment": "quality",
                "workload": "perplexity",
                "point": Point(batch_size=1, context_len=context_len, task=corpus, protocol=protocol),
                "settings": {"split": "test", "corpus_fingerprint": f"{corpus[:3]}456789012"},
                "backend": {"prefill": "chunkwise" if model == "retnet" else "sdpa:flash"},
                "metrics": metrics,
                "series": {}
                if protocol == "last"
                else {
                    "loss_by_position": Series(
                        unit="nats", x_name="position", x=ends, y=at_ends, counts=[end * 9 for end in ends]
                    )
                },
            },
            rows,
        )

    def _rise(self, model: str, end: int) -> float:
        """Loss near a position over the mean: falls with the context, and rises beyond what was trained at."""
        shape = 1.25 - 0.027 * math.log2(end / 16)
        beyond = max(0.0, math.log2(end / TRAINED_LEN))
        return shape + (0.22 if model == "transformer" else 0.01) * beyond

    def _zeroshot(
        self, model: str, size: str, seed: int | None, task: str, num_fewshot: int, context_len: int
    ) -> None:
        count, accuracy = TASKS.get(task, (200, 0.5))
        draw, own = random.Random(task), random.Random(f"{task}/{model}/{size}/{seed}/{num_fewshot}")
        better = 0.12 if (model, task, size, num_fewshot) == ("retnet", "piqa", "25m", 0) else 0.0
        rows = []
        for number in range(count):
            shared = draw.random()  # what both find easy or hard
            right = (shared if own.random() < 0.7 else own.random()) < accuracy + better
            row = {"doc_id": number, "doc_hash": f"{task}{number}", "acc": int(right)}
            rows.append(row | ({"acc_norm": int(right)} if task == "hellaswag" else {}))
        rows = self.change_rows(model, rows)
        mean = sum(row["acc"] for row in rows) / len(rows)
        metrics = {
            "acc": Metric(unit="ratio", value=mean),
            "acc_stderr": Metric(unit="ratio", value=math.sqrt(mean * (1 - mean) / (len(rows) - 1))),
            "num_truncated": Metric(unit="count", value=0),
        }
        if task in RECALL_TASKS:
            rows = [
                {"contains" if name == "acc" else name: value for name, value in row.items()} for row in rows
            ]
            metrics = {name.replace("acc", "contains"): metric for name, metric in metrics.items()}
        if task == "hellaswag":
            metrics |= {"acc_norm": metrics["acc"], "acc_norm_stderr": metrics["acc_stderr"]}
        if task == "lambada_openai":
            metrics["perplexity"] = Metric(unit="ratio", value=150 + own.random())
        self._add(
            model,
            size,
            seed,
            {
                "experiment": "quality",
                "workload": "zeroshot",
                "point": Point(batch_size=1, context_len=context_len, task=task, num_fewshot=num_fewshot),
                "settings": {"split": None, "corpus_fingerprint": None},
                "backend": {
                    "prompts_fingerprint": hashlib.sha256(f"{task}{num_fewshot}".encode()).hexdigest()[:12],
                    "lm_eval_version": "0.4.13",
                    "task_version": "1.0",
                },
                "metrics": metrics,
            },
            rows,
        )

    def _slices(self, model: str, size: str, seed: int | None, corpus: str, document_bytes: int) -> None:
        draw = random.Random(corpus)  # the same documents for all
        level, ends = self.bits[model][size], (64, 128, 256)
        rows = []
        for number in range(self.num_documents):
            counts = [draw.randrange(1, 6) for _ in ends]
            num_hits, num_first, noise = sum(counts), draw.randrange(100, 200), draw.gauss(0, 0.1)
            gain = 3.0 - level + noise
            rows.append(
                {
                    "name": f"book {number}",
                    "num_bytes": document_bytes,
                    "num_tokens": document_bytes // 4,
                    "nll_nats": document_bytes * level,
                    "num_hits": num_hits,
                    "hit_nats": num_hits * (2.0 + level + noise),
                    "gain_nats": num_hits * gain,
                    "num_first": num_first,
                    "first_nats": num_first * (5.0 + noise),
                    "hits_by_distance": counts,
                    "gains_by_distance": [count * gain for count in counts],
                    "copied_bytes": document_bytes // 2,
                    "first_copy_nats": document_bytes / 2 * math.log(2) * 2.0,
                    "second_copy_nats": document_bytes / 2 * math.log(2) * level,
                }
            )
        rows = self.change_rows(model, rows)
        hits, first, copied = (
            sum(row[name] for row in rows) for name in ("num_hits", "num_first", "copied_bytes")
        )
        sums = {
            "hit_gain_nats": ("gain_nats", hits),
            "hit_nats": ("hit_nats", hits),
            "first_nats": ("first_nats", first),
            "first_copy_bits_per_byte": ("first_copy_nats", copied * math.log(2)),
            "second_copy_bits_per_byte": ("second_copy_nats", copied * math.log(2)),
        }
        gains = [3.0 - level] * len(ends)
        self._add(
            model,
            size,
            seed,
            {
                "experiment": "recall_slices",
                "workload": "recall_slices",
                "point": Point(batch_size=1, context_len=document_bytes, task=corpus),
                "settings": {"split": "test", "corpus_fingerprint": f"{corpus[:3]}456789012", "max_count": 0},
                "backend": {"evaluation": "chunkwise" if model == "retnet" else "sdpa:flash"},
                "metrics": {
                    name: Metric(
                        unit="bits" if "bits" in name else "nats",
                        value=sum(row[field] for row in rows) / count,
                    )
                    for name, (field, count) in sums.items()
                }
                | {
                    "num_hits": Metric(unit="count", value=hits),
                    "num_first": Metric(unit="count", value=first),
                    "num_documents": Metric(unit="count", value=len(rows)),
                    "num_tokens": Metric(unit="count", value=sum(row["num_tokens"] for row in rows)),
                },
                "series": {
                    f"hit_gain_by_distance{end}": Series(
                        unit="nats",
                        x_name="distance_bytes",
                        x=ends,
                        y=[gain + shift for gain in gains],
                        counts=[180] * len(ends),
                    )
                    for end, shift in (("", 0.0), ("_low", -0.2), ("_high", 0.2))
                },
            },
            rows,
        )

    def _needle(
        self, model: str, size: str, seed: int | None, haystack: str, context_len: int, share: float
    ) -> None:
        depths, each = (0.0, 50.0, 100.0), 20
        rows = []
        for number in range(each * len(depths)):
            right = int(number % each < share * each)
            row = {"doc_id": number, "doc_hash": f"{haystack}{context_len}{number}"}
            rows.append(row | {"acc": right, "contains": right, "choice": 1})
        self._add(
            model,
            size,
            seed,
            {
                "experiment": "needle",
                "workload": "needle",
                "point": Point(batch_size=1, context_len=context_len, task=haystack),
                "backend": {"evaluation": "sdpa:flash", "prompts_fingerprint": f"{haystack}{context_len}"},
                "metrics": {
                    "acc": Metric(unit="ratio", value=share),
                    "acc_stderr": Metric(unit="ratio", value=0.05),
                    "contains": Metric(unit="ratio", value=share),
                    "choice": Metric(unit="ratio", value=1.0),
                    "prompt_state_bytes": Metric(unit="bytes", value=4096),
                },
                "series": {
                    "acc_by_depth": Series(
                        unit="ratio", x_name="depth_percent", x=depths, y=[share] * 3, counts=[each] * 3
                    )
                },
            },
            self.change_rows(model, rows),
        )

    def _recall(
        self,
        model: str,
        size: str,
        seed: int | None,
        num_pairs: int,
        solved: float,
        *,
        by_distance: bool,
    ) -> None:
        place = SIZES.index(size)
        accuracy = solved if model == "transformer" else min(1.0, (1 + place) * 4 / num_pairs)
        state_bytes = {"transformer": 65536}.get(model, 4096) * 2**place
        shares = (
            [solved] * 3 if model == "transformer" else [0.8 * 0.9 ** (seed or 0) / 2**n for n in range(3)]
        )
        self._add(
            model,
            size,
            seed,
            {
                "experiment": "mqar",
                "workload": "mqar",
                "point": Point(batch_size=1, context_len=64, task="mqar", num_pairs=num_pairs),
                "backend": {"evaluation": "chunkwise" if model == "retnet" else "sdpa:flash"},
                "metrics": {
                    "acc": Metric(unit="ratio", value=accuracy),
                    "acc_stderr": Metric(unit="ratio", value=0.01),
                    "state_bytes": Metric(unit="bytes", value=state_bytes),
                    "num_examples": Metric(unit="count", value=1000),
                    **({"acc_far": Metric(unit="ratio", value=shares[-1])} if by_distance else {}),
                },
                "series": {
                    f"acc_by_distance{end}": Series(
                        unit="ratio",
                        x_name="distance_tokens",
                        x=(4, 8, 16),
                        y=[share * factor for share in shares],
                        counts=(900, 500, 300),
                    )
                    for end, factor in (("", 1.0), ("_low", 0.9), ("_high", 1.0))
                    if by_distance
                },
            },
            None,
        )

    def _length(
        self, model: str, size: str, seed: int | None, task: str, context_len: int, share: float
    ) -> None:
        ratios = {"acc": share, "acc_stderr": 0.01, "exact": share / 2, "guess": 1 / 26}
        self._add(
            model,
            size,
            seed,
            {
                "experiment": "length_recall",
                "workload": "length_recall",
                "point": Point(batch_size=1, context_len=context_len, task=task),
                "backend": {
                    "evaluation": "chunkwise" if model == "retnet" else "sdpa:flash",
                    "trained_len": 32,
                },
                "metrics": {
                    **{name: Metric(unit="ratio", value=value) for name, value in ratios.items()},
                    "num_examples": Metric(unit="count", value=250),
                },
            },
            None,
        )

    def _training(self, model: str, size: str, seed: int | None, rate: float, role: str) -> None:
        own = random.Random(f"train/{model}/{size}/{seed}/{rate}")
        last = (
            self.bits[model][size] * math.log(2) * (1 + 0.004 * own.gauss(0, 1)) * (1 + abs(rate - 2e-3) * 20)
        )
        tokens = [NUM_TOKENS * step // 20 for step in range(1, 21)]
        loss = [last + 2.2 * math.exp(-4 * count / NUM_TOKENS) for count in tokens]
        self._add(
            model,
            size,
            seed,
            {
                "experiment": "quality",
                "workload": "training_run",
                "point": Point(batch_size=8, context_len=TRAINED_LEN, task="classic_books"),
                "backend": {
                    "role": role,
                    "seed": seed or 0,
                    "learning_rate": rate,
                    "training": "chunkwise" if model == "retnet" else "sdpa",
                    **({"tuned_at": "1m", "best_rate_is": "inside the grid"} if role == "final" else {}),
                },
                "metrics": {
                    "validation_loss_nats": Metric(unit="nats", value=loss[-1]),
                    "tokens_per_s": Metric(unit="tokens/s", value=9000 + own.random()),
                    "num_tokens": Metric(unit="count", value=NUM_TOKENS),
                },
                "series": {
                    "train_loss_nats": Series(
                        unit="nats", x_name="tokens", x=tokens, y=[y + 0.05 for y in loss]
                    ),
                    "validation_loss_nats": Series(unit="nats", x_name="tokens", x=tokens, y=loss),
                },
            },
            None,
        )

    def _add(
        self, model: str, size: str, seed: int | None, own: dict[str, Any], rows: list[dict[str, Any]] | None
    ) -> None:
        """Make a record around what is its own, and store its documents."""
        config = matched_pair(size)[model.partition("_")[0]]
        moment = self.started + timedelta(seconds=len(self.records))
        arguments: dict[str, Any] = {
            "run_id": self.started.strftime("%Y%m%dT%H%M%SZ"),
            "profile": "cpu",
            "pair_id": pair_id(matched_pair(size)),
            "round": 0,
            "started_at": moment.isoformat(),
            "status": "ok",
            "model": ModelInfo(
                name=model,
                architecture=config.architecture,
                variant=config.variant,
                size=size,
                num_params=costs.num_params(config),
                num_params_nonembedding=costs.num_params_nonembedding(config),
                config=config.model_dump(mode="json"),
                weights=None
                if seed is None
                else WeightsInfo(
                    source="quality/cpu",
                    fingerprint=hashlib.sha256(f"{model}{size}{seed}".encode()).hexdigest()[:12],
                    format="retbench",
                    seed=seed,
                    num_tokens=NUM_TOKENS,
                    learning_rate=own["backend"].get("learning_rate", 2e-3),
                    corpus="classic_books",
                ),
            ),
            "environment": {
                "machine": CPU.name,
                "cpu_model": CPU.processor,
                "code_revision": self.code_revision,
                "versions": {"python": "3.11.9", "torch": CPU.torch_version},
            },
            "command": f"retbench {'train' if own['workload'] == 'training_run' else 'run'} quality --profile cpu",
            **own,
        }
        arguments["settings"] = {
            "dtype": "float32",
            "device": "cpu",
            "threads": 2,
            "backend": "chunkwise" if model == "retnet" else "sdpa",
            "limit": None,
            "tokenizer": "bytes",
            "tokenizer_fingerprint": "0123456789ab",
            **own.get("settings", {}),
        }
        identity = (
            own["workload"],
            own["point"],
            model,
            size,
            seed,
            arguments["settings"],
            own["backend"].get("learning_rate"),
            own["backend"].get("role"),
            self.started,
        )
        arguments["cell_id"] = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        arguments = self.change(arguments)
        if rows is not None and arguments["status"] == "ok":
            folder = self._folder(arguments["experiment"])
            arguments.setdefault("documents", write_documents(folder, arguments["cell_id"], rows))
        self.records.append(Record(**arguments))


def evaluations_of(maker: ScoreMaker) -> Evaluations:
    """Return the evaluations of a maker's records, read from a results folder."""
    loaded = load_results(maker.write())
    found = make_evaluations(select(loaded.records, folders=loaded.folders))
    assert found is not None
    return found
