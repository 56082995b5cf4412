"""Static models of symbols as integer frequencies, and how they are stored.

A model of an alphabet 0..m-1 is m integers that sum to 2**total_bits: p(s) = frequency(s) / 2**total_bits, exactly, so
that no rounding of a floating-point number decides how a file is read. A symbol of frequency 0 cannot be coded.

Two forms are stored (one bit says which), after the list of the symbols that occur (see `tables`):
    plain   total_bits (5 bits), then frequency - 1 of all but the last symbol, which the sum determines
    roots   root - 1 of every symbol; frequencies are the squares of the roots, scaled to the sum 2**20 by
            `quantize_counts`; nothing for a single symbol

Roots are what `best_frequencies` mostly picks: the standard error of an observed frequency is sqrt(p / n), so that a
step that is even in sqrt(p) spends the same, sufficient precision on rare and common symbols.
Source: Rissanen 1983, "A universal prior for integers and estimation by minimum description length" (why the precision
of a parameter is worth its bits only up to its standard error).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penjing.entropy.bits import BitWriter, ByteReader, ByteWriter
from penjing.entropy.tables import (
    check_alphabet,
    numbers_bits,
    read_numbers,
    read_support,
    write_numbers,
    write_support,
)
from penjing.errors import ArtifactError, DataError, SettingError

MAX_TOTAL_BITS = 24
ROOTS_TOTAL_BITS = 20
MAX_SYMBOLS = 1 << 38  # counts * 2**MAX_TOTAL_BITS stays within int64
_PLAIN, _ROOTS = 0, 1
_TOTAL_FIELD_BITS = 5
_MAX_ROOT = 1 << 14
_CHUNK = 1 << 20


class FrequencyTable(NamedTuple):
    """A model and its stored form."""

    freqs: NDArray[np.uint32]
    total_bits: int
    table: bytes


def count(symbols: ArrayLike, alphabet: int) -> NDArray[np.int64]:
    """How often each symbol of 0..alphabet-1 occurs, int64, shape (alphabet,).

    Raises: DataError: a symbol outside of the alphabet, or not an integer. ArtifactError: alphabet outside 1..65536.
    """
    check_alphabet(alphabet)
    flat = np.asarray(symbols).reshape(-1)
    if flat.size == 0:
        return np.zeros(alphabet, dtype=np.int64)
    if flat.dtype.kind not in "iub":
        raise DataError(f"entropy.counts: symbols must be integers, got {flat.dtype}.")
    if flat.min() < 0 or flat.max() >= alphabet:
        raise DataError(f"entropy.counts: symbols must be in 0..{alphabet - 1}, got {flat.min()}..{flat.max()}.")
    total = np.zeros(alphabet, dtype=np.int64)
    for start in range(0, flat.size, _CHUNK):  # bincount makes eight bytes of each symbol
        total += np.bincount(flat[start : start + _CHUNK], minlength=alphabet)
    return total


def quantize_counts(counts: ArrayLike, total_bits: int) -> NDArray[np.uint32]:
    """Scale counts to frequencies that sum to 2**total_bits, by largest remainders, in integers only.

    frequency = floor(count * 2**total_bits / sum), at least 1 where the count is; what is then missing goes, one each,
    to the largest remainders, the lower symbol first. Symbols that deserve less than 1 are set to 1 and taken out
    before the others are scaled.

    Raises: SettingError: total_bits outside 0..24, no counts, more symbols occur than 2**total_bits, or 2**38 or more
        symbols in all.
    """
    amounts = np.asarray(counts, dtype=np.int64).reshape(-1)
    used = np.flatnonzero(amounts)
    if not 0 <= total_bits <= MAX_TOTAL_BITS:
        raise SettingError(f"entropy.counts: total_bits must be in 0..{MAX_TOTAL_BITS}, got {total_bits}.")
    if amounts.size == 0 or amounts.min() < 0 or not 0 < int(amounts.sum()) < MAX_SYMBOLS:
        raise SettingError("entropy.counts: counts must be >= 0 and sum to 1..2**38 - 1.")
    if used.size > 1 << total_bits:
        raise SettingError(
            f"entropy.counts: {used.size} symbols occur and each needs a frequency of at least 1 of "
            f"2**{total_bits}; take total_bits >= {(used.size - 1).bit_length()}."
        )
    freqs = np.zeros(amounts.size, dtype=np.uint32)
    left = 1 << total_bits
    while True:
        part = amounts[used]
        total = int(part.sum())
        scaled = part * left
        rare = scaled < total
        if not rare.any():
            break
        freqs[used[rare]] = 1
        left -= int(rare.sum())
        used = used[~rare]
    floors = scaled // total
    n_missing = left - int(floors.sum())
    largest = np.argsort(-(scaled % total), kind="stable")[:n_missing]
    floors[largest] += 1
    freqs[used] = floors
    return freqs


def entropy_bits(counts: ArrayLike, freqs: ArrayLike | None = None) -> float:
    """Ideal length in bits of symbols with these counts under a model: -sum count * log2(frequency / sum).

    Without `freqs` under the counts themselves, which is the empirical entropy. inf if a symbol occurs that the model
    excludes.
    """
    amounts = np.asarray(counts, dtype=np.int64)
    weights = amounts if freqs is None else np.asarray(freqs)
    occurs = amounts > 0
    if not occurs.any():
        return 0.0
    if (weights[occurs] == 0).any():
        return math.inf
    return float((amounts[occurs] * (math.log2(int(weights.sum())) - np.log2(weights[occurs]))).sum())


def entropy_bits_per_symbol(counts: ArrayLike, freqs: ArrayLike | None = None) -> float:
    """`entropy_bits` divided by the number of symbols; 0 for none."""
    n = int(np.asarray(counts).sum())
    return entropy_bits(counts, freqs) / n if n else 0.0


def best_frequencies(counts: ArrayLike) -> FrequencyTable:
    """The model that makes table + payload smallest, over both forms and 16 + 57 precisions.

    bits = table's bits + entropy_bits(counts, freqs). `table` is what `read_frequencies` reads; what a file holds is
    exact, though which of two equally good tables is picked may differ between machines. No symbols at all get a
    model that is certain of symbol 0.

    Raises: SettingError: a negative count, or 2**38 or more symbols. ArtifactError: an alphabet outside 1..65536.
    """
    amounts = np.asarray(counts, dtype=np.int64).reshape(-1)
    check_alphabet(amounts.size)
    if not amounts.any():
        amounts = np.eye(1, amounts.size, dtype=np.int64)[0]
    used = np.flatnonzero(amounts)
    n = int(amounts.sum())
    least_bits = (used.size - 1).bit_length()

    # What all ways have in common, the list of used symbols, does not change their order.
    ways: list[tuple[float, int, int]] = []
    for total_bits in range(least_bits, max(least_bits, 15) + 1):
        freqs = quantize_counts(amounts, total_bits)
        table_bits = _TOTAL_FIELD_BITS + numbers_bits(freqs[used][:-1].astype(np.int64) - 1)[0]
        ways.append((table_bits + entropy_bits(amounts, freqs), _PLAIN, total_bits))
    most_steps = min(_MAX_ROOT, 4 * math.isqrt(n) + 2)
    for n_steps in sorted({round(2 ** (j / 4)) for j in range(57)}):
        if n_steps <= most_steps:
            roots = _roots(amounts[used], n_steps)
            freqs = _squared(roots, used, amounts.size)
            ways.append((numbers_bits(_stored_roots(roots))[0] + entropy_bits(amounts, freqs), _ROOTS, n_steps))

    _, form, precision = min(ways)
    writer = ByteWriter()
    if form == _PLAIN:
        freqs = quantize_counts(amounts, precision)
        write_frequencies(writer, freqs, precision)
        return FrequencyTable(freqs, precision, writer.finish())
    roots = _roots(amounts[used], precision)
    bits = BitWriter()
    bits.field(_ROOTS, 1)
    write_support(bits, used, amounts.size)
    write_numbers(bits, _stored_roots(roots))
    return FrequencyTable(_squared(roots, used, amounts.size), ROOTS_TOTAL_BITS, bits.finish())


def write_frequencies(writer: ByteWriter, freqs: ArrayLike, total_bits: int) -> None:
    """Write frequencies in the plain form, any that sum to 2**total_bits.

    Raises: SettingError: another sum, or total_bits outside 0..24. ArtifactError: an alphabet outside 1..65536.
    """
    table = np.asarray(freqs, dtype=np.int64).reshape(-1)
    check_alphabet(table.size)
    if not 0 <= total_bits <= MAX_TOTAL_BITS or table.min() < 0 or int(table.sum()) != 1 << total_bits:
        raise SettingError(
            f"entropy.counts: frequencies must be >= 0 and sum to 2**total_bits with total_bits in "
            f"0..{MAX_TOTAL_BITS}; got the sum {int(table.sum())} and total_bits = {total_bits}."
        )
    used = np.flatnonzero(table)
    bits = BitWriter()
    bits.field(_PLAIN, 1)
    write_support(bits, used, table.size)
    bits.field(total_bits, _TOTAL_FIELD_BITS)
    write_numbers(bits, table[used][:-1] - 1)
    writer.raw(bits.finish())


def read_frequencies(reader: ByteReader, alphabet: int) -> tuple[NDArray[np.uint32], int]:
    """Read a model of `alphabet` symbols, in either form: frequencies, uint32, and their total_bits.

    Raises: ArtifactError: an alphabet outside 1..65536, a table that is cut off, or a sum that cannot be 2**total_bits.
    """
    check_alphabet(alphabet)
    bits = reader.open_bits()
    form = bits.field(1)
    used = read_support(bits, alphabet)
    if form == _ROOTS:
        roots = read_numbers(bits, used.size) + 1 if used.size > 1 else np.ones(1, dtype=np.int64)
        reader.close_bits(bits)
        if roots.max() > _MAX_ROOT or int((roots**2).sum()) >= MAX_SYMBOLS:
            raise ArtifactError(f"entropy.counts: a root is above {_MAX_ROOT}, or all are too large; damaged file.")
        return _squared(roots, used, alphabet), ROOTS_TOTAL_BITS
    total_bits = bits.field(_TOTAL_FIELD_BITS)
    table = np.zeros(alphabet, dtype=np.int64)
    table[used[:-1]] = read_numbers(bits, used.size - 1) + 1
    reader.close_bits(bits)
    last = (1 << total_bits) - int(table.sum())
    if total_bits > MAX_TOTAL_BITS or last < 1:
        raise ArtifactError(
            f"entropy.counts: frequencies sum to more than 2**{total_bits}, or total_bits is above {MAX_TOTAL_BITS}; "
            "the file is damaged."
        )
    table[used[-1]] = last
    return table.astype(np.uint32), total_bits


def _roots(amounts: NDArray[np.int64], n_steps: int) -> NDArray[np.int64]:
    """Square roots of relative counts in units of 1 / n_steps, at least 1. Stored, so its rounding may be any."""
    return np.maximum(1, np.rint(n_steps * np.sqrt(amounts / amounts.sum()))).astype(np.int64)


def _stored_roots(roots: NDArray[np.int64]) -> NDArray[np.int64]:
    return roots - 1 if roots.size > 1 else roots[:0]


def _squared(roots: NDArray[np.int64], used: NDArray[np.int64], alphabet: int) -> NDArray[np.uint32]:
    weights = np.zeros(alphabet, dtype=np.int64)
    weights[used] = roots**2
    return quantize_counts(weights, ROOTS_TOTAL_BITS)
