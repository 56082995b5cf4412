"""Weights of two or three values: the scales as powers of two to the 16th part, and the codes."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from penjing.artifact.codecs.codec import Codec, Decoded, Located, Sink, Source
from penjing.artifact.codecs.codes import CODERS, Codes, LocatedCodes, ranks_of
from penjing.artifact.codecs.integers import read_integers, write_integers
from penjing.errors import ArtifactError
from penjing.representation import Representation, Signs
from penjing.representation.steps import LARGEST, SMALLEST, exponents_of, steps_of

_NO_SCALE, _ONE_SCALE, _FIRST_DIMENSION = 0, 1, 2


class SignsCodec(Codec):
    """Head: 2 * place + ternary, where the place is 0 for no scale, 1 for one of the tensor, 2 + d for one at each index of
    dimension d; the exponents of the scales; the head of the codes. Plain fields are a bit a weight where there are two codes.
    """

    kind: ClassVar[str] = "signs"

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        return _codes(_signs(stack, value)).variant(sink)

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        signs = _signs(stack, value)
        sink.heads.uvarint(2 * _place(signs) + signs.ternary)
        if signs.scales is not None:
            write_integers(sink, exponents_of(signs.scales))
        _codes(signs).write(variant, sink)

    def locate(self, shape: tuple[int, ...], variant: int, source: Source) -> Located:
        place, ternary = divmod(source.heads.uvarint(), 2)
        if place - _FIRST_DIMENSION >= len(shape):
            raise ArtifactError(f"artifact: a tensor of {len(shape)} dimensions has no scales along another one.")
        scales = None
        if place != _NO_SCALE:
            sizes = tuple(n if d == place - _FIRST_DIMENSION else 1 for d, n in enumerate(shape))
            scales = steps_of(read_integers(source, sizes, SMALLEST, LARGEST, "scales of signs"))
        values = np.array([-1, 0, 1] if ternary else [-1, 1], np.int8)
        found = LocatedCodes(shape, ranks_of(values), variant, source)

        def decode() -> Decoded:
            codes, n_bits = found.decode()
            signs = Signs(torch.from_numpy(values[codes]).reshape(shape), scales, ternary=bool(ternary))
            with torch.no_grad():
                value = signs(torch.empty(0))
            return Decoded(value, signs, None, n_bits, n_bits if found.in_stream else 0.0)

        return Located(torch.float32, CODERS[variant], decode)


def _signs(stack: Sequence[Representation], value: Tensor) -> Signs:
    """The representation; while it follows its original, one that has the codes and scales of the value."""
    signs = stack[-1]
    assert isinstance(signs, Signs)
    if not signs.follow:
        return signs
    scales = None
    if signs.scales is not None:
        dims = [dim for dim, size in enumerate(signs.scales.shape) if size == 1]
        scales = steps_of(exponents_of(value.abs().amax(dims, keepdim=True)))
    return Signs(torch.sign(value), scales, ternary=signs.ternary)


def _place(signs: Signs) -> int:
    if signs.scales is None:
        return _NO_SCALE
    return next((_FIRST_DIMENSION + d for d, size in enumerate(signs.scales.shape) if size > 1), _ONE_SCALE)


def _codes(signs: Signs) -> Codes:
    codes = signs.codes.cpu().numpy().astype(np.int32)
    values = np.array([-1, 0, 1] if signs.ternary else [-1, 1])
    return Codes(codes + 1 if signs.ternary else (codes + 1) // 2, ranks_of(values))
