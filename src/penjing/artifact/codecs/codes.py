"""Small integers that stand for weights, written in the shortest of several ways. What codebooks and grids have in common."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from penjing.artifact.codecs.codec import Blob, Sink, Source
from penjing.entropy import (
    BitReader,
    BitWriter,
    RangeDecoder,
    RangeEncoder,
    best_frequencies,
    code_lengths,
    context_coder,
    count,
    entropy_bits,
    huffman,
    read_frequencies,
    read_lengths,
    trellis,
    write_lengths,
)
from penjing.errors import ArtifactError

PACKED, HUFFMAN, SHARED, SHARED_SAME, OWN, CONTEXT, DEPENDENT = range(7)
"""Plain fields; Huffman; the shared range coder with a model of its own; the same with the last model of this key; a range
coder of its own, so that a large tensor can be read without the others; the adaptive context coder; the same for indices of
dependent quantization. Part of the file format."""
CODERS = ("packed", "huffman", "range", "range, same model", "range, alone", "contexts", "dependent, contexts")
OWN_FROM = 1 << 15
_CONTEXT_FROM = 32
_FAST_FROM = 512
_MOST = 256
_CHUNK = 1 << 20


class Codes:
    """Codes of one tensor, to be written.

    Args:
        codes: integers in [0, k), shape of the tensor.
        ranks: (k,), where each code stands on the scale of values, in whole steps from the one nearest to 0; see `ranks_of`.
        key: tensors with the same key may share a model.
    """

    def __init__(self, codes: np.ndarray, ranks: np.ndarray, key: int | None = None) -> None:
        self.shape, self.ranks, self.k, self.key = codes.shape, ranks, len(ranks), key
        self.flat = codes.reshape(-1).astype(np.int32)
        self._contexts: dict[bool, bytes] = {}

    def variant(self, sink: Sink) -> int:
        """The shortest way of those that are fast enough; a short tensor may be written in any."""
        k, n = self.k, self.flat.size
        fast = sink.speed == "fast" and n >= _FAST_FROM
        n_bits = {PACKED: 8 * math.ceil(n * width(k) / 8)}
        counts = count(self.flat, k)
        if (fast or k <= _MOST) and np.count_nonzero(counts) <= 1 << huffman.MAX_LENGTH:
            n_bits[HUFFMAN] = 8 * math.ceil(huffman.payload_bits(counts, code_lengths(counts)) / 8) + 4 * k
        if not fast and k <= _MOST:
            model = best_frequencies(counts)
            own = OWN if n >= OWN_FROM else SHARED
            n_bits[own] = 8 * len(model.table) + math.ceil(entropy_bits(counts, model.freqs))
            shared = None if self.key is None else sink.models.get(self.key)
            if shared is not None and n < OWN_FROM and not np.any((shared == 0) & (counts > 0)):
                n_bits[SHARED_SAME] = math.ceil(entropy_bits(counts, shared))
        if not fast and n >= _CONTEXT_FROM:
            n_bits[CONTEXT] = 8 * len(self._in_contexts(False)) + 16
            if trellis.indices(self._matrix()) is not None:
                n_bits[DEPENDENT] = 8 * len(self._in_contexts(True)) + 16
        return min(n_bits, key=lambda way: (n_bits[way], way))

    def write(self, variant: int, sink: Sink) -> None:
        """Append them. The head is what `locate` reads."""
        if variant == PACKED:
            packer = BitWriter()
            packer.fields(self.flat, width(self.k))
            sink.blob(packer.finish())
        elif variant == HUFFMAN:
            lengths = code_lengths(count(self.flat, self.k))
            write_lengths(sink.heads, lengths)
            self._blob(huffman.encode(self.flat, lengths), sink)
        elif variant in (CONTEXT, DEPENDENT):
            self._blob(self._in_contexts(variant == DEPENDENT), sink)
        elif variant == SHARED_SAME:
            assert self.key is not None
            sink.stream.encode(self.flat, sink.models[self.key])
        else:
            model = best_frequencies(count(self.flat, self.k))
            sink.heads.raw(model.table)
            if self.key is not None:
                sink.models[self.key] = model.freqs
            if variant == SHARED:
                sink.stream.encode(self.flat, model.freqs)
            else:
                own = RangeEncoder()
                own.encode(self.flat, model.freqs)
                self._blob(own.finish(), sink)

    def _matrix(self) -> np.ndarray:
        return self.ranks[self.flat].reshape(_matrix_shape(self.shape))

    def _in_contexts(self, dependent: bool) -> bytes:
        if dependent not in self._contexts:
            self._contexts[dependent] = context_coder.encode(self._matrix(), dependent=dependent)
        return self._contexts[dependent]

    @staticmethod
    def _blob(payload: bytes, sink: Sink) -> None:
        sink.heads.uvarint(len(payload))
        sink.blob(payload)


class LocatedCodes:
    """Codes whose head is read and which are not.

    Attributes:
        freqs: their model; None where there is none.
        in_stream: whether they lie in the stream that tensors share.
    """

    def __init__(
        self, shape: tuple[int, ...], ranks: np.ndarray, variant: int, source: Source, key: int | None = None
    ) -> None:
        """Raises: ArtifactError: a way to write that there is not, or a head that `Codes.write` would not have written."""
        k, n = len(ranks), math.prod(shape)
        self.k, self.in_stream = k, variant in (SHARED, SHARED_SAME)
        self.freqs: np.ndarray | None = None
        self._read: Callable[[], np.ndarray]
        if variant == PACKED:
            self._read = partial(_unpacked, source.blobs.take(math.ceil(n * width(k) / 8)), n, k)
        elif variant in (CONTEXT, DEPENDENT):
            blob = source.blobs.take(source.heads.uvarint())
            self._read = partial(_from_contexts, blob, _matrix_shape(shape), ranks, variant == DEPENDENT)
        elif variant == HUFFMAN:
            lengths = read_lengths(source.heads, k)
            self._read = partial(_huffman, source.blobs.take(source.heads.uvarint()), n, lengths)
        elif k > _MOST or variant not in (SHARED, SHARED_SAME, OWN):
            raise ArtifactError("artifact: codes are written in a way that this version of penjing does not know.")
        else:
            self.freqs = self._model(variant, source, key)
            if variant == OWN:
                self._read = partial(_alone, source.blobs.take(source.heads.uvarint()), n, self.freqs)
            else:
                self._read = partial(source.symbols.decode, source.symbols.add(n, self.freqs))

    def decode(self) -> tuple[np.ndarray, float]:
        """The codes, flat, of any type of integers, and their ideal length in bits under the model or, without one, under their
        own counts.

        Raises: ArtifactError: the bytes are damaged, or a code is out of range.
        """
        codes = self._read()
        if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= self.k):
            raise ArtifactError("artifact: a code is outside of its table.")
        return codes, entropy_bits(count(codes, self.k), self.freqs)

    def _model(self, variant: int, source: Source, key: int | None) -> np.ndarray:
        if variant != SHARED_SAME:
            model = read_frequencies(source.heads, self.k)[0]
            if key is not None:
                source.models[key] = model
            return model
        if key is None or key not in source.models:
            raise ArtifactError("artifact: a tensor refers to a model that is not there.")
        return source.models[key]


def width(k: int) -> int:
    """Bits of a plain field for one of k codes."""
    return max((k - 1).bit_length(), 0)


def ranks_of(values: np.ndarray) -> np.ndarray:
    """For `Codes`: the positions of values in ascending order, counted from the one nearest to 0. int32."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values), dtype=np.int32)
    ranks[order] = np.arange(len(values), dtype=np.int32)
    return ranks - ranks[np.argmin(np.abs(values))]


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A row for each output; a vector is one row."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape) // rows if rows else 0


