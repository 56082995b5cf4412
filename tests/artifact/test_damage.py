"""A file is sound or refused: with an `ArtifactError`, soon, and without taking the machine's memory."""

import resource
import struct
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import zstandard
from torch import nn

from penjing.artifact import container, decode, encode, manifest, modules
from penjing.artifact.codecs.plain import DTYPES
from penjing.artifact.manifest import CODES, write_graph
from penjing.artifact.values import read_value, write_value
from penjing.entropy import ByteReader, ByteWriter, best_frequencies
from penjing.errors import ArtifactError, PenjingError
from penjing.graph import Network, Node
from penjing.graph.modules import MODULES
from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT
from penjing.graph.sizes import Size

N_MUTATIONS = 2000
PLAIN, CONSTANT, CODEBOOK, MASK, SAME = range(5)
FLOAT32, FLOAT64, BOOL = (DTYPES.index(dtype) for dtype in (torch.float32, torch.float64, torch.bool))


def _signed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def _file(graph: bytes, heads: bytes, stream: bytes = b"", blobs: bytes = b"", version: int = 1) -> bytes:
    """A file with a correct checksum, whatever is in it."""
    writer = ByteWriter()
    writer.raw(b"\x8ePJ" + bytes([version]))
    for section in (graph, heads, stream):
        writer.uvarint(len(section))
    for section in (graph, heads, stream, blobs):
        writer.raw(section)
    return _signed(writer.finish())


def _chain(*layers: nn.Module, shape: tuple[int, ...] = (2,)) -> Network:
    nodes = [Node("x", INPUT)]
    for i in range(len(layers)):
        nodes.append(Node(f"n{i}", MODULE, (nodes[-1].name,), f"layer{i}"))
    nodes.append(Node("y", OUTPUT, (nodes[-1].name,)))
    return Network(nodes, {f"layer{i}": layer for i, layer in enumerate(layers)}, [shape])


def _linear(inputs: int, out: int) -> nn.Module:
    return nn.Linear(inputs, out, bias=False, device="meta")


@pytest.fixture(params=["exits", "masked", "clustered, 256 values", "pruned and clustered", "odd tensors", "grids"])
def content(request: pytest.FixtureRequest, build: Callable[[str], Network]) -> bytes:
    return encode(build(request.param))


