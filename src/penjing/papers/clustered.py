"""The codes of a clustered network's matrices, and what several coders make of them: for claims about coding."""

from dataclasses import dataclass

import numpy as np

from penjing.artifact.codecs.codes import ranks_of
from penjing.entropy import (
    ByteWriter,
    best_frequencies,
    code_lengths,
    context_coder,
    count,
    entropy_bits,
    payload_bits,
    relative_index,
    write_lengths,
)
from penjing.graph import Network
from penjing.papers.claim import Figures
from penjing.representation import Codebook, named_weights, representations

_FLOAT = 32


@dataclass(frozen=True)
class Matrix:
    """The codes of one layer.

    Attributes:
        codes: integers in [0, k), a row for each output.
        ranks: (k,), where each code's value stands, counted from the one nearest to 0.
        sparse: whether code 0 stands for what a mask removed.
    """

    codes: np.ndarray
    ranks: np.ndarray
    sparse: bool

    @property
    def k(self) -> int:
        """How many values there are."""
        return len(self.ranks)


def matrices(network: Network) -> dict[str, Matrix]:
    """The codes of all clustered matrices and filters, by full name."""
    found = {}
    for full_name, owner, name in named_weights(network):
        stack = representations(owner, name)
        if stack and isinstance(stack[-1], Codebook) and getattr(owner, name).dim() > 1:
            codes = stack[-1].codes.cpu().numpy().astype(np.int64)
            values = stack[-1].table().detach().cpu().numpy()
            found[full_name] = Matrix(codes.reshape(len(codes), -1), ranks_of(values), stack[-1].zero)
    return found


def coded(matrix: Matrix) -> Figures:
    """Bits of all codes, zeros too, in five ways; Huffman and range coding with the tables that they need.

    `Huffman`, `range` and `entropy` are of the codes' own counts, `contexts` of the adaptive coder of `entropy.context_coder`.
    """
    counts = count(matrix.codes, matrix.k)
    lengths, writer = code_lengths(counts), ByteWriter()
    write_lengths(writer, lengths)
    model = best_frequencies(counts)
    return {
        "codes": int(matrix.codes.size),
        "values": matrix.k,
        "fixed": int(matrix.codes.size) * (matrix.k - 1).bit_length(),
        "entropy": entropy_bits(counts),
        "Huffman": payload_bits(counts, lengths),
        "Huffman table": 8 * len(writer.finish()),
        "range": entropy_bits(counts, model.freqs),
        "range table": 8 * len(model.table),
        "contexts": 8 * len(context_coder.encode(matrix.ranks[matrix.codes])),
    }


def accounts(matrix: Matrix, index_bits: int | None = None) -> Figures:
    """A sparse layer in bits as Deep Compression counts it: entries, their values and gaps, and 32 bits for each value.

    Args:
        index_bits: of a gap; None: those of 2 to 9 that make fields of fixed width shortest.
    """
    widths = range(2, 10) if index_bits is None else (index_bits,)
    best = min(widths, key=lambda width: relative_index.bits(matrix.codes, matrix.k, width).fixed)
    found = relative_index.bits(matrix.codes, matrix.k, best)
    table = _FLOAT * (matrix.k - 1)
    return {
        "weights": int(matrix.codes.size),
        "kept": int((matrix.codes != 0).sum()),
        "values": matrix.k - 1,
        "index bits": best,
        "entries": found.entries,
        "fillers": found.fillers,
        "P+Q": found.fixed + table,
        "P+Q+H": found.values + found.gaps + table,
        "Huffman tables": found.tables,
        "bits a value": found.values / max(found.entries, 1),
        "bits a gap": found.gaps / max(found.entries, 1),
    }
