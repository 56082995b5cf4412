"""A made-up run that looks like a real one: the data of a `report.json`."""

import hashlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penjing.measurement.record import Accuracy, BudgetLine, Drop, Latency, MetricValue, OperatingPoint, Record

DIGITS = [str(digit) for digit in range(10)]
ARTIFACT = b"not a real one, but it has a checksum"
SHA256 = hashlib.sha256(ARTIFACT).hexdigest()


def wilson(correct: int, total: int) -> tuple[float, float]:
    z, p = 1.96, correct / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return middle - half, middle + half


def accuracy(correct: int, total: int) -> tuple[MetricValue, Accuracy]:
    low, high = wilson(correct, total)
    return MetricValue("accuracy", correct / total, low, high, total), Accuracy(correct, total, low, high)


def record(
    name: str, data: str, correct: int, file_bytes: int, parameters: int, macs: float, ms: float | None, **more: Any
) -> Record:
    total = 10000 if data == "test" else 5000
    metric, exact = accuracy(correct, total)
    lost = ({"test": 9952, "valid": 4971}[data] - correct) / total
    latency = None if ms is None else Latency(ms, 0.96 * ms, 1.09 * ms)
    values: dict[str, Any] = {
        "accuracy": exact,
        "drop": None if name == "baseline" else Drop(lost, lost - 0.0016, lost + 0.0017),
        "latency_ms": latency,
        "baseline_latency_ms": None if ms is None or name == "baseline" else Latency(0.402, 0.391, 0.431),
        "nonzero": parameters,
        "macs_full": round(macs),
        "peak_memory_bytes": 4 * parameters + 90_000,
        "seconds": 61.5,
        **more,
    }
    return Record(name, data, metric, parameters=parameters, macs=macs, file_bytes=file_bytes, **values)


def histograms() -> dict[str, Any]:
    rng = random.Random(0)
    found = {}
    for name, n, scale in (
        ("conv1.depthwise.weight", 25, 0.3),
        ("conv2.pointwise.weight", 512, 0.12),
        ("fc1.weight", 4096, 0.05),
        ("fc2.weight", 640, 0.1),
    ):
        values = [0.0 if rng.random() < 0.6 else rng.gauss(0, scale) for _ in range(n)]
        low, high = min(values), max(values)
        edges = [low + (high - low) * i / 40 for i in range(41)]
        counts = [0] * 40
        for value in values:
            counts[min(39, int(40 * (value - low) / (high - low)))] += 1
        centroids = [low + (high - low) * (i + 0.5) / 8 for i in range(8)]
        found[name] = {"edges": edges, "counts": counts, "centroids": None if name.startswith("conv1") else centroids}
    return found


def points() -> list[OperatingPoint]:
    rows = [("exit 0", 9713, 61_000, 0.09, 0.71, 0.83), ("final", 9925, 390_000, 0.21, 0.29, None)]
    found = [
        OperatingPoint(name, accuracy(k, 10000)[0], macs, Latency(ms, 0.95 * ms, 1.1 * ms), share, threshold)
        for name, k, macs, ms, share, threshold in rows
    ]
    return [*found, OperatingPoint("thresholds", accuracy(9921, 10000)[0], 158_000.0)]


