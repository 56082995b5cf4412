"""A module as bytes: its path, the number of its kind in `graph.modules.MODULES`, settings that differ from the defaults.

Reading builds it on the meta device: nothing is allocated, nothing that is not in the table exists.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from penjing.artifact.values import read_string, read_value, write_string, write_value
from penjing.entropy import ByteReader, ByteWriter
from penjing.errors import ArtifactError, TraceError
from penjing.graph.modules import MODULES, ModuleKind, kind_of

_KINDS = list(MODULES)
_MAX_DEPTH, _MAX_RECURRENT = 32, 256


def write_module(writer: ByteWriter, path: str, module: nn.Module) -> None:
    """Append a module.

    Raises: TraceError: its class is not in the table, or its path is no name.
    """
    kind = known_kind(path, module)
    settings = {key: _flat(key, value) for key, value in kind.describe(module).items()}
    changed = [(i, key) for i, key in enumerate(kind.settings) if settings[key] != kind.settings[key]]
    write_path(writer, path)
    writer.uvarint(_KINDS.index(str(kind_of(module))))
    writer.uvarint(sum(1 << i for i, _ in changed))
    for _, key in changed:
        write_value(writer, settings[key])


def read_module(reader: ByteReader) -> tuple[str, nn.Module]:
    """Read a module: its path, and the module on the meta device.

    Raises: ArtifactError: an unknown kind or setting, or a setting that the class refuses.
    """
    path = read_path(reader)
    number, changed = reader.uvarint(), reader.uvarint()
    if number >= len(_KINDS):
        raise ArtifactError("artifact: the graph has a kind of module that this version of penjing does not know.")
    kind = MODULES[_KINDS[number]]
    if changed >> len(kind.settings):
        raise ArtifactError("artifact: a module has a setting that this version of penjing does not know.")
    settings = {key: read_value(reader) for i, key in enumerate(kind.settings) if changed >> i & 1}
    n_layers = settings.get("num_layers", 1)  # the constructor takes its time for each of them
    if not isinstance(n_layers, int) or n_layers > _MAX_RECURRENT:
        raise ArtifactError(
            f'artifact: the module "{path}" has {n_layers} layers; at most {_MAX_RECURRENT} are possible.'
        )
    try:
        return path, fresh(kind, settings)
    except Exception as error:
        raise ArtifactError(f'artifact: the settings of the module "{path}" are impossible ({error}).') from None


def known_kind(path: str, module: nn.Module) -> ModuleKind:
    """The entry of a module's class in the table. Raises: TraceError: it has none."""
    name = kind_of(module)
    if name is None:
        raise TraceError(
            f'artifact: the layer "{path}" is a {type(module).__name__}, which cannot travel in a file yet.'
        )
    return MODULES[name]


def fresh(kind: ModuleKind, settings: Mapping[str, Any]) -> nn.Module:
    """A module of that kind on the meta device; what its constructor would advise is not said."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.build(settings)


def write_path(writer: ByteWriter, path: str) -> None:
    """Append the path of a module or tensor. Raises: TraceError: it is none."""
    if not _is_path(path):
        raise TraceError(
            f'artifact: "{path}" is no name for a layer; at most {_MAX_DEPTH} parts of printable characters.'
        )
    write_string(writer, path)


def read_path(reader: ByteReader) -> str:
    """Read the path of a module or tensor. Raises: ArtifactError: it is none."""
    path = read_string(reader)
    if not _is_path(path):
        raise ArtifactError("artifact: the graph has a module or tensor without a proper path.")
    return path


def _is_path(path: str) -> bool:
    parts = path.split(".")
    return len(parts) <= _MAX_DEPTH and all(part and part.isprintable() for part in parts)


def _flat(key: str, value: object) -> object:
    """(3, 3) as 3: the modules of torch.nn take both for the same, except where the number of dimensions follows from it."""
    if isinstance(value, (tuple, list)) and value and all(item == value[0] for item in value):
        return tuple(value) if key == "normalized_shape" and len(value) > 1 else value[0]
    return value
