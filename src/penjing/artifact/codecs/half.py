"""Weights of two bytes."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from penjing.artifact.codecs.codec import Codec, Decoded, Located, Sink, Source
from penjing.artifact.codecs.plain import DTYPES, Plain
from penjing.errors import ArtifactError
from penjing.representation import Half, Representation
from penjing.representation.half import FORMATS, Format

HALVES: tuple[Format, ...] = ("float16", "bfloat16")
"""Their order is the file format: only append."""


class HalfCodec(Codec):
    """As a plain tensor of that type."""

    kind: ClassVar[str] = "half"

    def __init__(self) -> None:
        self._plain = Plain()

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        half = stack[-1]
        assert isinstance(half, Half)
        return HALVES.index(half.format)

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        stored = value.to(FORMATS[HALVES[variant]])
        self._plain.write(stored, (), self._plain.variant(stored, (), sink), sink)

    def locate(self, shape: tuple[int, ...], variant: int, source: Source) -> Located:
        if variant >= len(HALVES):
            raise ArtifactError(
                "artifact: a tensor of two bytes is of a type that this version of penjing does not know."
            )
        dtype = FORMATS[HALVES[variant]]
        found = self._plain.locate(shape, DTYPES.index(dtype), source)

        def decode() -> Decoded:
            value = found.decode().value.float()
            return Decoded(value, Half(HALVES[variant]), value)

        return Located(torch.float32, found.coder, decode)
