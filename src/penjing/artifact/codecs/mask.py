"""Masked weights: which ones are kept, entropy coded, and the values of those."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from penjing.artifact.codecs.codec import Codec, Decoded, Sink, Source
from penjing.artifact.codecs.plain import dtype_at, dtype_number, from_bytes, to_bytes
from penjing.entropy import best_frequencies, count, entropy_bits, read_frequencies
from penjing.errors import ArtifactError
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
        sink.blobs.raw(to_bytes(value.detach().cpu().flatten()[torch.from_numpy(flags).bool()]))

    def read(self, shape: tuple[int, ...], variant: int, source: Source) -> Decoded:
        dtype = dtype_at(variant)
        freqs, _ = read_frequencies(source.heads, 2)
        flags = source.stream.decode(math.prod(shape), freqs)
        keep = torch.from_numpy(flags.astype(bool))
        n = int(keep.sum())
        if n * torch.empty((), dtype=dtype).element_size() > source.blobs.n_left:
            raise ArtifactError("artifact: a masked tensor keeps more weights than the file holds.")
        value = torch.zeros(math.prod(shape), dtype=dtype)
        value[keep] = from_bytes(source.blobs.raw(n * value.element_size()), dtype, (n,))
        bits = entropy_bits(count(flags, 2), freqs)
        value, keep = value.reshape(shape), keep.reshape(shape)
        return Decoded(value, Mask(keep), value, "range", bits, bits)
