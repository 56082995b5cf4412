"""Tensors without a representation: their bytes, compressed where that pays; or one value, where all are equal."""

import math
from collections.abc import Sequence
from typing import BinaryIO, ClassVar

import numpy as np
import torch
import zstandard
from torch import Tensor

from penjing.artifact.codecs.codec import Blob, Codec, Decoded, Located, Sink, Source
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
_THOROUGH_BYTES, _THOROUGH, _FAST = 1 << 18, 19, 1
_CHUNK = 1 << 20
"""Larger tensors are packed 300 times faster, which costs 1 % in float32 weights: there only exponents can be packed."""


def elements(value: Tensor) -> np.ndarray:
    """The bytes of the elements in order, little-endian; uint8, (bytes,). Shares the tensor's memory where it can."""
    flat = value.detach().cpu().contiguous().view(-1)
    if flat.numel() == 1:
        flat = flat.clone().as_strided((1,), (1,))  # one element of an expanded tensor has the stride 0
    return flat.view(torch.uint8).numpy()


def from_elements(data: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `elements`, in the same memory."""
    if not data.numel():
        return torch.empty(shape, dtype=dtype)
    return (data != 0 if dtype == torch.bool else data.view(dtype)).reshape(shape)


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
        data = elements(value).reshape(-1, value.element_size())
        # nearly always the first few tell
        starts = (0, *range(64, len(data), _CHUNK))
        return len(data) > 0 and all(
            bool((data[start:end] == data[0]).all())
            for start, end in zip(starts, (*starts[1:], len(data)), strict=True)
        )

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        return dtype_number(value)

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        sink.heads.raw(elements(value)[: value.element_size()].tobytes())

    def locate(self, shape: tuple[int, ...], variant: int, source: Source) -> Located:
        dtype = dtype_at(variant)
        one = torch.frombuffer(bytearray(source.heads.raw(_size(dtype))), dtype=torch.uint8)

        def decode() -> Decoded:
            value = torch.empty(shape, dtype=dtype)
            return Decoded(value.copy_(from_elements(one, dtype, ())), entropy_bits=0.0)

        return Located(dtype, "one value", decode)


class Plain(Codec):
    """Type, then the bytes as they are, or their planes (all first bytes, all second bytes ...) under Zstandard."""

    kind: ClassVar[str] = "plain"

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        return dtype_number(value)

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        packed = packed_planes(value)
        self.write_head(None if packed is None else len(packed), sink)
        sink.blob(elements(value).data if packed is None else packed)

    @staticmethod
    def write_head(packed_bytes: int | None, sink: Sink) -> None:
        """Append what comes before the bytes: how many there are under Zstandard; None: they are as they are."""
        sink.heads.uvarint(_RAW if packed_bytes is None else _ZSTD)
        if packed_bytes is not None:
            sink.heads.uvarint(packed_bytes)

    def locate(self, shape: tuple[int, ...], variant: int, source: Source) -> Located:
        dtype = dtype_at(variant)
        n_bytes = math.prod(shape) * _size(dtype)
        method = source.heads.uvarint()
        if method not in (_RAW, _ZSTD):
            raise ArtifactError("artifact: a tensor is packed in a way that this version of penjing does not know.")
        blob = source.blobs.take(n_bytes if method == _RAW else source.heads.uvarint())

        def decode() -> Decoded:
            if method == _ZSTD:
                return Decoded(from_planes(blob, dtype, shape))
            data = torch.empty(n_bytes, dtype=torch.uint8)
            blob.read_into(data.numpy().data)
            return Decoded(from_elements(data, dtype, shape))

        return Located(dtype, "zstd" if method == _ZSTD else "raw", decode)


def write_planes(value: Tensor, file: BinaryIO) -> int:
    """Append the planes under Zstandard to a file piece by piece: as `packed_planes`, in no memory to speak of.

    Returns: the number of bytes.
    """
    data = elements(value).reshape(-1, value.element_size())
    begun = file.tell()
    packer = zstandard.ZstdCompressor(level=_FAST, write_content_size=False, write_checksum=False).compressobj()
    for plane in range(value.element_size()):
        for start in range(0, len(data), _CHUNK):
            file.write(packer.compress(data[start : start + _CHUNK, plane].tobytes()))
    file.write(packer.flush())
    return file.tell() - begun


def packed_planes(value: Tensor) -> bytes | None:
    """All first bytes of the elements, all second bytes ..., under Zstandard; None where that is not shorter."""
    data = elements(value)
    planes = data.reshape(-1, value.element_size()).T.tobytes()
    level = _THOROUGH if len(data) <= _THOROUGH_BYTES else _FAST
    packed = zstandard.ZstdCompressor(level=level, write_content_size=False, write_checksum=False).compress(planes)
    return packed if len(packed) + 4 < len(data) else None


def from_planes(blob: Blob, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `packed_planes`. Raises: ArtifactError: damaged, or not of that size."""
    n_bytes, size = math.prod(shape) * _size(dtype), _size(dtype)
    data = torch.empty(n_bytes, dtype=torch.uint8)
    data.numpy().reshape(-1, size)[:] = _unpacked(blob, n_bytes).reshape(size, -1).T
    return from_elements(data, dtype, shape)


def _size(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def _unpacked(blob: Blob, n_bytes: int) -> np.ndarray:
    packed = blob.read()
    try:
        if not n_bytes or zstandard.frame_content_size(packed) != -1:  # a stored size would go before max_output_size
            raise ArtifactError("artifact: a tensor is packed in a way that this version of penjing does not write.")
        planes = zstandard.ZstdDecompressor().decompress(packed, max_output_size=n_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ArtifactError(f"artifact: a tensor cannot be unpacked ({error}).") from None
    if len(planes) != n_bytes:
        raise ArtifactError(f"artifact: a tensor unpacks to {len(planes)} bytes; {n_bytes} are needed.")
    return np.frombuffer(planes, np.uint8)