def _mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, inserted, deleted, repeated or cut off."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(data)))
        way = int(rng.integers(6))
        if way == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif way == 1:
            data[place] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))]))
        elif way == 2:
            data[place:place] = rng.bytes(int(rng.integers(1, 5)))
        elif way == 3:
            del data[place : place + int(rng.integers(1, 5))]
        elif way == 4:
            data[place:place] = data[place : place + int(rng.integers(1, 40))]
        else:
            del data[place + 1 :]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def _mutations(content: bytes) -> Iterator[bytes]:
    rng = np.random.default_rng(len(content))
    for _ in range(N_MUTATIONS // 6):  # six files
        yield _mutated(content, rng)


def _check_sound(network: Network) -> None:
    """Every tensor has the shape that its layer's settings declare."""
    for layer in network.layers().values():
        with torch.device("meta"):
            kind = modules.MODULES[str(modules.kind_of(layer))]
            fresh = kind.build(kind.describe(layer))
        for name, expected in [*fresh._parameters.items(), *fresh._buffers.items()]:
            if expected is not None:
                found = getattr(layer, name)
                assert found.shape == expected.shape
                assert found.device.type == "cpu"


def test_cut_off_at_any_length(content: bytes) -> None:
    for n in range(len(content)):
        with pytest.raises(ArtifactError):
            decode(content[:n])


def test_cut_off_inside(content: bytes) -> None:
    body = content[:-4]
    for n in range(0, len(body), 1 + len(body) // 500):
        with pytest.raises(ArtifactError):
            decode(_signed(body[:n]))


def test_damage_is_told_by_the_checksum(content: bytes) -> None:
    for damaged in _mutations(content):
        if damaged != content:
            with pytest.raises(ArtifactError):
                decode(damaged)


def test_damage_behind_a_right_checksum_is_refused_or_harmless(content: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_sound = 0
    for number, damaged in enumerate(_mutations(content[:-4])):
        start = time.perf_counter()
        try:
            network = decode(_signed(damaged), for_training=bool(number % 2))
        except ArtifactError:
            network = None
        assert time.perf_counter() - start < 1
        if network is not None:
            n_sound += 1
            _check_sound(network)
    assert 0 < n_sound < N_MUTATIONS // 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB


def test_damage_of_an_unpacked_graph_is_refused_or_harmless(build: Callable[[str], Network]) -> None:
    # Behind deflate hardly a mutation gets as far as the nodes.
    for name in ("exits", "odd tensors"):
        network = build(name)
        packed = write_graph(network)
        graph = b"\x00" + zlib.decompressobj(-15, manifest._DICTIONARY).decompress(packed[1:])
        content = encode(network)
        reader = ByteReader(content[4:-4])
        n_graph, n_heads, n_stream = (reader.uvarint() for _ in range(3))
        assert reader.raw(n_graph) == packed
        heads, stream, blobs = reader.raw(n_heads), reader.raw(n_stream), reader.raw(reader.n_left)
        decode(_file(graph, heads, stream, blobs))
        n_sound = 0
        rng = np.random.default_rng(0)
        for _ in range(N_MUTATIONS // 2):
            start = time.perf_counter()
            try:
                found = decode(_file(b"\x00" + _mutated(graph[1:], rng), heads, stream, blobs))
            except ArtifactError:
                found = None
            assert time.perf_counter() - start < 1
            if found is not None:
                n_sound += 1
                _check_sound(found)
        assert n_sound


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\x8eP", "cut off after 2 bytes"),
        (b"PK\x03\x04 a zip archive", "not a penjing artifact"),
        (b"\x80\x02}q\x00.", "not a penjing artifact"),
        (_file(b"", b"", version=2), "format version 2; this penjing reads 1. Update penjing"),
        (_file(b"", b"", version=0), "format version 0"),
        (_file(b"", b""), "the graph is written in a way"),
        (_file(b"\x02", b""), "the graph is written in a way"),
        (_signed(b"\x8ePJ\x01\xff\x01\x00\x00"), "its sections are longer than the file"),
        (_signed(b"\x8ePJ\x01" + b"\xff" * 12), "longer than 9 bytes"),
    ],
)
def test_what_is_no_artifact_is_told(content: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        decode(content, where="small.pj")


def test_every_byte_is_accounted_for() -> None:
    graph = write_graph(_chain(nn.Linear(2, 1, bias=False)))
    sound = bytes([PLAIN | FLOAT32 << 4, 0])
    weights = struct.pack("<2f", 1, 2)
    assert decode(_file(graph, sound, b"", weights)).get_submodule("layer0").weight.tolist() == [[1, 2]]
    for heads, blobs in ((sound, weights + b"\0"), (sound + b"\0", weights), (sound, weights[1:])):
        with pytest.raises(ArtifactError):
            decode(_file(graph, heads, b"", blobs))


LARGE = 1 << 17, 1 << 16
CERTAIN = best_frequencies([1, 0]).table


@pytest.mark.parametrize(
    "head",
    [
        bytes([CONSTANT | FLOAT64 << 4]) + bytes(8),
        bytes([CODEBOOK, 0, 2]) + struct.pack("<e", 1) + b"\x01",  # a table of one entry: 0 bits a code
        bytes([CODEBOOK | 2 << 4, 0, 4]) + struct.pack("<e", 1) + b"\x01\x02" + CERTAIN,
        bytes([MASK | FLOAT32 << 4]) + CERTAIN,
    ],
)
def test_tensors_out_of_nothing_are_bounded(head: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(ArtifactError, match="may hold 33554432 numbers, this one would hold 8589934592"):
        decode(_file(write_graph(_chain(_linear(*LARGE))), head))
    side = 1 << 12
    several = _chain(*[_linear(side, side) for _ in range(5)])  # each is within the bound
    with pytest.raises(ArtifactError, match="may hold 33554432 numbers, this one would hold 83886080"):
        decode(_file(write_graph(several), head * 5))
    assert time.perf_counter() - start < 1
    small = decode(_file(write_graph(_chain(_linear(50, 40))), head))
    assert small.get_submodule("layer0").weight.shape == (40, 50)


def test_what_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(300, 300, bias=False)
    nn.init.constant_(layer.weight, 0.5)
    encode(_chain(layer))
    monkeypatch.setattr(container, "_LEAST_BYTES", 1 << 10)
    with pytest.raises(ArtifactError, match="may hold 65536 numbers, this one would hold 90000"):
        encode(_chain(layer))


def test_compressed_bombs_are_refused() -> None:
    graph = write_graph(_chain(nn.Linear(100, 10, bias=False)))
    with_size = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(1 << 24))
    without = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 24))
    exact = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(4000))
    for packed in (with_size, without, exact + b"\0", b"", exact[:-1]):
        heads = ByteWriter()
        heads.raw(bytes([PLAIN | FLOAT32 << 4, 1]))
        heads.uvarint(len(packed))
        with pytest.raises(ArtifactError):
            decode(_file(graph, heads.finish(), b"", packed))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"\x01" + packer.compress(bytes(1 << 26)) + packer.flush()
    with pytest.raises(ArtifactError, match="does not end where it should"):
        decode(_file(bomb, b""))


