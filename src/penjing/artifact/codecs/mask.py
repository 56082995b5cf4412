"""Masked weights: which ones are kept, entropy coded, and the values of those."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from penjing.artifact.codecs.codec import Codec, Decoded, Located, Sink, Source
from penjing.artifact.codecs.plain import dtype_at, dtype_number, elements, from_elements
from penjing.entropy import best_frequencies, count, entropy_bits, read_frequencies
from penjing.representation import Mask, Representation


class MaskCodec(Codec):
    """Type, model of the flags (1 = kept), flags in the shared stream, kept values as they are."""

    kind: ClassVar[str] = "mask"

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        return dtype_number(value)

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        mask = stack[-1]
        assert isinstance(mask, Mask)
        flags = mask.keep.cpu().flatten().numpy().astype(np.int32)
        model = best_frequencies(count(flags, 2))
        sink.heads.raw(model.table)
        sink.stream.encode(flags, model.freqs)
        sink.blobs += elements(value.detach().cpu().flatten()[torch.from_numpy(flags).bool()]).data

    def locate(self, shape: tuple[int, ...], variant: int, source: Source) -> Located:
        dtype, n = dtype_at(variant), math.prod(shape)
        freqs, _ = read_frequencies(source.heads, 2)
        # how many bytes there are depends on the flags
        flags = source.symbols.decode(source.symbols.add(n, freqs))
        counts = count(flags, 2)
        blob = source.blobs.take(int(counts[1]) * torch.empty((), dtype=dtype).element_size())
        packed, bits = np.packbits(flags), entropy_bits(counts, freqs)

        def decode() -> Decoded:
            keep = torch.from_numpy(np.unpackbits(packed, count=n).view(bool))
            kept = torch.empty(blob.size, dtype=torch.uint8)
            blob.read_into(kept.numpy().data)
            value = torch.zeros(n, dtype=dtype)
            value[keep] = from_elements(kept, dtype, (int(counts[1]),))
            value, keep = value.reshape(shape), keep.reshape(shape)
            return Decoded(value, Mask(keep), value, bits, bits)

        return Located(dtype, "range", decode)
