"""The file: a graph, tensors, a checksum. Format version 1.

    8E 50 4A  01            magic and version
    n n n                   varints: bytes of graph, heads, stream
    graph                   see `manifest`
    heads                   a byte and a head for each tensor, in the order of `slots`; one that several places share is there
                            once, the others name it
    stream                  symbols of small tensors, range coded one after another
    blobs                   everything else, up to the checksum
    CRC-32                  of all before it, little-endian

A file is sound or refused. Nothing in it is executed; modules come from an allow-list; shapes come from the modules' settings,
those of tensors outside modules from the graph.
A tensor whose symbols are certain takes no bytes however large it is, so sizes are bounded before anything is allocated:
all tensors together have at most 64 elements for each byte of the file, which counts as at least 1 MiB. (A weight that is
written in 1/64 of a bit is beyond what pruning and clustering together reach.)
"""

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.artifact.codecs import CODECS, Decoded, Sink, Source
from penjing.artifact.codecs.plain import Constant
from penjing.artifact.manifest import read_graph, write_graph
from penjing.artifact.networks import Networks, by_name
from penjing.artifact.slots import Slot, slots
from penjing.entropy import ByteReader, ByteWriter, RangeDecoder
from penjing.errors import ArtifactError, PenjingError
from penjing.files import write_atomically
from penjing.graph.network import Network
from penjing.representation import represent_, representations

MAGIC = b"\x8ePJ"
VERSION = 1
_ELEMENTS_PER_BYTE, _LEAST_BYTES = 64, 1 << 20
_CODEC_OF = {codec.kind: number for number, codec in enumerate(CODECS)}
_SAME = _CODEC_OF["same"]


def save(network: Network | Mapping[str, Network], path: str | Path) -> int:
    """Write a network to a file, or several that share modules and tensors, by name.

    Returns: the size of the file in bytes. The file is there completely, or as it was before.
    Raises: as `encode`.
    """
    content = encode(network)
    write_atomically(Path(path), content)
    return len(content)


def encode(network: Network | Mapping[str, Network]) -> bytes:
    """The file's content. The same networks always give the same bytes.

    Raises: TraceError: a layer that cannot travel. ArtifactError: a tensor of a type that cannot be stored, or more
        elements than a file of this size may hold.
    """
    networks = by_name(network)
    sink = Sink()
    places = slots(networks)
    written: dict[tuple[int, ...], int] = {}
    for number, slot in enumerate(places):
        first = written.setdefault(slot.identity(), number)
        if first == number:
            _write_tensor(slot, sink)
        else:
            sink.heads.raw(bytes([_SAME]))
            sink.heads.uvarint(number - first)
    graph, heads, stream = write_graph(network), sink.heads.finish(), sink.stream.finish()
    writer = ByteWriter()
    writer.raw(MAGIC + bytes([VERSION]))
    for section in (graph, heads, stream):
        writer.uvarint(len(section))
    for section in (graph, heads, stream, sink.blobs.finish()):
        writer.raw(section)
    body = writer.finish()
    _check_size(sum(math.prod(slot.shape) for slot in places), len(body) + 4, "artifact")
    return body + struct.pack("<I", zlib.crc32(body))


def decode(content: bytes, *, for_training: bool = False, where: str = "artifact") -> Network:
    """The network in a file, in evaluation mode.

    Args:
        for_training: keep weights as codes and tables, to be trained or compressed further; else they are plain, bit for
            bit the same and faster to use.
    Raises: ArtifactError: the file is damaged, foreign, newer, or hostile, or has several networks.
    """
    return _only(Artifact(content, where).fill(for_training=for_training), where)


def load(path: str | Path, *, for_training: bool = False) -> Network:
    """The network in the file at `path`; see `decode`.

    Raises: ArtifactError: no such file, or one that is not a sound artifact of one network.
    """
    return decode(read_file(path), for_training=for_training, where=str(path))


def load_networks(path: str | Path, *, for_training: bool = False) -> Networks:
    """All networks of a file by name; what they share is shared again. Raises: ArtifactError: as `load`."""
    networks = Artifact(read_file(path), str(path)).fill(for_training=for_training)
    if "" in networks:
        raise ArtifactError(f"{path}: it has one network without a name; read it with load.")
    return Networks(networks).eval()