def test_graphs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = ".".join("a" * 1500)
    nodes = [Node("x", INPUT), Node("n", MODULE, ("x",), deep), Node("y", OUTPUT, ("n",))]
    with monkeypatch.context() as patch:
        patch.setattr(modules, "_MAX_DEPTH", 10_000)
        graph = write_graph(Network(nodes, {deep: nn.ReLU()}, [(2,)]))
    with pytest.raises(ArtifactError, match="without a proper path"):
        decode(_file(graph, b""))

    many = [Node("x", INPUT), *[Node(f"r{i}", "relu", ("x",)) for i in range(20_000)], Node("y", OUTPUT, ("x",))]
    with pytest.raises(PenjingError, match="at most 16384 records"):
        write_graph(Network(many, {}, [(2,)]))
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_MAX_NODES", 1 << 20)
        graph = write_graph(Network(many, {}, [(2,)]))
    with pytest.raises(ArtifactError, match="20002 nodes; at most 16384 are possible"):
        decode(_file(graph, b""))

    with pytest.raises(ArtifactError, match=r"an input has 4294967296 elements; at most 2\*\*28 are possible"):
        write_graph(_chain(nn.ReLU(), shape=(1 << 16, 1 << 16)))
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_MAX_INPUT_ELEMENTS", 1 << 60)
        graph = write_graph(_chain(nn.ReLU(), shape=(1 << 16, 1 << 16)))
    with pytest.raises(ArtifactError, match="an input has 4294967296 elements"):
        decode(_file(graph, b""))


