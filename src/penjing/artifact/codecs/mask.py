"""Masked weights: which ones are kept, entropy coded, and the values of those."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from penjing.artifact.codecs.codec import Codec, Decoded, Located, Sink, Source
from penjing.artifact.codecs.plain import (
    dtype_at,
    dtype_number,
    elements,
    from_elements,
    from_planes,
    packed_planes,
)
from penjing.entropy import best_frequencies, count, entropy_bits, read_frequencies
from penjing.representation import Mask, Representation

_VARIANTS, _PACKED = 16, 10
"""Added to the type's number where the kept values are packed; files of 0.1.0 have them as they are."""


class MaskCodec(Codec):
    """Type, model of the flags (1 = kept), flags in the shared stream, kept values as they are or packed as `Plain` does."""

    kind: ClassVar[str] = "mask"

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        number = dtype_number(value)
        packable = _PACKED + number < _VARIANTS and packed_planes(_kept(value, stack)) is not None
        return _PACKED + number if packable else number

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        mask = stack[-1]
        assert isinstance(mask, Mask)
        flags = mask.keep.cpu().flatten().numpy().astype(np.int32)
        model = best_frequencies(count(flags, 2))
        sink.heads.raw(model.table)
        sink.stream.encode(flags, model.freqs)
        kept = _kept(value, stack)
        packed = packed_planes(kept) if variant >= _PACKED else None
        if packed is not None:
            sink.heads.uvarint(len(packed))
        sink.blob(elements(kept).data if packed is None else packed)

    def locate(self, shape: tuple[int, ...], variant: int, source: Source) -> Located:
        is_packed = variant >= _PACKED
        dtype, n = dtype_at(variant - _PACKED if is_packed else variant), math.prod(shape)
        freqs, _ = read_frequencies(source.heads, 2)
        # how many bytes there are depends on the flags
        flags = source.symbols.decode(source.symbols.add(n, freqs))
        counts = count(flags, 2)
        n_kept = int(counts[1])
        n_bytes = n_kept * torch.empty((), dtype=dtype).element_size()
        blob = source.blobs.take(source.heads.uvarint() if is_packed else n_bytes)
        bitmap, bits = np.packbits(flags), entropy_bits(counts, freqs)

        def decode() -> Decoded:
            keep = torch.from_numpy(np.unpackbits(bitmap, count=n).view(bool))
            if is_packed:
                values = from_planes(blob, dtype, (n_kept,))
            else:
                kept = torch.empty(blob.size, dtype=torch.uint8)
                blob.read_into(kept.numpy().data)
                values = from_elements(kept, dtype, (n_kept,))
            value = torch.zeros(n, dtype=dtype)
            value[keep] = values
            value, keep = value.reshape(shape), keep.reshape(shape)
            return Decoded(value, Mask(keep), value, bits, bits)

        return Located(dtype, "range, zstd" if is_packed else "range", decode)


def _kept(value: Tensor, stack: Sequence[Representation]) -> Tensor:
    """The values that stay, (kept,)."""
    mask = stack[-1]
    assert isinstance(mask, Mask)
    return value.detach().cpu().flatten()[mask.keep.cpu().flatten()]
