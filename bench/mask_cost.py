"""What masks cost a training step: ResNet-20 with 128 pictures, LeNet-300-100 with 60; random data, one thread.

    python bench/mask_cost.py [--steps 200] [--json FILE]

The network with masks and the one without take turns, so that whatever else the machine does falls on both; the times are
those of the processor, which does not count other programs. Required are ratios of at most 1.05 (ResNet-20) and 1.15
(LeNet-300-100), with the optimizer of the training loop, AdamW.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penjing.graph import Network, trace
from penjing.models import lenet_300_100, resnet_cifar
from penjing.pruning import apply_masks_, choose_masks
from penjing.sensitivity import layer_weights

SPARSITY = 0.9
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, float, float]] = {
    # build, sample, batch, steps as a fraction of those asked for, largest ratio
    "LeNet-300-100": (lenet_300_100, (1, 28, 28), 60, 1.0, 1.15),
    "ResNet-20": (resnet_cifar, (3, 32, 32), 128, 0.1, 1.05),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    "adamw, fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True),
}


def network_of(build: Callable[[], nn.Module], sample: tuple[int, ...], masked: bool) -> Network:
    """The network as the training loop has it, with global magnitude masks or without."""
    torch.manual_seed(0)
    network = trace(build(), (torch.randn(2, *sample),))
    if masked:
        scores = {name: weight.abs() for name, weight in layer_weights(network).items()}
        apply_masks_(network, choose_masks(scores, SPARSITY).masks)
    return network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def step_seconds(network: Network, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """Processor time of one step: forward, backward, update."""
    begun = time.process_time()
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(x), y).backward()
    optimizer.step()
    return time.process_time() - begun


def compare(case: str, optimizer: str, steps: int) -> dict[str, Any]:
    """Milliseconds of a step, quartiles, and the ratio of the medians; the first steps are not counted."""
    build, sample, batch, fraction, most = CASES[case]
    x, y = torch.randn(batch, *sample), torch.randint(0, 10, (batch,))
    x = x.contiguous(memory_format=torch.channels_last)
    sides = []
    for masked in (False, True):
        network = network_of(build, sample, masked)
        sides.append((network, OPTIMIZERS[optimizer](network.parameters())))
    seconds: list[list[float]] = [[], []]
    n_steps = max(5, round(fraction * steps))
    for number in range(n_steps + 3):
        for side in (0, 1) if number % 2 else (1, 0):
            seconds[side].append(step_seconds(*sides[side], x, y))
    quartiles = [[1000 * q for q in statistics.quantiles(times[3:], n=4)] for times in seconds]
    return {
        "network": case,
        "batch": batch,
        "optimizer": optimizer,
        "steps": n_steps,
        "without_ms": quartiles[0],
        "with_ms": quartiles[1],
        "ratio": quartiles[1][1] / quartiles[0][1],
        "required": most,
    }


def main() -> None:
    """Measure, print a table, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        for optimizer in OPTIMIZERS:
            row = compare(case, optimizer, given.steps)
            rows.append(row)
            without, with_masks = (
                f"{q[1]:8.3f} ({q[0]:.3f} to {q[2]:.3f})" for q in (row["without_ms"], row["with_ms"])
            )
            sys.stdout.write(
                f"{case:14s} {optimizer:13s} without {without} ms, with {with_masks} ms, ratio {row['ratio']:.3f}\n"
            )
            sys.stdout.flush()
    if given.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__, "python": platform.python_version()}
        given.json.write_text(json.dumps({**machine, "sparsity": SPARSITY, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
