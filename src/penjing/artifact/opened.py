"""An opened file: its graph and its tensors' heads are read at once, numbers tensor by tensor when they are asked for."""

import io
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import torch
from torch import Tensor, nn

from penjing.artifact.codecs import CODECS, Decoded, Located, Source, Symbols
from penjing.artifact.container import LISTING, SAME, Frame, check_size, read_frame
from penjing.artifact.listing import Tensors, read_tensors, uncarried
from penjing.artifact.manifest import read_graph
from penjing.artifact.networks import Networks
from penjing.artifact.slots import Slot, slots
from penjing.entropy import ByteReader
from penjing.errors import ArtifactError, PenjingError, SettingError, nearest
from penjing.files import check_sha256
from penjing.graph.network import Network
from penjing.inference import accelerate
from penjing.representation import represent_

Backend = Literal["dense", "auto"]


def load(
    path: str | Path,
    *,
    for_training: bool = False,
    sha256: str | None = None,
    backend: Backend = "dense",
    batch: int = 1,
) -> Network:
    """The network in the file at `path`; see `decode` and `open_artifact`.

    Args:
        backend: "dense" gives plain weights; "auto" lets layers compute with their compressed weights wherever that is faster
            on this machine with `batch` samples in a call, which is measured now (`inference.accelerate`).
    Raises: ArtifactError: no such file, or one that is not a sound artifact of one network. SettingError: another backend, or
        "auto" for training: kernels compute with weights that stay as they are.
    """
    if backend not in ("dense", "auto"):
        raise SettingError(f'load: backend must be "dense" or "auto", got {backend!r}.')
    if backend == "auto" and for_training:
        raise SettingError(
            'load: backend "auto" is for inference. Train what for_training=True gives, then penjing.accelerate(it).'
        )
    with open_artifact(path, sha256=sha256) as artifact:
        network = artifact.network(for_training=for_training or backend == "auto")
    return accelerate(network, batch=batch).network if backend == "auto" else network


def load_networks(path: str | Path, *, for_training: bool = False, sha256: str | None = None) -> Networks:
    """All networks of a file by name; what they share is shared again. Raises: ArtifactError: as `load`."""
    with open_artifact(path, sha256=sha256) as artifact:
        networks = artifact.networks(for_training=for_training)
    if "" in networks:
        raise ArtifactError(f"{path}: it has one network without a name; read it with load.")
    return Networks(networks).eval()


def decode(content: bytes, *, for_training: bool = False, where: str = "artifact") -> Network:
    """The network in a file, in evaluation mode.

    Args:
        for_training: keep weights as codes and tables, to be trained or compressed further; else they are plain, bit for
            bit the same and faster to use.
    Raises: ArtifactError: the file is damaged, foreign, newer, or hostile, or has several networks.
    """
    return Artifact(io.BytesIO(content), where).network(for_training=for_training)


def open_artifact(path: str | Path, *, sha256: str | None = None) -> "Artifact":
    """A file to look into, tensor by tensor.

    Args:
        sha256: what the file must be, 64 hexadecimal digits; it is compared before anything else is read.
    Raises: ArtifactError: as `load`; another SHA-256. SettingError: `sha256` is none.
    """
    try:
        file = Path(path).open("rb", buffering=0)  # noqa: SIM115  # the artifact closes it
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror or error}). Give the path of a .pj file."
        ) from None
    if sha256 is not None:
        try:
            check_sha256(file, sha256, str(path))
        except BaseException:
            file.close()
            raise
    return Artifact(file, str(path))


def dissect(path: str | Path) -> "Artifact":
    """Another name of `open_artifact`."""
    return open_artifact(path)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file and what it takes there.

    Attributes:
        name: as in the state dict.
        shape, dtype: of the tensor.
        codec: the kind of representation or the type, and how its numbers are written.
        head_bytes, blob_bytes: its own parts of the file, without what it has in the stream that small tensors share.
        same_as: the name of the tensor that it is one object with; None where it is written by itself.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    codec: str
    head_bytes: int
    blob_bytes: int
    same_as: str | None = None


