"""The file: a graph, tensors, a checksum. Format version 1.

    8E 50 4A  01            magic and version
    n n n                   varints: bytes of graph, heads, stream
    graph                   see `manifest`
    heads                   a byte and a head for each tensor, in the order of the modules, parameters before buffers
    stream                  symbols of small tensors, range coded one after another
    blobs                   everything else, up to the checksum
    CRC-32                  of all before it, little-endian

A file is sound or refused. Nothing in it is executed; modules come from an allow-list; shapes come from the modules' settings.
A tensor whose symbols are certain takes no bytes however large it is, so sizes are bounded before anything is allocated:
all tensors together have at most 64 elements for each byte of the file, which counts as at least 1 MiB. (A weight that is
written in 1/64 of a bit is beyond what pruning and clustering together reach.)
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.artifact.codecs import CODECS, Decoded, Sink, Source
from penjing.artifact.codecs.plain import Constant
from penjing.artifact.manifest import read_graph, write_graph
from penjing.entropy import ByteReader, ByteWriter, RangeDecoder
from penjing.errors import ArtifactError, PenjingError, TraceError
from penjing.graph.network import Network
from penjing.graph.ops import MODULES, kind_of
from penjing.representation import represent_, representations

MAGIC = b"\x8ePJ"
VERSION = 1
_ELEMENTS_PER_BYTE, _LEAST_BYTES = 64, 1 << 20
_CODEC_OF = {codec.kind: number for number, codec in enumerate(CODECS)}


def encode(network: Network) -> bytes:
    """The file's content. The same network always gives the same bytes.

    Raises: TraceError: a layer that cannot travel. ArtifactError: a tensor of a type that cannot be stored, or more
        elements than a file of this size may hold.
    """
    sink = Sink()
    n_elements = 0
    for _, module, name in _tensors(network):
        _write_tensor(module, name, sink)
        n_elements += getattr(module, name).numel()
    graph, heads, stream = write_graph(network), sink.heads.finish(), sink.stream.finish()
    writer = ByteWriter()
    writer.raw(MAGIC + bytes([VERSION]))
    for section in (graph, heads, stream):
        writer.uvarint(len(section))
    for section in (graph, heads, stream, sink.blobs.finish()):
        writer.raw(section)
    body = writer.finish()
    _check_size(n_elements, len(body) + 4, "artifact")
    return body + struct.pack("<I", zlib.crc32(body))


def decode(content: bytes, *, for_training: bool = False, where: str = "artifact") -> Network:
    """The network in a file, in evaluation mode.

    Args:
        for_training: keep weights as codes and tables, to be trained or compressed further; else they are plain, bit for
            bit the same and faster to use.
    Raises: ArtifactError: the file is damaged, foreign, newer, or hostile.
    """
    network, tensors = _read(content, where)
    for entry in tensors:
        layer = network.get_submodule(entry.path)
        _set_tensor_(layer, entry.name, entry.decoded, for_training)
    return network.eval()


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file and what it takes there.

    Attributes:
        path, name: the layer and the parameter's or buffer's name.
        decoded: the tensor.
        head_bytes, blob_bytes: its own parts of the file; what it has in the shared stream is in `decoded.stream_bits`.
    """

    path: str
    name: str
    decoded: Decoded
    head_bytes: int
    blob_bytes: int


@dataclass(frozen=True)
class Anatomy:
    """What a file consists of: its sections in bytes, its tensors, its network."""

    file_bytes: int
    graph_bytes: int
    stream_bytes: int
    tensors: tuple[TensorEntry, ...]
    network: Network

    @property
    def frame_bytes(self) -> int:
        """Magic, version, lengths and checksum."""
        own = sum(t.head_bytes + t.blob_bytes for t in self.tensors)
        return self.file_bytes - self.graph_bytes - self.stream_bytes - own


def dissect(path: str | Path) -> Anatomy:
    """Read a file for looking into it. Raises: as `load`."""
    content = read_file(path)
    network, tensors = _read(content, str(path))
    n_graph, _, n_stream, _ = _lengths(content, str(path))
    return Anatomy(len(content), n_graph, n_stream, tuple(tensors), network)


def load(path: str | Path, *, for_training: bool = False) -> Network:
    """The network in the file at `path`; see `decode`.

    Raises: ArtifactError: no such file, or one that is not a sound artifact.
    """
    return decode(read_file(path), for_training=for_training, where=str(path))


