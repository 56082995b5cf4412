"""Measures a saved network against the baseline: everything a `Record` holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import zstandard
from safetensors.torch import save
from torch import Tensor

from penjing.artifact import encode, inspect, load
from penjing.files import write_atomically
from penjing.graph import Network, cut_out
from penjing.graph.network import INPUT
from penjing.measurement import (
    Answers,
    Latency,
    OperatingPoint,
    Record,
    Worker,
    accuracy,
    answer,
    count_parameters,
    drop,
    macs_of_answers,
    macs_of_samples,
    macs_without_exits,
    metric_value,
    peak_memory_bytes,
    take_turns,
    time_exits,
)
from penjing.representation import named_weights, plain
from penjing.training import Task

N_SAMPLES, ROUNDS, SECONDS = 32, 5, 0.12


class Gauge:
    """Measures files against one baseline.

    Args:
        baseline: the artifact of the baseline.
        folder: for the samples that the workers time.
    """

    def __init__(self, task: Task, baseline: Path, folder: Path, device: torch.device) -> None:
        self.task, self.baseline, self.device = task, baseline, device
        self._samples = folder / "latency-samples.safetensors"
        self._worker: Worker | None = None
        self._answers: dict[str, Answers] = {}

    def close(self) -> None:
        """End the baseline's worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def baseline_answers(self, data: str) -> Answers:
        """The baseline's answers to the set, computed once."""
        if data not in self._answers:
            self._answers[data] = answer(self._load(self.baseline), self.task, self._loader(data))
        return self._answers[data]

    def record(self, name: str, path: Path, data: str) -> Record:
        """Measure the file at `path` on the set `data`, "valid" or "test"."""
        return self.record_of(name, path, data, answer(self._load(path), self.task, self._loader(data)))

    def record_of(self, name: str, path: Path, data: str, answers: Answers) -> Record:
        """The same, when its answers are already there."""
        network = load(path)
        metric = self.task.metric
        value = metric_value(metric, answers.logits, answers.labels)
        parameters, nonzero = count_parameters(network)
        left = answers.left_at if answers.left_at is not None else torch.zeros(1, dtype=torch.int64)
        macs = macs_of_samples(network, left, answers.opened)
        own, baseline, at_exits = self._time(path, len(network.exits) + 1 if network.exits else 0)
        layer_bytes: dict[str, int] = {}
        for row in inspect(path):
            layer = row.name.rpartition(".")[0] or row.name if row.shape or row.elements else row.name
            layer_bytes[layer] = layer_bytes.get(layer, 0) + row.size_bytes
        return Record(
            name=name,
            data=data,
            metric=value,
            accuracy=accuracy(answers) if self.task.is_classification and answers.labels is not None else None,
            drop=None if path == self.baseline else drop(metric, self.baseline_answers(data), answers),
            parameters=parameters,
            nonzero=nonzero,
            macs=float(macs.double().mean()),
            macs_full=macs_without_exits(network),
            file_bytes=path.stat().st_size,
            latency_ms=own[0],
            baseline_latency_ms=baseline,
            peak_memory_bytes=peak_memory_bytes(network),
            resident_bytes=own[1],
            layer_bytes=layer_bytes,
            operating_points=self._operating_points(path, network, answers, macs, own[0], at_exits),
        )

    def _operating_points(
        self, path: Path, network: Network, answers: Answers, macs: Tensor, latency: Latency, at_exits: list[Latency]
    ) -> list[OperatingPoint]:
        if answers.at_exits is None or answers.left_at is None:
            return []
        metric, labels = self.task.metric, answers.labels
        points = []
        alone, written = macs_of_answers(network), load(path, for_training=True)
        thresholds: list[float | None] = [*network.thresholds, None]
        for k, logits in enumerate(answers.at_exits):
            points.append(
                OperatingPoint(
                    answers.names[k],
                    metric_value(metric, logits, labels),
                    float(alone[k]),
                    at_exits[k],
                    share=float((answers.left_at == k).double().mean()),
                    threshold=thresholds[k],
                    own_bytes=len(encode(cut_out(written, k))),
                )
            )
        mean = float(macs.double().mean())
        points.append(OperatingPoint("thresholds", metric_value(metric, answers.logits, labels), mean, latency))
        return points

    def _time(self, path: Path, n_ways: int) -> tuple[tuple[Latency, int], Latency, list[Latency]]:
        """((latency, resident bytes) of the file, latency of the baseline in the same turns, latencies at the exits)."""
        if not self._samples.exists():
            self._save_samples()
        if self._worker is None:
            self._worker = Worker(self.baseline, samples=self._samples)
        if path == self.baseline:
            (found,) = take_turns([self._worker], rounds=ROUNDS, seconds=SECONDS)
            at_exits = time_exits(self._worker, n_ways, rounds=ROUNDS, seconds=SECONDS)
            return (found.latency_ms, found.resident_bytes), found.latency_ms, at_exits
        with Worker(path, samples=self._samples) as candidate:
            base, found = take_turns([self._worker, candidate], rounds=ROUNDS, seconds=SECONDS)
            at_exits = time_exits(candidate, n_ways, rounds=ROUNDS, seconds=SECONDS)
        return (found.latency_ms, found.resident_bytes), base.latency_ms, at_exits

    def _save_samples(self) -> None:
        columns: list[list[Tensor]] = []
        names = [node.name for node in load(self.baseline).nodes if node.op == INPUT]
        n = 0
        for batch in self.task.batches(self.task.valid):
            inputs = [*batch.args, *(batch.kwargs[name] for name in names[len(batch.args) :])]
            columns.append([x[: N_SAMPLES - n].cpu() for x in inputs])
            n += batch.size
            if n >= N_SAMPLES:
                break
        tensors = {str(i): torch.cat(parts).contiguous() for i, parts in enumerate(zip(*columns, strict=True))}
        write_atomically(self._samples, save(tensors))

    def _load(self, path: Path) -> Network:
        return load(path).to(self.device)

    def _loader(self, data: str) -> Iterable[Any]:
        loader = self.task.test if data == "test" else self.task.valid
        assert loader is not None
        return loader


