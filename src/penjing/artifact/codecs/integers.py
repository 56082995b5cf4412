"""A few integers of a layer in a head: exponents of steps and scales, codes of zero."""

import numpy as np
import torch
from torch import Tensor

from penjing.artifact.codecs.codec import Sink, Source
from penjing.entropy import context_coder
from penjing.errors import ArtifactError


def write_integers(sink: Sink, values: Tensor) -> None:
    """The median, then all differences from it in contexts; one number alone is just itself."""
    numbers = values.detach().cpu().numpy().astype(np.int32)
    middle = int(np.median(numbers)) if numbers.size else 0
    sink.heads.svarint(middle)
    if numbers.size > 1:
        data = context_coder.encode((numbers - middle).reshape(numbers.shape[0], -1))
        sink.heads.uvarint(len(data))
        sink.heads.raw(data)


def read_integers(source: Source, shape: tuple[int, ...], least: int, most: int) -> Tensor:
    """Raises: ArtifactError: one is not in [least, most]."""
    middle, n = source.heads.svarint(), int(np.prod(shape))
    numbers = np.zeros(n, dtype=np.int64)
    if n > 1:
        data = source.heads.raw(source.heads.uvarint())
        numbers += context_coder.decode(data, shape[0], n // shape[0]).reshape(-1)
    numbers += min(max(middle, -(1 << 20)), 1 << 20)
    if n and not least <= int(numbers.min()) <= int(numbers.max()) <= most:
        raise ArtifactError(f"artifact: numbers of a layer must be in [{least}, {most}]; the file is damaged.")
    return torch.from_numpy(numbers.astype(np.int16)).reshape(shape)
