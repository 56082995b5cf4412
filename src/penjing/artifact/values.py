"""Settings as bytes: None, booleans, whole numbers, sizes, floats, short strings and tuples of these. Nothing else can be said.

The first byte says what follows:

    0..199      the whole numbers -20..179
    200..202    None, False, True
    203         a signed varint
    204, 205    float32, float64
    206         a string: bytes as varint, UTF-8
    207, 208    a tuple of equal elements, of any: their number as varint; one element, all of them
    209         a whole number in eight bytes, little-endian, two's complement
    210         a `Size`: number of parts as varint; the parts, each a whole number, a symbol or a function
    211..234    a symbol by its number, by itself a `Size` of that one part
    235..255    a function of `graph.sizes.FUNCTIONS`, within a `Size`
"""

import math
import struct
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from penjing.entropy import ByteReader, ByteWriter
from penjing.errors import ArtifactError, TraceError
from penjing.graph.sizes import FUNCTIONS, MAX_TOKENS, Size

_OFFSET, _N_SMALL = 20, 200
_NONE, _FALSE, _TRUE, _INT, _FLOAT32, _FLOAT64, _STRING, _SAME, _TUPLE, _LONG, _SIZE = range(_N_SMALL, _N_SMALL + 11)
_SYMBOL, _FUNCTION = 211, 235
MAX_SYMBOLS = _FUNCTION - _SYMBOL
_MAX_STRING, _MAX_ITEMS, _MAX_DEPTH = 4096, 64, 2


def write_value(writer: ByteWriter, value: Any, symbols: Sequence[str] = (), depth: int = 0) -> None:
    """Append one value. Tuples of equal elements take little more than one element.

    Args:
        symbols: those that a `Size` may have, by their number.
    Raises: ArtifactError: another type, another symbol, or a number, string or tuple that `read_value` would refuse.
    """
    if value is None:
        writer.raw(bytes([_NONE]))
    elif isinstance(value, bool):
        writer.raw(bytes([_TRUE if value else _FALSE]))
    elif isinstance(value, Integral):  # NumPy's too
        _write_whole(writer, int(value))
    elif isinstance(value, Real):
        value = float(value)
        short = not math.isfinite(value) or _as_float32(value) == value
        writer.raw(bytes([_FLOAT32 if short else _FLOAT64]) + struct.pack("<f" if short else "<d", value))
    elif isinstance(value, str):
        writer.raw(bytes([_STRING]))
        write_string(writer, value)
    elif isinstance(value, Size):
        _write_size(writer, value, symbols)
    elif isinstance(value, (tuple, list)) and len(value) <= _MAX_ITEMS and depth < _MAX_DEPTH:
        items = [_as_bytes(item, symbols, depth + 1) for item in value]
        same = len(items) > 1 and all(item == items[0] for item in items)
        writer.raw(bytes([_SAME if same else _TUPLE]))
        writer.uvarint(len(items))
        writer.raw(items[0] if same else b"".join(items))
    else:
        raise ArtifactError(f"artifact: a setting of type {type(value).__name__} or of this length cannot be written.")


def read_value(reader: ByteReader, symbols: Sequence[str] = (), depth: int = 0) -> Any:
    """Read one value.

    Raises: ArtifactError: an unknown tag or symbol, parts that are no `Size`, a string longer than 4096 bytes, or a tuple of
        more than 64 elements or nested more than two deep.
    """
    tag = reader.raw(1)[0]
    if tag < _N_SMALL:
        return tag - _OFFSET
    if tag in (_NONE, _FALSE, _TRUE):
        return {_NONE: None, _FALSE: False, _TRUE: True}[tag]
    if tag == _INT:
        return reader.svarint()
    if tag == _LONG:
        return int.from_bytes(reader.raw(8), "little", signed=True)
    if tag == _FLOAT32:
        return struct.unpack("<f", reader.raw(4))[0]
    if tag == _FLOAT64:
        return struct.unpack("<d", reader.raw(8))[0]
    if tag == _STRING:
        return read_string(reader)
    if tag == _SIZE:
        return _read_size(reader, symbols)
    if _SYMBOL <= tag < _FUNCTION:
        return Size((_symbol(tag, symbols),))
    if tag in (_SAME, _TUPLE) and depth < _MAX_DEPTH:
        n = reader.uvarint()
        if n > _MAX_ITEMS:
            raise ArtifactError(f"artifact: a setting has {n} elements; at most {_MAX_ITEMS} are possible.")
        return (
            (read_value(reader, symbols, depth + 1),) * n
            if tag == _SAME
            else tuple(read_value(reader, symbols, depth + 1) for _ in range(n))
        )
    raise ArtifactError(f"artifact: a setting has the unknown tag {tag}.")


