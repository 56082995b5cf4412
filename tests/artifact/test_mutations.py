"""Changed golden files and bombs: refused, or of the shapes they declare; soon, and in bounded memory."""

import importlib.util
import struct
import time
import zlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
import zstandard
from torch import nn

from penjing.artifact import decode
from penjing.artifact.codecs.plain import DTYPES
from penjing.artifact.manifest import CODES, write_graph
from penjing.artifact.values import write_value
from penjing.entropy import ByteWriter, best_frequencies, code_lengths, write_lengths
from penjing.errors import ArtifactError
from penjing.graph import Network, Node
from penjing.graph.modules import MODULES
from penjing.graph.network import INPUT, MODULE, OUTPUT

N_MUTATIONS = 400
PLAIN, CONSTANT, CODEBOOK, MASK, SAME, GRID, HALF = range(7)
FLOAT64 = DTYPES.index(torch.float64)
SIDE = 5792  # 5792 * 5792 numbers are as many as a small file may hold


@pytest.fixture(scope="module")
def mutations() -> ModuleType:
    path = Path(__file__).parents[2] / "bench" / "mutations.py"
    spec = importlib.util.spec_from_file_location("bench_mutations", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_some_of_the_large_run(mutations: ModuleType) -> None:
    n_sound = 0
    for number in range(N_MUTATIONS):
        what, content = mutations.mutation(1, number)
        begun = time.process_time()
        sound = mutations.read(content, for_training=bool(number // 8 % 2))
        assert time.process_time() - begun < mutations.MOST_SECONDS, what
        assert not (sound and number % 8 == 0) or any(content == own for _, own, _ in mutations.golden()), what
        n_sound += sound
    assert 0 < n_sound < N_MUTATIONS // 2


def test_parts_together_are_the_file(mutations: ModuleType) -> None:
    for name, _, parts in mutations.golden():
        assert mutations.read(parts.together(), for_training=False), name


# --- bombs ------------------------------------------------------------------------------------------------------------


def _file(graph: bytes, heads: bytes, blobs: bytes = b"") -> bytes:
    writer = ByteWriter()
    writer.raw(b"\x8ePJ\x01")
    for section in (graph, heads, b""):
        writer.uvarint(len(section))
    for section in (graph, heads, blobs):
        writer.raw(section)
    body = writer.finish()
    return body + struct.pack("<I", zlib.crc32(body))


def _graph() -> bytes:
    layer = nn.Linear(SIDE, SIDE, bias=False, device="meta")
    nodes = [Node("x", INPUT), Node("l", MODULE, ("x",), "l"), Node("y", OUTPUT, ("l",))]
    return write_graph(Network(nodes, {"l": layer}, [(2,)]))


def _packed(n_bytes: int, head: bytes) -> tuple[bytes, bytes]:
    data = zstandard.ZstdCompressor(level=3, write_content_size=False).compress(bytes(n_bytes))
    writer = ByteWriter()
    writer.raw(head)
    writer.uvarint(len(data))
    return writer.finish(), data


def _lengths() -> bytes:
    writer = ByteWriter()
    write_lengths(writer, code_lengths([5, 0]))
    return writer.finish()


CERTAIN = best_frequencies([1, 0]).table
ONE = bytes([0, 2]) + struct.pack("<e", 1) + b"\x01"
TWO = bytes([0, 4]) + struct.pack("<e", 1) + b"\x01\x02"


def _grid(way: int, span: int) -> bytes:
    return bytes([GRID | way << 4, 0, 4 * span, 1, 1, 0])


BOMBS = {
    "one number of eight bytes": (bytes([CONSTANT | FLOAT64 << 4]) + bytes(8), b""),
    "codes of no bits": (bytes([CODEBOOK]) + ONE, b""),
    "Huffman codes of no bits": (bytes([CODEBOOK | 1 << 4]) + TWO + _lengths() + b"\0", b""),
    "certain codes": (bytes([CODEBOOK | 2 << 4]) + TWO + CERTAIN, b""),
    "certain codes, alone": (bytes([CODEBOOK | 4 << 4]) + TWO + CERTAIN + b"\0", b""),
    "nothing kept": (bytes([MASK]) + CERTAIN, b""),
    "packed zeros": _packed(8 * SIDE**2, bytes([PLAIN | FLOAT64 << 4, 1])),
    "packed halves": _packed(2 * SIDE**2, bytes([HALF, 1])),
    "a grid of one code": (_grid(0, 0), b""),
    "a grid of certain codes": (_grid(2, 1) + CERTAIN, b""),
    "a grid of certain codes, alone": (_grid(4, 1) + CERTAIN + b"\0", b""),
}


@pytest.mark.parametrize("name", BOMBS)
def test_as_much_as_may_come_out_of_nothing(name: str, mutations: ModuleType) -> None:
    heads, blobs = BOMBS[name]
    content = _file(_graph(), heads, blobs)
    decode(_file(write_graph(Network([Node("x", INPUT), Node("y", OUTPUT, ("x",))], {}, [(2,)])), b""))
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = mutations._memory("VmRSS"), time.process_time()
    network = decode(content, for_training=True)
    assert time.process_time() - begun < 2  # alone it takes half a second
    assert mutations._memory("VmHWM") - before < mutations.MOST_MEMORY
    assert network.get_submodule("l").weight.shape == (SIDE, SIDE)


def test_contexts_hold_no_more_than_their_bytes_can(mutations: ModuleType) -> None:
    content = _file(_graph(), _grid(5, 1) + b"\x0a", bytes(10))
    with pytest.raises(ArtifactError, match=f"10 bytes cannot hold a matrix of {SIDE} x {SIDE}"):
        decode(content)


# --- what the readers once let through --------------------------------------------------------------------------------


def _records(*records: tuple[object, ...]) -> bytes:
    writer = ByteWriter()
    writer.uvarint(len(records))
    for code, distances, *rest in records:
        writer.uvarint(2 * CODES.index(str(code)) + (distances is not None))
        for n in [] if distances is None else [len(distances), *distances]:  # type: ignore[arg-type, misc]
            writer.uvarint(n)
        for part in rest:
            if isinstance(part, bytes):
                writer.raw(part)
            else:
                write_value(writer, part)
    return b"\0" + writer.finish()


X, Y = ("input", (), b"\1x", (4,)), ("output", (1,))


@pytest.mark.parametrize("kind", [b"\0", b"\1"])
def test_empty_tensors_of_huge_dimensions_are_refused(kind: bytes) -> None:
    # torch: "Stride calculation overflowed"
    graph = _records(X, ("tensor", None, b"\1t", kind, (0, (1 << 31) - 1, (1 << 31) - 1, (1 << 31) - 1)), Y)
    with pytest.raises(ArtifactError, match="cannot have the shape"):
        decode(_file(graph, bytes([PLAIN, 0])))


def test_an_empty_tensor_has_no_more_steps_than_numbers() -> None:
    # NumPy: a product that overflows, or all the memory there is
    graph = _records(X, ("tensor", None, b"\1t", b"\0", (0, 1 << 20, 1 << 20)), Y)
    writer = ByteWriter()
    writer.raw(bytes([GRID, 0, 4]))
    for size in (1, 1 << 20, 1 << 20, 0):
        writer.uvarint(size)
    with pytest.raises(ArtifactError, match="cannot have 1099511627776 steps"):
        decode(_file(graph, writer.finish() + bytes(8)))


def test_a_layer_of_many_networks_is_looked_at_once() -> None:
    lstm = bytes([list(MODULES).index("LSTM"), 4])
    records: list[tuple[object, ...]] = []
    for i in range(60):
        call = ("module", None, b"\1l", lstm, 250) if i == 0 else ("call again", None, b"\0")
        records += [("entry", None, bytes([3]) + f"e{i:02}".encode()), X, call, Y]
    begun = time.process_time()
    with pytest.raises(ArtifactError, match="only 0 are left"):
        decode(_file(_records(*records), b""))
    assert time.process_time() - begun < 1.5  # it took six
