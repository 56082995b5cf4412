"""A file can be looked into: what is there is listed without decoding, and one tensor is read without the others."""

import gc
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from penjing.artifact import Artifact, decode, encode, inspect, open_artifact
from penjing.errors import ArtifactError
from penjing.graph import Network, Node
from penjing.graph.network import INPUT, MODULE, OUTPUT
from penjing.quantization.cluster import cluster_


class Watched(io.BytesIO):
    """Counts the bytes that are read."""

    n_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.n_read += len(data)
        return data

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        n = super().readinto(buffer)
        self.n_read += n
        return n


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def test_the_list_says_what_the_tensors_are(network: Network, tmp_path: Path) -> None:
    (tmp_path / "a.pj").write_bytes(encode(network))
    rows = {row.name: row for row in inspect(tmp_path / "a.pj")}
    with open_artifact(tmp_path / "a.pj") as artifact:
        loaded = artifact.network()
        state = dict(loaded.named_parameters(remove_duplicate=False)) | dict(loaded.named_buffers())
        assert set(artifact.names) <= set(state)  # a module under two paths is listed once
        for name in artifact.names[::-1]:
            entry, tensor = artifact.entry(name), artifact.tensor(name)
            assert (entry.name, entry.shape, entry.dtype) == (name, tuple(tensor.shape), tensor.dtype)
            assert torch.equal(_bits(tensor), _bits(state[name]))
            assert rows[name].codec == (f"same as {entry.same_as}" if entry.same_as else entry.codec)
            assert rows[name].elements == (0 if entry.same_as else tensor.numel())
        assert artifact.file_bytes == (tmp_path / "a.pj").stat().st_size


def test_listing_and_reading_one_tensor_leave_the_others_alone(build: Callable[[str], Network]) -> None:
    network = build("attention, compressed")
    layer = network.get_submodule("norm")
    layer.weight = nn.Parameter(torch.randn(8))
    file = Watched(encode(network))
    artifact = Artifact(file)
    file.n_read = 0
    entries = [artifact.entry(name) for name in artifact.names]
    assert file.n_read == 0
    assert artifact.tensor("norm.weight").equal(layer.weight)
    assert file.n_read == artifact.entry("norm.weight").blob_bytes == 32
    assert sum(entry.same_as is not None for entry in entries) == 1
    assert artifact.entry("out.weight").same_as == "embed.weight"


def test_networks_of_a_file_are_new_each_time(build: Callable[[str], Network]) -> None:
    artifact = Artifact(io.BytesIO(encode(build("attention"))))
    one, other = artifact.network(), artifact.network()
    with torch.no_grad():
        one.get_submodule("embed").weight.zero_()
    assert other.get_submodule("embed").weight.any()
    assert artifact.tensor("embed.weight").any()


def test_an_artifact_closes_its_file(tmp_path: Path, build: Callable[[str], Network]) -> None:
    (tmp_path / "a.pj").write_bytes(encode(build("mixed")))
    with open_artifact(tmp_path / "a.pj") as artifact:
        assert artifact.tensor("head.bias").shape == (4,)
    with pytest.raises(ArtifactError, match=r"a\.pj: the file was closed; open it again with open_artifact"):
        artifact.tensor("head.bias")
    left_open = open_artifact(tmp_path / "a.pj")
    del left_open
    gc.collect()  # a file that nobody closed would be a warning, and so an error


def test_a_file_that_changes_while_it_is_open_is_refused(tmp_path: Path, build: Callable[[str], Network]) -> None:
    content = encode(build("mixed"))
    (tmp_path / "a.pj").write_bytes(content)
    with open_artifact(tmp_path / "a.pj") as artifact:
        (tmp_path / "a.pj").write_bytes(content[: artifact.graph_bytes])
        for name in ("head.weight", "stem.weight"):
            with pytest.raises(ArtifactError, match="the file was changed"):
                artifact.tensor(name)


def test_an_unknown_tensor_is_told(build: Callable[[str], Network]) -> None:
    artifact = Artifact(io.BytesIO(encode(build("mixed"))), "small.pj")
    with pytest.raises(
        ArtifactError, match=r'small\.pj: there is no tensor "head\.wieght"; did you mean "head\.weight"'
    ):
        artifact.entry("head.wieght")


def test_large_tensors_of_any_codec_are_read_alone() -> None:
    torch.manual_seed(0)
    nodes = [Node("x", INPUT), *[Node(f"n{i}", MODULE, ("x",), f"n{i}") for i in range(3)]]
    nodes += [Node("all", "concat", ("n0", "n1", "n2"), settings={"dim": 1}), Node("y", OUTPUT, ("all",))]
    layers = {f"n{i}": nn.Linear(256, 300, bias=False) for i in range(3)}
    with torch.no_grad():
        layers["n2"].weight[0, 0] = 0  # random weights are packed
    for i in range(2):
        cluster_(layers[f"n{i}"], "weight", 6)
    network = Network(nodes, layers, [(256,)]).eval()
    file = Watched(encode(network))
    artifact = Artifact(file)
    assert [artifact.entry(name).codec for name in artifact.names] == ["codebook, range, alone"] * 2 + ["float32, zstd"]
    for name in artifact.names:
        file.n_read = 0
        assert artifact.tensor(name).equal(network.get_submodule(name[:2]).weight)
        assert file.n_read == artifact.entry(name).blob_bytes > 1000
    x = torch.randn(2, 256)
    assert decode(file.getvalue())(x).equal(network(x))
