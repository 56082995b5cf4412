"""Weights on a uniform grid: the steps as powers of two to the 16th part, and the codes."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from penjing.artifact.codecs.codec import Codec, Decoded, Located, Sink, Source
from penjing.artifact.codecs.codes import CODERS, Codes, LocatedCodes
from penjing.artifact.codecs.integers import read_integers, write_integers
from penjing.errors import ArtifactError
from penjing.representation import Grid, Representation
from penjing.representation.grid import MAX_CODE
from penjing.representation.steps import LARGEST, SMALLEST, exponents_of, steps_of

_WHAT = "steps or zeros of a grid"


class GridCodec(Codec):
    """Head: low (signed); high - low, whether there are steps for columns, whether there are zeros; the number of steps along
    each dimension; their exponents; the same for columns; the zeros; the head of the codes.
    """

    kind: ClassVar[str] = "grid"

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        return _codes(_grid(stack)).variant(sink)

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        grid = _grid(stack)
        _write_head(sink, grid.low, grid.high, grid.steps, grid.columns, grid.zero)
        _codes(grid).write(variant, sink)

    @staticmethod
    def write_encoded(data: bytes, low: int, high: int, steps: Tensor, sink: Sink) -> None:
        """Append codes that are written in contexts already.

        Args:
            data: of the matrix of the first dimension of the tensor and all others.
            low, high: the smallest and the largest code.
            steps: as `Grid` has them.
        """
        _write_head(sink, low, high, steps, None, None)
        sink.heads.uvarint(len(data))
        sink.blob(data)

    def locate(self, shape: tuple[int, ...], variant: int, source: Source) -> Located:
        heads = source.heads
        low = heads.svarint()
        span, flags = divmod(heads.uvarint(), 4)
        has_columns, has_zero = divmod(flags, 2)
        high = low + span
        if not -MAX_CODE <= low <= high <= MAX_CODE:
            raise ArtifactError(f"artifact: the codes of a grid reach from {low} to {high}; +-{MAX_CODE} is possible.")
        steps = _read_steps(source, shape)
        columns = _read_steps(source, shape) if has_columns else None
        zero = read_integers(source, tuple(steps.shape), -MAX_CODE, MAX_CODE, _WHAT) if has_zero else None
        found = LocatedCodes(shape, np.arange(low, high + 1, dtype=np.int32), variant, source)

        def decode() -> Decoded:
            codes, n_bits = found.decode()
            whole = codes.astype(np.int16, copy=codes.dtype != np.uint16).view(np.int16)
            whole += np.int16(low)
            index = torch.from_numpy(whole).reshape(shape)
            grid = Grid(index, steps, zero=zero, columns=columns, low=low, high=high)
            return Decoded(grid.values(), grid, None, n_bits, n_bits if found.in_stream else 0.0)

        return Located(torch.float32, CODERS[variant], decode)


def _write_head(sink: Sink, low: int, high: int, steps: Tensor, columns: Tensor | None, zero: Tensor | None) -> None:
    sink.heads.svarint(low)
    sink.heads.uvarint(4 * (high - low) + 2 * (columns is not None) + (zero is not None))
    _write_steps(sink, steps)
    if columns is not None:
        _write_steps(sink, columns)
    if zero is not None:
        write_integers(sink, zero)


def _grid(stack: Sequence[Representation]) -> Grid:
    grid = stack[-1]
    assert isinstance(grid, Grid)
    return grid


def _codes(grid: Grid) -> Codes:
    steps = np.arange(grid.low, grid.high + 1, dtype=np.int32)
    return Codes(grid.codes.cpu().numpy().astype(np.int32) - grid.low, steps)


def _write_steps(sink: Sink, steps: Tensor) -> None:
    for size in steps.shape:
        sink.heads.uvarint(size)
    write_integers(sink, exponents_of(steps))


def _read_steps(source: Source, shape: tuple[int, ...]) -> Tensor:
    """Raises: ArtifactError: steps that a weight of this shape cannot have."""
    sizes = tuple(source.heads.uvarint() for _ in shape)
    if any(not (size == 1 or 1 < size <= n) for size, n in zip(sizes, shape, strict=True)):
        raise ArtifactError(f"artifact: a tensor of shape {shape} cannot have steps of shape {sizes}.")
    if math.prod(sizes) > max(math.prod(shape), 1):  # empty, and of huge dimensions
        raise ArtifactError(f"artifact: a tensor of shape {shape} cannot have {math.prod(sizes)} steps.")
    return steps_of(read_integers(source, sizes, SMALLEST, LARGEST, _WHAT))
