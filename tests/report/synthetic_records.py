"""Plausible records without a measurement: a matched pair on a made-up machine, times from its roofline."""

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.architectures.matching import resolve_model
from retbench.architectures.retnet import RetNetSpec
from retbench.architectures.transformer import TransformerSpec
from retbench.config.dtypes import Dtype
from retbench.planning.cells import Cell, ModelUnderTest, Settings
from retbench.records.record import Ceilings, Gate, GateCheck, Metric, ModelInfo, Point, Record, Status
from retbench.records.store import append_record
from retbench.workloads.metrics import training_bytes, training_flops

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
TRAINING_LENGTHS = (2048, 3072, 4096, 6144, 8192)
BACKENDS = {
    "retnet": "chunkwise",
    "retnet_chunkwise": "chunkwise",
    "retnet_parallel": "parallel",
    "transformer": "sdpa",
    "transformer_fused": "sdpa",
    "transformer_plain": "reference",
}
ROUNDS = 5


@cache
def matched_pair(size: str) -> dict[str, ModelConfig]:
    """RetNet and Transformer of a size; solving their widths takes a while."""
    return {
        "retnet": resolve_model(RetNetSpec(architecture="retnet"), size),
        "transformer": resolve_model(TransformerSpec(architecture="transformer"), size),
    }


