"""Canonical, length-limited Huffman codes: a little longer than range coding, and much faster to read.

The code lengths are optimal under the limit (package-merge). Codes are canonical: ascending by (length, symbol), so the
lengths are all that is stored. Laws, for n symbols with entropy H per symbol:
    H <= average length < H + 1              as long as the limit does not bind
    sum over used symbols of 2**-length = 1  (Kraft), which readers insist on
The code of a single symbol is the exception: its length is 1 by convention, and its payload is 0 bytes.

Bits are packed most significant first and the last byte is padded with zeros.
Source: Huffman 1952; Larmore and Hirschberg 1990, "A fast algorithm for optimal length-limited Huffman codes"; Schwartz
and Kallick 1964 (canonical codes).
"""

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from penjing.entropy.bits import BitWriter, ByteReader, ByteWriter
from penjing.entropy.tables import check_alphabet, read_numbers, read_support, write_numbers, write_support
from penjing.errors import ArtifactError, DataError, SettingError

MAX_LENGTH = 15
_WINDOW_BITS = 12
_PER_ENTRY = 3  # symbols of 16 bits in one table entry, above 16 bits for their number and length
_LOOKUPS = 5  # of 12 bits, from one load of 64


def code_lengths(counts: ArrayLike, max_length: int = MAX_LENGTH) -> NDArray[np.uint8]:
    """Lengths that minimise sum counts * length with length <= max_length; 0 for symbols that do not occur.

    Package-merge: of the 2 m - 2 cheapest of m coins and, level by level, their packages in pairs, a symbol's length is
    the number of levels that use its coin. O(m max_length) after sorting.

    Returns: bits per symbol, uint8, shape (alphabet,); 1 for a single symbol.
    Raises: SettingError: max_length outside 1..15, a negative count, or more than 2**max_length symbols occur.
    """
    amounts = np.asarray(counts, dtype=np.int64).reshape(-1)
    check_alphabet(amounts.size)
    used = np.flatnonzero(amounts)
    if not 1 <= max_length <= MAX_LENGTH:
        raise SettingError(f"entropy.huffman: max_length must be in 1..{MAX_LENGTH}, got {max_length}.")
    if amounts.min() < 0 or used.size > 1 << max_length:
        raise SettingError(
            f"entropy.huffman: counts must be >= 0 for at most 2**{max_length} symbols; {used.size} symbols occur."
        )
    lengths = np.zeros(amounts.size, dtype=np.uint8)
    if used.size < 2:
        lengths[used] = 1
        return lengths

    order = used[np.argsort(amounts[used], kind="stable")]
    coins = amounts[order]
    level = coins
    coin_flags = [np.ones(coins.size, dtype=bool)]
    for _ in range(max_length - 1):
        paired = level[: level.size // 2 * 2].reshape(-1, 2).sum(axis=1)
        both = np.concatenate([coins, paired])
        merged = np.argsort(both, kind="stable")
        level = both[merged]
        coin_flags.append(merged < coins.size)

    n_taken = 2 * coins.size - 2
    for flags in reversed(coin_flags):
        n_coins = int(flags[:n_taken].sum())
        lengths[order[:n_coins]] += 1
        n_taken = 2 * (n_taken - n_coins)
    return lengths


def canonical_codes(lengths: ArrayLike) -> NDArray[np.uint16]:
    """The codes, in the low bits: ascending by (length, symbol), shorter ones first; 0 where the length is 0.

    Raises: ArtifactError: lengths that are no complete code.
    """
    sizes = _checked(lengths)
    codes = np.zeros(sizes.size, dtype=np.uint16)
    code, before = 0, 0
    for symbol in _canonical_order(sizes).tolist():
        code <<= int(sizes[symbol]) - before
        before = int(sizes[symbol])
        codes[symbol] = code
        code += 1
    return codes


def payload_bits(counts: ArrayLike, lengths: ArrayLike) -> int:
    """Bits that `encode` spends, before padding: sum counts * length, and 0 for the code of a single symbol."""
    sizes = np.asarray(lengths, dtype=np.int64)
    if np.count_nonzero(sizes) < 2:
        return 0
    return int((np.asarray(counts, dtype=np.int64) * sizes).sum())


def encode(symbols: ArrayLike, lengths: ArrayLike) -> bytes:
    """Concatenate the codes of `symbols` (integers, any shape, in C order).

    Raises: DataError: a symbol outside the alphabet or without a code. ArtifactError: lengths that are no code.
    """
    sizes = _checked(lengths)
    flat = np.asarray(symbols).reshape(-1)
    if flat.size == 0:
        return b""
    if flat.dtype.kind not in "iub" or flat.min() < 0 or flat.max() >= sizes.size:
        raise DataError(
            f"entropy.huffman: symbols must be integers in 0..{sizes.size - 1}, "
            f"got {flat.min()}..{flat.max()} ({flat.dtype})."
        )
    if sizes[flat].min() == 0:
        raise DataError(f"entropy.huffman: symbol {flat[sizes[flat] == 0][0]} occurs, but has no code.")
    if np.count_nonzero(sizes) == 1:
        return b""
    n_bits = int(sizes[flat].sum(dtype=np.int64))
    packed = np.zeros((n_bits + 7) // 8, dtype=np.uint8)
    _pack(np.ascontiguousarray(flat, dtype=np.int32), canonical_codes(sizes), sizes, packed)
    return packed.tobytes()


def decode(data: bytes | bytearray | memoryview, n: int, lengths: ArrayLike) -> NDArray[np.int32]:
    """Read `n` symbols, which must fill `data` but for the zeros that pad the last byte.

    Returns: int32, shape (n,).
    Raises: ArtifactError: lengths that are no code, data that is too short or too long, n < 0 or no code at all.
    """
    sizes = _checked(lengths)
    n_used = int(np.count_nonzero(sizes))
    least_bits = 0 if n_used < 2 else int(sizes[sizes > 0].min()) * n
    if n < 0 or (n > 0 and n_used == 0) or least_bits > 8 * len(data):
        raise ArtifactError(f"entropy.huffman: {len(data)} bytes cannot hold {n} symbols; the file is cut off.")
    if n_used < 2 or n == 0:
        if len(data):
            raise ArtifactError(f"entropy.huffman: 0 bytes hold these {n} symbols, got {len(data)}.")
        return np.full(n, sizes.argmax(), dtype=np.int32)

    # Two words of zeros more, because a load takes the word after the one that it starts in.
    words = np.frombuffer(bytes(data) + b"\0" * (16 + -len(data) % 8), dtype=">u8").astype(np.uint64)
    by_length = np.bincount(sizes[sizes > 0], minlength=MAX_LENGTH + 1).astype(np.int64)
    ordered = _canonical_order(sizes).astype(np.int32)
    out = np.empty(n, dtype=np.int32)
    n_bits = _unpack(words, 8 * len(data), _window_table(ordered, sizes), ordered, by_length, out)
    if n_bits < 0:
        raise ArtifactError(f"entropy.huffman: the data ends before symbol {n}; the file is cut off or damaged.")
    pad = 8 * len(data) - n_bits
    if pad >= 8 or (pad and data[-1] & ((1 << pad) - 1)):
        raise ArtifactError(f"entropy.huffman: data is left after symbol {n}; the file is damaged.")
    return out


def write_lengths(writer: ByteWriter, lengths: ArrayLike) -> None:
    """Store a code: which symbols have one, then length - 1 of all but the last, which Kraft's sum determines.

    Raises: ArtifactError: lengths that are no complete code, or of no symbol.
    """
    sizes = _checked(lengths)
    used = np.flatnonzero(sizes)
    if used.size == 0:
        raise ArtifactError("entropy.huffman: a code of no symbols cannot be stored; store n = 0 instead.")
    bits = BitWriter()
    write_support(bits, used, sizes.size)
    if used.size > 1:
        write_numbers(bits, sizes[used][:-1].astype(np.int64) - 1)
    writer.raw(bits.finish())


def read_lengths(reader: ByteReader, alphabet: int) -> NDArray[np.uint8]:
    """Read what `write_lengths` wrote.

    Raises: ArtifactError: cut off, a length outside 1..15, or a code that is over- or under-full.
    """
    bits = reader.open_bits()
    used = read_support(bits, alphabet)
    lengths = np.zeros(alphabet, dtype=np.uint8)
    if used.size == 1:
        lengths[used] = 1
        reader.close_bits(bits)
        return lengths
    known = read_numbers(bits, used.size - 1) + 1
    reader.close_bits(bits)
    if known.max() > MAX_LENGTH:
        raise ArtifactError(
            f"entropy.huffman: a code length is {known.max()}, above {MAX_LENGTH}; the file is damaged."
        )
    room = (1 << MAX_LENGTH) - int((1 << (MAX_LENGTH - known)).sum())
    if room <= 0 or room & (room - 1):
        raise ArtifactError("entropy.huffman: the code lengths make no complete prefix code; the file is damaged.")
    lengths[used[:-1]] = known
    lengths[used[-1]] = MAX_LENGTH + 1 - room.bit_length()
    return _checked(lengths)


def _checked(lengths: ArrayLike) -> NDArray[np.uint8]:
    sizes = np.asarray(lengths).reshape(-1)
    check_alphabet(sizes.size)
    if sizes.dtype.kind not in "iu" or sizes.min() < 0 or sizes.max() > MAX_LENGTH:
        raise ArtifactError(f"entropy.huffman: code lengths must be integers in 0..{MAX_LENGTH}.")
    used = sizes[sizes > 0].astype(np.int64)
    filled = int((1 << (MAX_LENGTH - used)).sum())
    is_single = used.size == 1 and used[0] == 1
    if used.size and not is_single and filled != 1 << MAX_LENGTH:
        word = "over" if filled > 1 << MAX_LENGTH else "under"
        raise ArtifactError(
            f"entropy.huffman: the code is {word}-full: sum 2**-length = {filled / (1 << MAX_LENGTH)}, must be 1."
        )
    return sizes.astype(np.uint8)


def _canonical_order(sizes: NDArray[np.uint8]) -> NDArray[np.int64]:
    used = np.flatnonzero(sizes)
    return used[np.argsort(sizes[used], kind="stable")]


@njit(cache=True)
def _pack(symbols, codes, sizes, packed):  # type: ignore[no-untyped-def]
    held = np.uint64(0)
    n_held = 0
    place = 0
    for symbol in symbols:
        size = np.int64(sizes[symbol])
        held = (held << np.uint64(size)) | np.uint64(codes[symbol])
        n_held += size
        while n_held >= 8:
            n_held -= 8
            packed[place] = np.uint8((held >> np.uint64(n_held)) & np.uint64(255))
            place += 1
    if n_held:
        packed[place] = np.uint8((held << np.uint64(8 - n_held)) & np.uint64(255))


@njit(cache=True)
def _window_table(ordered, sizes):  # type: ignore[no-untyped-def]
    """For every string of 12 bits the whole codes it begins with, at most 3.

    Entry: symbols in 16 bits each from the lowest, bits used in bits 48..55, number of symbols from bit 56 on; 0 where
    the first code is longer than the window.
    """
    first = np.zeros(1 << _WINDOW_BITS, dtype=np.int32)
    first_size = np.zeros(1 << _WINDOW_BITS, dtype=np.int64)
    place = 0
    for symbol in ordered:
        size = np.int64(sizes[symbol])
        if size > _WINDOW_BITS:
            break
        for _ in range(1 << (_WINDOW_BITS - size)):
            first[place] = symbol
            first_size[place] = size
            place += 1
    table = np.zeros(1 << _WINDOW_BITS, dtype=np.uint64)
    for window in range(1 << _WINDOW_BITS):
        entry = np.uint64(0)
        rest = window
        used = 0
        n_symbols = 0
        while n_symbols < _PER_ENTRY:
            size = first_size[rest]
            if size == 0 or used + size > _WINDOW_BITS:
                break
            entry |= np.uint64(first[rest]) << np.uint64(16 * n_symbols)
            used += size
            n_symbols += 1
            rest = (rest << size) & ((1 << _WINDOW_BITS) - 1)
        table[window] = entry | (np.uint64(used) << np.uint64(48)) | (np.uint64(n_symbols) << np.uint64(56))
    return table


@njit(cache=True)
def _unpack(words, n_bits, table, ordered, by_length, out):  # type: ignore[no-untyped-def]
    """Fill `out`; returns the bits used, or -1 where they end too early."""
    n = out.size
    position = 0
    done = 0
    symbol_mask = np.uint64(0xFFFF)
    while done < n:
        word = position >> 6
        offset = np.uint64(position & 63)
        window = (words[word] << offset) | ((words[word + 1] >> np.uint64(1)) >> (np.uint64(63) - offset))
        if done + _PER_ENTRY * _LOOKUPS <= n and position + 64 <= n_bits:
            # All 3 symbols are stored, whatever their number: the next ones overwrite what was too much.
            start = position
            for _ in range(_LOOKUPS):
                entry = table[np.int64(window >> np.uint64(64 - _WINDOW_BITS))]
                out[done] = np.int32(entry & symbol_mask)
                out[done + 1] = np.int32((entry >> np.uint64(16)) & symbol_mask)
                out[done + 2] = np.int32((entry >> np.uint64(32)) & symbol_mask)
                used = (entry >> np.uint64(48)) & np.uint64(255)
                window <<= used
                position += np.int64(used)
                done += np.int64(entry >> np.uint64(56))
            if position > start:
                continue
        code = np.int64(0)
        first_code = np.int64(0)
        first_place = np.int64(0)
        size = 0
        while True:
            code = (code << 1) | np.int64(window >> np.uint64(63))
            window <<= np.uint64(1)
            size += 1
            first_code <<= 1
            if code - first_code < by_length[size]:
                break
            first_code += by_length[size]
            first_place += by_length[size]
        position += size
        if position > n_bits:
            return -1
        out[done] = ordered[first_place + code - first_code]
        done += 1
    return position
