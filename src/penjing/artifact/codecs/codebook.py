"""Clustered weights: a table of 8-bit multiples of one step, and the codes."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from penjing.artifact.codecs.codec import Codec, Decoded, Located, Sink, Source
from penjing.artifact.codecs.codes import CODERS, Codes, LocatedCodes, ranks_of
from penjing.errors import ArtifactError
from penjing.representation import Codebook, Representation
from penjing.representation.codebook import LEVELS


class CodebookCodec(Codec):
    """Head: number of the table, which follows where it is new; then the head of the codes."""

    kind: ClassVar[str] = "codebook"

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        return _codes(stack, sink)[0].variant(sink)

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        codebook = stack[-1]
        assert isinstance(codebook, Codebook)
        codes, table = _codes(stack, sink)
        sink.heads.uvarint(table)
        if table == len(sink.tables):
            sink.tables[id(codebook.centroids)] = table
            multiples, step = codebook.steps()
            sink.heads.uvarint(2 * codes.k + codebook.zero)
            sink.heads.f16([float(step)])
            sink.heads.raw(multiples.to(torch.int8).cpu().numpy().tobytes())
        codes.write(variant, sink)

    def locate(self, shape: tuple[int, ...], variant: int, source: Source) -> Located:
        table = source.heads.uvarint()
        if table > len(source.tables):
            raise ArtifactError("artifact: a tensor refers to a table that is not there.")
        if table == len(source.tables):
            source.tables.append(_read_table(source))
        centroids, zero = source.tables[table]
        found = LocatedCodes(shape, ranks_of(centroids.detach().numpy()), variant, source, key=table)

        def decode() -> Decoded:
            codes, bits = found.decode()
            index = torch.from_numpy(codes.astype(np.uint8)).reshape(shape)
            value = centroids.detach().index_select(0, index.flatten().int()).reshape(shape)
            in_stream = bits if found.in_stream else 0.0
            return Decoded(value, Codebook(index, centroids, zero=zero), None, bits, in_stream)

        return Located(torch.float32, CODERS[variant], decode)


def _codes(stack: Sequence[Representation], sink: Sink) -> tuple[Codes, int]:
    """The codes, and the number that their table has or will get."""
    codebook = stack[-1]
    assert isinstance(codebook, Codebook)
    table = sink.tables.get(id(codebook.centroids), len(sink.tables))
    values = codebook.table().detach().cpu().numpy()
    return Codes(codebook.codes.cpu().numpy(), ranks_of(values), key=table), table


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
