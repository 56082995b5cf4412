"""Bytes and bits, written and read back without ever reading past the end.

Byte order is little-endian, bit order is most significant first. A varint is unsigned LEB128: seven bits per byte, the
lowest first, the high bit says that more follow; at most 9 bytes, so below 2**63. Each value has one spelling only:
longer ones are refused. Signed numbers are folded first (zigzag: 0, -1, 1, -2, ... become 0, 1, 2, 3, ...).

Source: DWARF 5, section 7.6 (LEB128); Elias 1975 and Teuhola 1978 (exponential Golomb); Rice and Plaunt 1971.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penjing.errors import ArtifactError, SettingError

MAX_VARINT_BYTES = 9
MAX_FIELD_BITS = 62


def zigzag(value: int) -> int:
    """Fold a signed integer to an unsigned one: 2 v for v >= 0, -2 v - 1 below."""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(folded: int) -> int:
    """Undo `zigzag`."""
    return -(folded + 1) // 2 if folded & 1 else folded // 2


class ByteWriter:
    """Collects bytes; `finish` returns them."""

    def __init__(self) -> None:
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def uvarint(self, value: int) -> None:
        """Append an unsigned integer below 2**63. Raises: SettingError: `value` outside of that."""
        if not 0 <= value < 1 << 7 * MAX_VARINT_BYTES:
            raise SettingError(f"entropy.bits: a varint must be in [0, 2**63), got {value}.")
        while value > 0x7F:
            self._data.append(value & 0x7F | 0x80)
            value >>= 7
        self._data.append(value)

    def svarint(self, value: int) -> None:
        """Append a signed integer in [-2**62, 2**62). Raises: SettingError: `value` outside of that."""
        self.uvarint(zigzag(value))

    def raw(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes as they are; their number is not written."""
        self._data += data

    def f16(self, values: ArrayLike) -> None:
        """Append values as IEEE half precision, 2 bytes each, rounded to nearest."""
        self._data += np.asarray(values, dtype="<f2").tobytes()

    def f32(self, values: ArrayLike) -> None:
        """Append values as IEEE single precision, 4 bytes each, rounded to nearest."""
        self._data += np.asarray(values, dtype="<f4").tobytes()

    def finish(self) -> bytes:
        """All bytes so far."""
        return bytes(self._data)


