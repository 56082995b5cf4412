"""Adaptive binary range coding of a matrix of integers, each under the sizes of those around it.

A value v is written as yes-or-no questions: is it 0; its sign; is |v| above 1, above 2 ... above 14; what is above that as an
exponential Golomb code. All but signs and Golomb bits have a probability of their own for each context, and after every answer
the probability moves towards it, by a sixteenth and by a 128th; the mean of both is what is coded with.

The context is how large values are in this row and in this column: of both a running mean of min(|v|, 15) is kept, and their
geometric mean in quarters of an octave is the context. So differences between filters and between inputs are found without
being told. A probability begins where a geometric distribution of that mean has it, which makes small matrices cheap.

With `dependent` the values are read as indices of `trellis`: the two grids have probabilities of their own, since 0 is not
equally likely on both.

Only integers decide a bit, so a file reads the same everywhere. Nothing is stored beside the bits: no table, no header.
Source: Marpe, Schwarz and Wiegand 2003 (CABAC: questions, contexts, adaptation); Wiedemann et al. 2020 (DeepCABAC),
arXiv:1907.11900, for weights; two rates as in VVC. Deviates: contexts from running means instead of neighbours; multiplication
in a 64-bit range instead of a table of ranges.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from penjing.entropy import trellis
from penjing.errors import ArtifactError, DataError

MAX_MAGNITUDE = (1 << 15) - 1
_LAST_QUESTION = 14  # magnitudes up to this have a question each
_QUESTIONS = _LAST_QUESTION + 1
_CAP = 15  # magnitudes count up to this in running means
_ONE = 1 << 8  # 1.0 in running means
_ROW_SHIFT, _COLUMN_SHIFT = (
    3,
    4,
)  # a running mean moves by 2**-shift of the difference; a column's faster in the first rows
_FAST, _SLOW = 4, 7  # so does a probability
_MOST_PER_BIT = 640
"""A chance ends at (15 + 127) / 2 of 65536, where both shifts round to nothing: the other answer takes 0.00156 bits."""
_SPARE_BITS = 128  # of the interval that is not written yet

_FIRST_OF_LEVEL = (
    *(0, 4, 7, 11, 16, 23, 30, 38, 48, 61, 75, 92, 112, 137, 166, 200),
    *(240, 289, 347, 415, 496, 593, 709, 846, 1008, 1202, 1433, 1707, 2032, 2419, 2880, 3428),
)
"""The smallest mean x, in 256ths, of each level: 4 log2((x + 16) / 16), rounded down."""
_FULL = 0xFFFFFFFF
_LEVEL_OF = np.searchsorted(np.array(_FIRST_OF_LEVEL), np.arange(_CAP * _ONE + 1), side="right").astype(np.int64) - 1


def encode(values: ArrayLike, *, dependent: bool = False) -> bytes:
    """The bits of a matrix of integers; b"" for one without entries.

    Args:
        values: (rows, columns), integers of magnitude up to 32767.
        dependent: write indices of `trellis`.
    Raises: DataError: another shape or type, a larger number, or, with `dependent`, one that is not on the grid of its state.
    """
    matrix = np.asarray(values)
    if matrix.ndim != 2 or matrix.dtype.kind not in "iu":
        raise DataError(
            f"entropy.context_coder: a matrix of integers is needed, got {matrix.dtype} of shape {matrix.shape}."
        )
    if matrix.size == 0:
        return b""
    if max(int(matrix.max()), -int(matrix.min())) > MAX_MAGNITUDE:
        raise DataError(
            f"entropy.context_coder: numbers must be in [-{MAX_MAGNITUDE}, {MAX_MAGNITUDE}], "
            f"got {matrix.min()} to {matrix.max()}."
        )
    if dependent:
        found = trellis.indices(matrix)
        if found is None:
            raise DataError("entropy.context_coder: these numbers are not on the grids of dependent quantization.")
        matrix = found
    states = trellis.NEXT_STATE if dependent else trellis.ALONE
    written = np.ascontiguousarray(matrix, dtype=np.int16)
    words, low, size = _encode(written, _first_probabilities(), _LEVEL_OF, states)
    return _finished(words, int(low), int(size))


def decode(
    data: bytes | bytearray | memoryview, rows: int, columns: int, *, dependent: bool = False
) -> NDArray[np.int16]:
    """What `encode` was given, int16, (rows, columns).

    Other data gives other numbers.
    Raises: ArtifactError: a negative size, more numbers than so few bytes can hold, or a magnitude that is too large.
    """
    if rows < 0 or columns < 0 or rows * columns > _MOST_PER_BIT * (8 * len(data) + _SPARE_BITS):
        raise ArtifactError(f"entropy.context_coder: {len(data)} bytes cannot hold a matrix of {rows} x {columns}.")
    matrix = np.zeros((rows, columns), dtype=np.int16)
    if matrix.size == 0:
        return matrix
    words = np.zeros(-(-len(data) // 4) + 2, dtype=">u4")
    words.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    words = words.astype(np.uint32)
    states = trellis.NEXT_STATE if dependent else trellis.ALONE
    if not _decode(words, matrix, _first_probabilities(), _LEVEL_OF, states):
        raise ArtifactError("entropy.context_coder: a number is too large; the data is damaged.")
    return matrix


def _first_probabilities() -> NDArray[np.uint16]:
    """(grids * levels * questions, 2), in 65536ths: a geometric distribution goes on with mean / (mean + 1)."""
    means = [2 * x + 8 for x in _FIRST_OF_LEVEL]  # in 512ths, a little inside the level
    chances = np.array([65536 * x // (x + 2 * _ONE) for x in means], dtype=np.uint16)
    return np.ascontiguousarray(np.repeat(np.tile(np.repeat(chances, _QUESTIONS), 2)[:, None], 2, axis=1))


def _finished(words: NDArray[np.uint32], low: int, size: int) -> bytes:
    """All words, then the shortest end that lies in [low, low + size) when zeros follow."""
    for n_bits in range(64, -1, -1):
        end = -(-low >> n_bits) << n_bits
        if end < low + size:
            break
    out = words.astype(">u4")
    if end >> 64:  # it went over the top: carry
        last = np.flatnonzero(words != _FULL)[-1]
        out[last] += 1
        out[last + 1 :] = 0
    return out.tobytes() + (end & (1 << 64) - 1).to_bytes(8, "big")[: 8 - n_bits // 8]


_U32, _U16, _U15 = np.uint64(32), np.uint64(16), np.uint64(15)
_SMALL = np.uint64(1 << 32)
_GRID = len(_FIRST_OF_LEVEL) * _QUESTIONS  # where the chances of the second grid begin
_ALL = np.uint64((1 << 64) - 1)


@njit(cache=True)
def _put(
    words: Any, n: int, low: np.uint64, size: np.uint64, chance: np.uint64, bit: bool
) -> tuple[int, np.uint64, np.uint64]:  # pragma: no cover  (compiled)
    """One answer of probability chance / 65536. Returns: the number of words, and the interval."""
    part = (size >> _U16) * chance
    if bit:
        size = part
    else:
        moved = low + part
        if moved < low:  # it went over the top: carry into the words that are out already
            k = n - 1
            while words[k] == np.uint32(0xFFFFFFFF):
                words[k] = np.uint32(0)
                k -= 1
            words[k] += np.uint32(1)
        low = moved
        size -= part
    if size < _SMALL:
        words[n] = np.uint32(low >> _U32)
        n += 1
        low <<= _U32
        size <<= _U32
    return n, low, size


@njit(cache=True)
def _encode(
    values: Any, chances: Any, level_of: Any, next_state: Any
) -> tuple[Any, np.uint64, np.uint64]:  # pragma: no cover  (compiled)
    rows, columns = values.shape
    half = np.uint64(1 << 15)
    words = np.empty(1024 + values.size // 8, dtype=np.uint32)
    n, low, size = 0, np.uint64(0), _ALL
    of_column = np.full(columns, _ONE, dtype=np.int32)
    of_row = _ONE
    for i in range(rows):
        column_shift = min(i + 1, _COLUMN_SHIFT)
        state = 0
        for j in range(columns):
            if n + 16 > len(words):
                longer = np.empty(2 * len(words), dtype=np.uint32)
                longer[:n] = words[:n]
                words = longer
            value = int(values[i, j])
            magnitude = abs(value)
            odd = state & 1
            base = ((level_of[of_row] + level_of[of_column[j]]) >> 1) * _QUESTIONS + odd * _GRID
            asked = 0
            while asked <= _LAST_QUESTION:
                at = base + asked
                fast, slow = int(chances[at, 0]), int(chances[at, 1])
                more = magnitude > asked
                n, low, size = _put(words, n, low, size, np.uint64((fast + slow) >> 1), more)
                if not more:
                    chances[at, 0] = fast - (fast >> _FAST)
                    chances[at, 1] = slow - (slow >> _SLOW)
                    break
                chances[at, 0] = fast + ((65536 - fast) >> _FAST)
                chances[at, 1] = slow + ((65536 - slow) >> _SLOW)
                if asked == 0:
                    n, low, size = _put(words, n, low, size, half, value < 0)
                asked += 1
            if magnitude > _LAST_QUESTION:
                rest = magnitude - _LAST_QUESTION  # at least 1
                n_bits = 0
                while rest >> (n_bits + 1):
                    n_bits += 1
                    n, low, size = _put(words, n, low, size, half, True)
                n, low, size = _put(words, n, low, size, half, False)
                for k in range(n_bits - 1, -1, -1):
                    n, low, size = _put(words, n, low, size, half, bool((rest >> k) & 1))
            state = next_state[state, magnitude & 1]
            counted = min(magnitude, _CAP) * _ONE
            of_row += (counted - of_row) >> _ROW_SHIFT
            of_column[j] += (counted - of_column[j]) >> column_shift
    return words[:n], low, size


# The step of the decoder is written out in three places: as a function it was a fifth slower.
@njit(cache=True)
def _decode(
    words: Any, values: Any, chances: Any, level_of: Any, next_state: Any
) -> bool:  # pragma: no cover  (compiled)
    rows, columns = values.shape
    n_words = len(words)
    code = (np.uint64(words[0]) << _U32) | np.uint64(words[1])
    n, size = 2, _ALL
    scale = 2 if len(next_state) > 1 else 1
    of_column = np.full(columns, _ONE, dtype=np.int32)
    of_row = _ONE
    for i in range(rows):
        column_shift = min(i + 1, _COLUMN_SHIFT)
        state = 0
        for j in range(columns):
            odd = state & 1
            base = ((level_of[of_row] + level_of[of_column[j]]) >> 1) * _QUESTIONS + odd * _GRID
            magnitude, negative = 0, False
            while magnitude <= _LAST_QUESTION:
                at = base + magnitude
                fast, slow = int(chances[at, 0]), int(chances[at, 1])
                part = (size >> _U16) * np.uint64((fast + slow) >> 1)
                more = code < part
                if more:
                    size = part
                    chances[at, 0] = fast + ((65536 - fast) >> _FAST)
                    chances[at, 1] = slow + ((65536 - slow) >> _SLOW)
                else:
                    code -= part
                    size -= part
                    chances[at, 0] = fast - (fast >> _FAST)
                    chances[at, 1] = slow - (slow >> _SLOW)
                if size < _SMALL:
                    code = (code << _U32) | (np.uint64(words[n]) if n < n_words else np.uint64(0))
                    n += 1
                    size <<= _U32
                if not more:
                    break
                if magnitude == 0:
                    part = (size >> _U16) << _U15
                    negative = bool(code < part)
                    if negative:
                        size = part
                    else:
                        code -= part
                        size -= part
                    if size < _SMALL:
                        code = (code << _U32) | (np.uint64(words[n]) if n < n_words else np.uint64(0))
                        n += 1
                        size <<= _U32
                magnitude += 1
            if magnitude > _LAST_QUESTION:
                n_bits, rest, reading = 0, 1, True
                while reading or n_bits:
                    part = (size >> _U16) << _U15
                    bit = bool(code < part)
                    if bit:
                        size = part
                    else:
                        code -= part
                        size -= part
                    if size < _SMALL:
                        code = (code << _U32) | (np.uint64(words[n]) if n < n_words else np.uint64(0))
                        n += 1
                        size <<= _U32
                    if reading:
                        reading = bit
                        n_bits += 1 if bit else 0
                        if n_bits > 15:
                            return False
                    else:
                        rest = 2 * rest + (1 if bit else 0)
                        n_bits -= 1
                magnitude = _LAST_QUESTION + rest
            number = scale * magnitude - odd if magnitude else 0
            if number > MAX_MAGNITUDE:
                return False
            values[i, j] = -number if negative else number
            state = next_state[state, magnitude & 1]
            counted = min(magnitude, _CAP) * _ONE
            of_row += (counted - of_row) >> _ROW_SHIFT
            of_column[j] += (counted - of_column[j]) >> column_shift
    return True
