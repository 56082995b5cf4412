"""Clustered weights with a scale for each output: the exponents of the scales, then what a codebook writes."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from penjing.artifact.codecs.codebook import CodebookCodec
from penjing.artifact.codecs.codec import Codec, Decoded, Located, Sink, Source
from penjing.artifact.codecs.integers import read_integers, write_integers
from penjing.errors import ArtifactError
from penjing.representation import Codebook, Representation, ScaledCodebook
from penjing.representation.steps import LARGEST, SMALLEST, exponents_of, steps_of

_CODEBOOK = CodebookCodec()


class ScaledCodebookCodec(Codec):
    """Head: the exponents of the scales; then the head of the codebook."""

    kind: ClassVar[str] = "scaled-codebook"

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        return _CODEBOOK.variant(value, [_scaled(stack).codebook], sink)

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        scaled = _scaled(stack)
        write_integers(sink, exponents_of(scaled.scales))
        _CODEBOOK.write(value, [scaled.codebook], variant, sink)

    def locate(self, shape: tuple[int, ...], variant: int, source: Source) -> Located:
        if not shape:
            raise ArtifactError("artifact: a single number has no scales for its outputs.")
        exponents = read_integers(source, shape[:1], SMALLEST, LARGEST, "scales of a codebook")
        inner = _CODEBOOK.locate(shape, variant, source)

        def decode() -> Decoded:
            found = inner.decode()
            assert isinstance(found.representation, Codebook)
            scaled = ScaledCodebook(found.representation, steps_of(exponents))
            with torch.no_grad():
                value = scaled(torch.empty(0))
            return Decoded(value, scaled, None, found.entropy_bits, found.stream_bits)

        return Located(inner.dtype, inner.coder, decode)


def _scaled(stack: Sequence[Representation]) -> ScaledCodebook:
    scaled = stack[-1]
    assert isinstance(scaled, ScaledCodebook)
    return scaled