def pair_id(models: Mapping[str, ModelConfig]) -> str:
    """The hash of all models of an experiment, which records had up to schema version 2."""
    text = "\n".join(f"{name}={config.model_dump_json()}" for name, config in sorted(models.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Machine:
    """The machine of made-up records."""

    name: str = "epyc-9b14-2c"
    processor: str = "AMD EPYC 9B14"
    device: str = "cpu"
    dtype: Dtype = "float32"
    threads: int = 2
    bandwidth: float = 30e9
    flops: float = 139e9
    code_revision: str = "0.1.0+src.0123456789ab"
    torch_version: str = "2.13.0"
    size: str = "25m"
    memory_bytes: float = math.inf
    started: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    trains: bool = False
    """True if its models are those of `training_cost`: two ways of running each of the pair."""

    @property
    def models(self) -> dict[str, ModelConfig]:
        """The matched pair at this machine's size."""
        pair = matched_pair(self.size)
        return {name: pair[name.partition("_")[0]] for name in BACKENDS if ("_" in name) == self.trains}


CPU = Machine()
TRAINER = Machine(size="1m", trains=True)
SMALL_TRAINER = replace(TRAINER, memory_bytes=2e9)
"""A machine on which plain attention and the parallel form run out of memory."""
GPU = Machine(
    name="a100-sxm4-80gb",
    processor="NVIDIA A100-SXM4-80GB",
    device="cuda:0",
    dtype="bfloat16",
    bandwidth=1.6e12,
    flops=250e12,
    size="6.7b",
    memory_bytes=80e9,
)
SMALL = replace(CPU, memory_bytes=1e9)
"""A CPU that may take a gigabyte."""


def with_mixer(config: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a dumped configuration in which every mixer has other fields."""
    blocks = [{**block, "mixer": {**block["mixer"], **fields}} for block in config["blocks"]]
    return {**config, "blocks": blocks}


@dataclass
class Maker:
    """Makes the records of one machine, one after the other, each a second later.

    `change` is given each record's arguments before it is made, to turn it into what a test needs.
    """

    machine: Machine = CPU
    seed: int = 0
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda arguments: arguments
    _random: random.Random = field(init=False)
    _count: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def latency(self, lengths: Iterable[int] = LENGTHS, batch_sizes: Iterable[int] = (1,)) -> list[Record]:
        """Decode at every length and prefill at the two shortest, ROUNDS rounds."""
        lengths, batch_sizes = tuple(lengths), tuple(batch_sizes)
        grid = [("decode", length) for length in lengths] + [("prefill", length) for length in lengths[:2]]
        return [
            self.record("latency", model, workload, batch_size, length, number)
            for number in range(ROUNDS)
            for model in self.machine.models
            for workload, length in grid
            for batch_size in batch_sizes
        ]

    def memory(self, lengths: Iterable[int] = LENGTHS, batch_sizes: Iterable[int] = (1,)) -> list[Record]:
        """Memory at every length, one round."""
        lengths, batch_sizes = tuple(lengths), tuple(batch_sizes)
        return [
            self.record("memory", model, "memory", batch_size, length, 0)
            for model in self.machine.models
            for length in lengths
            for batch_size in batch_sizes
        ]

    def throughput(
        self, lengths: Iterable[int] = (1024, 4096), batch_sizes: Iterable[int] = (1, 2, 4, 8, 16, 32, 64)
    ) -> list[Record]:
        """Decode at every length and batch size, ROUNDS rounds, and the largest batch at every length, one round."""
        lengths, batch_sizes = tuple(lengths), tuple(batch_sizes)
        grid = [("decode", batch_size, number) for number in range(ROUNDS) for batch_size in batch_sizes]
        return [
            self.record("throughput", model, workload, batch_size, length, number)
            for workload, batch_size, number in [*grid, ("largest_batch", 1, 0)]
            for model in self.machine.models
            for length in lengths
        ]

    def training(self, lengths: Iterable[int] = TRAINING_LENGTHS) -> list[Record]:
        """Training at every length by a machine with four ways of it, ROUNDS rounds."""
        return [
            self.record("training_cost", model, "training", 1, length, number)
            for number in range(ROUNDS)
            for model in self.machine.models
            for length in lengths
        ]

    def record(
        self, experiment: str, model: str, workload: str, batch_size: int, length: int, number: int
    ) -> Record:
        """One record of a cell of this machine's models; see `record_of`."""
        return self.record_of(experiment, self._cell(model, workload, batch_size, length, experiment), number)

    def record_of(self, experiment: str, cell: Cell, number: int) -> Record:
        """One record; out of memory where weights and state exceed the machine's memory."""
        needed = costs.weight_bytes(cell.model, self.machine.dtype) + self._state_bytes(cell)
        if cell.workload == "training":
            needed = training_bytes(cell)
        status: Status = "oom" if needed > self.machine.memory_bytes else "ok"
        self._count += 1
        arguments: dict[str, Any] = {
            "run_id": self.machine.started.strftime("%Y%m%dT%H%M%SZ"),
            "experiment": experiment,
            "profile": "cpu" if self.machine.device == "cpu" else "paper",
            "cell_id": cell.cell_id,
            "pair_id": pair_id(self.machine.models),
            "round": number,
            "started_at": (self.machine.started + timedelta(seconds=self._count)).isoformat(),
            "status": status,
            "error": f"CUDA out of memory: {needed / 2**30:.1f} GiB needed" if status == "oom" else None,
            "model": self._model_info(cell),
            "workload": cell.workload,
            "point": cell.point,
            "settings": {
                **cell.settings.model_dump(),
                "backend": cell.backend,
                "chunk_size": cell.chunk_size,
            },
            "backend": self._backend(cell),
            "environment": self._environment(),
            "ceilings": Ceilings(
                read_bandwidth_bytes_per_s=self.machine.bandwidth, matmul_flops_per_s=self.machine.flops
            ),
            "gate": self._gate(cell.model_name),
            "metrics": self._metrics(cell) if status == "ok" else {},
            "absent": {"energy_per_token_j": "no energy counter on this machine"},
            "command": f"retbench run {experiment} --profile cpu",
        }
        return Record(**self.change(arguments))

    def _cell(self, model: str, workload: str, batch_size: int, length: int, experiment: str) -> Cell:
        return Cell(
            under_test=ModelUnderTest(
                model_name=model,
                size=self.machine.size,
                model=self.machine.models[model],
                backend=BACKENDS[model],
                chunk_size=128 if model.startswith("retnet") else None,
            ),
            workload=workload,
            point=Point(batch_size=batch_size, context_len=length),
            settings=Settings(
                dtype=self.machine.dtype,
                device=self.machine.device,
                threads=self.machine.threads,
                seed=0,
                warmup_s=0.3 if experiment == "latency" else 0.0,
                min_steps=20,
                cuda_graph=self.machine.device != "cpu",
            ),
        )

    def _model_info(self, cell: Cell) -> ModelInfo:
        return ModelInfo(
            name=cell.model_name,
            architecture=cell.model.architecture,
            variant=cell.model.variant,
            size=cell.under_test.size,
            num_params=costs.num_params(cell.model),
            num_params_nonembedding=costs.num_params_nonembedding(cell.model),
            config=cell.model.model_dump(mode="json"),
        )

    def _state_bytes(self, cell: Cell) -> int:
        point = cell.point
        return costs.state_bytes(cell.model, self.machine.dtype, point.batch_size, point.context_len + 1)

    def _backend(self, cell: Cell) -> dict[str, Any]:
        if cell.workload == "training":
            return {"training": cell.backend, "optimizer": "AdamW", "activation_checkpointing": False}
        is_retnet = cell.model_name == "retnet"
        notes: dict[str, Any] = {
            "cuda_graph": cell.settings.cuda_graph and cell.workload == "decode",
            "compile": False,
        }
        if not is_retnet:
            notes["kv_capacity"] = cell.point.context_len + 1
        if cell.workload == "prefill":
            return {**notes, "prefill": "chunkwise" if is_retnet else "sdpa:flash"}
        source = "streamed prefill of real text" if cell.workload == "decode" else "zeros"
        return {**notes, "decode": "recurrent" if is_retnet else "sdpa:math", "state_source": source}

    def _environment(self) -> dict[str, Any]:
        machine = self.machine
        return {
            "machine": machine.name,
            ("cpu_model" if machine.device == "cpu" else "gpu"): (
                machine.processor if machine.device == "cpu" else {"name": machine.processor}
            ),
            "code_revision": machine.code_revision,
            "git_commit": "0123456789abcdef0123456789abcdef01234567",
            "threads": machine.threads,
            "versions": {"python": "3.11.9", "torch": machine.torch_version, "retbench": "0.1.0"},
            "flush_denormal": True,
            "load_average": round(self._random.uniform(0.1, 0.4), 2),
        }

    def _gate(self, model: str) -> Gate:
        names = ("chunkwise = parallel", "recurrent = parallel", "streamed = whole")
        if model.startswith("transformer"):
            names = ("sdpa = reference", "decode = prefill")
        checks = [
            GateCheck(name=name, length=2047, error=3e-6 * self._noise(0.2), limit=1e-4) for name in names
        ]
        return Gate(passed=True, dtype=self.machine.dtype, checks=tuple(checks))

    def _noise(self, spread: float) -> float:
        return math.exp(self._random.gauss(0.0, spread))

    def _metrics(self, cell: Cell) -> dict[str, Metric]:
        match cell.workload:
            case "decode" | "throughput":
                return self._decode(cell)
            case "prefill":
                return self._prefill(cell)
            case "largest_batch":
                return self._largest_batch(cell)
            case "training":
                return self._training(cell)
            case _:
                return self._memory(cell)

    def _decode(self, cell: Cell) -> dict[str, Metric]:
        machine, point = self.machine, cell.point
        moved = costs.decode_bytes(cell.model, machine.dtype, point.batch_size, point.context_len)
        done = costs.decode_flops(cell.model, point.batch_size, point.context_len)
        floor = max(moved / machine.bandwidth, done / machine.flops)
        overhead = 4.6e-3 if cell.model_name == "retnet" else 2.2e-3
        overhead *= 1.0 if machine.device == "cpu" else 0.2
        middle = (floor / 0.74 + overhead) * self._noise(0.02)
        samples = tuple(sorted(middle * self._noise(0.03) for _ in range(21)))
        value = samples[10]
        return {
            "tpot_s": Metric(unit="s", value=value, samples=samples),
            "tokens_per_s": Metric(unit="tokens/s", value=point.batch_size / value),
            "bytes_per_step": Metric(unit="bytes", value=moved),
            "flops_per_step": Metric(unit="FLOP", value=done),
            "bandwidth_ratio": Metric(unit="ratio", value=moved / value / machine.bandwidth),
            "roofline_ratio": Metric(unit="ratio", value=floor / value),
        }

    def _prefill(self, cell: Cell) -> dict[str, Metric]:
        machine, point = self.machine, cell.point
        done = costs.prefill_flops(
            cell.model, point.batch_size, point.context_len, cell.backend, cell.chunk_size
        )
        value = done / machine.flops / (0.55 if cell.model_name == "retnet" else 0.6) * self._noise(0.03)
        return {
            "ttft_s": Metric(unit="s", value=value, samples=(value,)),
            "tokens_per_s": Metric(unit="tokens/s", value=point.batch_size * point.context_len / value),
            "flops_per_call": Metric(unit="FLOP", value=done),
            "roofline_ratio": Metric(unit="ratio", value=done / machine.flops / value),
        }

    def _largest_batch(self, cell: Cell) -> dict[str, Metric]:
        memory = int(self.machine.memory_bytes)
        expected = costs.largest_batch(cell.model, self.machine.dtype, memory, cell.point.context_len)
        step = max(1, expected // 32)
        counts = {
            "largest_batch": expected // step * step,
            "largest_batch_step": step,
            "expected_largest_batch": expected,
        }
        sizes = {"memory_limit_bytes": memory, "available_bytes": memory}
        return {
            **{name: Metric(unit="count", value=value) for name, value in counts.items()},
            **{name: Metric(unit="bytes", value=value) for name, value in sizes.items()},
        }

    def _training(self, cell: Cell) -> dict[str, Metric]:
        machine, point = self.machine, cell.point
        done, held = training_flops(cell), training_bytes(cell)
        shares = {
            "chunkwise": 0.35,
            "fla": 0.4,
            "parallel": 0.1,
            "sdpa": 0.3,
            "blocks": 0.3,
            "reference": 0.15,
        }
        value = done / machine.flops / shares.get(cell.backend, 0.3) * self._noise(0.02)
        weights = costs.weight_bytes(cell.model, machine.dtype)
        parts = {
            "weight_bytes": weights,
            "gradient_bytes": weights,
            "optimizer_bytes": 2 * weights,
            "workspace_bytes": held - 4 * weights,
            "peak_bytes": held,
        }
        return {
            "step_s": Metric(unit="s", value=value, samples=(value,)),
            "tokens_per_s": Metric(unit="tokens/s", value=point.batch_size * point.context_len / value),
            "flops_per_step": Metric(unit="FLOP", value=done),
            "roofline_ratio": Metric(unit="ratio", value=done / machine.flops / value),
            **{name: Metric(unit="bytes", value=num_bytes) for name, num_bytes in parts.items()},
        }

    def _memory(self, cell: Cell) -> dict[str, Metric]:
        weights = costs.weight_bytes(cell.model, self.machine.dtype)
        state = self._state_bytes(cell)
        workspace = (
            160_000 * cell.point.batch_size + (cell.model_name != "retnet") * 48 * cell.point.context_len
        )
        parts = {
            "weight_bytes": weights,
            "state_bytes": state,
            "workspace_bytes": workspace,
            "peak_bytes": weights + state + workspace,
            "process_peak_bytes": 2 * weights + state + 300_000_000,
            "expected_weight_bytes": weights,
            "expected_state_bytes": state,
        }
        return {name: Metric(unit="bytes", value=value) for name, value in parts.items()}


def one(**changes: Any) -> Record:
    """The first RetNet decode record, with some fields replaced."""
    record = Maker().record("latency", "retnet", "decode", 1, 1024, 0)
    return record.model_copy(update=changes)


def on_node(node: str, model: str, number: int, run: str, **fields: Any) -> Record:
    """A record of a run on a node, started in the order of the runs' names."""
    found = Maker().record("latency", model, "decode", 1, 1024, number)
    environment = {**found.environment, "node_id": node, **fields}
    return found.model_copy(
        update={"run_id": run, "started_at": f"2026-01-0{run}T00:00:00Z", "environment": environment}
    )


def write_results(root: Path, records: Iterable[Record]) -> Path:
    """The records as the runner lays them out: `<root>/<machine>/<experiment>/<run_id>.jsonl`."""
    for record in records:
        machine = str(record.environment["machine"])
        append_record(root / machine / record.experiment / f"{record.run_id}.jsonl", record)
    return root


def write_many(root: Path, count: int) -> Path:
    """A folder of many runs: latency, memory and throughput of a machine, measured again at each of its revisions.

    The records of a run differ as those of real runs do: in their times, and per worker in environment and check.
    """
    maker = Maker(SMALL)
    run = [*maker.latency(), *maker.memory(), *maker.throughput()]
    workers = {(record.experiment, record.model.name, record.round): record for record in run}
    chance = random.Random(0)
    written = 0
    while written < count:
        started = SMALL.started + timedelta(hours=written // len(run))
        run_id = started.strftime("%Y%m%dT%H%M%SZ")
        revision = f"0.1.0+src.{written // 2000:012x}"
        lines: dict[str, list[str]] = {}
        for number, record in enumerate(run[: count - written]):
            worker = workers[record.experiment, record.model.name, record.round]
            noise = math.exp(chance.gauss(0.0, 0.02))
            metrics = {
                name: Metric(
                    unit=metric.unit,
                    value=metric.value * noise,
                    samples=tuple(sample * noise for sample in metric.samples),
                )
                if name.endswith("_s")
                else metric
                for name, metric in record.metrics.items()
            }
            changes = {
                "run_id": run_id,
                "started_at": (started + timedelta(seconds=number)).isoformat(),
                "environment": {**worker.environment, "code_revision": revision},
                "gate": worker.gate,
                "metrics": metrics,
            }
            lines.setdefault(record.experiment, []).append(
                record.model_copy(update=changes).model_dump_json()
            )
        for experiment, of_one in lines.items():
            path = root / SMALL.name / experiment / f"{run_id}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(of_one) + "\n", encoding="utf-8")
        written += sum(map(len, lines.values()))
    return root
