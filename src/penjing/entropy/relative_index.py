"""Sparse codes as in Deep Compression: of each stored one its value, and how many zeros lie before it. For comparison.

Zeros are not stored, but a gap has a field of b bits: where 2**b zeros or more lie between two codes, a filler zero is stored
in the place of the last zero that a field can reach, and counted on from there. Fields of fixed width are what the paper calls
pruned and quantized; with a Huffman code for the values and one for the gaps it is the whole method.

    codes   0 0 0 5 0 0 0 0 0 2 0        b = 2: at most 3 zeros before an entry
    gaps    3       3       1
    values        5       0   2          the filler at the fourth of five zeros

Layout: varints for the number of codes, of entries, of the alphabet, and 2 b + (1 with Huffman); with Huffman the two codes'
lengths; values, then gaps, each padded to a byte. The penjing format never uses it: contexts are shorter.
Source: Han, Mao and Dally 2016, arXiv:1510.00149, section 2 and figure 2 (gaps and fillers), section 4 (Huffman).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penjing.entropy import huffman
from penjing.entropy.bits import BitReader, BitWriter, ByteReader, ByteWriter
from penjing.entropy.counts import count
from penjing.entropy.huffman import code_lengths, payload_bits, read_lengths, write_lengths
from penjing.errors import ArtifactError, DataError, SettingError

MAX_INDEX_BITS = 15
_WHERE = "entropy.relative_index"


class Entries(NamedTuple):
    """What is stored of sparse codes.

    Attributes:
        gaps: zeros before each entry, since the entry before it; int32 in [0, 2**b).
        values: the codes; 0 for a filler.
    """

    gaps: NDArray[np.int32]
    values: NDArray[np.int32]


class Bits(NamedTuple):
    """How many bits entries take, and how many there are.

    Attributes:
        entries, fillers: how many are stored, and how many of these are zeros.
        fixed: in fields of fixed width, ceil(log2 k) for a value and b for a gap.
        values, gaps: with a Huffman code each, their lengths not counted.
        tables: of these lengths, with padding and header: all the rest of what `encode` writes.
    """

    entries: int
    fillers: int
    fixed: int
    values: int
    gaps: int
    tables: int


def to_entries(codes: ArrayLike, index_bits: int) -> Entries:
    """Gaps and values of codes in C order. What comes after the last code that is not 0 is not stored.

    Raises: SettingError: index_bits outside 1..15. DataError: codes that are no integers >= 0.
    """
    flat = np.asarray(codes).reshape(-1)
    if not 1 <= index_bits <= MAX_INDEX_BITS:
        raise SettingError(f"{_WHERE}: index_bits must be in 1..{MAX_INDEX_BITS}, got {index_bits}.")
    if flat.dtype.kind not in "iub" or (flat.size and int(flat.min()) < 0):
        raise DataError(f"{_WHERE}: codes must be integers >= 0, got {flat.dtype}.")
    reach = 1 << index_bits
    places = np.flatnonzero(flat)
    steps = np.diff(places, prepend=-1)  # a step of 1 is a gap of 0
    fillers = (steps - 1) // reach
    ends = np.cumsum(fillers + 1) - 1
    n = int(ends[-1]) + 1 if len(ends) else 0
    gaps = np.full(n, reach - 1, dtype=np.int32)
    values = np.zeros(n, dtype=np.int32)
    gaps[ends] = steps - 1 - fillers * reach
    values[ends] = flat[places]
    return Entries(gaps, values)


def from_entries(entries: Entries, n: int) -> NDArray[np.int32]:
    """The codes, (n,), int32. Raises: ArtifactError: entries that reach beyond."""
    places = np.cumsum(entries.gaps.astype(np.int64) + 1) - 1
    if len(places) and int(places[-1]) >= n:
        raise ArtifactError(f"{_WHERE}: an entry lies at {int(places[-1])}, there are only {n} codes; damaged data.")
    codes = np.zeros(n, dtype=np.int32)
    codes[places] = entries.values
    return codes


def bits(codes: ArrayLike, k: int, index_bits: int) -> Bits:
    """The paper's accounts for codes in [0, k), 0 for what is not stored."""
    entries = to_entries(codes, index_bits)
    values, gaps = count(entries.values, k), count(entries.gaps, 1 << index_bits)
    coded = [payload_bits(counts, code_lengths(counts)) for counts in (values, gaps)]
    n = len(entries.values)
    whole = 8 * len(encode(codes, k, index_bits))
    return Bits(
        n, int((entries.values == 0).sum()), n * (_width(k) + index_bits), coded[0], coded[1], whole - sum(coded)
    )


