"""Time: each network in a worker process of its own, taking turns, one thread, warm, median and spread.

Two runtimes in one process disturb each other, and a shared machine drifts. So everybody gets a process, and rounds go
A B C A B C ..., so that a slow second hits all alike; ratios within one call are what holds.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from penjing.artifact import Backend, load
from penjing.errors import ArtifactError, RunError
from penjing.measurement.record import Latency


@dataclass(frozen=True)
class Timing:
    """What one file measured.

    Attributes:
        path: the file.
        latency_ms: of one call.
        resident_bytes: the worker's resident size after it.
        runtime: what ran it.
        backend: how an artifact ran, see `artifact.load`; "onnxruntime" or "openvino" for an ONNX file, "executorch".
        answer: the width or exit that was timed by itself; "" for the file as it runs.
    """

    path: str
    latency_ms: Latency
    resident_bytes: int
    runtime: str
    backend: str
    answer: str = ""


Runtime = Literal["onnxruntime", "openvino"]
"""What runs ONNX files."""


class Worker:
    """A process that has loaded one artifact, ONNX file or ExecuTorch program and times it when asked.

    Args:
        samples: safetensors file of inputs "0", "1" ..., (n, *shape) each, that are gone through one by one, because
            samples may differ in how far they go; None: one batch of random numbers.
        backend: of an artifact, see `artifact.load`; of an ONNX file what runs it; an ExecuTorch program has but one way.
        length: of every dimension that the network leaves open behind the batch; None: as in the example that it was traced
            with, 64 in ONNX files.

    Raises: ArtifactError: the file cannot be loaded. RunError: the process died.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        batch: int = 1,
        threads: int = 1,
        samples: Path | None = None,
        backend: Backend | Runtime | None = None,
        length: int | None = None,
    ) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        self.path = str(path)
        self.backend = backend or _ways(path, ("dense",), ("onnxruntime",))[0]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "penjing.measurement.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        order = {"path": self.path, "batch": batch, "length": length, "threads": threads, "backend": self.backend}
        self._send({**order, "samples": str(samples) if samples else None})
        self.runtime: str | None = None

    def wait_until_ready(self) -> None:
        """Until the file is loaded and warm."""
        if self.runtime is None:
            self.runtime = str(self._ask(None)["runtime"])

    def time(self, seconds: float, exit_at: int | None = None) -> tuple[list[float], int]:
        """Times of single calls in ms over about `seconds`, and the resident size in bytes.

        Args:
            exit_at: every sample leaves at this exit, whatever it answers; the number of exits for all the way; None for
                the stored thresholds.
        """
        self.wait_until_ready()
        found = self._ask({"seconds": seconds, "exit_at": exit_at})
        return found["ms"], found["resident_bytes"]

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer that is missing says why

    def _ask(self, message: dict[str, Any] | None) -> dict[str, Any]:
        assert self._process.stdout is not None and self._process.stderr is not None
        if message is not None:
            self._send(message)
        line = self._process.stdout.readline()
        if not line:
            lines = self._process.stderr.read().strip().splitlines()
            raise RunError(f"bench: the worker for {self.path} ended: {lines[-1] if lines else 'no reason given'}.")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ArtifactError(found["error"])
        return found


def take_turns(workers: Sequence[Worker], *, rounds: int = 5, seconds: float = 0.1) -> list[Timing]:
    """Time all of them, `rounds` times in turn, `seconds` each time."""
    return _take_turns([(worker, None, "") for worker in workers], rounds, seconds)


def _take_turns(ways: Sequence[tuple[Worker, int | None, str]], rounds: int, seconds: float) -> list[Timing]:
    """The same for (worker, answer that all samples leave at, its name)."""
    times: list[list[float]] = [[] for _ in ways]
    resident = [0] * len(ways)
    for worker, _, _ in ways:
        worker.wait_until_ready()
    for _ in range(rounds):
        for i, (worker, exit_at, _) in enumerate(ways):
            found, resident[i] = worker.time(seconds, exit_at)
            times[i] += found
    return [
        Timing(worker.path, _quartiles(ms), size, str(worker.runtime), worker.backend, name)
        for (worker, _, name), ms, size in zip(ways, times, resident, strict=True)
    ]


def time_exits(worker: Worker, n_ways: int, *, rounds: int = 5, seconds: float = 0.1) -> list[Latency]:
    """Times of an artifact when all samples leave at each of its exits, and last when all go the whole way; in turns."""
    times: list[list[float]] = [[] for _ in range(n_ways)]
    for _ in range(rounds):
        for k in range(n_ways):
            times[k] += worker.time(seconds, exit_at=k)[0]
    return [_quartiles(ms) for ms in times]


def bench(
    paths: Sequence[str | Path],
    *,
    batch: int = 1,
    length: int | None = None,
    threads: int = 1,
    rounds: int = 10,
    seconds: float = 0.3,
    backends: Sequence[Backend] = ("dense",),
    runtimes: Sequence[Runtime] = ("onnxruntime",),
    answers: bool = False,
) -> list[Timing]:
    """Time files against one another: artifacts once for each backend, ONNX files once for each runtime.

    Args:
        answers: of artifacts with several answers each width and exit by itself, too.
    Raises: ArtifactError: one of them cannot be loaded.
    """
    workers: list[Worker] = []
    ways: list[tuple[Worker, int | None, str]] = []
    try:
        for path in paths:
            names = load(path).answer_names if answers and Path(path).suffix not in (".onnx", ".pte") else []
            for backend in _ways(path, backends, runtimes):
                workers.append(Worker(path, batch=batch, length=length, threads=threads, backend=backend))
                ways.append((workers[-1], None, ""))
                ways += [(workers[-1], k, name) for k, name in enumerate(names) if len(names) > 1]
        return _take_turns(ways, rounds, seconds)
    finally:
        for worker in workers:
            worker.close()


def _ways(path: str | Path, backends: Sequence[Backend], runtimes: Sequence[Runtime]) -> Sequence[Any]:
    """The values of `Timing.backend` that a file asks for."""
    ending = Path(path).suffix
    return runtimes if ending == ".onnx" else ("executorch",) if ending == ".pte" else backends


def _quartiles(values: Sequence[float]) -> Latency:
    ordered = sorted(values)

    def at(q: float) -> float:
        return ordered[min(int(q * len(ordered)), len(ordered) - 1)]

    return Latency(at(0.5), at(0.25), at(0.75))
