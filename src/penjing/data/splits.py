"""A data set in three parts, as loaders; and the loader for data that fit into memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from penjing.errors import DataError

Augment = Callable[[Tensor], Tensor]
"""From a batch of images (n, channels, height, width) to another of the same shape, drawing from torch's generator."""


@dataclass(frozen=True)
class Splits:
    """Loaders of (inputs, labels), and the names of the classes. `valid` is held out of the training data."""

    train: DataLoader
    valid: DataLoader
    test: DataLoader | None
    classes: tuple[str, ...]


class InMemory(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels as two tensors; an index is a list, so that a batch is one indexing.

    Args:
        images: (n, channels, height, width), float.
        labels: (n,), int64.
        augment: applied to each batch.
    """

    def __init__(self, images: Tensor, labels: Tensor, augment: Augment | None = None) -> None:
        self.images, self.labels, self.augment = images, labels, augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        images = self.images[index]
        return (self.augment(images) if self.augment else images), self.labels[index]


def in_memory_loader(
    images: Tensor, labels: Tensor, batch_size: int, *, shuffle: bool = False, augment: Augment | None = None
) -> DataLoader:
    """Batches of tensors that fit into memory; shuffled ones leave out the last incomplete batch."""
    data = InMemory(images, labels, augment)
    order = RandomSampler(data) if shuffle else SequentialSampler(data)
    sampler = BatchSampler(order, batch_size, drop_last=shuffle and len(data) >= batch_size)
    return DataLoader(data, sampler=sampler, batch_size=None)


def hold_out(n: int, n_valid: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices for training and for validation, drawn once from the seed of the split, not of the run.

    Raises: DataError: nothing would be left on one side.
    """
    if not 0 < n_valid < n:
        raise DataError(f"data: the validation part must have 1 to {n - 1} of the {n} training samples, got {n_valid}.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[n_valid:].sort().values, order[:n_valid].sort().values
