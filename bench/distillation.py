"""What learning from a teacher costs: an epoch of a student from labels, from kept answers, and from a teacher that computes.

    OMP_NUM_THREADS=1 python bench/distillation.py

Random images. The three take turns, round by round; medians of seconds an epoch, and their ratios to plain training. Kept
answers may cost 1.1 times plain training.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from penjing.data import in_memory_loader
from penjing.data.augment import random_crop_and_flip
from penjing.graph import Network, trace
from penjing.models import lenet_300_100, resnet_cifar
from penjing.recipe.machine import machine, versions
from penjing.training import LearnFromLabels, LearnFromTeacher, Part, Schedule, Task, Teacher, fit_

ALLOWED = 1.1
WAYS = ("labels", "kept answers", "computing")
Build = Callable[[], nn.Module]
CASES: dict[str, tuple[Build, Build, int, tuple[int, ...]]] = {
    # student, teacher, images, shape
    "ResNet-8 from ResNet-20": (lambda: resnet_cifar(8), lambda: resnet_cifar(20), 1280, (3, 32, 32)),
    "784-800-800-10 from 784-1200-1200-10": (
        lambda: lenet_300_100(hidden=(800, 800)),
        lambda: lenet_300_100(hidden=(1200, 1200)),
        12_800,
        (1, 28, 28),
    ),
}


def timed(student: Network, teacher: Network, task: Task, n_versions: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of epochs, by way."""
    with tempfile.TemporaryDirectory() as name:

        def parts(how: str) -> list[Part]:
            if how == "labels":
                return [LearnFromLabels()]
            kept = {"folder": Path(name)} if how == "kept answers" else {"limit_bytes": 0}
            return [LearnFromTeacher(Teacher(teacher, **kept))]  # type: ignore[arg-type]

        def seconds(how: str, epochs: int) -> list[float]:
            return fit_(student, task, Schedule(epochs=epochs, lr=1e-3), parts(how)).seconds

        seconds("kept answers", 6 * n_versions)  # now all are there
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(rounds):
            for way in WAYS if number % 2 else reversed(WAYS):
                found[way] += seconds(way, 2)[1:]  # the first of each also opens files and warms caches
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--versions", type=int, default=4)
    given = parser.parse_args()
    print(f"{machine(torch.device('cpu'))['processor']}, torch {versions()['torch']}, {torch.get_num_threads()} thread")
    for name, (student, teacher, n, shape) in CASES.items():
        torch.manual_seed(0)
        images, labels = torch.randn(n, *shape), torch.arange(n) % 10
        change = random_crop_and_flip(padding=2)
        loader = in_memory_loader(images, labels, 128, shuffle=True, augment=change, versions=given.versions)
        networks = [trace(build(), (images[:2],)) for build in (student, teacher)]
        found = timed(*networks, Task(loader, loader), given.versions, given.rounds)
        plain = statistics.median(found["labels"])
        print(f"\n{name}, {n:,} images in {given.versions} versions")
        for way in WAYS:
            low, middle, high = min(found[way]), statistics.median(found[way]), max(found[way])
            wanted = f"  (at most {ALLOWED} wanted)" if way == "kept answers" else ""
            print(f"{way:>14}: {middle:.3f} s an epoch ({low:.3f} to {high:.3f}), {middle / plain:.3f} x plain{wanted}")


if __name__ == "__main__":
    main()
