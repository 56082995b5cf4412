"""One codec for each way to write a tensor. A new one is a file and a line here; the order is the file format: only append."""

from penjing.artifact.codecs.codebook import CodebookCodec
from penjing.artifact.codecs.codec import Blob, Blobs, Codec, Decoded, Located, Sink, Source, Symbols
from penjing.artifact.codecs.grid import GridCodec
from penjing.artifact.codecs.half import HalfCodec
from penjing.artifact.codecs.mask import MaskCodec
from penjing.artifact.codecs.plain import Constant, Plain
from penjing.artifact.codecs.same import Same
from penjing.artifact.codecs.scaled_codebook import ScaledCodebookCodec
from penjing.artifact.codecs.signs import SignsCodec

CODECS: tuple[Codec, ...] = (
    *(Plain(), Constant(), CodebookCodec(), MaskCodec(), Same(), GridCodec(), HalfCodec()),
    *(SignsCodec(), ScaledCodebookCodec()),
)

__all__ = ["CODECS", "Blob", "Blobs", "Codec", "Decoded", "Located", "Sink", "Source", "Symbols"]
