"""Range coding of symbols under integer frequencies, many models in one stream.

Wraps constriction's range coder (Bamler 2022, arXiv:2201.01741): 64-bit state, 32-bit words, 24-bit probabilities.

Why a file reads the same everywhere: constriction takes floating-point weights x_0..x_{m-1} and, with `perfect=False`,
sets the left border of symbol i to floor((x_0 + ... + x_{i-1}) * (2**24 - m) / (x_0 + ... + x_{m-1})) + i (its file
`stream/model/categorical.rs`, `fast_quantized_cdf`). We hand over x_i = w_i - 1, where the integers
w_i = frequency_i * 2**(24 - total_bits) sum to 2**24: every partial sum is an integer below 2**24, exact in float64,
the quotient is exactly 1, and the left border is exactly w_0 + ... + w_{i-1}. Only sums of small integers, one division
of equal numbers and a multiplication by 1 happen; no rounding can occur, in any order of summation. So the model is not
perturbed either: the loss is that of the coder itself, which rounds its range down to a multiple of 2**24: below
0.006 bit per symbol at worst (range at 2**32), 1.3e-4 on average (16 bytes per million symbols).

`RangeEncoder.finish` writes the shortest string of bytes that lies in the final interval when zeros follow it: on
average 0.4 bytes more than the ideal length, and none at all for as many symbols 0 as one likes.
"""

import constriction
import numpy as np
from numpy.typing import ArrayLike, NDArray

from penjing.entropy.counts import MAX_TOTAL_BITS
from penjing.errors import ArtifactError, DataError, SettingError

MAX_DECODED = 1 << 31
_WORD_BITS = 32
_MODEL_BITS = 24
# Rust aborts the process where memory runs out; numpy raises. So constriction is asked for a part at a time.
_CHUNK = 1 << 20


class _Model:
    """Frequencies as constriction wants them; symbols of frequency 0 are left out, so that they cost nothing."""

    def __init__(self, freqs: ArrayLike) -> None:
        table = np.asarray(freqs, dtype=np.int64).reshape(-1)
        total = int(table.sum())
        total_bits = total.bit_length() - 1
        if table.size == 0 or table.min() < 0 or total != 1 << max(total_bits, 0) or total_bits > MAX_TOTAL_BITS:
            raise SettingError(
                f"entropy.range_coder: frequencies must be >= 0 and sum to a power of 2 up to 2**{MAX_TOTAL_BITS}, "
                f"got the sum {total}."
            )
        self.alphabet = table.size
        self.used = np.flatnonzero(table).astype(np.int32)
        self.is_certain = self.used.size == 1
        weights = table[self.used] << (_MODEL_BITS - total_bits)
        self._weights = (weights - 1).astype(np.float64)

    def categorical(self) -> "constriction.stream.model.Categorical":
        return constriction.stream.model.Categorical(self._weights, perfect=False)

    def ranks(self, symbols: ArrayLike) -> NDArray[np.int32]:
        """Symbols as indices into `used`."""
        flat = np.asarray(symbols).reshape(-1)
        if flat.size == 0:
            return np.zeros(0, dtype=np.int32)
        if flat.dtype.kind not in "iub" or flat.min() < 0 or flat.max() >= self.alphabet:
            raise DataError(
                f"entropy.range_coder: symbols must be integers in 0..{self.alphabet - 1}, "
                f"got {flat.min()}..{flat.max()} ({flat.dtype})."
            )
        if self.used.size == self.alphabet:
            return np.ascontiguousarray(flat, dtype=np.int32)
        rank = np.full(self.alphabet, -1, dtype=np.int32)
        rank[self.used] = np.arange(self.used.size, dtype=np.int32)
        ranks = rank[flat]
        if ranks.min() < 0:
            symbol = flat[ranks < 0][0]
            raise DataError(f"entropy.range_coder: symbol {symbol} occurs, but its frequency is 0.")
        return ranks


class RangeEncoder:
    """Codes symbols, first in first out, into one stream."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def encode(self, symbols: ArrayLike, freqs: ArrayLike) -> None:
        """Append symbols under a model; each costs -log2(frequency / sum) bits, and nothing if it is certain.

        Args:
            symbols: integers, any shape, taken in C order.
            freqs: frequencies >= 0 that sum to a power of 2, at most 2**24.
        Raises: DataError: a symbol outside the alphabet, or of frequency 0. SettingError: another sum.
        """
        model = _Model(freqs)
        ranks = model.ranks(symbols)
        if ranks.size and not model.is_certain:
            self._coder.encode(ranks, model.categorical())

    def finish(self) -> bytes:
        """The stream so far, as short as its symbols allow; b"" if all of them were certain."""
        if self._coder.is_empty():
            return b""
        words = self._coder.get_compressed()
        n_words, (lower, size) = self._coder.pos()

        # constriction ends at the first multiple of 2**32 above `lower`, less 1; the words before hold all carries.
        end = int.from_bytes(words[: n_words + 1].astype(">u4").tobytes(), "big")
        low_word = lower & (1 << _WORD_BITS) - 1
        low = ((end - (low_word > 0)) << _WORD_BITS) + low_word

        # Drop last bytes as long as a multiple of what is left lies in [low, low + size).
        n_bytes, kept = 4 * (n_words + 2), low
        for n_dropped in range(1, n_bytes + 1):
            rounded_up = -(-low >> 8 * n_dropped)
            if rounded_up << 8 * n_dropped >= low + size:
                return kept.to_bytes(n_bytes - n_dropped + 1, "big")
            kept = rounded_up
        return b""


class RangeDecoder:
    """Decodes what `RangeEncoder` wrote, asked for the same numbers of symbols under the same models in turn.

    A damaged stream gives wrong symbols, all of them in the alphabet and of frequency > 0, or an ArtifactError; it is
    the container's checksum that tells.
    """

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        n_words = (8 * len(data) + _WORD_BITS - 1) // _WORD_BITS + 2
        padded = bytes(data).ljust(4 * n_words, b"\0")
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, dtype=">u4").astype(np.uint32))

    def decode(self, n: int, freqs: ArrayLike) -> NDArray[np.int32]:
        """The next `n` symbols, int32, shape (n,).

        Zeros follow the stream for ever, so no stream is too short: n is the caller's to bound.

        Raises: ArtifactError: the stream holds no symbol where one is due, or n is outside 0..2**31. SettingError:
            frequencies that do not sum to a power of 2.
        """
        model = _Model(freqs)
        if not 0 <= n <= MAX_DECODED:
            raise ArtifactError(f"entropy.range_coder: the number of symbols must be in 0..2**31, got {n}.")
        if n == 0 or model.is_certain:
            return np.full(n, model.used[0], dtype=np.int32)
        categorical = model.categorical()
        symbols = np.empty(n, dtype=np.int32)
        for start in range(0, n, _CHUNK):
            part = symbols[start : start + _CHUNK]
            try:
                part[:] = model.used[self._coder.decode(categorical, part.size)]
            except Exception as error:
                raise ArtifactError(f"entropy.range_coder: the stream is damaged ({error}).") from error
            except BaseException as error:
                # A panic of the Rust library is no Exception, and its type cannot be imported.
                if type(error).__name__ != "PanicException":
                    raise
                raise ArtifactError("entropy.range_coder: the stream is damaged (the coder gave up).") from error
        return symbols
