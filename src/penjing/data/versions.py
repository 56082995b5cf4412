"""A data set whose random changes come in a fixed number of versions, so that what was computed of a sample can be used again.

Which sample is which, and how it was changed, travels with it: `Versioned(sample, index, version)`. A loader collates it like
any named tuple.
"""

import hashlib
import pickle
import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from penjing.errors import SettingError

SHOWN = 64
"""Samples of a user's data set that stand for it in its fingerprint."""


class Versioned(NamedTuple):
    """A sample, or a batch of them, and where it comes from.

    Attributes:
        sample: what the data set gives.
        index: its number in the data set, or (batch,) of them.
        version: how it was changed, or (batch,).
    """

    sample: Any
    index: Any
    version: Any


@runtime_checkable
class HasVersions(Protocol):
    """A data set that yields `Versioned`."""

    n_versions: int

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """A hash of the samples, their order, and their changes."""
        ...


class Versions(Dataset[Versioned]):
    """Any data set with numbered samples and random changes, drawn anew each time, in `n_versions` versions of each sample.

    Version v of sample i is data[i] with torch's, NumPy's and Python's generators seeded by (seed, i, v); outside they go on as
    if nothing had happened. Which version is drawn is random.

        loader = DataLoader(pj.Versions(data, 8), batch_size=128, shuffle=True)

    Args:
        data: has a length and gives a sample for a number.
        n_versions: of each sample, at least 1.
    Raises: SettingError: fewer than 1 version, or data without a length.
    """

    def __init__(self, data: Dataset[Any], n_versions: int, *, seed: int = 0) -> None:
        check_versions(n_versions)
        if not isinstance(data, Sized):
            raise SettingError("versions: the data set must have a length and numbered samples, not be a stream.")
        self.data, self.n_versions, self.seed = data, n_versions, seed

    def __len__(self) -> int:
        return len(cast(Sized, self.data))

    def __getitem__(self, index: int) -> Versioned:
        version = int(torch.randint(self.n_versions, ()))
        return Versioned(self.version(index, version), index, version)

    def version(self, index: int, version: int) -> Any:
        """One version of one sample."""
        with _generators(_seed(self.seed, index, version)):
            return self.data[index]

    def fingerprint(self) -> str:
        """A hash of the number of samples, of `SHOWN` samples spread over the set, and of how changes are drawn."""
        found = hashlib.sha256(f"{len(self)} {self.n_versions} {self.seed}".encode())
        for index in np.linspace(0, len(self) - 1, min(SHOWN, len(self))).round().astype(int).tolist():
            found.update(_content(self.version(index, 0)))
        return found.hexdigest()


def check_versions(n_versions: int) -> None:
    """Raises: SettingError: fewer than 1."""
    if n_versions < 1:
        raise SettingError(f"versions: there must be at least 1 version of each sample, got {n_versions}.")


def _content(sample: Any) -> bytes:
    if isinstance(sample, Tensor):
        return str(sample.dtype).encode() + sample.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    if isinstance(sample, (tuple, list)):
        return b"".join(_content(part) for part in sample)
    if isinstance(sample, dict):
        return b"".join(str(name).encode() + _content(part) for name, part in sorted(sample.items()))
    return pickle.dumps(sample)


def _seed(*numbers: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


@contextmanager
def _generators(seed: int) -> Iterator[None]:
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