def _unpacked(blob: Blob, n: int, k: int) -> np.ndarray:
    return BitReader(blob.read(), "artifact: codes").fields(n, width(k)) if n else np.zeros(0, np.int64)


def _huffman(blob: Blob, n: int, lengths: np.ndarray) -> np.ndarray:
    return huffman.decode(blob.read(), n, lengths)


def _alone(blob: Blob, n: int, freqs: np.ndarray) -> np.ndarray:
    return RangeDecoder(blob.read()).decode(n, freqs)


def _from_contexts(blob: Blob, shape: tuple[int, int], ranks: np.ndarray, dependent: bool) -> np.ndarray:
    steps = context_coder.decode(blob.read(), *shape, dependent=dependent).reshape(-1)
    least = int(ranks.min())
    if steps.size and not 0 <= int(steps.min()) - least <= int(steps.max()) - least < len(ranks):
        raise ArtifactError("artifact: a code is outside of its table.")
    codes = steps.view(np.uint16)  # in the same memory: the tensor may be large
    codes -= np.uint16(least & 0xFFFF)
    order = np.argsort(ranks, kind="stable").astype(np.uint16)
    if not np.array_equal(order, np.arange(len(order))):
        for start in range(0, codes.size, _CHUNK):
            codes[start : start + _CHUNK] = order[codes[start : start + _CHUNK]]
    return codes
