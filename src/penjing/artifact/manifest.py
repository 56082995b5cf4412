"""The graph as bytes: inputs, nodes, and the settings of the modules they call. About two bytes a node.

Modules come in the order in which nodes first call them, so a node says only "the next one". A module is the number of its
kind in `graph.ops.MODULES` and the settings that differ from the defaults. An operation is its number in
`graph.ops.OPERATIONS` and its settings in order. Inputs of a node are distances back in the list of nodes.
Reading builds modules on the meta device: nothing is allocated, nothing executed, nothing that is not in the tables exists.
"""

import math
import zlib
from dataclasses import replace

import torch
from torch import nn

from penjing.artifact.values import read_string, read_value, write_string, write_value
from penjing.entropy import ByteReader, ByteWriter
from penjing.errors import ArtifactError, TraceError
from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT, Network, Node
from penjing.graph.ops import MODULES, OPERATIONS, kind_of

_KINDS = list(MODULES)
_OPERATIONS = list(OPERATIONS)
_CONTROL = [MODULE, "call again", EXIT, OUTPUT, INPUT]
_MAX_NODES, _MAX_NODE_INPUTS, _MAX_DEPTH, _MAX_MANIFEST = 1 << 14, 4096, 32, 1 << 21
_MAX_EXITS, _MAX_INPUT_ELEMENTS = 256, 1 << 28
_DICTIONARY = (
    b"downsample.0.layer1.layer2.layer3.layer4.blocks.features.classifier.backbone.encoder.conv1.conv2.conv3.bn1.bn2."
    b"norm1.norm2.linear.fc.0.1.2.3.4.5.6.7.8.9.10.11.12.shortcut.exits.0.linear\x01x"
    b".depthwise.norm.pointwise.depthwise\x00.norm\x02.pointwise"
)
"""What deflate may refer back to from the first byte on. Part of format version 1."""


def write_graph(network: Network) -> bytes:
    """The network's structure; weights are not part of it.

    Raises: TraceError: a module that may not travel, or a network that is too large for the format.
    """
    if (
        len(network.nodes) > _MAX_NODES
        or len(network.exits) > _MAX_EXITS
        or any(len(node.inputs) > _MAX_NODE_INPUTS for node in network.nodes)
    ):
        raise TraceError(
            f"artifact: a file holds at most {_MAX_NODES} nodes with {_MAX_NODE_INPUTS} inputs each and {_MAX_EXITS} exits;"
            f" this network has {len(network.nodes)} nodes and {len(network.exits)} exits."
        )
    writer = ByteWriter()
    paths: dict[str, int] = {}
    writer.uvarint(len(network.nodes))
    positions = {node.name: position for position, node in enumerate(network.nodes)}
    shapes = iter(network.input_shapes)
    for position, node in enumerate(network.nodes):
        distances = [position - positions[name] for name in node.inputs]
        chained = distances == [1]
        again = node.op == MODULE and node.path in paths
        number = _CONTROL.index("call again" if again else node.op) if node.op in _CONTROL else None
        if number is None:
            number = len(_CONTROL) + _OPERATIONS.index(node.op)
        writer.uvarint(2 * number + (0 if chained else 1))
        if not chained:
            writer.uvarint(len(distances))
            for distance in distances:
                writer.uvarint(distance)
        if node.op == INPUT:
            write_string(writer, node.name)
            write_value(writer, _shape(next(shapes)))
        elif again:
            writer.uvarint(paths[node.path])
        elif node.op == MODULE:
            paths[node.path] = len(paths)
            _write_module(writer, node.path, network.get_submodule(node.path))
        elif node.op == EXIT:
            write_value(writer, float(node.settings["threshold"]))
        elif node.op != OUTPUT:
            for name in OPERATIONS[node.op].settings:
                write_value(writer, node.settings[name])
    content = writer.finish()
    if len(content) > _MAX_MANIFEST:
        raise TraceError(f"artifact: the graph takes {len(content)} bytes; at most {_MAX_MANIFEST} are possible.")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    packed = packer.compress(content) + packer.flush()
    return b"\x01" + packed if len(packed) < len(content) else b"\x00" + content


def read_graph(data: bytes) -> Network:
    """The network with its modules on the meta device.

    Raises: ArtifactError: anything that `write_graph` would not have written.
    """
    reader = ByteReader(_unpack(data), "artifact: graph")
    n = reader.uvarint()
    if n > _MAX_NODES:
        raise ArtifactError(f"artifact: the graph has {n} nodes; at most {_MAX_NODES} are possible.")
    nodes: list[Node] = []
    modules: dict[str, nn.Module] = {}
    shapes: list[tuple[int, ...]] = []
    paths: list[str] = []
    taken: set[str] = set()
    for position in range(n):
        number, chained = divmod(reader.uvarint(), 2)
        n_inputs = reader.uvarint() if chained else 1
        if n_inputs > _MAX_NODE_INPUTS:
            raise ArtifactError(f"artifact: a node has {n_inputs} inputs; at most {_MAX_NODE_INPUTS} are possible.")
        distances = [reader.uvarint() for _ in range(n_inputs)] if chained else [1]
        if any(not 1 <= d <= position for d in distances):
            raise ArtifactError("artifact: a node of the graph refers to one that is not before it.")
        inputs = tuple(nodes[position - d].name for d in distances)
        if number >= len(_CONTROL) + len(_OPERATIONS):
            raise ArtifactError("artifact: the graph has an operation that this version of penjing does not know.")
        op = _CONTROL[number] if number < len(_CONTROL) else _OPERATIONS[number - len(_CONTROL)]
        node = _read_node(reader, op, position, inputs, modules, paths, shapes)
        while op != INPUT and node.name in taken:  # inputs have names of the user's
            node = replace(node, name=node.name + "_")
        taken.add(node.name)
        nodes.append(node)
    if sum(node.op == EXIT for node in nodes) > _MAX_EXITS:
        raise ArtifactError(f"artifact: the graph has more than {_MAX_EXITS} exits.")
    try:
        return Network(nodes, modules, shapes)
    except (TraceError, KeyError) as error:
        raise ArtifactError(f"artifact: the graph is not sound ({error}).") from None