def open_artifact(path: str | Path) -> "Artifact":
    """A file to look into, tensor by tensor. Raises: ArtifactError: as `load`."""
    return Artifact(read_file(path), str(path))


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file and what it takes there.

    Attributes:
        slot: the place it belongs to.
        decoded: the tensor.
        same_as: the number of the tensor that it is; None: it is written by itself.
        head_bytes, blob_bytes: its own parts of the file; what it has in the shared stream is in `decoded.stream_bits`.
    """

    slot: Slot
    decoded: Decoded
    same_as: int | None
    head_bytes: int
    blob_bytes: int


class Artifact:
    """A file whose graph is read and whose tensors are decoded one at a time, when they are asked for.

    Args:
        content: of the file; it is checked, and stays in memory as it is.
        where: its name, for messages.
    Raises: ArtifactError: not a sound artifact, as far as can be told without its tensors.
    """

    def __init__(self, content: bytes, where: str = "artifact") -> None:
        self.where = where
        self.file_bytes = len(content)
        self.graph_bytes, n_heads, self.stream_bytes, start = _lengths(content, where)
        parts = ByteReader(memoryview(content)[start:-4], where)
        try:
            self.networks = read_graph(parts.raw(self.graph_bytes))
            self.slots = slots(self.networks)
        except ArtifactError:
            raise
        except PenjingError as error:
            raise ArtifactError(f"{where}: not a sound artifact ({error}).") from None
        _check_size(sum(math.prod(slot.shape) for slot in self.slots), len(content), where)
        self._heads, self._stream, self._blobs = (
            parts.raw(n_heads),
            parts.raw(self.stream_bytes),
            parts.raw(parts.n_left),
        )

    @property
    def names(self) -> list[str]:
        """The names of the tensors, as in the state dict, in the order of the file."""
        return [slot.name for slot in self.slots]

    def tensor(self, name: str) -> Tensor:
        """One tensor. Others are passed over; only those before it whose symbols share its stream are decoded too.

        Raises: ArtifactError: there is no tensor of that name, or one that is not sound.
        """
        if name not in self.names:
            raise ArtifactError(f'{self.where}: there is no tensor "{name}". Those there are: {", ".join(self.names)}.')
        number = self.names.index(name)
        entry = next(entry for n, entry, _ in self._walk({number}) if n == number)
        if isinstance(entry, int):  # it is the same as that one
            return self.tensor(self.slots[entry].name)
        assert entry is not None
        return entry.decoded.value

    def entries(self) -> Iterator[TensorEntry]:
        """All tensors, decoded one after another. Raises: ArtifactError: one that is not sound, or bytes left over."""
        kept: dict[int, TensorEntry] = {}
        same = self._same()
        for number, entry, sizes in self._walk(set(range(len(self.slots)))):
            if isinstance(entry, int):
                first = kept[entry]
                yield TensorEntry(self.slots[number], first.decoded, entry, *sizes)
                continue
            assert entry is not None
            if number in same:
                kept[number] = entry
            yield entry

    def fill(self, *, for_training: bool = False) -> dict[str, Network]:
        """The networks by name with their tensors, in evaluation mode; the one of a file without names is called ""."""
        for entry in self.entries():
            if entry.same_as is None:
                _put_(entry.slot, entry.decoded, for_training)
            else:
                _put_same_(entry.slot, self.slots[entry.same_as])
        return {name: network.eval() for name, network in self.networks.items()}

    def _same(self) -> set[int]:
        """The tensors that later ones are the same as."""
        return {entry for _, entry, _ in self._walk(set()) if isinstance(entry, int)}

    def _walk(self, wanted: set[int]) -> Iterator[tuple[int, TensorEntry | int | None, tuple[int, int]]]:
        """Each tensor's number with its entry where it is wanted, and with the number of the one that it is the same as."""
        heads = ByteReader(self._heads, f"{self.where}: heads")
        blobs = ByteReader(self._blobs, f"{self.where}: blobs")
        source = Source(heads, RangeDecoder(self._stream), blobs)
        try:
            for number, slot in enumerate(self.slots):
                before = heads.n_left, blobs.n_left
                head = heads.raw(1)[0]
                if head & 15 >= len(CODECS):
                    raise ArtifactError(
                        f"{self.where}: {slot.name} is written in a way that this version does not know."
                    )
                entry: TensorEntry | int | None = None
                if head & 15 == _SAME:
                    entry = self._first(number, heads.uvarint())
                elif number in wanted:
                    decoded = CODECS[head & 15].read(slot.shape, head >> 4, source)
                    entry = TensorEntry(slot, decoded, None, before[0] - heads.n_left, before[1] - blobs.n_left)
                else:
                    CODECS[head & 15].skip(slot.shape, head >> 4, source)
                yield number, entry, (before[0] - heads.n_left, before[1] - blobs.n_left)
            if heads.n_left or blobs.n_left:
                raise ArtifactError(f"{self.where}: {heads.n_left + blobs.n_left} bytes are left over.")
        except ArtifactError:
            raise
        except PenjingError as error:
            raise ArtifactError(f"{self.where}: not a sound artifact ({error}).") from None

    def _first(self, number: int, distance: int) -> int:
        first = number - distance
        if not 0 <= first < number or self.slots[first].shape != self.slots[number].shape:
            raise ArtifactError(
                f"{self.where}: {self.slots[number].name} is the same as one of another shape, or as none."
            )
        if self.slots[first].is_parameter != self.slots[number].is_parameter:
            raise ArtifactError(f"{self.where}: {self.slots[number].name} is the same as a tensor of another kind.")
        return first


