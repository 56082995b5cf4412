"""The file: a graph, tensors, a checksum. Format version 1.

    8E 50 4A  01            magic and version
    n n n                   varints: bytes of graph, heads, stream
    graph                   see `manifest`; or a byte 2 and a list of tensors without a network, see `listing`
    heads                   a byte and a head for each tensor, in the order of `slots`; one that several places share is there
                            once, the others name it
    stream                  symbols of small tensors, range coded one after another
    blobs                   everything else, up to the checksum
    CRC-32                  of all before it, little-endian

A file is sound or refused. Nothing in it is executed; modules come from an allow-list; shapes come from the modules' settings,
those of tensors outside modules from the graph.
A tensor whose symbols are certain takes no bytes however large it is, so sizes are bounded before anything is allocated:
all tensors together have at most 64 elements for each byte of the file, which counts as at least 512 KiB. (A weight that is
written in 1/64 of a bit is beyond what pruning and clustering together reach.)
"""

import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, get_args

from penjing.artifact.codecs import CODECS, Blob, Blobs, Sink
from penjing.artifact.codecs.codec import Speed
from penjing.artifact.codecs.plain import Constant
from penjing.artifact.manifest import write_graph
from penjing.artifact.networks import by_name
from penjing.artifact.slots import Slot, slots
from penjing.entropy import ByteReader, ByteWriter
from penjing.errors import ArtifactError, SettingError
from penjing.files import write_atomically
from penjing.graph.network import Network
from penjing.representation import representations

MAGIC = b"\x8ePJ"
VERSION = 1
_ELEMENTS_PER_BYTE, _LEAST_BYTES = 64, 1 << 19
CODEC_OF = {codec.kind: number for number, codec in enumerate(CODECS)}
SAME = CODEC_OF["same"]
LISTING = b"\x02"
"""What the graph of a file begins with that has tensors and no network; networks begin with 0 or 1."""
_CHUNK = 1 << 20


def save(network: Network | Mapping[str, Network], path: str | Path, *, speed: Speed = "small") -> int:
    """Write a network to a file, or several that share modules and tensors, by name.

    Args:
        speed: "small", or "fast" to read: codes are then packed or in Huffman's code, some 10 % longer, but 40 % where
            dependent quantization chose them for contexts.
    Returns: the size of the file in bytes. The file is there completely, or as it was before.
    Raises: as `encode`; RunError: the file cannot be written.
    """
    content = _content(network, speed)
    write_atomically(Path(path), content)  # type: ignore[arg-type]  # as good as bytes, and not copied
    return len(content)


def encode(network: Network | Mapping[str, Network], *, speed: Speed = "small") -> bytes:
    """The file's content. The same networks always give the same bytes.

    Args:
        speed: as in `save`.

    Raises: TraceError: a layer that cannot travel. ArtifactError: a tensor of a type that cannot be stored, or more
        elements than a file of this size may hold. SettingError: there is no such speed.
    """
    return bytes(_content(network, speed))


def _content(network: Network | Mapping[str, Network], speed: Speed) -> bytearray:
    if speed not in get_args(Speed):
        raise SettingError(f'artifact: speed must be "small" or "fast", got {speed!r}.')
    networks = by_name(network)
    sink = Sink(speed)
    places = slots(networks)
    written: dict[tuple[int, ...], int] = {}
    for number, slot in enumerate(places):
        first = written.setdefault(slot.identity(), number)
        if first == number:
            _write_tensor(slot, sink)
        else:
            sink.heads.raw(bytes([SAME]))
            sink.heads.uvarint(number - first)
    content = sink.blobs  # may be large, so it is not copied
    content[:0] = beginning(write_graph(network), sink)
    content += struct.pack("<I", zlib.crc32(content))
    check_size(places, len(content), "artifact")
    return content


def beginning(graph: bytes, sink: Sink) -> bytes:
    """All of a file that is before its blobs."""
    sections = graph, sink.heads.finish(), sink.stream.finish()
    start = ByteWriter()
    start.raw(MAGIC + bytes([VERSION]))
    for section in sections:
        start.uvarint(len(section))
    for section in sections:
        start.raw(section)
    return start.finish()


def _write_tensor(slot: Slot, sink: Sink) -> None:
    stack = representations(slot.owner, slot.key)
    value = slot.value().cpu()
    number = CODEC_OF[stack[-1].kind] if stack else CODEC_OF["constant" if Constant.fits(value) else "plain"]
    variant = CODECS[number].variant(value, stack, sink)
    sink.heads.raw(bytes([number | variant << 4]))
    CODECS[number].write(value, stack, variant, sink)


def most_elements(n_bytes: int) -> int:
    """How many elements a file of that size may hold."""
    return _ELEMENTS_PER_BYTE * max(n_bytes, _LEAST_BYTES)


def check_size(places: Iterable[Slot], n_bytes: int, where: str) -> None:
    """Against decompression bombs. Raises: ArtifactError: more elements than a file of this size may hold."""
    n_elements = sum(math.prod(slot.shape) for slot in places)
    limit = most_elements(n_bytes)
    if n_elements > limit:
        raise ArtifactError(
            f"{where}: a file of {n_bytes} bytes may hold {limit} numbers, this one would hold {n_elements}."
        )


@dataclass(frozen=True)
class Frame:
    """The sections of a file; the blobs stay where they are."""

    file_bytes: int
    graph: bytes
    heads: bytes
    stream: bytes
    blobs: Blobs


def read_frame(file: BinaryIO, where: str) -> Frame:
    """Find a file's sections. Its checksum is checked first.

    Raises: ArtifactError: the file is empty, cut off, damaged, foreign or newer.
    """
    n_bytes = file.seek(0, 2)
    first = Blob(file, 0, min(n_bytes, len(MAGIC) + 1 + 3 * 9)).read()
    if not first:
        raise ArtifactError(f"{where}: the file is empty.")
    if first[: len(MAGIC)] != MAGIC[: len(first)]:
        raise ArtifactError(f"{where}: not a penjing artifact (it does not begin like one).")
    if n_bytes < len(MAGIC) + 1 + 3 + 4:
        raise ArtifactError(f"{where}: the file is cut off after {n_bytes} bytes. Copy it again.")
    sound = struct.unpack("<I", Blob(file, n_bytes - 4, 4).read())[0] == _checksum(file, n_bytes - 4)
    if first[len(MAGIC)] != VERSION and sound:
        raise ArtifactError(
            f"{where}: format version {first[len(MAGIC)]}; this penjing reads {VERSION}. Update penjing."
        )
    if not sound:
        raise ArtifactError(f"{where}: the file is damaged or cut off (its checksum does not match). Copy it again.")
    reader = ByteReader(first[len(MAGIC) + 1 : n_bytes - 4], where)
    lengths = [reader.uvarint() for _ in range(3)]
    start, end = len(MAGIC) + 1 + reader.position, n_bytes - 4
    if sum(lengths) > end - start:
        raise ArtifactError(f"{where}: its sections are longer than the file.")
    graph, heads, stream = (bytes(Blob(file, start + sum(lengths[:i]), lengths[i]).read()) for i in range(3))
    return Frame(n_bytes, graph, heads, stream, Blobs(file, start + sum(lengths), end))


def _checksum(file: BinaryIO, n_bytes: int) -> int:
    checksum = 0
    for start in range(0, n_bytes, _CHUNK):
        checksum = zlib.crc32(Blob(file, start, min(_CHUNK, n_bytes - start)).read(), checksum)
    return checksum
