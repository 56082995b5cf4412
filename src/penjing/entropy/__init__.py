"""Lossless coding of small integers: bits and bytes, static models, Huffman and range coding. Knows no torch.

| file           | what it has                                                                                      |
| -------------- | ------------------------------------------------------------------------------------------------ |
| bits.py        | `ByteWriter`, `ByteReader` (varints, floats, raw bytes), `BitWriter`, `BitReader` (n-bit fields) |
| tables.py      | the stored form of code tables: which symbols occur, and a small number for each                 |
| counts.py      | models as integer frequencies: count, quantize, store, choose the best; entropy                  |
| huffman.py     | canonical length-limited Huffman code; the fastest to read                                       |
| range_coder.py | range coder; within 0.005 bit per symbol of the model's entropy, many models in one stream       |
| trellis.py     | dependent quantization: the machine that says on which of two grids the next number lies         |
| context_coder.py | adaptive binary range coder for matrices of integers; needs no model, smallest for weights     |
| relative_index.py | gaps between sparse codes, as Deep Compression stores them; for comparison                        |

Arrays of integers go in, bytes come out. What is read back may be hostile: errors are `ArtifactError`. Only the number
of symbols is the caller's to bound, because one that is certain takes no bytes however often it occurs.
"""

from penjing.entropy import context_coder, huffman, relative_index, trellis
from penjing.entropy.bits import BitReader, BitWriter, ByteReader, ByteWriter
from penjing.entropy.counts import (
    FrequencyTable,
    best_frequencies,
    count,
    entropy_bits,
    entropy_bits_per_symbol,
    quantize_counts,
    read_frequencies,
    write_frequencies,
)
from penjing.entropy.huffman import canonical_codes, code_lengths, payload_bits, read_lengths, write_lengths
from penjing.entropy.range_coder import RangeDecoder, RangeEncoder

__all__ = [
    "BitReader",
    "BitWriter",
    "ByteReader",
    "ByteWriter",
    "FrequencyTable",
    "RangeDecoder",
    "RangeEncoder",
    "best_frequencies",
    "canonical_codes",
    "code_lengths",
    "context_coder",
    "count",
    "entropy_bits",
    "entropy_bits_per_symbol",
    "huffman",
    "payload_bits",
    "quantize_counts",
    "read_frequencies",
    "read_lengths",
    "relative_index",
    "trellis",
    "write_frequencies",
    "write_lengths",
]