@dataclass(frozen=True)
class Anatomy:
    """What a file consists of: its sections in bytes, its tensors, its networks."""

    file_bytes: int
    graph_bytes: int
    stream_bytes: int
    tensors: tuple[TensorEntry, ...]
    networks: Mapping[str, Network]

    @property
    def frame_bytes(self) -> int:
        """Magic, version, lengths and checksum."""
        own = sum(t.head_bytes + t.blob_bytes for t in self.tensors)
        return self.file_bytes - self.graph_bytes - self.stream_bytes - own


def dissect(path: str | Path) -> Anatomy:
    """Read a file for looking into it. Raises: as `load`."""
    artifact = open_artifact(path)
    tensors = tuple(artifact.entries())
    return Anatomy(artifact.file_bytes, artifact.graph_bytes, artifact.stream_bytes, tensors, artifact.networks)


def read_file(path: str | Path) -> bytes:
    """A file's content. Raises: ArtifactError: it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror or error}). Give the path of a .pj file."
        ) from None


def _only(networks: Mapping[str, Network], where: str) -> Network:
    if "" not in networks:
        raise ArtifactError(f"{where}: it has the networks {', '.join(networks)}; read it with load_networks.")
    return networks[""]


def _write_tensor(slot: Slot, sink: Sink) -> None:
    stack = representations(slot.owner, slot.key)
    value = slot.value().cpu()
    number = _CODEC_OF[stack[-1].kind] if stack else _CODEC_OF["constant" if Constant.fits(value) else "plain"]
    variant = CODECS[number].variant(value, stack, sink)
    sink.heads.raw(bytes([number | variant << 4]))
    CODECS[number].write(value, stack, variant, sink)


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


def _put_(slot: Slot, decoded: Decoded, for_training: bool) -> None:
    value = decoded.value
    if not slot.is_parameter:
        slot.put_(value)
        return
    original = decoded.original if for_training and decoded.original is not None else value
    slot.put_(nn.Parameter(original, requires_grad=value.is_floating_point()))
    if for_training and decoded.representation is not None:
        represent_(slot.owner, slot.key, decoded.representation)
        assert parametrize.is_parametrized(slot.owner, slot.key)


def _put_same_(slot: Slot, first: Slot) -> None:
    """Let a place hold what another one holds, its representations included."""
    if not parametrize.is_parametrized(first.owner, first.key):
        held = first.owner._parameters if slot.is_parameter else first.owner._buffers
        slot.put_(held[first.key])  # type: ignore[arg-type]
        return
    stack: Any = first.owner.parametrizations[first.key]  # type: ignore[index]
    slot.put_(nn.Parameter(stack.original.detach(), requires_grad=stack.original.requires_grad))
    for representation in stack:
        represent_(slot.owner, slot.key, representation)
    own: Any = slot.owner.parametrizations[slot.key]  # type: ignore[index]
    own.original = stack.original
