"""The graph as bytes: inputs, nodes, and the settings of the modules they call. About two bytes a node.

After the number of records come the records, each with a code of `CODES`:

    2 * code + 1        varint; without the 1 the inputs are what is usual: the record before, or none where the operation
                        takes none
    n d d ...           with the 1: the number of inputs, and for each how many records back it is
    the rest            see below; strings, values, forms and modules as in `values`, `forms`, `modules`

    module              the next module
    call again          number of a module that was there before; in another network it has the same path
    call as             number of a module that was there before, and another path for it; counts as a module
    exit                threshold
    exit by             what confidence is, by its position in `CONFIDENCES`; its name, or ""; threshold
    output              nothing
    formed output       the structure of the answer
    input               name, shape
    typed input         name; sizes in the example that are new here, as a tuple, for the symbols from the next number on, each
                        with its smallest and largest as a tuple where there are limits;
                        shape, which may have a `Size`; dtype, low and high, each None where it is not given
    tensor              path; 0 for a parameter, 1 for a buffer, each with its shape, 2 for what a module or a record before has
    entry               name: a network of its own begins; all of a file begin so, or none
    scope               how many parts of the last module's path go to leave the scope, 0 for none of it, then the path itself:
                        of the operations from here to the next module, which else belong where that module does
    an operation        its settings in order

Symbol 0 is the size of the batch; each network numbers its own. Modules are on the meta device after reading: nothing is
allocated, nothing executed, nothing that is not in the tables exists. All is packed by deflate where that is shorter.

The first format, that of penjing 0.1.0, had the codes before "tensor"; what it can say is still written as it wrote it.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from penjing.artifact.forms import read_form, write_form
from penjing.artifact.modules import fresh, known_kind, read_module, read_path, write_module, write_path
from penjing.artifact.networks import by_name
from penjing.artifact.slots import slots
from penjing.artifact.values import MAX_SYMBOLS, read_string, read_value, write_string, write_value
from penjing.entropy import ByteReader, ByteWriter
from penjing.errors import ArtifactError, PenjingError, TraceError
from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT, TENSOR, Network, Node, module_at, tensor_at
from penjing.graph.node import CONFIDENCES
from penjing.graph.ops import DTYPES, GATE, GATE_RULES, OPERATIONS
from penjing.graph.sizes import BATCH, FUNCTIONS, Size, resolve

_AGAIN, _CALL_AS, _TYPED_INPUT, _FORMED_OUTPUT, _ENTRY, _EXIT_BY, _SCOPE = (
    "call again",
    "call as",
    "typed input",
    "formed output",
    "entry",
    "exit by",
    "scope",
)
_N_FIRST, _N_BEFORE_GATES = 22, list(OPERATIONS).index(GATE)
CODES = (
    *(MODULE, _AGAIN, EXIT, OUTPUT, INPUT),
    *list(OPERATIONS)[:_N_FIRST],
    *(TENSOR, _ENTRY, _CALL_AS, _TYPED_INPUT, _FORMED_OUTPUT),
    *list(OPERATIONS)[_N_FIRST:_N_BEFORE_GATES],
    _EXIT_BY,
    *list(OPERATIONS)[_N_BEFORE_GATES:],
    _SCOPE,
)
"""What a record may be. Their order is the file format: only append."""
_NUMBER = {code: number for number, code in enumerate(CODES)}
_PARAMETER, _BUFFER, _KNOWN = range(3)
_LARGEST = next(iter(CONFIDENCES))
_TYPE_SETTINGS = ("dtype", "low", "high")

_MAX_NODES, _MAX_NODE_INPUTS, _MAX_MANIFEST = 1 << 14, 4096, 1 << 21
_MAX_EXITS, _MAX_INPUT_ELEMENTS, _MAX_DIM = 256, 1 << 28, 1 << 31
_MAX_TENSORS, _MAX_TENSOR_ELEMENTS = 1 << 15, 1 << 48
_DICTIONARY = (
    b"downsample.0.layer1.layer2.layer3.layer4.blocks.features.classifier.backbone.encoder.conv1.conv2.conv3.bn1.bn2."
    b"norm1.norm2.linear.fc.0.1.2.3.4.5.6.7.8.9.10.11.12.shortcut.exits.0.linear\x01x"
    b".depthwise.norm.pointwise.depthwise\x00.norm\x02.pointwise"
)
"""What deflate may refer back to from the first byte on. Part of format version 1."""


def write_graph(network: Network | Mapping[str, Network]) -> bytes:
    """The structure of a network, or of several by name; weights are not part of it.

    Raises: TraceError: a module that may not travel, a setting that the operation does not have, or networks that are too
        large for the format. ArtifactError: a setting or name that cannot be written.
    """
    networks = by_name(network)
    nodes = [node for net in networks.values() for node in net.nodes]
    n_exits = sum(node.op == EXIT for node in nodes)
    writer = _Writer()
    for name, net in networks.items():
        if name:
            writer.start(_ENTRY, [])
            write_string(writer.to, name)
        writer.network(net)
    n_records = writer.n_records
    if n_records > _MAX_NODES or n_exits > _MAX_EXITS or any(len(node.inputs) > _MAX_NODE_INPUTS for node in nodes):
        raise TraceError(
            f"artifact: a file holds at most {_MAX_NODES} records with {_MAX_NODE_INPUTS} inputs each and {_MAX_EXITS} exits;"
            f" this network has {n_records} records and {n_exits} exits."
        )
    head = ByteWriter()
    head.uvarint(n_records)
    content = head.finish() + writer.to.finish()
    if len(content) > _MAX_MANIFEST or writer.n_tensors > _MAX_TENSORS:
        raise TraceError(
            f"artifact: the graph takes {len(content)} bytes and has {writer.n_tensors} tensors; at most {_MAX_MANIFEST} and "
            f"{_MAX_TENSORS} are possible."
        )
    return pack_bytes(content)


def read_graph(data: bytes) -> dict[str, Network]:
    """The networks by name, with all tensors on the meta device; the one of a file without names is called "".

    Raises: ArtifactError: anything that `write_graph` would not have written.
    """
    reader = ByteReader(unpack_bytes(data, _MAX_MANIFEST), "artifact: graph")
    n = reader.uvarint()
    if n > _MAX_NODES:
        raise ArtifactError(f"artifact: the graph has {n} nodes; at most {_MAX_NODES} are possible.")
    graph = _Reader(reader)
    for _ in range(n):
        graph.record()
    if reader.n_left:
        raise ArtifactError(f"artifact: {reader.n_left} bytes are left over after the graph.")
    if sum(record.op == EXIT for draft in graph.drafts.values() for record in draft.records) > _MAX_EXITS:
        raise ArtifactError(f"artifact: the graph has more than {_MAX_EXITS} exits.")
    try:
        found = {name: draft.network() for name, draft in (graph.drafts or {"": _Draft()}).items()}
        by_name(found.get("", found))
        slots(found)
    except ArtifactError:
        raise
    except (PenjingError, KeyError) as error:
        raise ArtifactError(f"artifact: the graph is not sound ({error}).") from None
    return found


def _usual(code: str) -> list[int]:
    """The inputs that need not be written: the record before, or none."""
    no_inputs = code in (TENSOR, _ENTRY, _TYPED_INPUT, _SCOPE) or (
        code in OPERATIONS and OPERATIONS[code].n_inputs == 0
    )
    return [] if no_inputs else [1]


class _Writer:
    """Writes networks one after another; modules that are already there are only named."""

    def __init__(self) -> None:
        self.to = ByteWriter()
        self.numbers: dict[tuple[str, int], int] = {}  # of modules, by path and identity
        self.first: dict[int, int] = {}  # by identity, the number of the first path
        self.n_tensors = self.n_records = 0

    def start(self, code: str, distances: list[int]) -> None:
        """Begin a record."""
        self.n_records += 1
        usual = distances == _usual(code)
        self.to.uvarint(2 * _NUMBER[code] + (not usual))
        if not usual:
            self.to.uvarint(len(distances))
            for distance in distances:
                self.to.uvarint(distance)

    def network(self, network: Network) -> None:
        """Append all records of one network."""
        symbols = [BATCH]
        positions = {node.name: position for position, node in enumerate(network.nodes)}
        known = {f"{path}.{key}" for path, layer in network.layers().items() for key in _tensor_names(path, layer)}
        shapes = iter(network.input_shapes)
        self.n_tensors += len(known)
        last_module = scope = ""
        for position, node in enumerate(network.nodes):
            _check_settings(node)
            distances = [position - positions[name] for name in node.inputs]
            if node.op == MODULE:
                last_module, scope = node.path, node.path.rpartition(".")[0]
            elif node.op in OPERATIONS and node.scope != scope:
                scope = node.scope
                self._scope(scope, last_module)
            if node.op == MODULE:
                self._module(node.path, network.get_submodule(node.path), distances)
            elif node.op == INPUT:
                self._input(node, next(shapes), network, symbols)
            elif node.op == TENSOR:
                self._tensor(node.path, network, known)
            elif node.op == OUTPUT and (node.settings.get("form") is not None or len(distances) > 1):
                self.start(_FORMED_OUTPUT, distances)
                write_form(self.to, node.settings.get("form", 0), len(distances))
            elif node.op == EXIT and set(node.settings) != {"threshold"}:
                self.start(_EXIT_BY, distances)
                self.to.uvarint(list(CONFIDENCES).index(node.settings.get("confidence", _LARGEST)))
                write_string(self.to, node.settings.get("label", ""))
                write_value(self.to, node.settings["threshold"])
            else:
                self.start(node.op, distances)
                names = ("threshold",) if node.op == EXIT else _settings_of(node.op)
                for name in names:
                    write_value(self.to, node.settings[name], symbols)

    def _scope(self, scope: str, last_module: str) -> None:
        self.start(_SCOPE, [])
        if not scope or last_module.startswith(f"{scope}."):
            self.to.uvarint(len(last_module.split(".")) - (len(scope.split(".")) if scope else 0))
        else:
            self.to.uvarint(0)
            write_path(self.to, scope)

    def _module(self, path: str, module: nn.Module, distances: list[int]) -> None:
        key = (path, id(module))
        if key in self.numbers:
            self.start(_AGAIN, distances)
            self.to.uvarint(self.numbers[key])
            return
        if id(module) in self.first:
            self.start(_CALL_AS, distances)
            self.to.uvarint(self.first[id(module)])
            write_path(self.to, path)
        else:
            self.start(MODULE, distances)
            write_module(self.to, path, module)
            self.first[id(module)] = len(self.numbers)
        self.numbers[key] = len(self.numbers)

    def _input(self, node: Node, shape: tuple[int | Size, ...], network: Network, symbols: list[str]) -> None:
        hints, limits = network.hints, network.limits
        if not node.settings and not any(isinstance(size, Size) for size in shape):
            self.start(INPUT, [])
            write_string(self.to, node.name)
            write_value(self.to, _shape(shape))
            return
        named = [s for size in shape if isinstance(size, Size) for s in size.tokens if isinstance(s, str)]
        new = [s for s in dict.fromkeys(named) if s not in symbols and s not in FUNCTIONS]
        if set(new) - set(hints):
            raise TraceError(
                f'artifact: the input "{node.name}" must have a hint for {", ".join(new)}; the network has hints for '
                f"{', '.join(hints) or 'none'}."
            )
        symbols += new
        self.start(_TYPED_INPUT, [])
        write_string(self.to, node.name)
        write_value(self.to, tuple((hints[s], *limits[s]) if s in limits else hints[s] for s in new))
        _shape(resolve(shape, {**hints, BATCH: 1}))
        write_value(self.to, shape, symbols)
        for name in _TYPE_SETTINGS:
            write_value(self.to, node.settings.get(name))

    def _tensor(self, path: str, network: Network, known: set[str]) -> None:
        self.start(TENSOR, [])
        write_path(self.to, path)
        if path in known:
            self.to.uvarint(_KNOWN)
            return
        known.add(path)
        self.n_tensors += 1
        owner_path, _, key = path.rpartition(".")
        self.to.uvarint(_BUFFER if key in module_at(network, owner_path)._buffers else _PARAMETER)
        write_value(self.to, tuple(tensor_at(network, path).shape))


def _tensor_names(path: str, layer: nn.Module) -> list[str]:
    kind = known_kind(path, layer)
    made = fresh(kind, kind.describe(layer))
    return [key for key, tensor in [*made._parameters.items(), *made._buffers.items()] if tensor is not None]


def _settings_of(op: str) -> tuple[str, ...]:
    return OPERATIONS[op].settings if op in OPERATIONS else ()


def _check_settings(node: Node) -> None:
    allowed = {EXIT: {"threshold", "confidence", "label"}, OUTPUT: {"form"}, INPUT: set(_TYPE_SETTINGS)}.get(
        node.op, set(_settings_of(node.op))
    )
    optional = node.op in (OUTPUT, INPUT) or (node.op == EXIT and "threshold" in node.settings)
    if set(node.settings) - allowed or (not optional and allowed - set(node.settings)):
        raise TraceError(
            f'artifact: the node "{node.name}" ({node.op}) must have the settings {", ".join(sorted(allowed)) or "(none)"},'
            f" it has {', '.join(sorted(node.settings)) or '(none)'}."
        )


class _Draft:
    """A network while it is read."""

    def __init__(self) -> None:
        self.records: list[Node] = []  # without inputs; those are positions
        self.inputs: list[tuple[int, ...]] = []
        self.modules: dict[str, nn.Module] = {}
        self.tensors: dict[str, Tensor] = {}
        self.shapes: list[tuple[int | Size, ...]] = []
        self.hints: dict[str, int] = {}
        self.limits: dict[str, tuple[int, int]] = {}
        self.symbols = [BATCH]
        self.last_module = self.scope = ""

    def network(self) -> Network:
        """The network. Raises: ArtifactError: a tensor that is part of a module."""
        for path in self.tensors:
            owner_path, _, key = path.rpartition(".")
            owner = self.modules.get(owner_path, nn.Module())
            if key in owner._parameters or key in owner._buffers:
                raise ArtifactError(f'artifact: the graph has a tensor "{path}" that is part of a module.')
        names = self._names()
        nodes = [
            replace(record, name=name, inputs=tuple(names[i] for i in inputs))
            for record, name, inputs in zip(self.records, names, self.inputs, strict=True)
        ]
        return Network(nodes, self.modules, self.shapes, self.hints, self.tensors, self.limits)

    def _names(self) -> list[str]:
        """A name for each record that no other has; inputs have names of the user's."""
        taken = {record.name for record in self.records if record.op == INPUT}
        names: list[str] = []
        for record in self.records:
            name = record.name
            while record.op != INPUT and name in taken:
                name += "_"
            taken.add(name)
            names.append(name)
        return names


