"""The workers that take time: one process a file, and no process left behind."""

from pathlib import Path

import pytest
import torch
from torch import nn

from penjing.artifact import encode
from penjing.errors import ArtifactError, RunError
from penjing.graph import trace
from penjing.measurement import Worker, bench


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 144, 4)]
    path = tmp_path_factory.mktemp("latency") / "net.pj"
    path.write_bytes(encode(trace(nn.Sequential(*layers), (torch.randn(2, 3, 16, 16),))))
    return path


def children() -> list[str]:
    """Processes below this one, zombies included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        if int(rest.split()[1]) == int(Path("/proc/self").resolve().name):
            found.append(name + rest[:2])
    return found


@pytest.fixture(autouse=True)
def _nobody_is_left_behind() -> object:
    if not Path("/proc/self/stat").exists():
        yield
        return
    before = children()
    yield
    assert sorted(children()) == sorted(before)


def test_a_file_is_about_as_fast_as_itself(artifact: Path) -> None:
    ratios = []
    for _ in range(3):  # a machine that is busy with other tests may disturb one comparison
        first, second = bench([artifact, artifact], rounds=6, seconds=0.05)
        for timing in (first, second):
            assert 0 < timing.latency_ms.low <= timing.latency_ms.median <= timing.latency_ms.high
            assert timing.runtime.startswith("torch ") and timing.resident_bytes > 50e6
        ratios.append(first.latency_ms.median / second.latency_ms.median)
        if 0.5 < ratios[-1] < 2:
            break
    assert 0.5 < ratios[-1] < 2, ratios


def test_files_that_cannot_be_loaded(artifact: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pj"
    content = bytearray(artifact.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    workers = [Worker(path) for path in (tmp_path / "missing.pj", damaged)]
    for worker, words in zip(workers, ("missing.pj: cannot be read", "damaged.pj: the file is damaged"), strict=True):
        with worker, pytest.raises(ArtifactError, match=words):
            worker.wait_until_ready()


def test_a_worker_that_dies_is_an_error_not_a_hang(artifact: Path) -> None:
    with Worker(artifact) as worker:
        worker._process.kill()
        with pytest.raises(RunError, match=r"the worker for .*net\.pj ended"):
            worker.time(0.1)
