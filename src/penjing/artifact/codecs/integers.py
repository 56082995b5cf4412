"""Integers that belong to a tensor, such as the steps of a grid: the middle one, and the differences from it in contexts."""

import math

import numpy as np
import torch
from torch import Tensor

from penjing.artifact.codecs.codec import Sink, Source
from penjing.entropy import context_coder
from penjing.errors import ArtifactError


def write_integers(sink: Sink, values: Tensor) -> None:
    """The one in the middle; for several also the unit of the differences from it, and these in contexts."""
    numbers = values.detach().cpu().numpy().astype(np.int32)
    middle = int(np.sort(numbers, axis=None)[numbers.size // 2]) if numbers.size else 0
    sink.heads.svarint(middle)
    if numbers.size > 1:
        unit = max(int(np.gcd.reduce(numbers - middle, axis=None)), 1)
        sink.heads.uvarint(unit)
        data = context_coder.encode((numbers - middle).reshape(numbers.shape[0], -1) // unit)
        sink.heads.uvarint(len(data))
        sink.heads.raw(data)


def read_integers(source: Source, shape: tuple[int, ...], least: int, most: int, what: str) -> Tensor:
    """The inverse: int16, of that shape.

    Args:
        what: they are, for the message.
    Raises: ArtifactError: one is not in [least, most].
    """
    middle, n = source.heads.svarint(), math.prod(shape)
    numbers = np.zeros(n, dtype=np.int64)
    if n > 1:
        unit = min(source.heads.uvarint(), 1 << 16)
        data = source.heads.raw(source.heads.uvarint())
        numbers += unit * context_coder.decode(data, shape[0], n // shape[0]).reshape(-1).astype(np.int64)
    numbers += min(max(middle, -(1 << 20)), 1 << 20)
    if n and not least <= int(numbers.min()) <= int(numbers.max()) <= most:
        raise ArtifactError(f"artifact: {what} must be in [{least}, {most}]; the file is damaged.")
    return torch.from_numpy(numbers.astype(np.int16)).reshape(shape)