def test_a_large_graph_is_read_in_time() -> None:
    nodes = [Node("x", INPUT), *[Node(f"r{i}", "relu", ("x",)) for i in range(16_000)]]
    nodes += [Node(f"e{i}", EXIT, ("x",), settings={"threshold": 1.0}) for i in range(256)]
    nodes += [
        Node(f"c{i}", "concat", tuple(f"r{i * 4000 + j}" for j in range(4000)), settings={"dim": 1}) for i in range(4)
    ]
    nodes += [Node("all", "concat", tuple(f"c{i}" for i in range(4)), settings={"dim": 1}), Node("y", OUTPUT, ("all",))]
    network = Network(nodes, {}, [(2,)])
    content = encode(network)
    start = time.perf_counter()
    assert len(decode(content).nodes) == len(nodes)
    assert time.perf_counter() - start < 3
    network.nodes = [*nodes[:-1], Node("e", EXIT, ("x",), settings={"threshold": 1.0}), nodes[-1]]
    with pytest.raises(PenjingError, match=r"this network has .* 257 exits"):
        encode(network)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -20, 179, 180, -21, 2**61, 0.1, 1e300, -0.0, float("inf"), "zeros", ""),
        *((3, 3), (0, 1, 2), (), ((1, 2), (1, 2)), (True, 1), (1, 1.0), (None, 7), tuple(range(64))),
    ],
)
def test_settings_are_read_as_they_were_written(value: object) -> None:
    writer = ByteWriter()
    write_value(writer, value)
    reader = ByteReader(writer.finish())
    found = read_value(reader)
    assert repr(found) == repr(value)
    assert reader.n_left == 0


def test_settings_that_could_not_be_read_are_not_written() -> None:
    for value in ((0,) * 65, (((1,),),), "a" * 4097, 1j, {1: 2}, b"abc"):
        with pytest.raises(ArtifactError):
            write_value(ByteWriter(), value)
    nested = bytes([207, 64]) * 3 + b"\x20"
    for data in (nested, b"\xd0\x41" + bytes(65), b"\xff", b"", b"\xce\xff\xff\x03"):
        with pytest.raises(ArtifactError):
            read_value(ByteReader(data))


def test_truth_is_read_as_zero_or_one() -> None:
    graph = write_graph(_chain(nn.Linear(4, 1, bias=False)))
    heads = bytes([PLAIN | BOOL << 4, 0])
    weight = decode(_file(graph, heads, b"", b"\x00\x01\x02\xff")).get_submodule("layer0").weight
    assert weight.view(torch.uint8).tolist() == [[0, 1, 1, 1]]


# --- what 0.2.0 added ------------------------------------------------------------------------------------------------


def _records(*records: tuple[object, ...]) -> bytes:
    """A graph of these records: a code, the distances of its inputs (None: the usual ones), then bytes or values."""
    writer = ByteWriter()
    writer.uvarint(len(records))
    for code, distances, *rest in records:
        number = code if isinstance(code, int) else CODES.index(str(code))
        writer.uvarint(2 * number + (distances is not None))
        for n in [] if distances is None else [len(distances), *distances]:  # type: ignore[arg-type, misc]
            writer.uvarint(n)
        for part in rest:
            if isinstance(part, bytes):
                writer.raw(part)
            else:
                write_value(writer, part, ["batch", "s1"])
    return b"\0" + writer.finish()


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


X, Y = ("input", (), _text("x"), (4,)), ("output", (1,))
RELU_MODULE = ("module", None, _text("r"), bytes([list(MODULES).index("ReLU"), 0]))
LINEAR = ("module", None, _text("l"), bytes([list(MODULES).index("Linear"), 0b111]), 4, 4, False)
PARAMETER, BUFFER, KNOWN = b"\0", b"\1", b"\2"


