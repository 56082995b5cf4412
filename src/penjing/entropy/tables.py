"""The two parts that every code table has: which symbols occur, and one small number for each of those.

Which symbols occur, the shortest of:
    0                                             all of them
    1 00  one bit per symbol                      any
    1 01  first, last                             an unbroken run; each in as many bits as alphabet - 1 has
    1 10  k (3 bits), n - 1 and the gaps          few; exponential Golomb of order 0 and k

The numbers, the shortest of 4 kinds (2 bits) x 16 orders k (4 bits); no numbers take no bits:
    00 k bits each; 01 exponential Golomb; 10 the same of the difference to the one before; 11 Rice of that difference

Neighbours are differenced because the histogram of a quantized tensor is a smooth hill.
"""

import numpy as np
from numpy.typing import NDArray

from penjing.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from penjing.errors import ArtifactError, SettingError

MAX_ALPHABET = 1 << 16
PLAIN, GOLOMB, GOLOMB_STEP, RICE_STEP = range(4)
_BITMAP, _RUN, _GAPS = range(3)
_KIND_BITS, _ORDER_BITS, _GAP_ORDER_BITS = 2, 4, 3


def check_alphabet(alphabet: int) -> None:
    """Raises: ArtifactError: an alphabet of no or of more than 65536 symbols."""
    if not 1 <= alphabet <= MAX_ALPHABET:
        raise ArtifactError(f"entropy.tables: an alphabet must have 1..{MAX_ALPHABET} symbols, got {alphabet}.")


def write_support(bits: BitWriter, used: NDArray[np.int64], alphabet: int) -> None:
    """Write which symbols of 0..alphabet-1 occur: `used`, ascending, at least one."""
    check_alphabet(alphabet)
    if used.size == alphabet:
        bits.field(0, 1)
        return
    bits.field(1, 1)
    width = (alphabet - 1).bit_length()
    gaps = np.diff(used, prepend=-1) - 1
    gap_bits, order = min((_golomb_bits(gaps, order) + _GAP_ORDER_BITS, order) for order in range(1 << _GAP_ORDER_BITS))
    costs = {_BITMAP: alphabet, _GAPS: gap_bits + _golomb_bits(np.array([used.size - 1]), 0)}
    if used[-1] - used[0] + 1 == used.size:
        costs[_RUN] = 2 * width
    form = min(costs, key=lambda way: (costs[way], way))
    bits.field(form, 2)
    if form == _BITMAP:
        occurs = np.zeros(alphabet, dtype=np.uint8)
        occurs[used] = 1
        bits.fields(occurs, 1)
    elif form == _RUN:
        bits.field(int(used[0]), width)
        bits.field(int(used[-1]), width)
    else:
        bits.field(order, _GAP_ORDER_BITS)
        bits.exp_golomb(used.size - 1, 0)
        for gap in gaps.tolist():
            bits.exp_golomb(gap, order)


def read_support(bits: BitReader, alphabet: int) -> NDArray[np.int64]:
    """Read what `write_support` wrote. Raises: ArtifactError: nothing occurs, or a symbol outside the alphabet."""
    check_alphabet(alphabet)
    if bits.field(1) == 0:
        return np.arange(alphabet)
    form = bits.field(2)
    width = (alphabet - 1).bit_length()
    if form == _BITMAP:
        used = np.flatnonzero(bits.fields(alphabet, 1))
    elif form == _RUN:
        used = np.arange(bits.field(width), bits.field(width) + 1)
    elif form == _GAPS:
        order = bits.field(_GAP_ORDER_BITS)
        n_used = bits.exp_golomb(0) + 1
        if n_used > alphabet:
            raise ArtifactError(f"entropy.tables: {n_used} symbols occur in an alphabet of {alphabet}.")
        steps = [min(bits.exp_golomb(order), alphabet) + 1 for _ in range(n_used)]  # the minimum keeps sums small
        used = np.cumsum(steps) - 1
    else:
        raise ArtifactError("entropy.tables: a table of unknown form; the file is damaged or from a newer version.")
    if used.size == 0 or not 0 <= used[0] <= used[-1] < alphabet:
        raise ArtifactError(f"entropy.tables: no symbol, or one outside of an alphabet of {alphabet}, occurs.")
    return used


def numbers_bits(values: NDArray[np.int64]) -> tuple[int, int, int]:
    """The cheapest way to write `values` (>= 0, below 2**31): bits with header, kind, order."""
    if values.size == 0:
        return 0, PLAIN, 0
    steps = np.diff(values, prepend=0)
    folded = np.where(steps >= 0, 2 * steps, -2 * steps - 1)
    widest = int(values.max(initial=0)).bit_length()
    ways = [(values.size * widest, PLAIN, widest)] if widest < 1 << _ORDER_BITS else []
    for order in range(1 << _ORDER_BITS):
        ways.append((_golomb_bits(values, order), GOLOMB, order))
        ways.append((_golomb_bits(folded, order), GOLOMB_STEP, order))
        ways.append((int((folded >> order).sum()) + folded.size * (1 + order), RICE_STEP, order))
    n_bits, kind, order = min(ways)
    return n_bits + _KIND_BITS + _ORDER_BITS, kind, order


def write_numbers(bits: BitWriter, values: NDArray[np.int64]) -> None:
    """Write `values` (>= 0, below 2**31) the cheapest way; their number is not written."""
    if values.size == 0:
        return
    if not 0 <= values.min() <= values.max() < 1 << 31:
        raise SettingError(f"entropy.tables: numbers must be in [0, 2**31), got {values.min()}..{values.max()}.")
    _, kind, order = numbers_bits(values)
    bits.field(kind, _KIND_BITS)
    bits.field(order, _ORDER_BITS)
    if kind == PLAIN:
        bits.fields(values, order)
        return
    before = 0
    for value in values.tolist():
        if kind == GOLOMB:
            bits.exp_golomb(value, order)
        elif kind == GOLOMB_STEP:
            bits.exp_golomb(zigzag(value - before), order)
        else:
            bits.rice(zigzag(value - before), order)
        before = value


def read_numbers(bits: BitReader, n: int) -> NDArray[np.int64]:
    """Read `n` numbers. Raises: ArtifactError: one is outside [0, 2**31)."""
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    kind = bits.field(_KIND_BITS)
    order = bits.field(_ORDER_BITS)
    if kind == PLAIN:
        return bits.fields(n, order)
    values: list[int] = []
    value = 0
    for _ in range(n):
        if kind == GOLOMB:
            value = bits.exp_golomb(order)
        else:
            value += unzigzag(bits.exp_golomb(order) if kind == GOLOMB_STEP else bits.rice(order))
        if not 0 <= value < 1 << 31:
            raise ArtifactError(f"entropy.tables: a number must be in [0, 2**31), got {value}; the file is damaged.")
        values.append(value)
    return np.array(values, dtype=np.int64)


def _golomb_bits(values: NDArray[np.int64], order: int) -> int:
    # frexp's exponent is the bit length, exactly, for integers below 2**53
    return int((2 * np.frexp((values >> order) + 1)[1] - 1 + order).sum())
