"""Clustered weights: a table of 8-bit multiples of one step, and the codes, written in the shortest of several ways."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from penjing.artifact.codecs.codec import Blob, Codec, Decoded, Located, Sink, Source
from penjing.entropy import (
    BitReader,
    BitWriter,
    RangeDecoder,
    RangeEncoder,
    best_frequencies,
    code_lengths,
    count,
    entropy_bits,
    huffman,
    read_frequencies,
    read_lengths,
    write_lengths,
)
from penjing.errors import ArtifactError
from penjing.representation import Codebook, Representation
from penjing.representation.codebook import LEVELS

PACKED, HUFFMAN, SHARED, SHARED_SAME, OWN = range(5)
"""Plain fields; Huffman; the shared range coder with a model of its own; the same with the last model of this table; a range
coder of its own, so that a large tensor can be read without the others."""
CODERS = ("packed", "huffman", "range", "range, same model", "range, alone")
OWN_FROM = 1 << 15


class CodebookCodec(Codec):
    """Head: number of the table, which follows where it is new; then the model of the codes."""

    kind: ClassVar[str] = "codebook"

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        codes, k, table = _codes(stack, sink)
        counts = count(codes, k)
        n_bits = {PACKED: 8 * math.ceil(len(codes) * _width(k) / 8)}
        model = best_frequencies(counts)
        n_bits[OWN if len(codes) >= OWN_FROM else SHARED] = 8 * len(model.table) + math.ceil(
            entropy_bits(counts, model.freqs)
        )
        if table in sink.models and len(codes) < OWN_FROM and not np.any((sink.models[table] == 0) & (counts > 0)):
            n_bits[SHARED_SAME] = math.ceil(entropy_bits(counts, sink.models[table]))
        lengths = code_lengths(counts)
        n_bits[HUFFMAN] = 8 * math.ceil(huffman.payload_bits(counts, lengths) / 8) + 4 * k
        return min(n_bits, key=lambda way: (n_bits[way], way))

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        codebook = stack[-1]
        assert isinstance(codebook, Codebook)
        codes, k, table = _codes(stack, sink)
        sink.heads.uvarint(table)
        if table == len(sink.tables):
            sink.tables[id(codebook.centroids)] = table
            multiples, step = codebook.steps()
            sink.heads.uvarint(2 * k + codebook.zero)
            sink.heads.f16([float(step)])
            sink.heads.raw(multiples.to(torch.int8).cpu().numpy().tobytes())
        counts = count(codes, k)
        if variant == PACKED:
            packer = BitWriter()
            packer.fields(codes, _width(k))
            sink.blobs += packer.finish()
        elif variant == HUFFMAN:
            lengths = code_lengths(counts)
            write_lengths(sink.heads, lengths)
            payload = huffman.encode(codes, lengths)
            sink.heads.uvarint(len(payload))
            sink.blobs += payload
        elif variant == SHARED_SAME:
            sink.stream.encode(codes, sink.models[table])
        else:
            model = best_frequencies(counts)
            sink.heads.raw(model.table)
            sink.models[table] = model.freqs
            if variant == SHARED:
                sink.stream.encode(codes, model.freqs)
            else:
                own = RangeEncoder()
                own.encode(codes, model.freqs)
                payload = own.finish()
                sink.heads.uvarint(len(payload))
                sink.blobs += payload

    def locate(self, shape: tuple[int, ...], variant: int, source: Source) -> Located:
        table = source.heads.uvarint()
        if table > len(source.tables):
            raise ArtifactError("artifact: a tensor refers to a table that is not there.")
        if table == len(source.tables):
            source.tables.append(_read_table(source))
        centroids, zero = source.tables[table]
        k, n = len(centroids), math.prod(shape)
        freqs: np.ndarray | None = None
        codes_of: Callable[[], np.ndarray]
        if variant == PACKED:
            codes_of = partial(_unpacked, source.blobs.take(math.ceil(n * _width(k) / 8)), n, k)
        elif variant == HUFFMAN:
            lengths = read_lengths(source.heads, k)
            codes_of = partial(_huffman, source.blobs.take(source.heads.uvarint()), n, lengths)
        elif variant in (SHARED, SHARED_SAME, OWN):
            if variant != SHARED_SAME:
                source.models[table] = read_frequencies(source.heads, k)[0]
            if table not in source.models:
                raise ArtifactError("artifact: a tensor refers to a model that is not there.")
            freqs = source.models[table]
            if variant == OWN:
                codes_of = partial(_alone, source.blobs.take(source.heads.uvarint()), n, freqs)
            else:
                codes_of = partial(source.symbols.decode, source.symbols.add(n, freqs))
        else:
            raise ArtifactError("artifact: codes are written in a way that this version of penjing does not know.")

        def decode() -> Decoded:
            codes = codes_of()
            if n and (int(codes.min()) < 0 or int(codes.max()) >= k):
                raise ArtifactError("artifact: a code is outside of its table.")
            bits = entropy_bits(count(codes, k), freqs)
            index = torch.from_numpy(codes.astype(np.uint8)).reshape(shape)
            value = centroids.detach().index_select(0, index.flatten().int()).reshape(shape)
            in_stream = bits if variant in (SHARED, SHARED_SAME) else 0.0
            return Decoded(value, Codebook(index, centroids, zero=zero), None, bits, in_stream)

        return Located(torch.float32, CODERS[variant], decode)


def _unpacked(blob: Blob, n: int, k: int) -> np.ndarray:
    return BitReader(blob.read(), "artifact: codes").fields(n, _width(k)) if n else np.zeros(0, np.int64)


def _huffman(blob: Blob, n: int, lengths: np.ndarray) -> np.ndarray:
    return huffman.decode(blob.read(), n, lengths)


def _alone(blob: Blob, n: int, freqs: np.ndarray) -> np.ndarray:
    return RangeDecoder(blob.read()).decode(n, freqs)


def _codes(stack: Sequence[Representation], sink: Sink) -> tuple[np.ndarray, int, int]:
    """The codes in order, the size of their table, and the number it has or will get."""
    codebook = stack[-1]
    assert isinstance(codebook, Codebook)
    table = sink.tables.get(id(codebook.centroids), len(sink.tables))
    return codebook.codes.cpu().flatten().numpy().astype(np.int32), len(codebook.centroids), table


def _read_table(source: Source) -> tuple[nn.Parameter, bool]:
    k, zero = divmod(source.heads.uvarint(), 2)
    if not 1 <= k <= 256:
        raise ArtifactError(f"artifact: a table has {k} entries; 1 to 256 are possible.")
    step = float(source.heads.f16(1)[0])
    if not (math.isfinite(step) and step > 0):
        raise ArtifactError("artifact: the step of a table is not a positive number.")
    multiples = np.frombuffer(source.heads.raw(k), np.int8)
    if multiples.min() < -LEVELS or (zero and multiples[0]):
        raise ArtifactError(
            f"artifact: the entries of a table must be -{LEVELS} to {LEVELS} steps, the first 0 under a mask."
        )
    return nn.Parameter(torch.from_numpy(multiples.astype(np.float32)) * step), bool(zero)


def _width(k: int) -> int:
    return max((k - 1).bit_length(), 0)