def baseline_rows(gauge: Gauge, data: str) -> list[dict[str, Any]]:
    """What simple means reach on the baseline, for honesty: half precision under Zstandard, and plain int8.

    fp16 + zstd: all weights and statistics rounded to float16, their bytes under Zstandard 19.
    plain int8: every matrix and filter w -> round(w / s) s with one step s = max |w| / 127 an output channel, a byte a weight,
    float32 for steps, vectors and statistics; nothing trained, nothing coded.
    """
    rows = []
    for name, round_one in (("fp16 + zstd", _half), ("plain int8", _int8)):
        network = plain(load(gauge.baseline))
        n_bytes, blobs = 0, []
        for _, owner, weight_name in list(named_weights(network)):
            value, size = round_one(getattr(owner, weight_name).detach())
            getattr(owner, weight_name).data.copy_(value)
            n_bytes += size
            blobs.append(value.half().numpy().tobytes())
        for key, buffer in network.named_buffers():
            if buffer.is_floating_point():
                blobs.append(buffer.half().numpy().tobytes())
                n_bytes += 4 * buffer.numel()
                if round_one is _half:
                    network.get_submodule(key.rpartition(".")[0])._buffers[key.rpartition(".")[2]] = (
                        buffer.half().float()
                    )
        if round_one is _half:
            n_bytes = len(zstandard.ZstdCompressor(level=19).compress(b"".join(blobs)))
        found = answer(network.to(gauge.device), gauge.task, gauge._loader(data))
        metric = metric_value(gauge.task.metric, found.logits, found.labels)
        rows.append({"name": name, "file_bytes": n_bytes, "metric": vars(metric)})
    return rows


def _half(value: Tensor) -> tuple[Tensor, int]:
    return value.half().float(), 2 * value.numel()


def _int8(value: Tensor) -> tuple[Tensor, int]:
    if value.dim() < 2:
        return value, 4 * value.numel()
    step = value.flatten(1).abs().amax(1).clamp_min(1e-12) / 127
    step = step.reshape(-1, *[1] * (value.dim() - 1))
    return torch.round(value / step) * step, value.numel() + 4 * len(step)
