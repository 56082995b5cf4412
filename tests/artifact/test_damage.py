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
from penjing.artifact.manifest import write_graph
from penjing.artifact.values import read_value, write_value
from penjing.entropy import ByteReader, ByteWriter, best_frequencies
from penjing.errors import ArtifactError, PenjingError
from penjing.graph import Network, Node
from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT

N_MUTATIONS = 2000
PLAIN, CONSTANT, CODEBOOK, MASK = range(4)
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


@pytest.fixture(params=["exits", "masked", "clustered, 256 values", "pruned and clustered", "odd tensors"])
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
    for _ in range(N_MUTATIONS // 5):  # five files
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
    with pytest.raises(ArtifactError, match="may hold 67108864 numbers, this one would hold 8589934592"):
        decode(_file(write_graph(_chain(_linear(*LARGE))), head))
    side = 1 << 12
    several = _chain(*[_linear(side, side) for _ in range(5)])  # each is within the bound
    with pytest.raises(ArtifactError, match="may hold 67108864 numbers, this one would hold 83886080"):
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
    with pytest.raises(PenjingError, match="at most 16384 nodes"):
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