def report(**changes: Any) -> dict[str, Any]:
    """The data; `changes` replace whole keys of it."""
    layers = {"exit0": 130, "conv1": 61, "conv1.depthwise": 74, "conv2.pointwise": 402, "fc1": 1311, "fc2": 288}
    ineffective = "The mask has no structure: the file shrinks, the latency does not."
    final_stages = {"layer_bytes": layers, "operating_points": points(), "macs_full": 391_000}
    baseline = record("baseline", "test", 9952, 1_104_220, 272_000, 2_290_000, 0.402)
    budget = [
        BudgetLine("file", 4000, 2431, True, "file: 2.43 kB of at most 4.00 kB, met"),
        BudgetLine("drop", 0.003, 0.0031 + 0.0017, False, "drop: 0.48 pp of at most 0.30 pp, not met"),
        BudgetLine("latency", 0.25, 0.131, True, "latency: 0.131 ms of at most 0.25 ms, met"),
    ]
    value: dict[str, Any] = {
        "schema_version": 1,
        "penjing": "0.1.0",
        "name": "mnist",
        "created": "2026-11-23T21:00:00",
        "seed": 0,
        "duration_seconds": 812.3,
        "machine": {
            "processor": "AMD EPYC",
            "cores": 2,
            "memory_bytes": 25e9,
            "platform": "Linux-6.1-x86_64",
            "threads": 1,
            "device": "cpu",
        },
        "versions": {"python": "3.11.7", "torch": "2.13.0", "penjing": "0.1.0"},
        "recipe": {"stages": [{"separable_convs": {}}]},
        "recipe_text": "name: mnist\nstages:\n  - separable_convs: {}\n  - distill: {temperature: 4, epochs: 8}\n",
        "task": {"metric": "accuracy", "classes": DIGITS, "n_train": 55000, "n_valid": 5000, "n_test": 10000},
        "baseline": baseline.to_json(),
        "baseline_valid": record("baseline", "valid", 4971, 1_104_220, 272_000, 2_290_000, None).to_json(),
        "stages": [
            s.to_json()
            for s in (
                record("separable convs", "valid", 4938, 233_410, 58_900, 702_000, 0.262, facts={"convs_replaced": 2}),
                record("distill", "valid", 4966, 233_402, 58_900, 702_000, 0.260),
                record(
                    "prune channels", "valid", 4955, 25_120, 6_210, 391_000, 0.197,
                    facts={"channels_removed": {"conv1": 3, "conv2": 21}, "rounds": 5},
                ),
                record("mask", "valid", 4953, 9_930, 6_210, 391_000, 0.399, nonzero=2_105, warnings=[ineffective]),
                record("cluster", "valid", 4951, 2_380, 6_210, 391_000, 0.199, nonzero=2_105),
                record("early exit", "valid", 4949, 2_431, 6_300, 158_000.4, 0.133, nonzero=2_190, **final_stages),
            )
        ],
        "final": record(
            "final", "test", 9921, 2_431, 6_300, 158_000.4, 0.131, nonzero=2_190, **final_stages, budget=budget
        ).to_json(),
        "baseline_rows": [
            {"name": "fp16 + zstd", "file_bytes": 498_120, "metric": None},
            {"name": "plain int8", "file_bytes": 281_030, "metric": vars(accuracy(9950, 10000)[0])},
        ],
        "artifact": {"path": "mnist.pj", "bytes": 2431, "sha256": SHA256},
        "layers_before": {"conv1": 900, "conv2": 52_000, "fc1": 1_030_200, "fc2": 20_700},
        "weights": histograms(),
        "per_class": [
            {"class": c, "n": 950 + 10 * i, "baseline_recall": 0.998 - 0.0006 * i, "final_recall": 0.996 - 0.0014 * i}
            for i, c in enumerate(DIGITS)
        ],
        "changed": {
            "n": 10000,
            "both_right": 9890,
            "both_wrong_same": 12,
            "both_wrong_other": 5,
            "only_baseline_right": 62,
            "only_final_right": 31,
            "pairs": [
                {"label": a, "baseline": b, "final": c, "count": n}
                for a, b, c, n in (
                    ("4", "4", "9", 9), ("9", "9", "4", 7), ("7", "7", "2", 6), ("5", "3", "5", 5), ("3", "3", "5", 5),
                    ("8", "8", "3", 4), ("6", "6", "0", 3), ("9", "7", "4", 2), ("2", "7", "2", 2), ("1", "1", "7", 1),
                )
            ],
        },
        "exits": {
            "names": ["exit 0", "final"],
            "share": [0.71, 0.29],
            "accuracy_of_leavers": [0.9986, 0.9772],
            "by_class": [{"class": c, "shares": [0.92 - 0.045 * i, 0.08 + 0.045 * i]} for i, c in enumerate(DIGITS)],
        },
        "budget": [vars(line) for line in budget],
        "warnings": [f"mask: {ineffective}", "Latency was measured while another process was running."],
    }  # fmt: skip
    return {**value, **changes}


def write_run(folder: Path, **changes: Any) -> Path:
    """A run folder with this report, and something in the place of the artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mnist.pj").write_bytes(ARTIFACT)
    (folder / "report.json").write_text(json.dumps(report(**changes)), encoding="utf-8")
    return folder


@pytest.fixture
def make_report() -> Callable[..., dict[str, Any]]:
    """`report` for tests, which cannot import this file."""
    return report


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder with a report; keywords replace keys of it."""

    def write(**changes: Any) -> Path:
        return write_run(tmp_path / "run", **changes)

    return write


@pytest.fixture
def hostile() -> Callable[[str], dict[str, Any]]:
    """A report in which every text that a user chooses is this one."""
    return _hostile


def _hostile(text: str) -> dict[str, Any]:
    value = report()
    stages = [{**stage, "name": text, "warnings": [text], "facts": {text: text}} for stage in value["stages"]]
    histogram = next(iter(value["weights"].values()))
    return {
        **value,
        "name": text,
        "stages": stages,
        "final": {**value["final"], "layer_bytes": {text: 5}},
        "machine": {text: text},
        "versions": {text: text},
        "recipe_text": text,
        "baseline_rows": [{**row, "name": text} for row in value["baseline_rows"]],
        "artifact": {"path": text, "bytes": 1, "sha256": text},
        "layers_before": {text: 10},
        "weights": {text: histogram, "other": histogram},
        "per_class": [{**row, "class": text} for row in value["per_class"][:1]],
        "changed": {**value["changed"], "pairs": [{"label": text, "baseline": text, "final": "9", "count": 3}]},
        "exits": {**value["exits"], "names": [text, "final"], "by_class": [{"class": text, "shares": [0.5, 0.5]}]},
        "warnings": [text],
    }
