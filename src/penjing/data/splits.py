"""A data set in three parts, as loaders; and the loader for data that fit into memory."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from penjing.data.augment import Augment
from penjing.data.versions import Versioned, check_versions
from penjing.errors import DataError, SettingError


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
        augment: applied to each batch: a function that keeps its shape.
    """

    def __init__(self, images: Tensor, labels: Tensor, augment: Callable[[Tensor], Tensor] | None = None) -> None:
        self.images, self.labels, self.augment = images, labels, augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        images = self.images[index]
        return (self.augment(images) if self.augment else images), self.labels[index]


class InMemoryVersions(Dataset[Versioned]):
    """The same with a fixed number of versions of every image: what an `Augment` draws is drawn once, for all of them.

    Args:
        n_versions: at least 1; without `augment` all versions are the image itself, so there is one.
    Raises: SettingError: fewer than 1 version, or a function in place of an `Augment`.
    """

    def __init__(self, images: Tensor, labels: Tensor, augment: Augment | None, n_versions: int) -> None:
        check_versions(n_versions)
        if augment is not None and not isinstance(augment, Augment):
            raise SettingError(
                "versions: the augmentation must be a penjing.data.Augment, which draws and changes apart."
            )
        self.images, self.labels, self.augment = images, labels, augment
        self.n_versions = n_versions if augment is not None else 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: list[int]) -> Versioned:
        numbers = torch.as_tensor(index)
        versions = torch.randint(self.n_versions, (len(numbers),))
        images = self.images[numbers]
        if self.augment is not None:
            images = self.augment.change(images, self.drawn[versions, numbers])
        return Versioned((images, self.labels[numbers]), numbers, versions)

    @cached_property
    def drawn(self) -> Tensor:
        """(n_versions, n, k): what was drawn for every version of every image."""
        assert self.augment is not None
        generator = torch.Generator().manual_seed(self.n_versions)
        return torch.stack([self.augment.draw(self.images.shape, generator) for _ in range(self.n_versions)])

    def fingerprint(self) -> str:
        """A hash of all images and labels, of the changes, and of how many versions there are."""
        found = hashlib.sha256(f"{self.augment} {self.n_versions}".encode())
        for tensor in (self.images, self.labels):
            found.update(str(tuple(tensor.shape)).encode())
            found.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()


def in_memory_loader(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    shuffle: bool = False,
    augment: Callable[[Tensor], Tensor] | None = None,
    versions: int | None = None,
) -> DataLoader:
    """Batches of tensors that fit into memory; shuffled ones leave out the last incomplete batch.

    Args:
        versions: of each image, so that answers of teachers can be kept; None draws a new change each time.
    """
    data: Dataset = (
        InMemory(images, labels, augment) if versions is None else InMemoryVersions(images, labels, augment, versions)  # type: ignore[arg-type]
    )
    order = RandomSampler(data) if shuffle else SequentialSampler(data)  # type: ignore[arg-type]
    sampler = BatchSampler(order, batch_size, drop_last=shuffle and len(labels) >= batch_size)
    return DataLoader(data, sampler=sampler, batch_size=None)


def hold_out(n: int, n_valid: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices for training and for validation, drawn once from the seed of the split, not of the run.

    Raises: DataError: nothing would be left on one side.
    """
    if not 0 < n_valid < n:
        raise DataError(f"data: the validation part must have 1 to {n - 1} of the {n} training samples, got {n_valid}.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[n_valid:].sort().values, order[:n_valid].sort().values