def _read_node(
    reader: ByteReader,
    op: str,
    position: int,
    inputs: tuple[str, ...],
    modules: dict[str, nn.Module],
    paths: list[str],
    shapes: list[tuple[int, ...]],
) -> Node:
    name = f"{op.replace(' ', '_')}_{position}"
    if op == INPUT:
        name = read_string(reader)
        shapes.append(_shape(read_value(reader)))
        return Node(name, INPUT)
    if op == "call again":
        index = reader.uvarint()
        if index >= len(paths):
            raise ArtifactError("artifact: the graph calls a module that it does not have.")
        return Node(name, MODULE, inputs, paths[index])
    if op == MODULE:
        path, module = _read_module(reader)
        if path in modules:
            raise ArtifactError(f'artifact: the graph has two modules called "{path}".')
        modules[path] = module
        paths.append(path)
        return Node(path.replace(".", "_") + f"_{position}", MODULE, inputs, path)
    if op == EXIT:
        threshold = read_value(reader)
        if not isinstance(threshold, float):
            raise ArtifactError("artifact: an exit's threshold is not a number.")
        return Node(name, EXIT, inputs, settings={"threshold": threshold})
    if op == OUTPUT:
        return Node(name, OUTPUT, inputs)
    return Node(name, op, inputs, settings={key: read_value(reader) for key in OPERATIONS[op].settings})


def _write_module(writer: ByteWriter, path: str, module: nn.Module) -> None:
    name = kind_of(module)
    if name is None:
        raise TraceError(
            f'artifact: the layer "{path}" is a {type(module).__name__}, which cannot travel in a file yet.'
        )
    kind = MODULES[name]
    if not _is_path(path):
        raise TraceError(
            f'artifact: "{path}" is no name for a layer; at most {_MAX_DEPTH} parts of printable characters.'
        )
    settings = {key: _flat(value) for key, value in kind.describe(module).items()}
    changed = [(i, key) for i, key in enumerate(kind.settings) if settings[key] != kind.settings[key]]
    write_string(writer, path)
    writer.uvarint(_KINDS.index(name))
    writer.uvarint(sum(1 << i for i, _ in changed))
    for _, key in changed:
        write_value(writer, settings[key])


def _read_module(reader: ByteReader) -> tuple[str, nn.Module]:
    path = read_string(reader)
    number, changed = reader.uvarint(), reader.uvarint()
    if number >= len(_KINDS):
        raise ArtifactError("artifact: the graph has a kind of module that this version of penjing does not know.")
    if not _is_path(path):
        raise ArtifactError("artifact: the graph has a module without a proper path.")
    kind = MODULES[_KINDS[number]]
    if changed >> len(kind.settings):
        raise ArtifactError("artifact: a module has a setting that this version of penjing does not know.")
    settings = {key: read_value(reader) for i, key in enumerate(kind.settings) if changed >> i & 1}
    try:
        with torch.device("meta"):
            return path, kind.build(settings)
    except Exception as error:
        raise ArtifactError(f'artifact: the settings of the module "{path}" are impossible ({error}).') from None


def _is_path(path: str) -> bool:
    parts = path.split(".")
    return len(parts) <= _MAX_DEPTH and all(part and part.isprintable() for part in parts)


def _flat(value: object) -> object:
    """(3, 3) as 3: the modules of torch.nn take both for the same."""
    if isinstance(value, (tuple, list)) and value and all(item == value[0] for item in value):
        return value[0]
    return value


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(isinstance(size, int) and 0 < size < 1 << 31 for size in value):
        raise ArtifactError("artifact: the shape of an input is not one.")
    if math.prod(value) > _MAX_INPUT_ELEMENTS:
        raise ArtifactError(f"artifact: an input has {math.prod(value)} elements; at most 2**28 are possible.")
    return value


def _unpack(data: bytes) -> bytes:
    if data[:1] == b"\x00":
        return data[1:]
    if data[:1] != b"\x01":
        raise ArtifactError("artifact: the graph is written in a way that this version of penjing does not know.")
    unpacker = zlib.decompressobj(-15, _DICTIONARY)
    try:
        content = unpacker.decompress(data[1:], _MAX_MANIFEST)
    except zlib.error as error:
        raise ArtifactError(f"artifact: the graph cannot be unpacked ({error}).") from None
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ArtifactError("artifact: the graph does not end where it should.")
    return content
