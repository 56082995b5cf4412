"""What codecs have in common: where they write to and read from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penjing.entropy import ByteReader, ByteWriter, RangeDecoder, RangeEncoder
from penjing.errors import ArtifactError
from penjing.representation import Representation

Speed = Literal["small", "fast"]
"""How codes are written: as short as can be, or only in ways that are read at over 60 million weights a second."""


@dataclass
class Sink:
    """Where tensors are written: heads one after another, symbols into one stream, bytes into another."""

    speed: Speed = "small"
    heads: ByteWriter = field(default_factory=ByteWriter)
    stream: RangeEncoder = field(default_factory=RangeEncoder)
    blobs: bytearray = field(default_factory=bytearray)
    tables: dict[int, int] = field(default_factory=dict)
    models: dict[int, np.ndarray] = field(default_factory=dict)

    def blob(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes that belong to one tensor."""
        self.blobs += data


class Symbols:
    """The stream that small tensors share, range coded one after another; decoded as far as somebody asks.

    Symbols that had to be decoded on the way to others are kept until they are asked for themselves.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._runs: list[tuple[int, np.ndarray]] = []
        self._decoder, self._next = RangeDecoder(data), 0
        self._passed: dict[int, NDArray[np.uint8]] = {}

    def add(self, n: int, freqs: np.ndarray) -> int:
        """The next `n` symbols, below 256, under this model. Returns: the number of this run."""
        self._runs.append((n, freqs))
        return len(self._runs) - 1

    def decode(self, run: int) -> NDArray[np.uint8]:
        """The symbols of a run. Raises: ArtifactError: the stream is damaged."""
        if run < self._next and run not in self._passed:
            self._decoder, self._next = RangeDecoder(self._data), 0
        while self._next <= run:
            self._passed[self._next] = self._decoder.decode(*self._runs[self._next]).astype(np.uint8)
            self._next += 1
        return self._passed.pop(run)


@dataclass(frozen=True)
class Blob:
    """Some bytes of the file, not read yet."""

    file: BinaryIO
    start: int
    size: int

    def read(self) -> bytearray:
        """The bytes. Raises: ArtifactError: the file has become shorter."""
        data = bytearray(self.size)
        self.read_into(memoryview(data))
        return data

    def read_into(self, rest: memoryview) -> None:
        """Read the bytes into memory of that size. Raises: as `read`."""
        self.file.seek(self.start)
        while rest:
            n = self.file.readinto(rest)  # type: ignore[attr-defined]
            if not n:
                raise ArtifactError(f"artifact: {self.size} bytes at byte {self.start} are gone; the file was changed.")
            rest = rest[n:]


@dataclass
class Blobs:
    """The last section of a file: the bytes that tensors have for themselves, one after another."""

    file: BinaryIO
    position: int
    end: int

    @property
    def n_left(self) -> int:
        """Bytes that belong to no tensor yet."""
        return self.end - self.position

    def take(self, size: int) -> Blob:
        """The next bytes. Raises: ArtifactError: there are not that many."""
        if size > self.n_left:
            raise ArtifactError(f"artifact: a tensor needs {size} bytes, only {self.n_left} are left.")
        self.position += size
        return Blob(self.file, self.position - size, size)


@dataclass
class Source:
    """Where tensors are read from; `tables` and `models` are those already seen, by their number."""

    heads: ByteReader
    symbols: Symbols
    blobs: Blobs
    tables: list[tuple[nn.Parameter, bool]] = field(default_factory=list)
    models: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """One tensor as it was read.

    Attributes:
        value: as the layer uses it.
        representation: what writes it; None for a plain tensor.
        original: what the representation stands on, where it needs one.
        entropy_bits: ideal length of its symbols under the model in the file; None where there is no model.
        stream_bits: how much of that is in the stream that tensors share.
    """

    value: Tensor
    representation: Representation | None = None
    original: Tensor | None = None
    entropy_bits: float | None = None
    stream_bits: float = 0.0


@dataclass(frozen=True)
class Located:
    """One tensor whose head is read and whose numbers are not.

    Attributes:
        dtype: its type.
        coder: how its numbers are written, for `penjing inspect`.
        decode: reads them, as often as it is called. Raises: ArtifactError: what the codec would not have written.
    """

    dtype: torch.dtype
    coder: str
    decode: Callable[[], Decoded]


class Codec(ABC):
    """Writes tensors of one kind. `kind` is the representation's, or a kind of plain tensor."""

    kind: ClassVar[str]

    @abstractmethod
    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        """Which of up to 16 ways to write this tensor; goes into the file before the head."""

    @abstractmethod
    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        """Append the tensor to the sink."""

    @abstractmethod
    def locate(self, shape: tuple[int, ...], variant: int, source: Source) -> Located:
        """Read the tensor's head. Raises: ArtifactError: what `write` would not have written."""