def encode(codes: ArrayLike, k: int, index_bits: int, *, with_huffman: bool = True) -> bytes:
    """Codes in [0, k), any shape, in C order, as bytes.

    Raises: SettingError, DataError: see `to_entries`; a code of k or more.
    """
    flat = np.asarray(codes).reshape(-1)
    entries = to_entries(flat, index_bits)
    if len(entries.values) and int(entries.values.max()) >= k:
        raise DataError(f"{_WHERE}: codes must be below {k}, got {int(entries.values.max())}.")
    writer = ByteWriter()
    for number in (flat.size, len(entries.values), k, 2 * index_bits + with_huffman):
        writer.uvarint(number)
    if not len(entries.values):
        return writer.finish()
    alphabets = (k, 1 << index_bits)
    if not with_huffman:
        for symbols, alphabet in zip((entries.values, entries.gaps), alphabets, strict=True):
            packer = BitWriter()
            packer.fields(symbols, _width(alphabet))
            writer.raw(packer.finish())
        return writer.finish()
    lengths = [code_lengths(count(s, a)) for s, a in zip((entries.values, entries.gaps), alphabets, strict=True)]
    for own in lengths:
        write_lengths(writer, own)
    payloads = [huffman.encode(s, own) for s, own in zip((entries.values, entries.gaps), lengths, strict=True)]
    writer.uvarint(len(payloads[0]))
    writer.raw(payloads[0] + payloads[1])
    return writer.finish()


def decode(data: bytes | bytearray | memoryview, most: int) -> NDArray[np.int32]:
    """What `encode` was given, flat, int32.

    Args:
        most: how many codes there may be; a few bytes can claim any number of zeros.
    Raises: ArtifactError: damaged data, or more codes than that.
    """
    reader = ByteReader(data, _WHERE)
    n, n_entries, k = reader.uvarint(), reader.uvarint(), reader.uvarint()
    index_bits, with_huffman = divmod(reader.uvarint(), 2)
    if n > most or n_entries > n or not 1 <= k <= 1 << 16 or not 1 <= index_bits <= MAX_INDEX_BITS:
        raise ArtifactError(f"{_WHERE}: {n} codes, {n_entries} of them stored, of {k} values cannot be; damaged data.")
    if not n_entries:
        return np.zeros(n, dtype=np.int32)
    alphabets = (k, 1 << index_bits)
    if with_huffman:
        lengths = [read_lengths(reader, alphabet) for alphabet in alphabets]
        first = reader.raw(reader.uvarint())
        rest = reader.raw(reader.n_left)
        found = [huffman.decode(part, n_entries, own) for part, own in zip((first, rest), lengths, strict=True)]
    else:
        found = []
        for alphabet in alphabets:
            width = _width(alphabet)
            payload = reader.raw((n_entries * width + 7) // 8)
            found.append(BitReader(payload, _WHERE).fields(n_entries, width).astype(np.int32))
    if int(found[0].max()) >= k:
        raise ArtifactError(f"{_WHERE}: a code is {int(found[0].max())}, it must be below {k}; damaged data.")
    return from_entries(Entries(found[1], found[0]), n)


def _width(k: int) -> int:
    return (k - 1).bit_length()
