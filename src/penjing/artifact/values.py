"""Settings as bytes: None, booleans, whole numbers, floats, short strings and tuples of these. Nothing else can be said."""

import math
import struct
from numbers import Integral, Real
from typing import Any

from penjing.entropy import ByteReader, ByteWriter
from penjing.errors import ArtifactError

# One byte: values 0..199 are the whole numbers -20..179, the rest are the tags below.
_OFFSET, _N_SMALL = 20, 200
_NONE, _FALSE, _TRUE, _INT, _FLOAT32, _FLOAT64, _STRING, _SAME, _TUPLE = range(_N_SMALL, _N_SMALL + 9)
_MAX_STRING, _MAX_ITEMS, _MAX_DEPTH = 4096, 64, 2


def write_value(writer: ByteWriter, value: Any, depth: int = 0) -> None:
    """Append one value. Tuples of equal elements take little more than one element.

    Raises: ArtifactError: another type, or a string or tuple that `read_value` would refuse.
    """
    if value is None:
        writer.raw(bytes([_NONE]))
    elif isinstance(value, bool):
        writer.raw(bytes([_TRUE if value else _FALSE]))
    elif isinstance(value, Integral):  # NumPy's too
        value = int(value)
        if 0 <= value + _OFFSET < _N_SMALL:
            writer.raw(bytes([value + _OFFSET]))
        else:
            writer.raw(bytes([_INT]))
            writer.svarint(value)
    elif isinstance(value, Real):
        value = float(value)
        short = not math.isfinite(value) or _as_float32(value) == value
        writer.raw(bytes([_FLOAT32 if short else _FLOAT64]) + struct.pack("<f" if short else "<d", value))
    elif isinstance(value, str):
        writer.raw(bytes([_STRING]))
        write_string(writer, value)
    elif isinstance(value, (tuple, list)) and len(value) <= _MAX_ITEMS and depth < _MAX_DEPTH:
        same = len(value) > 1 and all(item == value[0] and type(item) is type(value[0]) for item in value)
        writer.raw(bytes([_SAME if same else _TUPLE]))
        writer.uvarint(len(value))
        for item in value[:1] if same else value:
            write_value(writer, item, depth + 1)
    else:
        raise ArtifactError(f"artifact: a setting of type {type(value).__name__} or of this length cannot be written.")


def read_value(reader: ByteReader, depth: int = 0) -> Any:
    """Read one value.

    Raises: ArtifactError: an unknown tag, a string longer than 4096 bytes, or a tuple of more than 64 elements or nested
        more than two deep.
    """
    tag = reader.raw(1)[0]
    if tag < _N_SMALL:
        return tag - _OFFSET
    if tag in (_NONE, _FALSE, _TRUE):
        return {_NONE: None, _FALSE: False, _TRUE: True}[tag]
    if tag == _INT:
        return reader.svarint()
    if tag == _FLOAT32:
        return struct.unpack("<f", reader.raw(4))[0]
    if tag == _FLOAT64:
        return struct.unpack("<d", reader.raw(8))[0]
    if tag == _STRING:
        return read_string(reader)
    if tag in (_SAME, _TUPLE) and depth < _MAX_DEPTH:
        n = reader.uvarint()
        if n > _MAX_ITEMS:
            raise ArtifactError(f"artifact: a setting has {n} elements; at most {_MAX_ITEMS} are possible.")
        return (
            (read_value(reader, depth + 1),) * n
            if tag == _SAME
            else tuple(read_value(reader, depth + 1) for _ in range(n))
        )
    raise ArtifactError(f"artifact: a setting has the unknown tag {tag}.")


def _as_float32(value: float) -> float:
    try:
        found: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.inf
    return found


def write_string(writer: ByteWriter, text: str) -> None:
    """Append a string: its length in bytes, then UTF-8. Raises: ArtifactError: longer than 4096 bytes."""
    data = text.encode()
    if len(data) > _MAX_STRING:
        raise ArtifactError(f"artifact: a string of {len(data)} bytes; at most {_MAX_STRING} are possible.")
    writer.uvarint(len(data))
    writer.raw(data)


def read_string(reader: ByteReader) -> str:
    """Read a string.

    Raises: ArtifactError: longer than 4096 bytes, or not UTF-8.
    """
    n = reader.uvarint()
    if n > _MAX_STRING:
        raise ArtifactError(f"artifact: a string of {n} bytes; at most {_MAX_STRING} are possible.")
    try:
        return reader.raw(n).decode()
    except UnicodeDecodeError:
        raise ArtifactError("artifact: a string is not valid UTF-8.") from None
