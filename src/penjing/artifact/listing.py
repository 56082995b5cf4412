"""What a file of tensors has instead of a graph: names, shapes and types, and what was said about the whole.

    n                       varint: the number of tensors
    name shape type         of each: a string; the number of dimensions and each as varints; its number in `TYPES`
    m                       varint: the number of remarks
    key value               of each: bytes as varint, UTF-8

All is packed by deflate where that is shorter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from penjing.artifact.codecs.plain import DTYPES
from penjing.artifact.manifest import pack_bytes, unpack_bytes
from penjing.artifact.slots import Slot
from penjing.artifact.values import read_string, write_string
from penjing.entropy import ByteReader, ByteWriter
from penjing.errors import ArtifactError

_CARRIERS = {
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e5m2: torch.uint8,
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
    torch.complex64: torch.int64,
}
"""Types that are only handed through, as the bits of another."""
TYPES = (*DTYPES, *_CARRIERS)
"""Their order is the file format: only append."""
MAX_TENSORS = 1 << 16
_MAX_BYTES, _MAX_DIMS, _MAX_ELEMENTS = 1 << 23, 64, 1 << 48


@dataclass(frozen=True)
class Tensors:
    """What is known of a file's tensors before any is read.

    Attributes:
        shapes, dtypes: of each by its name, in the order of the file.
        remarks: text by key, as a safetensors file has it.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    remarks: Mapping[str, str] = field(default_factory=dict)

    def slots(self) -> list[Slot]:
        """A place for each, in a module of their own."""
        owner = nn.Module()
        return [Slot(name, owner, name, shape, False) for name, shape in self.shapes.items()]


def write_tensors(tensors: Tensors) -> bytes:
    """The list as bytes. Raises: ArtifactError: more tensors, longer names or more remarks than a file may have."""
    writer = ByteWriter()
    writer.uvarint(len(tensors.shapes))
    for name, shape in tensors.shapes.items():
        if tensors.dtypes[name] not in TYPES:
            raise ArtifactError(
                f'artifact: the tensor "{name}" is of type {tensors.dtypes[name]}, which no file holds.'
            )
        if not name.isprintable():
            raise ArtifactError(f"artifact: a tensor is called {name!r}; a name must be printable. Rename it.")
        write_string(writer, name)
        writer.uvarint(len(shape))
        for size in shape:
            writer.uvarint(size)
        writer.uvarint(TYPES.index(tensors.dtypes[name]))
    writer.uvarint(len(tensors.remarks))
    for text in (part for pair in tensors.remarks.items() for part in pair):
        writer.uvarint(len(text.encode()))
        writer.raw(text.encode())
    content = writer.finish()
    if len(content) > _MAX_BYTES or len(tensors.shapes) > MAX_TENSORS:
        raise ArtifactError(
            f"artifact: {len(tensors.shapes)} tensors whose names, shapes and remarks take {len(content)} bytes; "
            f"a file holds at most {MAX_TENSORS} and {_MAX_BYTES}. Split the checkpoint."
        )
    return pack_bytes(content)


def read_tensors(data: bytes) -> Tensors:
    """Read the list. Raises: ArtifactError: anything that `write_tensors` would not have written."""
    reader = ByteReader(unpack_bytes(data, _MAX_BYTES), "artifact: list of tensors")
    n = reader.uvarint()
    if n > MAX_TENSORS:
        raise ArtifactError(f"artifact: the file has {n} tensors; at most {MAX_TENSORS} are possible.")
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for _ in range(n):
        name, n_dims = read_string(reader), reader.uvarint()
        if name in shapes or n_dims > _MAX_DIMS or not name.isprintable():
            raise ArtifactError(
                f"artifact: the tensor {name!r} is there twice, has {n_dims} dimensions, or has no name."
            )
        shapes[name] = tuple(reader.uvarint() for _ in range(n_dims))
        if math.prod(max(size, 1) for size in shapes[name]) > _MAX_ELEMENTS:  # empty ones too: strides are products
            raise ArtifactError(f'artifact: the tensor "{name}" cannot have the shape {shapes[name]}.')
        number = reader.uvarint()
        if number >= len(TYPES):
            raise ArtifactError(f'artifact: the tensor "{name}" has a type that this version of penjing does not know.')
        dtypes[name] = TYPES[number]
    remarks: dict[str, str] = {}
    for _ in range(reader.uvarint()):
        key = _text(reader)
        remarks[key] = _text(reader)
    if reader.n_left:
        raise ArtifactError(f"artifact: {reader.n_left} bytes are left over after the list of tensors.")
    return Tensors(shapes, dtypes, remarks)


def carried(value: Tensor) -> Tensor:
    """A tensor of a type that codecs know: itself, or its bits as whole numbers."""
    carrier = _CARRIERS.get(value.dtype)
    if carrier is None:
        return value
    return value.contiguous().view(-1).view(carrier).reshape(value.shape)


def uncarried(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of the type that the list has for it: `carried` undone, or the nearest numbers of another type."""
    if _CARRIERS.get(dtype) == value.dtype:
        return value.contiguous().view(-1).view(dtype).reshape(value.shape)
    return value.to(dtype)


def _text(reader: ByteReader) -> str:
    try:
        return reader.raw(reader.uvarint()).decode()
    except UnicodeDecodeError:
        raise ArtifactError("artifact: a remark is not valid UTF-8.") from None
