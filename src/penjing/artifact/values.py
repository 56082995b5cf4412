"""Settings as bytes: None, booleans, whole numbers, floats, short strings and tuples of these. Nothing else can be said."""

import math
import struct
from typing import Any

from penjing.entropy import ByteReader, ByteWriter
from penjing.errors import ArtifactError

# One byte: values 0..199 are the whole numbers -20..179, the rest are the tags below.
_OFFSET, _N_SMALL = 20, 200
_NONE, _FALSE, _TRUE, _INT, _FLOAT32, _FLOAT64, _STRING, _SAME, _TUPLE = range(_N_SMALL, _N_SMALL + 9)
_MAX_LENGTH = 4096


def write_value(writer: ByteWriter, value: Any) -> None:
    """Append one value. Tuples of equal elements take little more than one element."""
    if value is None:
        writer.raw(bytes([_NONE]))
    elif isinstance(value, bool):
        writer.raw(bytes([_TRUE if value else _FALSE]))
    elif isinstance(value, int):
        if 0 <= value + _OFFSET < _N_SMALL:
            writer.raw(bytes([value + _OFFSET]))
        else:
            writer.raw(bytes([_INT]))
            writer.svarint(value)
    elif isinstance(value, float):
        short = math.isnan(value) or math.isinf(value) or struct.unpack("<f", struct.pack("<f", value))[0] == value
        writer.raw(bytes([_FLOAT32 if short else _FLOAT64]) + struct.pack("<f" if short else "<d", value))
    elif isinstance(value, str):
        writer.raw(bytes([_STRING]))
        write_string(writer, value)
    elif isinstance(value, (tuple, list)):
        same = len(value) > 1 and all(item == value[0] and type(item) is type(value[0]) for item in value)
        writer.raw(bytes([_SAME if same else _TUPLE]))
        writer.uvarint(len(value))
        for item in value[:1] if same else value:
            write_value(writer, item)
    else:
        raise ArtifactError(f"artifact: a setting of type {type(value).__name__} cannot be written.")


def read_value(reader: ByteReader, depth: int = 0) -> Any:
    """Read one value.

    Raises: ArtifactError: an unknown tag, a tuple or string that is too long, or nested more than four deep.
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
    if tag in (_SAME, _TUPLE) and depth < 4:
        n = reader.uvarint()
        if n > _MAX_LENGTH:
            raise ArtifactError(f"artifact: a setting has {n} elements; at most {_MAX_LENGTH} are possible.")
        return (
            (read_value(reader, depth + 1),) * n
            if tag == _SAME
            else tuple(read_value(reader, depth + 1) for _ in range(n))
        )
    raise ArtifactError(f"artifact: a setting has the unknown tag {tag}.")


def write_string(writer: ByteWriter, text: str) -> None:
    """Append a string: its length in bytes, then UTF-8."""
    data = text.encode()
    writer.uvarint(len(data))
    writer.raw(data)


def read_string(reader: ByteReader) -> str:
    """Read a string.

    Raises: ArtifactError: longer than 4096 bytes, or not UTF-8.
    """
    n = reader.uvarint()
    if n > _MAX_LENGTH:
        raise ArtifactError(f"artifact: a string of {n} bytes; at most {_MAX_LENGTH} are possible.")
    try:
        return reader.raw(n).decode()
    except UnicodeDecodeError:
        raise ArtifactError("artifact: a string is not valid UTF-8.") from None