def _as_bytes(value: Any, symbols: Sequence[str], depth: int) -> bytes:
    writer = ByteWriter()
    write_value(writer, value, symbols, depth)
    return writer.finish()


def _write_whole(writer: ByteWriter, value: int) -> None:
    if 0 <= value + _OFFSET < _N_SMALL:
        writer.raw(bytes([value + _OFFSET]))
    elif -(1 << 62) <= value < 1 << 62:
        writer.raw(bytes([_INT]))
        writer.svarint(value)
    elif -(1 << 63) <= value < 1 << 63:
        writer.raw(bytes([_LONG]) + value.to_bytes(8, "little", signed=True))
    else:
        raise ArtifactError(f"artifact: a whole number must be in [-2**63, 2**63) to be written, got {value}.")


def _write_size(writer: ByteWriter, size: Size, symbols: Sequence[str]) -> None:
    if len(size.tokens) > 1 or isinstance(size.tokens[0], int):
        writer.raw(bytes([_SIZE]))
        writer.uvarint(len(size.tokens))
    for token in size.tokens:
        if not isinstance(token, str):
            _write_whole(writer, token)
        elif token in FUNCTIONS:
            writer.raw(bytes([_FUNCTION + FUNCTIONS.index(token)]))
        elif token in symbols and symbols.index(token) < MAX_SYMBOLS:
            writer.raw(bytes([_SYMBOL + symbols.index(token)]))
        else:
            raise ArtifactError(
                f'artifact: the size {size} depends on "{token}", which must be one of the first {MAX_SYMBOLS} sizes of inputs.'
                f" Those are: {', '.join(symbols) or '(none)'}."
            )


def _read_size(reader: ByteReader, symbols: Sequence[str]) -> Size:
    n = reader.uvarint()
    if n > MAX_TOKENS:
        raise ArtifactError(f"artifact: a size has {n} parts; at most {MAX_TOKENS} are possible.")
    tokens: list[int | str] = []
    for _ in range(n):
        tag = reader.raw(1)[0]
        if tag < _N_SMALL:
            tokens.append(tag - _OFFSET)
        elif tag == _INT:
            tokens.append(reader.svarint())
        elif tag == _LONG:
            tokens.append(int.from_bytes(reader.raw(8), "little", signed=True))
        elif _SYMBOL <= tag < _FUNCTION:
            tokens.append(_symbol(tag, symbols))
        elif _FUNCTION <= tag < _FUNCTION + len(FUNCTIONS):
            tokens.append(FUNCTIONS[tag - _FUNCTION])
        else:
            raise ArtifactError(f"artifact: a size has the unknown tag {tag}.")
    try:
        return Size(tuple(tokens))
    except TraceError as error:
        raise ArtifactError(f"artifact: a size is none ({error}).") from None


def _symbol(tag: int, symbols: Sequence[str]) -> str:
    if tag - _SYMBOL >= len(symbols):
        raise ArtifactError(f"artifact: a size depends on symbol {tag - _SYMBOL}; the inputs have {len(symbols)}.")
    return symbols[tag - _SYMBOL]


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
