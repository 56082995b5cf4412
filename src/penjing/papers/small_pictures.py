"""CIFAR-10 small enough for a processor, as claims about dynamic networks use it, and what such networks do there."""

import base64
import io
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from penjing.artifact import decode, encode
from penjing.data import in_memory_loader
from penjing.graph import Network
from penjing.measurement import Answers, answer, macs_of_samples, macs_without_exits
from penjing.papers.laboratory import Laboratory
from penjing.training import Task
from penjing.training.task import correct

N_VALID = 5000


def small_pictures(laboratory: Laboratory, images: int, size: int, batch_size: int = 128) -> Task:
    """CIFAR-10, `images` to learn from, shifted and mirrored at random, 5,000 others for every choice, all `size` x `size`."""
    task = laboratory.task(
        "cifar10-jpeg", size=size, n_valid=50_000 - images, batch_size=batch_size, augment=True, versions=8
    )
    held = task.valid.dataset  # type: ignore[attr-defined]
    some = torch.linspace(0, len(held) - 1, min(N_VALID, len(held))).long()  # they lie there class by class
    return replace(task, valid=in_memory_loader(held.images[some], held.labels[some], 2 * batch_size))


def on_test(network: Network, task: Task) -> tuple[Answers, Tensor, Tensor]:
    """A network's answers to the test part; whether each is right, and each sample's share of the full network's MACs, (n,)."""
    found = answer(network, task, task.test)  # type: ignore[arg-type]
    right = correct(found.logits, found.labels).double()
    if found.left_at is None:
        return found, right, torch.ones_like(right)
    macs = macs_of_samples(network, found.left_at, found.opened).double()
    return found, right, macs / macs_without_exits(network)


def time_shares(network: Network, whole: Network, task: Task, batch: int, n: int = 256, rounds: int = 5) -> float:
    """The time that a network takes for `n` test pictures, as a share of another's, in batches of so many.

    Both as they are read from a file. One thread; they take turns batch by batch, and of each batch the median over rounds
    counts.
    """
    network, whole = (decode(encode(one)) for one in (network, whole))
    pictures = next(iter(in_memory_loader(*_some(task, n), batch_size=n)))[0]
    chunks = pictures.split(batch)
    times: dict[str, list[list[float]]] = {"network": [[] for _ in chunks], "whole": [[] for _ in chunks]}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for k in range(rounds + 1):
                for i, x in enumerate(chunks):
                    for name, one in (("whole", whole), ("network", network)):
                        begun = time.perf_counter()
                        one(x)
                        if k:  # the first round warms up
                            times[name][i].append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    total = {name: sum(statistics.median(of_chunk) for of_chunk in own) for name, own in times.items()}
    return total["network"] / total["whole"]


def _some(task: Task, n: int) -> tuple[Tensor, Tensor]:
    held = task.test.dataset  # type: ignore[union-attr]
    some = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:n]
    return held.images[some], held.labels[some]


def thumbnails(task: Task, numbers: Sequence[int]) -> list[str]:
    """Test pictures as PNG in data addresses, the values of each stretched to 0 to 255."""
    held = task.test.dataset  # type: ignore[union-attr]
    return [_png(held.images[number]) for number in numbers]


def _png(picture: Tensor) -> str:
    low, high = picture.amin(), picture.amax()
    pixels = (255 * (picture - low) / (high - low).clamp_min(1e-6)).round().byte().permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
