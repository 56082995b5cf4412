"""Files of every released version of the format stay readable, with the numbers they had."""

import json
import runpy
from pathlib import Path

import pytest

from penjing.artifact import open_artifact
from penjing.artifact.codecs import CODECS
from penjing.artifact.codecs.codes import CODERS
from penjing.artifact.container import SAME, read_frame
from penjing.artifact.manifest import CODES, unpack_bytes
from penjing.artifact.slots import slots
from penjing.entropy import ByteReader
from penjing.graph.modules import MODULES, kind_of

FOLDER = Path(__file__).with_name("golden")
VALUES = json.loads((FOLDER / "values.json").read_text())
FILES = sorted(FOLDER.glob("*.pj"))


def test_each_file_has_its_values() -> None:
    assert [path.stem for path in FILES] == sorted(VALUES)
    assert {path.stem.split("-")[0] for path in FILES} >= {"0.1.0", "0.2.0"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_files_are_read_for_ever(path: Path) -> None:
    found = runpy.run_path(str(FOLDER / "make.py"))["values"](path)
    assert found == VALUES[path.stem]
    with open_artifact(path) as artifact:
        if artifact.tensors is None:
            for place in slots(artifact.networks(for_training=True)):
                assert place.value().shape == place.shape


def test_they_hold_all_that_the_format_knows() -> None:
    codecs, coders, kinds, codes = set(), set(), set(), set()
    for path in FILES:
        with open_artifact(path) as artifact:
            for name in artifact.names:
                entry = artifact.entry(name)
                kind, _, coder = entry.codec.partition(", ")
                coders.add((kind, coder))
            if artifact.tensors is None:
                for network in artifact.networks().values():
                    kinds |= {kind_of(layer) for layer in network.layers().values()}
        with path.open("rb") as file:
            frame = read_frame(file, path.name)
        heads = frame.heads
        codecs |= {"same"} if any(byte == SAME for byte in heads) else set()
        if artifact.tensors is None:
            codes |= _codes(unpack_bytes(frame.graph, 1 << 21))
    codecs |= {"constant" if coder == "one value" else kind for kind, coder in coders}
    assert {codec.kind for codec in CODECS} - {"plain"} <= codecs
    assert {("codebook", coder) for coder in CODERS if coder != "dependent, contexts"} <= coders
    assert {("grid", coder) for coder in CODERS if coder != "range, same model"} <= coders
    assert {("mask", "range"), ("mask", "range, zstd"), ("float32", "raw"), ("float32", "zstd")} <= coders
    assert kinds == set(MODULES)
    assert codes == set(CODES)


def _codes(graph: bytes) -> set[str]:
    """Which records a graph has; they are read by what reads graphs, which tells each code that it comes by."""
    import penjing.artifact.manifest as manifest

    seen: set[str] = set()
    reader = manifest._Reader(ByteReader(graph))
    n = reader.of.uvarint()
    for _ in range(n):
        position = reader.of.position
        seen.add(CODES[reader.of.uvarint() // 2])
        reader.of.position = position
        reader.record()
    return seen