@pytest.mark.parametrize("name", ["attention", "attention, compressed", "recurrent"])
def test_damage_of_any_network_is_refused_or_harmless(name: str, build: Callable[[str], Network]) -> None:
    network = build(name)
    content = encode(network)
    packed = write_graph(network)
    graph = manifest.unpack_bytes(packed, manifest._MAX_MANIFEST)
    reader = ByteReader(content[4:-4])
    n_graph, n_heads, n_stream = (reader.uvarint() for _ in range(3))
    assert reader.raw(n_graph) == packed
    heads, stream, blobs = reader.raw(n_heads), reader.raw(n_stream), reader.raw(reader.n_left)
    rng = np.random.default_rng(7)
    n_sound = 0
    for number in range(N_MUTATIONS // 10):
        mutated = (
            _signed(_mutated(content[:-4], rng)),
            _file(b"\0" + _mutated(graph, rng), heads, stream, blobs),
            _file(packed, _mutated(heads, rng), stream, blobs),
            _signed(content[: int(rng.integers(len(content)))]),
        )[number % 4]
        start = time.perf_counter()
        try:
            found = decode(mutated, for_training=bool(number % 8 > 3))
        except ArtifactError:
            found = None
        assert time.perf_counter() - start < 2
        if found is not None:
            n_sound += 1
            _check_sound(found)
    assert n_sound


@pytest.mark.parametrize("shape", [(1 << 17, 1 << 16), ((1 << 30,) * 2), (1 << 31,), (-1,), (2.0,), 7, (True,)])
@pytest.mark.parametrize("kind", [PARAMETER, BUFFER])
def test_tensors_outside_of_layers_are_bounded(shape: object, kind: bytes) -> None:
    start = time.perf_counter()
    graph = _records(X, ("tensor", None, _text("t"), kind, shape), ("add", (2, 1)), Y)
    head = bytes([CONSTANT | FLOAT64 << 4]) + bytes(8)
    with pytest.raises(ArtifactError, match=r"may hold 33554432 numbers|cannot have the shape"):
        decode(_file(graph, head))
    assert time.perf_counter() - start < 1


def test_many_tensors_outside_of_layers_are_bounded_together() -> None:
    side = 1 << 12
    tensors = [("tensor", None, _text(f"t{i}"), PARAMETER, (side, side)) for i in range(5)]  # each is within the bound
    head = bytes([CONSTANT | FLOAT32 << 4]) + bytes(4)
    with pytest.raises(ArtifactError, match="may hold 33554432 numbers, this one would hold 83886080"):
        decode(_file(_records(X, *tensors, Y), head * 5))
    with pytest.raises(ArtifactError, match="may hold 33554432 numbers, this one would hold 83886080"):
        decode(_file(_records(X, *tensors, Y), head + bytes([SAME, 1, SAME, 2, SAME, 3, SAME, 4])))


def test_layers_that_are_long_made_are_refused_soon() -> None:
    kind = list(MODULES).index("LSTM")
    layers = [("module", (), _text(f"{i}"), bytes([kind, 0b1000100]), 256, True) for i in range(9999)]
    start = time.perf_counter()
    with pytest.raises(ArtifactError, match="more than 32768 tensors"):
        decode(_file(_records(X, *[(code, (i + 1,), *rest) for i, (code, _, *rest) in enumerate(layers)], Y), b""))
    assert time.perf_counter() - start < 10
    with pytest.raises(ArtifactError, match="has 257 layers; at most 256"):
        decode(_file(_records(X, ("module", None, _text("a"), bytes([kind, 4]), 257), Y), b""))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        # codes and references
        ([X, (len(CODES), None), Y], "an operation that this version of penjing does not know"),
        ([X, ("relu", (2,)), Y], "refers to one that is not before it"),
        ([X, ("relu", (0,)), Y], "refers to one that is not before it"),
        ([X, ("call again", None, b"\0"), Y], "calls a module that it does not have"),
        ([X, ("call as", None, b"\0", _text("r")), Y], "calls a module that it does not have"),
        ([X, RELU_MODULE, ("call as", None, b"\0", _text("r..s")), Y], "without a proper path"),
        ([X, RELU_MODULE, RELU_MODULE, Y], 'two modules called "r"'),
        ([X, ("module", None, _text("r"), bytes([len(MODULES), 0])), Y], "a kind of module that this version"),
        # tensors
        ([X, ("tensor", None, _text("t"), KNOWN), ("add", (2, 1)), Y], 'there is no parameter or buffer "t"'),
        ([X, ("tensor", None, _text("training"), KNOWN), ("add", (2, 1)), Y], 'no parameter or buffer "training"'),
        ([X, ("tensor", None, _text("t"), b"\3", (4,)), ("add", (2, 1)), Y], "of a kind that this version"),
        ([X, *[("tensor", None, _text("t"), BUFFER, (4,))] * 2, ("add", (3, 1)), Y], "or is there twice"),
        ([X, LINEAR, ("tensor", None, _text("l.weight"), PARAMETER, (9,)), ("add", (2, 1)), Y], "part of a module"),
        ([X, LINEAR, ("tensor", None, _text("l.bias"), PARAMETER, (4,)), ("add", (2, 1)), Y], "part of a module"),
        ([X, ("tensor", None, _text("a..b"), BUFFER, (4,)), ("add", (2, 1)), Y], "without a proper path"),
        ([X, ("tensor", (1,), _text("t"), BUFFER, (4,)), ("add", (2, 1)), Y], "takes 0 inputs, it has 1"),
        # sizes, types and answers
        ([X, ("reshape", None, b"\xd3"), Y], None),
        ([X, ("reshape", None, b"\xd4"), Y], "depends on symbol 1; the inputs have 1"),
        ([X, ("reshape", None, b"\xd2\x02\xd3\xeb"), Y], "is no size in postfix order"),
        ([X, ("reshape", None, b"\xd2\x41" + b"\xd3" * 65), Y], "a size has 65 parts"),
        ([X, ("reshape", None, b"\xd2\x01\xff"), Y], "a size has the unknown tag 255"),
        ([X, ("reshape", None, b"\xff"), Y], "the unknown tag 255"),
        ([X, ("cast", None, 10), Y], "a type of tensors that this version"),
        ([X, ("cast", None, "float32"), Y], "a type of tensors that this version"),
        ([("typed input", None, _text("x"), (), (4,), 10, None, None), Y], "not one that this version"),
        ([("typed input", None, _text("x"), (), (4,), 4, 3, 2), Y], "not one that this version"),
        ([("typed input", None, _text("x"), (), (4,), 4, 0.5, 2), Y], "the type of an input is not one"),
        ([("typed input", None, _text("x"), (1 << 16,), (Size(("s1", "s1", "*")),), 0, None, None), Y], "not one"),
        ([("typed input", None, _text("x"), (1 << 15,), (Size(("s1", "s1", "*")),), 0, None, None), Y], "at most 2"),
        ([("typed input", None, _text("x"), (1,), (Size(("s1", 0, "//")),), 0, None, None), Y], "cannot be computed"),
        ([X, ("formed output", None, b"\5")], "names tensor 1; the output has 1"),
        ([X, ("formed output", None, b"\1\1" * 17 + b"\0")], "more than 16 deep"),
        ([X, ("formed output", None, b"\2\xff\xff\x03")], "more parts than the graph has bytes"),
        # networks by name
        ([("entry", None, _text("a"))], "not sound"),
        ([X, Y, ("entry", None, _text("a")), X, Y], "does not begin as it should"),
        ([("entry", None, _text("a")), X, Y, ("entry", None, _text("a")), X, Y], "does not begin as it should"),
        ([("entry", None, _text("a")), X, Y, ("entry", None, _text("b")), X, ("output", (3,))], "not before it"),
        ([("entry", None, _text("train")), X, Y], 'cannot be called "train"'),
        ([("entry", None, _text("a.b")), X, Y], 'cannot be called "a.b"'),
        ([], "must have an input"),
    ],
)
def test_hostile_graphs_are_refused(records: list[tuple[object, ...]], message: str | None) -> None:
    if message is None:  # a sound one, so that the others fail for their own reason
        decode(_file(_records(*records), b""))
        return
    with pytest.raises(ArtifactError, match=message):
        decode(_file(_records(*records), b"\1" + bytes(20)))


