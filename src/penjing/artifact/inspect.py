"""What is in a file and what each part takes; the sum is the file's size."""

from dataclasses import dataclass
from pathlib import Path

from penjing.artifact.container import TensorEntry, dissect


@dataclass(frozen=True)
class Row:
    """One line of the list.

    Attributes:
        name: the tensor's full name, or of what belongs to no tensor.
        shape: of the tensor; empty for the rest.
        elements: how many numbers it has.
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


def inspect(path: str | Path) -> list[Row]:
    """The parts of a file: the graph, every tensor in order, the frame (magic, version, lengths, checksum).

    Symbols of small tensors share one stream; each gets its share of it by the length of its symbols under their model.
    Raises: ArtifactError: not a sound artifact.
    """
    anatomy = dissect(path)
    bits = [entry.decoded.stream_bits if entry.same_as is None else 0.0 for entry in anatomy.tensors]
    shares = _shares(bits, anatomy.stream_bytes)
    rows = [_rest("graph", anatomy.graph_bytes)]
    rows += [_row(entry, share) for entry, share in zip(anatomy.tensors, shares, strict=True)]
    unshared = anatomy.stream_bytes - sum(shares)
    return [*rows, _rest("frame", anatomy.frame_bytes + unshared)]


def _row(entry: TensorEntry, share: int) -> Row:
    decoded = entry.decoded
    n = decoded.value.numel()
    size = entry.head_bytes + entry.blob_bytes + share
    kind = (
        decoded.representation.kind
        if decoded.representation is not None
        else str(decoded.value.dtype).removeprefix("torch.")
    )
    return Row(
        entry.slot.name,
        tuple(decoded.value.shape),
        n,
        float((decoded.value != 0).double().mean()) if n else None,
        f"{kind}, {decoded.coder}" if entry.same_as is None else "same as one above",
        8 * size / n if n else None,
        decoded.entropy_bits / n if decoded.entropy_bits is not None and n else None,
        size,
    )


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
