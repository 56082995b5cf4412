"""Layers that compute with compressed weights against dense ones: one thread, the same run, in turns.

    OMP_NUM_THREADS=1 python bench/kernels.py [--rounds 21] [--only WORD] [--json FILE]

Each line times whole layers, torch tensors in and out. 4096 x 4096 matrices are four different ones in turn, more than the
caches hold; smaller ones stay in them. The dense time is the faster of `torch.mv` and `F.linear` where there is one vector.
Times are medians over the rounds, ratios those of medians. `at least` is what the project requires of a line.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numba
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import penjing as pj
from penjing.inference import accelerate
from penjing.inference.layers import CodebookLinear, CompressedLayer, SignConv, SignLinear, SparseConv1x1, SparseLinear
from penjing.representation import Codebook, Mask, represent_

Call = Callable[[int], object]
"""Computes once; the number counts calls, so that matrices can take turns."""
_LARGE = 4096


@dataclass(frozen=True)
class Line:
    """One comparison: times in ms by name, and required ratios over some of the names."""

    name: str
    own_ms: float
    quartiles_ms: tuple[float, float]
    others_ms: dict[str, float]
    at_least: dict[str, float]

    @property
    def holds(self) -> bool:
        """Whether every required ratio is reached."""
        return all(self.others_ms[name] / self.own_ms >= ratio for name, ratio in self.at_least.items())


def in_turns(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Times of single calls in ms, each name `rounds` times in turn, each time the mean over about 5 ms."""
    numbers = {}
    for name, call in calls.items():
        call(0)
        begun = time.perf_counter()
        call(1)
        numbers[name] = max(4, int(0.005 / max(time.perf_counter() - begun, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            for k in range(numbers[name]):
                call(k)
            times[name].append((time.perf_counter() - begun) / numbers[name] * 1e3)
    return times


def compared(name: str, calls: dict[str, Call], rounds: int, at_least: dict[str, float] | None = None) -> Line:
    """A line of "own" against all other calls."""
    times = in_turns(calls, rounds)
    low, _, high = statistics.quantiles(times["own"], n=4)
    medians = {key: statistics.median(found) for key, found in times.items()}
    own = medians.pop("own")
    if "dense mv" in medians:
        medians["dense"] = min(medians.pop("dense mv"), medians["dense"])
    return Line(name, own, (low, high), medians, at_least or {})


def turning(layers: list[Callable[[Tensor], object]], x: Tensor) -> Call:
    """A call that takes the layers in turn."""
    return lambda k: layers[k % len(layers)](x)


def linears(rows: int, columns: int, weight: Callable[[], Tensor]) -> list[nn.Linear]:
    """Layers with such weights, enough of them to be more than the caches hold."""
    found = []
    for _ in range(4 if rows * columns >= 1 << 22 else 1):
        layer = nn.Linear(columns, rows, bias=False)
        with torch.no_grad():
            layer.weight.copy_(weight())
        found.append(layer)
    return found


def dense_calls(layers: list[nn.Linear], x: Tensor) -> dict[str, Call]:
    """float32 and bfloat16."""
    weights = [layer.weight.detach() for layer in layers]
    halves = [weight.bfloat16() for weight in weights]
    half = x.bfloat16()
    calls: dict[str, Call] = {
        "dense": turning(layers, x),
        "dense bf16": lambda k: F.linear(half, halves[k % len(halves)]),
    }
    if len(x) == 1:
        calls["dense mv"] = lambda k: torch.mv(weights[k % len(weights)], x[0])
    return calls


def masked(rows: int, columns: int, zeros: float, height: int = 1) -> Tensor:
    kept = (torch.rand(rows // height, 1, columns) >= zeros).expand(-1, height, -1).reshape(rows, columns)
    return torch.randn(rows, columns) * kept


def sparse_lines(rounds: int) -> Iterator[Line]:
    """Vectors and columns, single weights and blocks."""
    vector: list[tuple[int, int, float, dict[str, float]]] = [
        (_LARGE, _LARGE, 0.9, {"dense": 5, "torch CSR int32": 1.1}),
        (_LARGE, _LARGE, 0.95, {"dense": 8, "torch CSR int32": 1.1}),
        (_LARGE, _LARGE, 0.98, {}),
        (256, 1152, 0.9, {"dense": 1.5}),
        (256, 1152, 0.95, {}),
    ]
    for rows, columns, zeros, at_least in vector:
        layers = linears(rows, columns, lambda: masked(rows, columns, zeros))  # noqa: B023
        x = torch.randn(1, columns)
        table = [layer.weight.detach().to_sparse_csr() for layer in layers]
        table = [
            torch.sparse_csr_tensor(t.crow_indices().int(), t.col_indices().int(), t.values(), t.shape) for t in table
        ]
        calls = dense_calls(layers, x) | {
            "torch CSR int32": lambda k: table[k % len(table)] @ x[0],  # noqa: B023
            "own": turning([SparseLinear(layer) for layer in layers], x),
        }
        yield compared(f"sparse, {zeros:.0%} zeros, {rows} x {columns}", calls, rounds, at_least)
    for zeros, at_least in ((0.9, {"dense": 8.0}), (0.95, {})):
        layers = linears(_LARGE, _LARGE, lambda: masked(_LARGE, _LARGE, zeros, 4))  # noqa: B023
        x = torch.randn(1, _LARGE)
        calls = dense_calls(layers, x) | {"own": turning([SparseLinear(layer, in_blocks=True) for layer in layers], x)}
        yield compared(f"sparse, 4 x 1 blocks, {zeros:.0%} zeros, {_LARGE}^2", calls, rounds, at_least)
    conv = nn.Conv2d(256, 256, 1)
    with torch.no_grad():
        conv.weight.copy_(masked(256, 256, 0.9)[:, :, None, None])
    x = torch.randn(1, 256, 14, 14)
    yield compared(
        "sparse 1 x 1 convolution, 90%, 256 at 14 x 14",
        {"dense": turning([conv], x), "own": turning([SparseConv1x1(conv)], x)},
        rounds,
    )


def codebook_lines(rounds: int) -> Iterator[Line]:
    """16 values."""
    for rows, columns, n, at_least in (
        (_LARGE, _LARGE, 1, {"dense": 3.0, "dense bf16": 2.0}),
        (_LARGE, _LARGE, 8, {}),
        (1024, 1024, 1, {}),
    ):
        codes = torch.randint(0, 16, (rows, columns)).to(torch.uint8)
        table, x = torch.randn(16), torch.randn(n, columns)
        layers = linears(rows, columns, lambda: table[codes.long()])  # noqa: B023
        own = [CodebookLinear(layer, codes, table, torch.ones(rows)) for layer in layers]
        calls = dense_calls(layers, x) | {"own": turning(own, x)}
        yield compared(f"codebook, {rows} x {columns}, batch {n}", calls, rounds, at_least)


def sign_lines(rounds: int) -> Iterator[Line]:
    """Signs of signs, and of numbers."""
    for of_signs, n, required in ((True, 1, 15.0), (True, 64, 3.0), (False, 1, 2.0)):
        x = torch.randn(n, _LARGE)
        layers = linears(_LARGE, _LARGE, lambda: torch.where(torch.rand(_LARGE, _LARGE) < 0.5, 1.0, -1.0))
        own = [SignLinear(layer, layer.weight.detach(), torch.ones(_LARGE), of_signs=of_signs) for layer in layers]
        calls = dense_calls(layers, torch.where(x >= 0, 1.0, -1.0) if of_signs else x) | {"own": turning(own, x)}
        kind = "signs of signs" if of_signs else "signs of numbers"
        yield compared(f"{kind}, {_LARGE}^2, batch {n}", calls, rounds, {"dense": required})
    for channels, size, at_least in ((64, 32, {"dense": 6.0}), (128, 16, {})):
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            conv.weight.copy_(torch.where(torch.rand_like(conv.weight) < 0.5, 1.0, -1.0))
        x = torch.randn(1, channels, size, size)
        own_conv: CompressedLayer = SignConv(conv, conv.weight.detach(), torch.ones(channels))
        calls = {"dense": turning([conv], torch.where(x >= 0, 1.0, -1.0)), "own": turning([own_conv], x)}
        yield compared(f"signs, 3 x 3, {channels} -> {channels} at {size} x {size}", calls, rounds, at_least)


class Decoder(nn.Module):
    """A language model's shape, one token at a time without its cache: what is left are its matrices times vectors."""

    def __init__(self, width: int, layers: int, vocabulary: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "value": nn.Linear(width, width),
                    "out": nn.Linear(width, width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            y = block["norm"](x)
            x = x + block["out"](block["value"](y))
            x = x + block["down"](F.gelu(block["up"](y)))
        return self.head(x)


def network_lines(rounds: int) -> Iterator[Line]:
    """Whole networks: the user's model in torch, ours with dense weights, ours as `backend="auto"` runs it."""
    model = nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    ).eval()
    x = torch.randn(1, 1, 28, 28)
    network = pj.trace(model, (x,)).eval()
    dense = pj.trace(model, (x,)).eval()
    for layer in network.layers().values():
        if isinstance(layer, nn.Linear):
            border = layer.weight.abs().flatten().kthvalue(int(0.95 * layer.weight.numel())).values
            represent_(layer, "weight", Mask(layer.weight > border))
    auto = accelerate(network).network
    calls = {"dense": turning([model], x), "dense network": turning([dense], x), "own": turning([auto], x)}
    yield compared("LeNet-300-100 at 95% zeros, batch 1, end to end", calls, rounds, {"dense": 1.5})
    model = Decoder(1024, 6, 8192).eval()
    x = torch.randn(1, 1024)
    dense, network = pj.trace(model, (x,)).eval(), pj.trace(model, (x,)).eval()
    for layer in network.layers().values():
        if isinstance(layer, nn.Linear):
            codes = torch.randint(0, 16, layer.weight.shape)
            represent_(layer, "weight", Codebook(codes, 0.03 * torch.randn(16)))
    auto = accelerate(network).network
    calls = {"dense": turning([model], x), "dense network": turning([dense], x), "own": turning([auto], x)}
    yield compared("language model's shape (6 x 1024), codebooks, a token", calls, rounds)


def main() -> int:
    """Print the table; 1 where a required ratio is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", default="", help="lines of one kind: sparse, codebook, signs, networks")
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kinds = {"sparse": sparse_lines, "codebook": codebook_lines, "signs": sign_lines, "networks": network_lines}
    chosen = [lines for name, lines in kinds.items() if settings.only in name]
    found: list[Line] = []
    print(f"{'':58} {'own ms':>8} {'quartiles':>17}  times faster than (required)")
    with torch.inference_mode():
        for lines in chosen:
            for line in lines(settings.rounds):
                found.append(line)
                ratios = ", ".join(
                    f"{name} {ms / line.own_ms:.2f}" + (f" ({line.at_least[name]:g})" if name in line.at_least else "")
                    for name, ms in line.others_ms.items()
                )
                low, high = line.quartiles_ms
                print(f"{line.name:58} {line.own_ms:8.4f} {low:8.4f} {high:8.4f}  {ratios}", flush=True)
    missed = [line.name for line in found if not line.holds]
    print(
        f"\n{len(found) - len(missed)} of {len(found)} lines hold"
        + (f"; missed: {'; '.join(missed)}" if missed else "")
    )
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}, numba {numba.__version__}"
    print(f"one thread, {machine}, Python {platform.python_version()}")
    if settings.json:
        settings.json.write_text(json.dumps([{**asdict(line), "holds": line.holds} for line in found], indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