def test_a_graph_ends_with_its_last_record() -> None:
    decode(_file(_records(X, Y), b""))
    with pytest.raises(ArtifactError, match="1 bytes are left over after the graph"):
        decode(_file(_records(X, Y) + b"\0", b""))


def test_a_tensor_is_the_same_only_as_its_equal() -> None:
    linear = bytes([list(MODULES).index("Linear"), 0b111])
    square = ("module", None, _text("a"), linear, 2, 2, False), ("module", None, _text("b"), linear, 2, 2, False)
    wide = ("module", None, _text("b"), linear, 2, 3, False)
    buffer = ("tensor", None, _text("t"), BUFFER, (2, 2))
    one = bytes([CONSTANT | FLOAT32 << 4]) + struct.pack("<f", 1)

    def tied(*records: tuple[object, ...], heads: bytes) -> Network:
        return decode(_file(_records(X, *records, Y), one + heads))

    network = tied(*square, heads=bytes([SAME, 1]))
    assert network.get_submodule("a").weight is network.get_submodule("b").weight
    for records, heads, message in (
        (square, bytes([SAME, 2]), "of another shape, or as none"),
        (square, bytes([SAME, 0]), "of another shape, or as none"),
        ((square[0], wide), bytes([SAME, 1]), "of another shape, or as none"),
        ((square[0], buffer), bytes([SAME, 1]), "same as a tensor of another kind"),
        (square, bytes([SAME | 16, 1]), "written in a way that this version does not know"),
        ((*square, buffer), bytes([SAME, 1]), "raw bytes at byte 7 needs 1"),
    ):
        with pytest.raises(ArtifactError, match=message):
            tied(*records, heads=heads)
    third = ("module", None, _text("c"), linear, 2, 2, False)
    assert tied(*square, third, heads=bytes([SAME, 1, SAME, 2])).get_submodule("c").weight.tolist() == [[1, 1]] * 2
    with pytest.raises(ArtifactError, match="same as a tensor that is itself another one"):
        tied(*square, third, heads=bytes([SAME, 1, SAME, 1]))


