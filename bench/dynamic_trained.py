"""Does skipping pay on the clock, and at what loss of accuracy? Trained dynamic networks against the same network without.

    OMP_NUM_THREADS=1 python bench/dynamic_trained.py --data FOLDER --out FOLDER --seeds 0 1 2

A ResNet-20 learns 5,000 digits of 28 x 28, in FOLDER as the four files of MNIST. From there go on, on the same digits: plain
training, early exits, recurrent gates that open for 60 % (Gumbel), BlockDrop's policy, channel sets of runtime neural pruning,
as the stages of recipes do them.

Then, on test digits and in the same process: accuracy, the difference to plain training with its 95 % interval (paired), and
the time of one call in batches of 1 and 32 against the plain network, which takes turns with it; and against what the parts
that were executed take by themselves (see dynamic.py). Required: at least 20 % less time at a loss of at most 1 point, and
dynamic <= 1.10 parts + gates. Trainings are kept in --out; the same command goes on where it was stopped, and measures again:
let an idle machine do that.
"""

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamic import keep_memory, medians, one_by_one, parts_of
from penjing.artifact import load
from penjing.data import in_memory_loader, mnist
from penjing.errors import DataError
from penjing.graph import Network
from penjing.measurement import accuracy, answer, drop, macs_of_samples, macs_without_exits
from penjing.models import resnet_cifar
from penjing.recipe import compress
from penjing.recipe.machine import machine, versions
from penjing.training import Task
from penjing.training.progress import Live

N_VALID, N_TIMED, N_PARTS = 3000, 256, 32
LEAST_SAVED, MOST_LOST, OF_PARTS = 0.20, 0.01, 1.10
SGD = {"optimizer": "sgd", "weight_decay": 5e-4}
SLOW = {**SGD, "lr": 0.03}
FIRST = {"train": {**SGD, "lr": 0.1, "epochs": 4, "warmup": 0.2}}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"train": {**SLOW, "epochs": 6}},
    "early exits": {"early-exits": {**SLOW, "epochs": 6, "exits": 3, "in_place": 0.5, "max_drop": "0.1 pp"}},
    "gates": {"skip-blocks": {**SLOW, "open": 0.6, "warm": 0, "epochs": 8}},
    "BlockDrop": {"drop-blocks": {**SLOW, "curriculum": 2, "epochs": 10, "penalty": 4, "gate_lr": 2}},
    "channel sets": {"route-channels": {**SLOW, "warm": 2, "epochs": 6, "penalty": 0.03, "gate_lr": 1}},
}


def digits(folder: Path, n: int) -> Task:
    """n digits to learn from, 3,000 others for thresholds and warnings."""
    splits = mnist(folder, n_valid=60_000 - n, versions=4)
    held = splits.valid.dataset
    some = torch.linspace(0, len(held) - 1, N_VALID).long()
    return Task(splits.train, in_memory_loader(held.images[some], held.labels[some], 500), splits.test)


def trained(task: Task, out: Path, seed: int) -> dict[str, Network]:
    """Every arm's network, read from its file."""
    torch.manual_seed(seed)
    reporter = Live()

    def run(model: nn.Module, stage: dict[str, Any], name: str) -> Path:
        name = name.replace(" ", "-")
        folder = out / f"seed-{seed}-{name}"
        return compress(model, task, [stage], out=folder, name=name, seed=seed, resume=True, reporter=reporter).artifact

    first = run(resnet_cifar(20, channels=1), FIRST, "first")
    return {name: load(run(load(first, for_training=True), stage, name)) for name, stage in ARMS.items()}


def times(network: Network, plain: Network, images: Tensor, batch: int, rounds: int) -> tuple[float, float]:
    """Milliseconds a picture of both, taking turns."""
    chunks = list(images.split(batch))
    calls = {"dynamic": partial(one_by_one, network, chunks), "plain": partial(one_by_one, plain, chunks)}
    found = medians(calls, rounds)
    return found["dynamic"] / len(images), found["plain"] / len(images)