class _Reader:
    """Reads records; everything in them is checked before it is used."""

    def __init__(self, reader: ByteReader) -> None:
        self.of = reader
        self.drafts: dict[str, _Draft] = {}
        self.modules: list[tuple[str, nn.Module]] = []
        self.n_tensors = 0

    def record(self) -> None:
        """Read the next record."""
        number, given = divmod(self.of.uvarint(), 2)
        if number >= len(CODES):
            raise ArtifactError("artifact: the graph has an operation that this version of penjing does not know.")
        code = CODES[number]
        n_inputs = self.of.uvarint() if given else 0
        if n_inputs > _MAX_NODE_INPUTS:
            raise ArtifactError(f"artifact: a node has {n_inputs} inputs; at most {_MAX_NODE_INPUTS} are possible.")
        distances = [self.of.uvarint() for _ in range(n_inputs)] if given else _usual(code)
        if code == _ENTRY:
            name = read_string(self.of)
            if distances or name in self.drafts or "" in self.drafts:
                raise ArtifactError("artifact: the graph has a network that does not begin as it should.")
            self.drafts[name] = _Draft()
            return
        if not self.drafts:
            self.drafts[""] = _Draft()
        draft = next(reversed(self.drafts.values()))
        if code == _SCOPE and not distances:
            draft.scope = self._scope(draft.last_module)
            return
        position = len(draft.records)
        if any(not 1 <= d <= position for d in distances):
            raise ArtifactError("artifact: a node of the graph refers to one that is not before it.")
        draft.records.append(self._node(code, position, len(distances), draft))
        draft.inputs.append(tuple(position - d for d in distances))

    def _node(self, code: str, position: int, n_inputs: int, draft: _Draft) -> Node:
        name = f"{code.replace(' ', '_')}_{position}"
        if code == INPUT:
            node = Node(read_string(self.of), INPUT)
            draft.shapes.append(_shape(read_value(self.of)))
            return node
        if code == _TYPED_INPUT:
            return self._typed_input(draft)
        if code in (MODULE, _AGAIN, _CALL_AS):
            path = self._module(code, draft)
            draft.last_module, draft.scope = path, path.rpartition(".")[0]
            return Node(path.replace(".", "_") + f"_{position}" if code == MODULE else name, MODULE, path=path)
        if code in (EXIT, _EXIT_BY):
            kind = self.of.uvarint() if code == _EXIT_BY else 0
            label = read_string(self.of) if code == _EXIT_BY else ""
            threshold = read_value(self.of)
            if not isinstance(threshold, float):
                raise ArtifactError("artifact: an exit's threshold is not a number.")
            if kind >= len(CONFIDENCES):
                raise ArtifactError("artifact: an exit has a confidence that this version of penjing does not know.")
            more = {"confidence": list(CONFIDENCES)[kind] if kind else "", "label": label}
            return Node(name, EXIT, settings={"threshold": threshold} | {key: v for key, v in more.items() if v})
        if code == OUTPUT:
            return Node(name, OUTPUT)
        if code == _FORMED_OUTPUT:
            return Node(name, OUTPUT, settings={"form": read_form(self.of, n_inputs)})
        if code == TENSOR:
            return Node(name, TENSOR, path=self._tensor(draft))
        settings = {key: read_value(self.of, draft.symbols) for key in OPERATIONS[code].settings}
        if code == GATE and (settings["rule"] not in GATE_RULES or type(settings["column"]) is not int):
            raise ArtifactError("artifact: the graph has a gate that this version of penjing does not know.")
        dtype = settings.get("dtype", 0)
        if not isinstance(dtype, int) or not 0 <= dtype < len(DTYPES):
            raise ArtifactError("artifact: the graph has a type of tensors that this version of penjing does not know.")
        return Node(name, code, settings=settings, scope=draft.scope)

    def _scope(self, last_module: str) -> str:
        parts, fewer = last_module.split("."), self.of.uvarint()
        if not fewer:
            return read_path(self.of)
        if fewer > len(parts):
            raise ArtifactError("artifact: the graph has operations outside of everything.")
        return ".".join(parts[: len(parts) - fewer])

    def _module(self, code: str, draft: _Draft) -> str:
        if code == MODULE:
            path, module = read_module(self.of)
            self.modules.append((path, module))
            self._count(sum(t is not None for t in [*module._parameters.values(), *module._buffers.values()]))
        else:
            index = self.of.uvarint()
            if index >= len(self.modules):
                raise ArtifactError("artifact: the graph calls a module that it does not have.")
            path, module = self.modules[index]
            if code == _CALL_AS:
                path = read_path(self.of)
                self.modules.append((path, module))
        if path in draft.modules and (code == MODULE or draft.modules[path] is not module):
            raise ArtifactError(f'artifact: the graph has two modules called "{path}".')
        draft.modules[path] = module
        return path

    def _count(self, n: int) -> None:
        """Against graphs that are soon read and long made. Raises: ArtifactError: there are too many tensors."""
        self.n_tensors += n
        if self.n_tensors > _MAX_TENSORS:
            raise ArtifactError(f"artifact: the graph has more than {_MAX_TENSORS} tensors.")

    def _typed_input(self, draft: _Draft) -> Node:
        name = read_string(self.of)
        sizes = read_value(self.of)
        for size in sizes if isinstance(sizes, tuple) else (None,):
            symbol = f"s{len(draft.symbols)}"
            hint, *limits = size if isinstance(size, tuple) and size else (size,)
            _shape((hint,))
            if len(limits) not in (0, 2) or any(
                type(limit) is not int or not 0 <= limit < _MAX_DIM for limit in limits
            ):
                raise ArtifactError("artifact: the limits of a size are none.")
            draft.symbols.append(symbol)
            draft.hints[symbol] = hint
            if limits:
                draft.limits[symbol] = (limits[0], limits[1])
        if len(draft.symbols) > MAX_SYMBOLS:
            raise ArtifactError(f"artifact: the inputs have more than {MAX_SYMBOLS} sizes that may differ.")
        shape = read_value(self.of, draft.symbols)
        if not isinstance(shape, tuple) or not all(isinstance(size, (int, Size)) for size in shape):
            raise ArtifactError("artifact: the shape of an input is not one.")
        _shape(tuple(resolve(size, {**draft.hints, BATCH: 1}) for size in shape))
        draft.shapes.append(shape)
        settings = {key: value for key in _TYPE_SETTINGS if (value := read_value(self.of)) is not None}
        if any(isinstance(v, bool) or not isinstance(v, int) for v in settings.values()):
            raise ArtifactError("artifact: the type of an input is not one.")
        if not 0 <= settings.get("dtype", 0) < len(DTYPES) or settings.get("low", 0) > settings.get("high", 1 << 62):
            raise ArtifactError("artifact: the type of an input is not one that this version of penjing knows.")
        return Node(name, INPUT, settings=settings)

    def _tensor(self, draft: _Draft) -> str:
        path, code = read_path(self.of), self.of.uvarint()
        if code == _KNOWN:
            return path
        if code not in (_PARAMETER, _BUFFER):
            raise ArtifactError(
                f'artifact: the tensor "{path}" is of a kind that this version of penjing does not know.'
            )
        shape = read_value(self.of)
        self._count(1)
        sound = isinstance(shape, tuple) and all(type(size) is int and 0 <= size < _MAX_DIM for size in shape)
        # empty ones too: strides are products
        n_elements = math.prod(max(size, 1) for size in shape) if sound else 0
        if not sound or n_elements > _MAX_TENSOR_ELEMENTS or path in draft.tensors:
            raise ArtifactError(f'artifact: the tensor "{path}" cannot have the shape {shape}, or is there twice.')
        empty = torch.empty(shape, device="meta")
        draft.tensors[path] = nn.Parameter(empty) if code == _PARAMETER else empty
        return path


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(isinstance(size, int) and 0 < size < _MAX_DIM for size in value):
        raise ArtifactError("artifact: the shape of an input is not one.")
    if math.prod(value) > _MAX_INPUT_ELEMENTS:
        raise ArtifactError(f"artifact: an input has {math.prod(value)} elements; at most 2**28 are possible.")
    return value


def pack_bytes(content: bytes) -> bytes:
    """A byte that says whether the rest is packed by deflate, and the rest."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    packed = packer.compress(content) + packer.flush()
    return b"\x01" + packed if len(packed) < len(content) else b"\x00" + content


def unpack_bytes(data: bytes, most: int) -> bytes:
    """What `pack_bytes` was given. Raises: ArtifactError: damaged, or it would be more than `most` bytes."""
    if data[:1] == b"\x00":
        return data[1:]
    if data[:1] != b"\x01":
        raise ArtifactError("artifact: the graph is written in a way that this version of penjing does not know.")
    unpacker = zlib.decompressobj(-15, _DICTIONARY)
    try:
        content = unpacker.decompress(data[1:], most)
    except zlib.error as error:
        raise ArtifactError(f"artifact: the graph cannot be unpacked ({error}).") from None
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ArtifactError("artifact: the graph does not end where it should.")
    return content
