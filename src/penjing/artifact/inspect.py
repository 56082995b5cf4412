"""What is in a file and what each part takes; the sum is the file's size."""

from dataclasses import dataclass, replace
from pathlib import Path

from penjing.artifact.opened import Artifact, open_artifact


@dataclass(frozen=True)
class Row:
    """One line of the list.

    Attributes:
        name: the tensor's full name, or of what belongs to no tensor.
        shape: of the tensor; empty for the rest.
        elements: how many numbers it has; none where it is one object with another tensor.
        density: fraction of its elements that are not zero.
        codec: the kind of representation, and how its numbers are written.
        bits_per_weight: 8 * bytes / elements.
        entropy_bits_per_weight: of its symbols under the model in the file; None where there is no model.
        size_bytes: its share of the file.
    """

    name: str
    shape: tuple[int, ...]
    elements: int
    density: float | None
    codec: str
    bits_per_weight: float | None
    entropy_bits_per_weight: float | None
    size_bytes: int


def inspect(path: str | Path, *, sha256: str | None = None) -> list[Row]:
    """The parts of a file: the graph, every tensor in order, the frame (magic, version, lengths, checksum).

    Symbols of small tensors share one stream; each gets its share of it by the length of its symbols under their model.
    Args:
        sha256: of the file, as in `open_artifact`.
    Raises: ArtifactError: not a sound artifact.
    """
    with open_artifact(path, sha256=sha256) as artifact:
        found = [_measured(artifact, name) for name in artifact.names]
        shares = _shares([bits for _, bits in found], artifact.stream_bytes)
        rows = [_rest("graph", artifact.graph_bytes)]
        for (row, _), share in zip(found, shares, strict=True):
            size = row.size_bytes + share
            rows.append(
                replace(row, size_bytes=size, bits_per_weight=8 * size / row.elements if row.elements else None)
            )
        return [*rows, _rest("frame", artifact.frame_bytes + artifact.stream_bytes - sum(shares))]


def _measured(artifact: Artifact, name: str) -> tuple[Row, float]:
    """A tensor's line without its share of the stream, and the ideal length of what it has there, in bits."""
    entry = artifact.entry(name)
    own = entry.head_bytes + entry.blob_bytes
    if entry.same_as is not None:
        return Row(name, entry.shape, 0, None, f"same as {entry.same_as}", None, None, own), 0.0
    decoded = artifact.decoded(name)
    n = decoded.value.numel()
    density = float((decoded.value != 0).double().mean()) if n else None
    entropy = decoded.entropy_bits / n if decoded.entropy_bits is not None and n else None
    return Row(name, entry.shape, n, density, entry.codec, None, entropy, own), decoded.stream_bits


def _rest(name: str, size_bytes: int) -> Row:
    return Row(name, (), 0, None, "", None, None, size_bytes)


def _shares(bits: list[float], total: int) -> list[int]:
    """Split `total` bytes in proportion to `bits`, in whole bytes that sum to it."""
    whole = sum(bits)
    if not whole:
        return [0] * len(bits)
    exact = [total * b / whole for b in bits]
    floors = [int(x) for x in exact]
    largest = sorted(range(len(bits)), key=lambda i: (floors[i] - exact[i], i))
    for i in largest[: total - sum(floors)]:
        floors[i] += 1
    return floors
