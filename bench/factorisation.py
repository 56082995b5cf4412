"""Tucker-2 and CP decompositions of convolutions' weights, ours against TensorLy's: relative error and time, one thread.

    python bench/factorisation.py [--sizes 64 512] [--rounds 3] [--json FILE]

Two weights of each size: drawn from a normal distribution (He), and one whose channels matter less and less on both sides,
with singular values like 1 / sqrt(k), as in trained layers. Ranks are a quarter of the channels, for CP once more as many as
channels where these are few. TensorLy's partial_tucker starts from the HOSVD, as ours does, its parafac at random or from
singular vectors; both get its usual 100 iterations and a tolerance as small as ours. Each is timed `rounds` times in turn with
the others, the median counts. 512 channels take some twenty minutes a round. TensorLy is optional: pip install tensorly.
"""

import argparse
import importlib
import json
import math
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penjing.architecture import cp_factors, tucker2

FEW = 128
"""Channels up to which CP has as many components too."""
Result = tuple[float, float]
"""Relative error, seconds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    tensorly = _tensorly()
    if tensorly is None:
        print("TensorLy is not installed, so ours is alone; pip install tensorly for the comparison.")
    rows = []
    for size in chosen.sizes:
        for kind, weight in (("normal", normal(size)), ("falling", falling(size))):
            ranks = [("tucker2", size // 4), ("cp", size // 4)] + [("cp", size)] * (size <= FEW)
            for method, rank in ranks:
                found = compared(contestants(method, weight, rank, tensorly), weight, chosen.rounds)
                for name, (error, seconds) in found.items():
                    row = {"channels": size, "weight": kind, "method": method, "rank": rank, "by": name}
                    rows.append(row | {"error": error, "seconds": seconds})
                    print(
                        f"{size:4} {kind:8} {method:8} rank {rank:3}  {name:20} {error:.5f} {seconds:9.3f} s",
                        flush=True,
                    )
    if chosen.json is not None:
        about = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        chosen.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    return 0


def normal(size: int) -> Tensor:
    """A fresh layer's weight, (size, size, 3, 3)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, size, 3, 3, generator=generator) * math.sqrt(2 / (9 * size))


def falling(size: int) -> Tensor:
    """A weight whose channels matter less and less on both sides."""
    generator = torch.Generator().manual_seed(1)
    bases = [torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for _ in range(2)]
    spectrum = torch.arange(1, size + 1).float().rsqrt()
    core = normal(size) * spectrum[:, None, None, None] * spectrum[None, :, None, None]
    return torch.einsum("pqyx,op,iq->oiyx", core, *bases)


def contestants(method: str, weight: Tensor, rank: int, tensorly: Any) -> dict[str, Callable[[], Tensor]]:
    """By name, functions that decompose the weight and put it together again."""
    if method == "tucker2":
        found: dict[str, Callable[[], Tensor]] = {"ours": lambda: _of_tucker(*tucker2(weight, rank, rank))}
        if tensorly is not None:
            found["tensorly"] = lambda: _tensorly_tucker(tensorly, weight, rank)
        return found
    found = {"ours": lambda: _of_cp(*cp_factors(weight, rank, torch.Generator().manual_seed(0)))}
    if tensorly is not None:
        found["tensorly, random"] = lambda: _tensorly_cp(tensorly, weight, rank, "random")
        found["tensorly, svd"] = lambda: _tensorly_cp(tensorly, weight, rank, "svd")
    return found


def compared(named: dict[str, Callable[[], Tensor]], weight: Tensor, rounds: int) -> dict[str, Result]:
    """Of each, the relative error and the median time, in turns."""
    times: dict[str, list[float]] = {name: [] for name in named}
    errors: dict[str, float] = {}
    for _ in range(rounds):
        for name, function in named.items():
            begun = time.perf_counter()
            product = function()
            times[name].append(time.perf_counter() - begun)
            errors[name] = float((weight.double() - product).norm() / weight.double().norm())
    return {name: (errors[name], statistics.median(times[name])) for name in named}


def _tensorly() -> Any:
    try:
        return importlib.import_module("tensorly")
    except ImportError:
        return None


def _tensorly_tucker(tensorly: Any, weight: Tensor, rank: int) -> Tensor:
    tensorly.set_backend("pytorch")
    decomposition = importlib.import_module("tensorly.decomposition")
    (core, (last, first)), _ = decomposition.partial_tucker(
        weight.double(), rank=[rank, rank], modes=[0, 1], init="svd"
    )
    return _of_tucker(first.T, core, last)


def _tensorly_cp(tensorly: Any, weight: Tensor, rank: int, start: str) -> Tensor:
    tensorly.set_backend("pytorch")
    decomposition = importlib.import_module("tensorly.decomposition")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are fewer singular vectors than components
        scales, (d, a, v, h) = decomposition.parafac(
            weight.double(), rank=rank, init=start, random_state=0, normalize_factors=True, n_iter_max=100, tol=1e-7
        )
    return _of_cp(a.T, v.T, h.T, d * scales)


def _of_tucker(first: Tensor, core: Tensor, last: Tensor) -> Tensor:
    return torch.einsum("op,pqyx,qi->oiyx", last.double(), core.double(), first.double())


def _of_cp(*factors: Tensor) -> Tensor:
    first, vertical, horizontal, last = (factor.double() for factor in factors)
    windows: Sequence[int] = (last.shape[0], first.shape[1], vertical.shape[1], horizontal.shape[1])
    product = torch.einsum("ri,ry,rx->riyx", first, vertical, horizontal).flatten(1)
    return (last @ product).reshape(*windows)


if __name__ == "__main__":
    sys.exit(main())