def test_what_a_network_may_not_have_is_not_written() -> None:
    x, y = Node("x", INPUT), Node("y", OUTPUT, ("x",))
    tensor = Node("t", "tensor", (), "a.b")
    length = Size(("length",))
    for nodes, shape, hints, message in (
        ([x, tensor, y], (2,), {}, "there is no"),
        ([x, Node("r", "relu", ("x",), settings={"slope": 1}), y], (2,), {}, r"settings \(none\), it has slope"),
        ([x, Node("r", "softmax", ("x",)), y], (2,), {}, r"settings dim, it has \(none\)"),
        ([x, y], (length,), {}, "must have a hint for length"),
        ([x, Node("r", "reshape", ("x",), settings={"shape": (Size(("s",)),)}), y], (2,), {}, 'depends on "s"'),
        ([x, Node("r", "add_scalar", ("x",), settings={"value": 1 << 63}), y], (2,), {}, r"in \[-2\*\*63, 2\*\*63\)"),
        ([x, Node("y", OUTPUT, ("x",), settings={"form": ("set", 0)})], (2,), {}, "the answer's structure must be"),
        ([x, Node("y", OUTPUT, ("x",), settings={"form": ("dict", 0, 0)})], (2,), {}, "a name for each part"),
        ([x, Node("y", OUTPUT, ("x",), settings={"form": 1})], (2,), {}, "the numbers of 1 tensors, got 1"),
    ):
        with pytest.raises(PenjingError, match=message):
            encode(Network(nodes, {}, [shape], hints))
    network = Network([x, y], {}, [(2,)])
    for name in ("a.b", "", "items", "class 1", 3):
        with pytest.raises(ArtifactError, match="cannot be called"):
            encode({name: network})  # type: ignore[dict-item]
    with pytest.raises(ArtifactError, match="1 to 64 networks by name, got 0"):
        encode({})
    with pytest.raises(ArtifactError, match='"a" must be a Network, got a ReLU'):
        encode({"a": nn.ReLU()})  # type: ignore[dict-item]
