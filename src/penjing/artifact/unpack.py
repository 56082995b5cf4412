"""An artifact's tensors as a safetensors file, tensor by tensor."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from penjing.artifact.codecs.plain import elements
from penjing.artifact.opened import Artifact, open_artifact
from penjing.errors import ArtifactError
from penjing.files import written_atomically

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK = 1 << 24


def unpack(
    source: str | Path,
    target: str | Path,
    *,
    sha256: str | None = None,
    progress: Callable[[int], Any] = lambda n_bytes: None,
) -> int:
    """Write the tensors of an artifact as a safetensors file: what `pack` was given, or the weights of a network by name.

    A checkpoint that was packed without loss comes back byte for byte where the safetensors library wrote it. Tensors that are
    one object are written for each of their names. In memory is one tensor at a time.

    Args:
        sha256: of the artifact, as in `open_artifact`.
        progress: called with the bytes of every tensor that is done.
    Returns: the size of the file.
    Raises: ArtifactError: not a sound artifact. RunError: the target cannot be written.
    """
    with open_artifact(source, sha256=sha256) as artifact, written_atomically(Path(target)) as file:
        file.write(_header(artifact))
        for name in artifact.names:
            entry, value = artifact.entry(name), artifact.tensor(name)
            if value.dtype != entry.dtype or tuple(value.shape) != entry.shape:
                raise ArtifactError(f'{source}: the tensor "{name}" is not what its head says; the file is damaged.')
            data = elements(value)
            for start in range(0, len(data), _CHUNK):
                file.write(data[start : start + _CHUNK].data)
            del value
            progress(len(data))
            del data
        return file.tell()


def unpacked_bytes(artifact: Artifact) -> int:
    """What the tensors of an artifact take as they are."""
    return sum(math.prod(entry.shape) * entry.dtype.itemsize for entry in artifact.entries.values())


def _header(artifact: Artifact) -> bytes:
    """Eight bytes of length, and names, types, shapes and places as JSON, padded with spaces to a multiple of eight."""
    listed: dict[str, Any] = {}
    if artifact.tensors is not None and artifact.tensors.remarks:
        listed["__metadata__"] = dict(artifact.tensors.remarks)
    position = 0
    for name, entry in artifact.entries.items():
        end = position + math.prod(entry.shape) * entry.dtype.itemsize
        listed[name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
