"""Int8 against float32: ResNet-18 at 224 x 224, whole and with half of its channels, in ONNX Runtime.

    python bench/int8.py [--rounds 10] [--seconds 1] [--batch 1] [--peers] [--json FILE]

With --peers also in OpenVINO and ExecuTorch, and what NNCF makes of the float32 file; that needs executorch, openvino and nncf.
Weights are random: times do not depend on them. Each file runs in a process of its own, in turns, one thread. Required: int8
2.7 times faster than float32, half of the channels in int8 5 times.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

import penjing as pj
from penjing.export import export_executorch, export_onnx
from penjing.graph import Network
from penjing.measurement import Worker, take_turns
from penjing.training import Workbench

AT_LEAST = {"int8": 2.7, "half-int8": 5.0}


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, arXiv:1512.03385, figure 5)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
        self.down: nn.Module = nn.Identity()
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.down(x))


def resnet18() -> nn.Sequential:
    """ResNet-18 (same source, table 1), 11.69 million parameters."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    sizes = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2))
    blocks = [Block(*size) for size in (*sizes, (512, 512, 1))]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def quantized(network: Network) -> Network:
    """With weights and activations in 8 bits, calibrated on random pictures."""
    data = torch.utils.data.TensorDataset(torch.randn(16, 3, 224, 224), torch.zeros(16, dtype=torch.long))
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    bench = Workbench(network, pj.Task(loader, loader), accelerator=Accelerator(cpu=True))
    pj.Quantize(bits=8, activations=8, samples=16).apply(bench)
    return bench.network


def by_nncf(path: Path) -> Path:
    """What NNCF makes of a float32 file, calibrated on as many random pictures."""
    import nncf  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    import openvino  # noqa: PLC0415

    rng = np.random.default_rng(0)
    pictures = [rng.standard_normal((1, 3, 224, 224)).astype(np.float32) for _ in range(16)]
    model = nncf.quantize(openvino.Core().read_model(path), nncf.Dataset(pictures), subset_size=16)
    out = path.with_name(f"{path.stem}-nncf.xml")
    openvino.save_model(model, out, compress_to_fp16=False)
    return out


def main() -> int:
    """Print the table; 1 where a required ratio is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    torch.manual_seed(0)
    model = resnet18().eval()
    x = torch.randn(2, 3, 224, 224)
    whole = pj.trace(model, (x,)).eval()
    half = pj.prune_channels(model, (x,), sparsity=0.5).network.eval()
    with tempfile.TemporaryDirectory() as folder:
        workers: list[Worker] = []
        kinds = {"float32": whole, "int8": quantized(whole), "half-float32": half, "half-int8": quantized(half)}
        for name, network in kinds.items():
            path = Path(folder) / f"{name}.onnx"
            done = export_onnx(network, path)
            print(
                f"{name:14} {done.size_bytes:>12,} bytes, differs from PyTorch by {done.largest_difference:.1e}",
                flush=True,
            )
            workers.append(Worker(path, batch=settings.batch))
            if settings.peers:
                workers.append(Worker(path, batch=settings.batch, backend="openvino"))
                done = export_executorch(network, path.with_suffix(".pte"), batch=settings.batch)
                workers.append(Worker(done.path, batch=settings.batch))
            if settings.peers and "float32" in name:
                workers.append(Worker(by_nncf(path), batch=settings.batch, backend="openvino"))
        try:
            timings = take_turns(workers, rounds=settings.rounds, seconds=settings.seconds)
        finally:
            for worker in workers:
                worker.close()
    base = {timing.runtime: timing.latency_ms.median for timing in reversed(timings) if "nncf" not in timing.path}
    missed = []
    print(f"\n{'':18} {'runtime':24} {'ms':>8} {'quartiles':>17} {'faster':>8}  required")
    for timing in timings:
        name, found = Path(timing.path).stem, timing.latency_ms
        ratio = base[timing.runtime] / found.median
        least = AT_LEAST.get(name, 0) if timing.backend == "onnxruntime" else 0
        if ratio < least:
            missed.append(name)
        print(
            f"{name:18} {timing.runtime:24} {found.median:8.2f} {found.low:8.2f} {found.high:8.2f} {ratio:7.2f}x  {least or ''}"
        )
    print(f"\nfaster: than float32 of the same runtime; batch {settings.batch}, one thread", end="")
    print(f"; missed: {', '.join(missed)}" if missed else "")
    if settings.json:
        settings.json.write_text(json.dumps([asdict(timing) for timing in timings], indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
