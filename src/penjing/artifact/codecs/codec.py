"""What codecs have in common: where they write to and read from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from penjing.entropy import ByteReader, ByteWriter, RangeDecoder, RangeEncoder
from penjing.representation import Representation


@dataclass
class Sink:
    """Where tensors are written: heads one after another, symbols into one stream, bytes into another."""

    heads: ByteWriter = field(default_factory=ByteWriter)
    stream: RangeEncoder = field(default_factory=RangeEncoder)
    blobs: ByteWriter = field(default_factory=ByteWriter)
    tables: dict[int, int] = field(default_factory=dict)
    models: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass
class Source:
    """Where tensors are read from; `tables` and `models` are those already seen, by their number."""

    heads: ByteReader
    stream: RangeDecoder
    blobs: ByteReader
    tables: list[tuple[nn.Parameter, bool]] = field(default_factory=list)
    models: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """One tensor as it was read.

    Attributes:
        value: as the layer uses it.
        representation: what writes it; None for a plain tensor.
        original: what the representation stands on, where it needs one.
        coder: how its numbers are written, for `penjing inspect`.
        entropy_bits: ideal length of its symbols under the model in the file; None where there is no model.
        stream_bits: how much of that is in the stream that tensors share.
    """

    value: Tensor
    representation: Representation | None = None
    original: Tensor | None = None
    coder: str = "plain"
    entropy_bits: float | None = None
    stream_bits: float = 0.0


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
    def read(self, shape: tuple[int, ...], variant: int, source: Source) -> Decoded:
        """Take the tensor from the source. Raises: ArtifactError: what `write` would not have written."""

    def skip(self, shape: tuple[int, ...], variant: int, source: Source) -> None:
        """Pass over the tensor. What has symbols in the stream that tensors share must be decoded for that."""
        self.read(shape, variant, source)
