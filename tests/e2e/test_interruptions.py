"""Runs that are stopped, and runs of several processes, as processes of their own."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from penjing.artifact import load

LAUNCHER = Path(__file__).with_name("launcher.py")


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(LAUNCHER), "run", *words],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def progress(folder: Path) -> int:
    """How much a run has written down."""
    journal = folder / "journal.jsonl"
    lines = len(journal.read_bytes().splitlines()) if journal.exists() else 0
    return lines + len(list(folder.glob("trainings/[!.]*"))) + len(list(folder.glob("stages/[!.]*")))


def stop(
    process: subprocess.Popen[str], folder: Path, enough: int, delay: float, how: signal.Signals
) -> tuple[int, str]:
    deadline = time.monotonic() + 90
    while progress(folder) < enough and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay)
    if process.poll() is None:
        process.send_signal(how)
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.slow
def test_stopped_at_any_moment_and_resumed_it_ends_bit_identical(finished: Path, recipe: Path, tmp_path: Path) -> None:
    words = [str(recipe), "--threads", "1"]
    folder = tmp_path / "runs" / "tiny"  # the default place
    code, said = stop(start(tmp_path, *words), folder, 4, 0.1, signal.SIGINT)
    assert code == 130, said
    assert "stopped" in said and "runs/tiny" in said and "--resume" in said and "Traceback" not in said
    chance, killed = random.Random(7), 0
    for _ in range(4):
        target = progress(folder) + chance.randint(2, 6)
        code, said = stop(start(tmp_path, *words, "--resume"), folder, target, chance.uniform(0, 0.25), signal.SIGKILL)
        assert code in (0, -signal.SIGKILL), said
        killed += code != 0
    assert killed >= 3
    end = start(tmp_path, *words, "--resume")
    said, _ = end.communicate(timeout=120)
    assert end.returncode == 0, said
    assert (folder / "tiny.pj").read_bytes() == (finished / "tiny.pj").read_bytes()
    for path in sorted((finished / "stages").iterdir()):
        assert (folder / "stages" / path.name).read_bytes() == path.read_bytes(), path.name


def test_stopped_before_anything_was_written(recipe: Path, tmp_path: Path) -> None:
    process = start(tmp_path, str(recipe))
    time.sleep(1.0)  # it is still importing
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    if (tmp_path / "runs").exists():
        pytest.skip("the machine was too fast")
    assert process.returncode in (130, -signal.SIGINT, 1)
    assert process.returncode != 130 or "Nothing had been written" in said


@pytest.mark.slow
def test_two_processes_make_one_artifact(tmp_path: Path) -> None:
    (tmp_path / "pair.yaml").write_text(
        "name: pair\n"
        "data: {name: digits, batch_size: 64}\n"
        'model: {function: "penjing.models:plain_cnn", widths: [6, 8], first_kernel: 3, first_stride: 1, pool_after: [0]}\n'
        "stages:\n"
        "  - train: {epochs: 3, lr: 0.02}\n"
        "  - prune-channels: {sparsity: 0.3, rounds: 1, epochs: 1}\n"
        "  - early-exits: {epochs: 1, saving: 0.02, teacher: baseline}\n"
        "  - cluster: {bits: 3, epochs: 1}\n"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    done = subprocess.run(
        [*torchrun, "-m", "penjing", "run", "pair.yaml", "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("1/4") == 1  # only the first of them talks
    assert [path.name for path in (tmp_path / "out").glob("*.pj")] == ["pair.pj"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["artifact"]["bytes"] == (tmp_path / "out" / "pair.pj").stat().st_size
    assert json.loads((tmp_path / "out" / "run.json").read_text())["processes"] == 2
    latency = report["final"]["latency_ms"]  # here the clock is real
    assert 0 < latency["low"] <= latency["median"] <= latency["high"]
    assert report["baseline"]["accuracy"]["correct"] > 90
    with torch.no_grad():
        assert load(tmp_path / "out" / "pair.pj")(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_a_network_that_does_not_fit_its_data_is_one_line_without_torchs_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(100, 10))\n"
    )
    words = ["--model", "own:net", "--dataset", "digits", "--stage", "train"]
    process = start(tmp_path, *words)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(said.strip().splitlines()) == 1 and said.startswith('error trace: layer "2" (Linear)')