def read_file(path: str | Path) -> bytes:
    """A file's content. Raises: ArtifactError: it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror or error}). Give the path of a .pj file."
        ) from None


def _tensors(network: Network) -> Iterator[tuple[str, nn.Module, str]]:
    """(path, layer, name) of every tensor a file holds, in order.

    Raises: TraceError: a layer with other tensors than its class has.
    """
    for path, layer in network.layers().items():
        kind = MODULES.get(str(kind_of(layer)))
        if kind is None:
            raise TraceError(
                f'artifact: the layer "{path}" is a {type(layer).__name__}, which cannot travel in a file yet.'
            )
        with torch.device("meta"):
            fresh = kind.build(kind.describe(layer))
        for name, expected in [*fresh._parameters.items(), *fresh._buffers.items()]:
            found = getattr(layer, name)
            if (expected is None) != (found is None) or (expected is not None and expected.shape != found.shape):
                raise TraceError(
                    f'artifact: "{path}.{name}" is not what a {kind.type.__name__} with these settings has.'
                )
            if found is not None:
                yield path, layer, name


def _write_tensor(layer: nn.Module, name: str, sink: Sink) -> None:
    stack = representations(layer, name)
    value = getattr(layer, name).detach().cpu()
    number = _CODEC_OF[stack[-1].kind] if stack else _CODEC_OF["constant" if Constant.fits(value) else "plain"]
    variant = CODECS[number].variant(value, stack, sink)
    sink.heads.raw(bytes([number | variant << 4]))
    CODECS[number].write(value, stack, variant, sink)


def _read(content: bytes, where: str) -> tuple[Network, list[TensorEntry]]:
    n_graph, n_heads, n_stream, start = _lengths(content, where)
    try:
        parts = ByteReader(content[start:-4], where)
        network = read_graph(parts.raw(n_graph))
        heads = ByteReader(parts.raw(n_heads), f"{where}: heads")
        stream = RangeDecoder(parts.raw(n_stream))
        blobs = ByteReader(parts.raw(parts.n_left), f"{where}: blobs")
        source = Source(heads, stream, blobs)
        entries: list[TensorEntry] = []
        tensors = [(path, name, tuple(getattr(layer, name).shape)) for path, layer, name in _tensors(network)]
        _check_size(sum(math.prod(shape) for *_, shape in tensors), len(content), where)
        for path, name, shape in tensors:
            before = heads.n_left, blobs.n_left
            head = heads.raw(1)[0]
            if head & 15 >= len(CODECS):
                raise ArtifactError(f"{where}: {path}.{name} is written in a way that this version does not know.")
            decoded = CODECS[head & 15].read(shape, head >> 4, source)
            entries.append(TensorEntry(path, name, decoded, before[0] - heads.n_left, before[1] - blobs.n_left))
        if heads.n_left or blobs.n_left:
            raise ArtifactError(f"{where}: {heads.n_left + blobs.n_left} bytes are left over.")
        return network, entries
    except ArtifactError:
        raise
    except PenjingError as error:
        raise ArtifactError(f"{where}: not a sound artifact ({error}).") from None


def _check_size(n_elements: int, n_bytes: int, where: str) -> None:
    """Against decompression bombs. Raises: ArtifactError: more elements than a file of this size may hold."""
    limit = _ELEMENTS_PER_BYTE * max(n_bytes, _LEAST_BYTES)
    if n_elements > limit:
        raise ArtifactError(
            f"{where}: a file of {n_bytes} bytes may hold {limit} numbers, this one would hold {n_elements}."
        )


def _lengths(content: bytes, where: str) -> tuple[int, int, int, int]:
    """Bytes of graph, heads and stream, and where they start; the checksum is checked first."""
    if not content:
        raise ArtifactError(f"{where}: the file is empty.")
    if content[: len(MAGIC)] != MAGIC[: len(content)]:
        raise ArtifactError(f"{where}: not a penjing artifact (it does not begin like one).")
    if len(content) < len(MAGIC) + 1 + 3 + 4:
        raise ArtifactError(f"{where}: the file is cut off after {len(content)} bytes. Copy it again.")
    version = content[len(MAGIC)]
    sound = struct.unpack("<I", content[-4:])[0] == zlib.crc32(content[:-4])
    if version != VERSION and sound:
        raise ArtifactError(f"{where}: format version {version}; this penjing reads {VERSION}. Update penjing.")
    if not sound:
        raise ArtifactError(f"{where}: the file is damaged or cut off (its checksum does not match). Copy it again.")
    reader = ByteReader(content[len(MAGIC) + 1 : -4], where)
    n = reader.n_left
    lengths = [reader.uvarint() for _ in range(3)]
    if sum(lengths) > reader.n_left:
        raise ArtifactError(f"{where}: its sections are longer than the file.")
    return lengths[0], lengths[1], lengths[2], len(MAGIC) + 1 + n - reader.n_left


def _set_tensor_(layer: nn.Module, name: str, decoded: Decoded, for_training: bool) -> None:
    is_parameter = name in layer._parameters
    value: Tensor = decoded.value
    if not is_parameter:
        layer._buffers[name] = value
        return
    original = decoded.original if for_training and decoded.original is not None else value
    layer._parameters[name] = nn.Parameter(original, requires_grad=value.is_floating_point())
    if for_training and decoded.representation is not None:
        represent_(layer, name, decoded.representation)
        assert parametrize.is_parametrized(layer, name)