class Artifact:
    """A file whose tensors can be listed, and decoded one at a time.

    Use it in a `with` statement to close the file at once; else that happens when nobody holds the artifact any more.

    Attributes:
        tensors: names, shapes, types and remarks, of a file that has tensors and no network (`pack`); else None.

    Args:
        file: the content, open for reading; it is checked, and belongs to the artifact from now on.
        where: its name, for messages.
    Raises: ArtifactError: not a sound artifact, as far as can be told without decoding.
    """

    def __init__(self, file: BinaryIO, where: str = "artifact") -> None:
        self.where = where
        self._close = weakref.finalize(self, file.close)
        with self._refusing():
            frame = read_frame(file, where)
            self.file_bytes, self.graph_bytes, self.stream_bytes = (
                frame.file_bytes,
                len(frame.graph),
                len(frame.stream),
            )
            self._graph = frame.graph
            self._networks: dict[str, Network] | None = None
            self.tensors: Tensors | None = None
            if frame.graph[:1] == LISTING:
                self.tensors = read_tensors(frame.graph[1:])
                places = self.tensors.slots()
            else:
                self._networks = read_graph(frame.graph)
                places = slots(self._networks)
            check_size(places, frame.file_bytes, where)
            self._parts = _locate(frame, places, where)
        if self.tensors is not None:
            dtypes = self.tensors.dtypes
            self._parts = [replace(p, entry=replace(p.entry, dtype=dtypes[p.entry.name])) for p in self._parts]
        self.entries = {part.entry.name: part.entry for part in self._parts}
        self._numbers = {name: number for number, name in enumerate(self.entries)}

    @property
    def names(self) -> list[str]:
        """The names of the tensors in the order of the file."""
        return list(self.entries)

    @property
    def frame_bytes(self) -> int:
        """Magic, version, lengths and checksum."""
        own = sum(entry.head_bytes + entry.blob_bytes for entry in self.entries.values())
        return self.file_bytes - self.graph_bytes - self.stream_bytes - own

    def entry(self, name: str) -> TensorEntry:
        """What is known of a tensor without decoding it. Raises: ArtifactError: there is none of that name."""
        if name not in self.entries:
            raise ArtifactError(f'{self.where}: there is no tensor "{name}"; {nearest(name, self.entries)}')
        return self.entries[name]

    def tensor(self, name: str) -> Tensor:
        """One tensor as its network uses it.

        Others are not decoded, but for the small ones before it if it has symbols in the stream that they share.
        Raises: ArtifactError: there is no tensor of that name, or one that is not sound.
        """
        return self.decoded(name).value

    def decoded(self, name: str) -> Decoded:
        """One tensor with what writes it. Raises: as `tensor`."""
        self.entry(name)
        number = self._numbers[name]
        first = self._parts[number].first
        decoded = self._decoded(number if first is None else first)
        if self.tensors is not None:
            decoded = replace(decoded, value=uncarried(decoded.value, self.tensors.dtypes[name]))
        return decoded

    def network(self, *, for_training: bool = False) -> Network:
        """A new network with all tensors, in evaluation mode; see `decode`.

        Raises: ArtifactError: a tensor that is not sound, or several networks.
        """
        networks = self.networks(for_training=for_training)
        if "" not in networks:
            raise ArtifactError(f"{self.where}: it has the networks {', '.join(networks)}; read it with load_networks.")
        return networks[""]

    def networks(self, *, for_training: bool = False) -> dict[str, Network]:
        """New networks by name, as `network`; the one of a file without names is called "".

        Raises: ArtifactError: a tensor that is not sound, or a file of tensors without a network.
        """
        if self.tensors is not None:
            raise ArtifactError(
                f"{self.where}: it holds tensors and no network. Read them with open_artifact(path).tensor(name), or make a "
                "safetensors file of them: penjing unpack."
            )
        networks = self._networks or read_graph(self._graph)
        self._networks = None  # the next call makes new ones
        places = slots(networks)
        for number, (place, part) in enumerate(zip(places, self._parts, strict=True)):
            if part.first is None:
                _put_(place, self._decoded(number), for_training)
            else:
                place.share_(places[part.first])
        return {name: network.eval() for name, network in networks.items()}

    def close(self) -> None:
        """Close the file; nothing can be decoded afterwards."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decoded(self, number: int) -> Decoded:
        located = self._parts[number].located
        assert located is not None
        if not self._close.alive:
            raise ArtifactError(f"{self.where}: the file was closed; open it again with open_artifact.")
        with self._refusing():
            return located.decode()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except ArtifactError:
            raise
        except PenjingError as error:
            raise ArtifactError(f"{self.where}: not a sound artifact ({error}).") from None
        except OSError as error:
            raise ArtifactError(f"{self.where}: cannot be read ({error.strerror or error}).") from None


@dataclass(frozen=True)
class _Part:
    """A tensor's entry, and where it is: in the file, or the number of the one that it is the same as."""

    entry: TensorEntry
    located: Located | None
    first: int | None


