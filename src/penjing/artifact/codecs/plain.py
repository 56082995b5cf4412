"""Tensors without a representation: their bytes, compressed where that pays; or one value, where all are equal."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import zstandard
from torch import Tensor

from penjing.artifact.codecs.codec import Codec, Decoded, Sink, Source
from penjing.errors import ArtifactError
from penjing.representation import Representation

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
"""Their order is the file format: only append."""
_RAW, _ZSTD = 0, 1
_THOROUGH_BYTES = 1 << 20


def to_bytes(value: Tensor) -> bytes:
    """The elements in order, little-endian."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `to_bytes`."""
    if not data:
        return torch.empty(shape, dtype=dtype)
    elements = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return (elements != 0 if dtype == torch.bool else elements.view(dtype)).reshape(shape)


def dtype_number(value: Tensor, where: str = "artifact") -> int:
    """The number of a tensor's type in the file.

    Raises: ArtifactError: a type that cannot be stored.
    """
    if value.dtype not in DTYPES:
        raise ArtifactError(f"{where}: tensors of type {value.dtype} cannot be stored; convert to one of {DTYPES}.")
    return DTYPES.index(value.dtype)


def dtype_at(number: int) -> torch.dtype:
    """The type of that number. Raises: ArtifactError: there is none."""
    if number >= len(DTYPES):
        raise ArtifactError("artifact: a tensor has a type that this version of penjing does not know.")
    return DTYPES[number]


class Constant(Codec):
    """All elements are the same bits: type and one element."""

    kind: ClassVar[str] = "constant"

    @staticmethod
    def fits(value: Tensor) -> bool:
        """Whether every element has the bits of the first."""
        data = to_bytes(value)
        size = value.element_size()
        return value.numel() > 0 and data == data[:size] * value.numel()

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        return dtype_number(value)

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        sink.heads.raw(to_bytes(value)[: value.element_size()])

    def read(self, shape: tuple[int, ...], variant: int, source: Source) -> Decoded:
        dtype = dtype_at(variant)
        one = from_bytes(source.heads.raw(torch.empty((), dtype=dtype).element_size()), dtype, ())
        return Decoded(one.expand(shape).clone(), coder="one value", entropy_bits=0.0)


class Plain(Codec):
    """Type, then the bytes as they are, or their planes (all first bytes, all second bytes ...) under Zstandard."""

    kind: ClassVar[str] = "plain"

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        return dtype_number(value)

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        data = to_bytes(value)
        planes = np.frombuffer(data, np.uint8).reshape(-1, value.element_size()).T.tobytes()
        level = 19 if len(data) <= _THOROUGH_BYTES else 3  # 1 % less than at level 3, in a hundred times the time
        packed = zstandard.ZstdCompressor(level=level, write_content_size=False, write_checksum=False).compress(planes)
        method = _ZSTD if len(packed) + 4 < len(data) else _RAW
        sink.heads.uvarint(method)
        if method == _ZSTD:
            sink.heads.uvarint(len(packed))
        sink.blobs.raw(packed if method == _ZSTD else data)

    def skip(self, shape: tuple[int, ...], variant: int, source: Source) -> None:
        size = math.prod(shape) * torch.empty((), dtype=dtype_at(variant)).element_size()
        source.blobs.raw(size if source.heads.uvarint() == _RAW else source.heads.uvarint())

    def read(self, shape: tuple[int, ...], variant: int, source: Source) -> Decoded:
        dtype = dtype_at(variant)
        size = torch.empty((), dtype=dtype).element_size()
        n_bytes = math.prod(shape) * size
        method = source.heads.uvarint()
        if method == _RAW:
            return Decoded(from_bytes(source.blobs.raw(n_bytes), dtype, shape), coder="raw")
        if method != _ZSTD:
            raise ArtifactError("artifact: a tensor is packed in a way that this version of penjing does not know.")
        packed = source.blobs.raw(source.heads.uvarint())
        try:
            if (
                not n_bytes or zstandard.frame_content_size(packed) != -1
            ):  # a stored size would go before max_output_size
                raise ArtifactError(
                    "artifact: a tensor is packed in a way that this version of penjing does not write."
                )
            planes = zstandard.ZstdDecompressor().decompress(packed, max_output_size=n_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ArtifactError(f"artifact: a tensor cannot be unpacked ({error}).") from None
        if len(planes) != n_bytes:
            raise ArtifactError(f"artifact: a tensor unpacks to {len(planes)} bytes; {n_bytes} are needed.")
        data = np.frombuffer(planes, np.uint8).reshape(size, -1).T.tobytes()
        return Decoded(from_bytes(data, dtype, shape), coder="zstd")