class ByteReader:
    """Reads what `ByteWriter` wrote.

    Args:
        where: what is being read; error messages begin with it.
    Raises: every method: ArtifactError: fewer bytes are left than asked for.
    """

    def __init__(self, data: bytes | bytearray | memoryview, where: str = "entropy.bits") -> None:
        self._data = memoryview(data).toreadonly()
        self._where = where
        self.position = 0

    @property
    def n_left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self.position

    def uvarint(self) -> int:
        """Read an unsigned integer. Raises: ArtifactError: longer than 9 bytes, or not the shortest spelling."""
        value, start = 0, self.position
        for shift in range(0, 7 * MAX_VARINT_BYTES, 7):
            byte = self._take(1, "a varint")[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift > 0:
                    raise ArtifactError(f"{self._where}: the varint at byte {start} is longer than its value needs.")
                return value
        raise ArtifactError(f"{self._where}: the varint at byte {start} is longer than {MAX_VARINT_BYTES} bytes.")

    def svarint(self) -> int:
        """Read a signed integer."""
        return unzigzag(self.uvarint())

    def raw(self, n_bytes: int) -> bytes:
        """Read `n_bytes` bytes."""
        return bytes(self._take(n_bytes, "raw bytes"))

    def f16(self, n: int) -> NDArray[np.float16]:
        """Read `n` half-precision values; shape (n,)."""
        return np.frombuffer(self._take(2 * n, f"{n} float16 values"), dtype="<f2").astype(np.float16)

    def f32(self, n: int) -> NDArray[np.float32]:
        """Read `n` single-precision values; shape (n,)."""
        return np.frombuffer(self._take(4 * n, f"{n} float32 values"), dtype="<f4").astype(np.float32)

    def open_bits(self) -> "BitReader":
        """A reader of the bits that start here; hand it to `close_bits` when done."""
        return BitReader(self._data[self.position :], self._where)

    def close_bits(self, bits: "BitReader") -> None:
        """Go on at the first byte that `bits` has not touched. Raises: ArtifactError: the padding bits are not 0."""
        self.position += bits.close()

    def _take(self, n_bytes: int, what: str) -> memoryview:
        if not 0 <= n_bytes <= self.n_left:
            raise ArtifactError(
                f"{self._where}: {what} at byte {self.position} needs {n_bytes} bytes, only {self.n_left} are left; "
                "the file is cut off or damaged."
            )
        self.position += n_bytes
        return self._data[self.position - n_bytes : self.position]


class BitWriter:
    """Collects bits, most significant first; `finish` pads the last byte with zeros."""

    def __init__(self) -> None:
        self._full: list[NDArray[np.uint8]] = []  # one bit per element
        self._tail: list[int] = []
        self.n_bits = 0

    def field(self, value: int, width: int) -> None:
        """Append `value` in `width` bits. Raises: SettingError: it does not fit."""
        if not 0 <= width <= MAX_FIELD_BITS or not 0 <= value < 1 << width:
            raise SettingError(f"entropy.bits: {value} does not fit in a field of {width} bits (at most 62).")
        self._tail += [value >> place & 1 for place in range(width - 1, -1, -1)]
        self.n_bits += width

    def fields(self, values: ArrayLike, width: int) -> None:
        """Append every value in `width` bits each. Raises: SettingError: one of them does not fit."""
        array = np.asarray(values).reshape(-1)
        if not 0 <= width <= MAX_FIELD_BITS:
            raise SettingError(f"entropy.bits: the width of a field must be in 0..62, got {width}.")
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < 1 << width:
            raise SettingError(f"entropy.bits: values {array.min()}..{array.max()} do not fit in {width} bits.")
        spread = np.empty((array.size, width), dtype=np.uint8)
        for place in range(width):
            spread[:, place] = array >> (width - 1 - place) & 1
        self._flush_tail()
        self._full.append(spread.reshape(-1))
        self.n_bits += spread.size

    def exp_golomb(self, value: int, order: int) -> None:
        """Append u = floor(value / 2**order) + 1 after as many zeros as it has bits beyond one, then `order` low bits.

        Cost: 2 floor(log2 u) + 1 + order bits.
        """
        head = (value >> order) + 1
        self.field(0, head.bit_length() - 1)
        self.field(head, head.bit_length())
        self.field(value & (1 << order) - 1, order)

    def rice(self, value: int, order: int) -> None:
        """Append q = floor(value / 2**order) zeros, a one, then `order` low bits. Cost: q + 1 + order bits."""
        self._tail += [0] * (value >> order)
        self.n_bits += value >> order
        self.field(1, 1)
        self.field(value & (1 << order) - 1, order)

    def finish(self) -> bytes:
        """All bits so far, padded with zeros to whole bytes."""
        self._flush_tail()
        if not self._full:
            return b""
        return np.packbits(np.concatenate(self._full)).tobytes()

    def _flush_tail(self) -> None:
        if self._tail:
            self._full.append(np.array(self._tail, dtype=np.uint8))
            self._tail = []


class BitReader:
    """Reads what `BitWriter` wrote. Raises: every method: ArtifactError: fewer bits are left than asked for."""

    def __init__(self, data: bytes | bytearray | memoryview, where: str = "entropy.bits") -> None:
        self._data = memoryview(data).toreadonly()
        self._where = where
        self.position = 0

    @property
    def n_left(self) -> int:
        """Bits not yet read, padding included."""
        return 8 * len(self._data) - self.position

    def field(self, width: int) -> int:
        """Read one unsigned number of `width` bits."""
        self._need(width, f"a field of {width} bits")
        first, last = self.position // 8, (self.position + width + 7) // 8
        self.position += width
        chunk = int.from_bytes(self._data[first:last], "big")
        return chunk >> 8 * last - self.position & (1 << width) - 1

    def fields(self, n: int, width: int) -> NDArray[np.int64]:
        """Read `n` unsigned numbers of `width` bits each; shape (n,)."""
        if n < 0 or not 0 <= width <= MAX_FIELD_BITS:
            raise ArtifactError(f"{self._where}: {n} fields of {width} bits cannot be read.")
        self._need(n * width, f"{n} fields of {width} bits")
        first, skip = divmod(self.position, 8)
        last = (self.position + n * width + 7) // 8
        self.position += n * width
        spread = np.unpackbits(np.frombuffer(self._data[first:last], dtype=np.uint8))[skip : skip + n * width]
        values = np.zeros(n, dtype=np.int64)
        for column in spread.reshape(n, width).T:
            values <<= 1
            values |= column
        return values

    def exp_golomb(self, order: int) -> int:
        """Read one number that `BitWriter.exp_golomb` wrote with the same `order`."""
        n_zeros = self._zeros(MAX_FIELD_BITS - 1)
        head = 1 << n_zeros | self.field(n_zeros)
        return head - 1 << order | self.field(order)

    def rice(self, order: int) -> int:
        """Read one number that `BitWriter.rice` wrote with the same `order`."""
        return self._zeros(1 << 20) << order | self.field(order)

    def close(self) -> int:
        """End at a whole byte; returns the bytes touched. Raises: ArtifactError: the padding bits are not 0."""
        if self.field(-self.position % 8):
            raise ArtifactError(f"{self._where}: the bits that pad the last byte are not 0; the file is damaged.")
        return self.position // 8

    def _zeros(self, at_most: int) -> int:
        n_zeros = 0
        while self.field(1) == 0:
            n_zeros += 1
            if n_zeros > at_most:
                raise ArtifactError(f"{self._where}: a run of more than {at_most} zero bits; the file is damaged.")
        return n_zeros

    def _need(self, n_bits: int, what: str) -> None:
        if not 0 <= n_bits <= self.n_left:
            raise ArtifactError(
                f"{self._where}: {what} at bit {self.position} needs {n_bits} bits, only {self.n_left} are left; "
                "the file is cut off or damaged."
            )