def _locate(frame: Frame, places: list[Slot], where: str) -> list[_Part]:
    """Read the heads of all tensors. Raises: ArtifactError: one that is not sound, or bytes that belong to none."""
    heads, blobs = ByteReader(frame.heads, f"{where}: heads"), frame.blobs
    source = Source(heads, Symbols(frame.stream), blobs)
    parts: list[_Part] = []
    for place in places:
        before = heads.n_left, blobs.n_left
        head = heads.raw(1)[0]
        number, variant = head & 15, head >> 4
        if number >= len(CODECS) or (number == SAME and variant):
            raise ArtifactError(f"{where}: {place.name} is written in a way that this version does not know.")
        if number == SAME:
            first = _first(places, len(parts), heads.uvarint(), where)
            if parts[first].first is not None:
                raise ArtifactError(f"{where}: {place.name} is the same as a tensor that is itself another one.")
            same = parts[first].entry
            entry = TensorEntry(place.name, place.shape, same.dtype, "same", before[0] - heads.n_left, 0, same.name)
            parts.append(_Part(entry, None, first))
            continue
        located = CODECS[number].locate(place.shape, variant, source)
        plain = CODECS[number].kind in ("plain", "constant")
        kind = str(located.dtype).removeprefix("torch.") if plain else CODECS[number].kind
        sizes = before[0] - heads.n_left, before[1] - blobs.n_left
        entry = TensorEntry(place.name, place.shape, located.dtype, f"{kind}, {located.coder}", *sizes)
        parts.append(_Part(entry, located, None))
    if heads.n_left or blobs.n_left:
        raise ArtifactError(f"{where}: {heads.n_left + blobs.n_left} bytes are left over.")
    return parts


def _first(places: list[Slot], number: int, distance: int, where: str) -> int:
    first = number - distance
    if not 0 <= first < number or places[first].shape != places[number].shape:
        raise ArtifactError(f"{where}: {places[number].name} is the same as one of another shape, or as none.")
    if places[first].is_parameter != places[number].is_parameter:
        raise ArtifactError(f"{where}: {places[number].name} is the same as a tensor of another kind.")
    return first


def _put_(place: Slot, decoded: Decoded, for_training: bool) -> None:
    value = decoded.value
    if not place.is_parameter:
        place.put_(value)
        return
    original = decoded.original if for_training and decoded.original is not None else value
    place.put_(nn.Parameter(original, requires_grad=value.is_floating_point()))
    if for_training and decoded.representation is not None:
        represent_(place.owner, place.key, decoded.representation)
