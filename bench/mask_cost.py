"""What masks cost a training step: ResNet-20 with 128 pictures, LeNet-300-100 with 60; random data, one thread.

    python bench/mask_cost.py [--steps 200] [--json FILE]

The network without masks, the one with masks as the training loop has them (`masks_in_place`), and the one whose masks are
left to autograd take turns, so that whatever else the machine does falls on all; the times are those of the processor, which
does not count other programs. Required of the training loop are ratios of at most 1.05 (ResNet-20) and 1.15 (LeNet-300-100)
with its optimizer, AdamW.
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
from penjing.representation import MasksInPlace
from penjing.sensitivity import layer_weights

SPARSITY = 0.9
SIDES = ("without", "in place", "by autograd")
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


def step_seconds(
    network: Network, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, masks: MasksInPlace
) -> float:
    """Processor time of one step: forward, backward, update."""
    begun = time.process_time()
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(x), y).backward()
    optimizer.step()
    masks.enforce_()
    return time.process_time() - begun


def compare(case: str, optimizer: str, steps: int) -> dict[str, Any]:
    """Milliseconds of a step, quartiles, and the ratios of the medians; the first steps are not counted."""
    build, sample, batch, fraction, most = CASES[case]
    x, y = torch.randn(batch, *sample), torch.randint(0, 10, (batch,))
    x = x.contiguous(memory_format=torch.channels_last)
    sides = []
    for side in SIDES:
        network = network_of(build, sample, masked=side != "without")
        masks = MasksInPlace(network)
        if side == "in place":
            masks.find()
        sides.append((network, OPTIMIZERS[optimizer](network.parameters()), masks))
    seconds: list[list[float]] = [[] for _ in SIDES]
    n_steps = max(5, round(fraction * steps))
    for number in range(n_steps + 3):
        for turn in range(len(SIDES)):
            side = (number + turn) % len(SIDES)
            network, own, masks = sides[side]
            seconds[side].append(step_seconds(network, own, x, y, masks))
    quartiles = [[1000 * q for q in statistics.quantiles(times[3:], n=4)] for times in seconds]
    return {
        "network": case,
        "batch": batch,
        "optimizer": optimizer,
        "steps": n_steps,
        "ms": dict(zip(SIDES, quartiles, strict=True)),
        "ratio": {side: q[1] / quartiles[0][1] for side, q in zip(SIDES, quartiles, strict=True)},
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
            times = ", ".join(f"{side} {q[1]:.3f} ({q[0]:.3f} to {q[2]:.3f})" for side, q in row["ms"].items())
            ratios = ", ".join(f"{side} {row['ratio'][side]:.3f}" for side in SIDES[1:])
            sys.stdout.write(f"{case:14s} {optimizer:13s} ms: {times}; ratios: {ratios}\n")
            sys.stdout.flush()
    if given.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__, "python": platform.python_version()}
        given.json.write_text(json.dumps({**machine, "sparsity": SPARSITY, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