def of_allowed(network: Network, images: Tensor, batch: int, rounds: int) -> float:
    """What calls take, as a share of 1.10 x the parts that they execute + what decides."""
    dynamic = allowed = 0.0
    for chunk in images.split(batch):
        calls, work, deciding = parts_of(network, chunk)
        found = medians({**calls, "dynamic": partial(network, chunk)}, rounds)
        dynamic += found["dynamic"]
        allowed += OF_PARTS * sum(found[name] for name in work) + sum(found[name] for name in deciding)
    return dynamic / allowed


def rows_of(networks: dict[str, Network], task: Task, seed: int, rounds: int) -> list[dict[str, Any]]:
    """What each network does on the test pictures, and in which time."""
    assert task.test is not None
    held = task.test.dataset  # type: ignore[attr-defined]
    some = torch.randperm(len(held), generator=torch.Generator().manual_seed(seed))[:N_TIMED]
    images = held.images[some]
    plain = networks["plain"]
    without = answer(plain, task, task.test)
    rows = []
    for name, network in networks.items():
        found = answer(network, task, task.test)
        right = accuracy(found)
        row: dict[str, Any] = {"seed": seed, "arm": name, "right": right.correct, "of": right.total}
        if name != "plain":
            assert found.left_at is not None
            macs = macs_of_samples(network, found.left_at, found.opened).double().mean() / macs_without_exits(network)
            lost = drop(task.metric, without, found)
            row |= {"macs": float(macs), "lost": lost.value, "interval": [lost.low, lost.high]}
            for batch in (1, 32):
                ms, plain_ms = times(network, plain, images, batch, rounds)
                row |= {f"ms {batch}": ms, f"plain ms {batch}": plain_ms, f"ratio {batch}": ms / plain_ms}
                row[f"of allowed {batch}"] = of_allowed(
                    network, images[: N_PARTS * (1 if batch == 1 else 4)], batch, rounds
                )
            row["met"] = (
                lost.value <= MOST_LOST
                and all(row[f"ratio {batch}"] <= 1 - LEAST_SAVED for batch in (1, 32))
                and all(row[f"of allowed {batch}"] <= 1 for batch in (1, 32))
            )
        rows.append(row)
        print(row_text(row), flush=True)
    return rows


def row_text(row: dict[str, Any]) -> str:
    """A line of the table."""
    start = f"seed {row['seed']}  {row['arm']:12} {row['right']:,} of {row['of']:,} right"
    if row["arm"] == "plain":
        return start
    low, high = (100 * value for value in row["interval"])
    clock = "  ".join(
        f"batch {batch}: {row[f'ms {batch}']:.3f} ms, {row[f'ratio {batch}']:.2f} of plain, "
        f"{row[f'of allowed {batch}']:.2f} of what is allowed"
        for batch in (1, 32)
    )
    return (
        f"{start}, {100 * row['lost']:+.2f} pp lost [{low:.2f}, {high:.2f}], {row['macs']:.0%} of the MACs  {clock}  "
        f"{'met' if row['met'] else 'MISSED'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four files of MNIST")
    parser.add_argument("--out", type=Path, required=True, help="folder for trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=5000, help="to learn from; fewer for trying things out")
    parser.add_argument("--rounds", type=int, default=5, help="of timing; medians count")
    parser.add_argument("--json", type=Path, help="write the rows there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    try:
        task = digits(arguments.data, arguments.images)
    except DataError as error:
        parser.error(str(error))
    networks = {seed: trained(replace(task, test=None), arguments.out, seed) for seed in arguments.seeds}
    rows = [row for seed, own in networks.items() for row in rows_of(own, task, seed, arguments.rounds)]
    if arguments.json:
        found = {"machine": machine(torch.device("cpu")), "versions": versions(), "rows": rows}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0 if all(row.get("met", True) for row in rows) else 1)


if __name__ == "__main__":
    main()
