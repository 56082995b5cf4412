"""What goes into a file comes out of it, bit for bit, without the source code of the network."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure

from penjing.artifact import decode, dissect, encode, inspect, load, load_networks
from penjing.artifact.codecs.codebook import CodebookCodec
from penjing.artifact.codecs.codes import CODERS, DEPENDENT, SHARED, SHARED_SAME
from penjing.artifact.manifest import CODES, pack_bytes, read_graph, unpack_bytes, write_graph
from penjing.entropy import ByteWriter, entropy_bits_per_symbol
from penjing.errors import ArtifactError, TraceError
from penjing.graph import Network, Node, trace
from penjing.graph.features import layer_names, node_named
from penjing.graph.network import INPUT, MODULE, OUTPUT
from penjing.graph.sizes import Size
from penjing.models import ghostnet, msdnet, resnet_cifar
from penjing.quantization.cluster import cluster_, cluster_together_
from penjing.quantization.error_feedback import rounded_with_feedback
from penjing.representation import Codebook, Grid, Mask, named_weights, represent_, representations


def _bits(value: Tensor | None) -> bytes:
    if value is None:  # an answer may have such places
        return b""
    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensors(network: Network) -> dict[str, Tensor]:
    """Every weight as its layer uses it, and every buffer."""
    found = {name: getattr(owner, key) for name, owner, key in named_weights(network)}
    hidden = {id(b) for _, o, n in named_weights(network) for r in representations(o, n) for b in r.buffers()}
    return found | {name: b for name, b in network.named_buffers() if id(b) not in hidden}


def _assert_same(network: Network, other: Network) -> None:
    expected, found = _tensors(network), _tensors(other)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert _bits(found[name]) == _bits(value), name


def _inputs(network: Network) -> list[Tensor]:
    dtype = next(network.parameters()).dtype
    return network.random_inputs(6, torch.Generator().manual_seed(0), dtype)


@pytest.mark.parametrize("for_training", [False, True])
def test_weights_and_answers_are_bit_identical(network: Network, for_training: bool) -> None:
    loaded = decode(encode(network), for_training=for_training)
    _assert_same(network, loaded)
    assert not loaded.training
    inputs = _inputs(network)
    for expected, found in zip(network.all_answers(*inputs), loaded.all_answers(*inputs), strict=True):
        assert _bits(found) == _bits(expected)
    assert list(map(_bits, tree_leaves(loaded(*inputs)))) == list(map(_bits, tree_leaves(network(*inputs))))
    assert tree_structure(loaded(*inputs)) == tree_structure(network(*inputs))
    assert loaded.thresholds == network.thresholds
    assert [n.name for n in loaded.nodes if n.op == INPUT] == [n.name for n in network.nodes if n.op == INPUT]
    has_codes = any(representations(owner, name) for _, owner, name in named_weights(loaded))
    assert has_codes == (for_training and any(representations(o, n) for _, o, n in named_weights(network)))


@pytest.mark.parametrize(
    "make", [lambda: resnet_cifar(8), lambda: msdnet(10), lambda: ghostnet(classes=10, small_images=True)]
)
def test_blocks_mean_the_same_after_reading(make: Callable[[], nn.Module]) -> None:
    network = trace(make(), (torch.randn(2, 3, 32, 32),))
    loaded = decode(encode(network))
    assert [(n.op, n.path, n.scope) for n in loaded.nodes] == [(n.op, n.path, n.scope) for n in network.nodes]
    assert layer_names(loaded) == layer_names(network)
    at = {node.name: position for position, node in enumerate(network.nodes)}
    there = {node.name: position for position, node in enumerate(loaded.nodes)}
    for name in layer_names(network):
        assert there[node_named(loaded, name)] == at[node_named(network, name)], name


def test_scopes_that_no_file_may_have() -> None:
    layers: dict[str, nn.Module] = {"a.b": nn.ReLU()}
    nodes = [Node("x", INPUT), Node("a", MODULE, ("x",), "a.b"), Node("r", "relu", ("a",)), Node("y", OUTPUT, ("r",))]
    content = unpack_bytes(write_graph(Network(nodes, layers, [(2,)])), 1 << 20)
    code = ByteWriter()
    code.uvarint(2 * CODES.index("scope"))
    at = content.index(code.finish()) + len(code.finish())
    assert content[at] == 2 and read_graph(pack_bytes(content))[""].nodes[2].scope == ""
    with pytest.raises(ArtifactError, match="operations outside of everything"):
        read_graph(pack_bytes(content[:at] + b"\x03" + content[at + 1 :]))
    with pytest.raises(ArtifactError, match="without a proper path"):
        read_graph(pack_bytes(content[:at] + b"\x00\x00" + content[at + 1 :]))


def test_encoding_is_deterministic_and_survives_another_round(network: Network) -> None:
    content = encode(network)
    assert encode(network) == content
    assert encode(copy.deepcopy(network)) == content
    assert encode(decode(content, for_training=True)) == content
    dense = decode(content)
    assert encode(decode(encode(dense))) == encode(dense)
    _assert_same(network, dense)


def test_parts_sum_to_the_size_of_the_file(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "small.pj"
    path.write_bytes(encode(network))
    rows = inspect(path)
    assert sum(row.size_bytes for row in rows) == path.stat().st_size
    assert all(row.size_bytes >= 0 for row in rows)
    anatomy = dissect(path)
    assert anatomy.file_bytes == path.stat().st_size
    assert 0 < anatomy.frame_bytes <= 4 + 3 * 9 + 4
    expected = _tensors(network)
    assert {row.name: row.shape for row in rows if row.codec} == {n: tuple(t.shape) for n, t in expected.items()}
    for row in rows:
        if row.codec and row.elements:
            assert row.elements == expected[row.name].numel()
            assert row.density == pytest.approx(float((expected[row.name] != 0).double().mean()))


def test_shared_centroids_stay_shared(build: Callable[[str], Network]) -> None:
    loaded = decode(encode(build("clustered, 8 values")), for_training=True)
    vectors = [representations(owner, name)[-1].centroids for _, owner, name in named_weights(loaded) if name == "bias"]
    assert len(vectors) >= 3
    assert len({id(v) for v in vectors}) == 1
    assert sum(p is vectors[0] for p in loaded.parameters()) == 1


def test_loaded_for_training_trains(build: Callable[[str], Network]) -> None:
    loaded = decode(encode(build("pruned and clustered")), for_training=True)
    removed = {name: getattr(o, n) == 0 for name, o, n in named_weights(loaded) if representations(o, n)}
    optimizer = torch.optim.SGD([p for p in loaded.parameters() if p.requires_grad], lr=0.1)
    before = _tensors(loaded)["stem.weight"].detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        loaded.train()(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    after = _tensors(loaded)
    assert not torch.equal(after["stem.weight"], before)
    assert not after["stem.weight"][removed["stem.weight"]].any()
    _assert_same(loaded, decode(encode(loaded)))


def test_file_loads_where_the_class_is_unknown(tmp_path: Path) -> None:
    class OnlyHere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 7, 3), nn.Linear(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.relu(self.conv(x)).mean((2, 3)))

    network = trace(OnlyHere(), [torch.randn(2, 3, 8, 8)]).eval()
    cluster_(network.get_submodule("conv"), "weight", 6)
    x = torch.randn(5, 3, 8, 8)
    (tmp_path / "small.pj").write_bytes(encode(network))
    torch.save({"x": x, "y": network(x).detach()}, tmp_path / "answers.pt")
    script = """
import sys, torch, penjing
torch.set_num_threads(1)
network = penjing.load("small.pj")
stored = torch.load("answers.pt")
assert torch.equal(network(stored["x"]), stored["y"])
assert not any("OnlyHere" in name or "test_round_trip" in name for name in sys.modules)
for name, value in network.state_dict().items():
    print(name, bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist()).hex())
"""
    source = str(Path(sys.modules["penjing"].__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert dict(line.split() for line in done.stdout.splitlines()) == {
        name: _bits(value).hex() for name, value in _tensors(network).items()
    }


@pytest.mark.parametrize("coder", range(DEPENDENT))
def test_every_way_to_write_codes(coder: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = trace(nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20)), [torch.randn(2, 20)]).eval()
    cluster_together_([(network.get_submodule(path), "weight") for path in "01"], 11)
    ways = iter([SHARED if coder == SHARED_SAME else coder, coder])
    monkeypatch.setattr(CodebookCodec, "variant", lambda *_: next(ways))
    path = tmp_path / "small.pj"
    path.write_bytes(encode(network))
    _assert_same(network, load(path))
    rows = {row.name: row for row in inspect(path)}
    assert rows["1.weight"].codec == f"codebook, {CODERS[coder]}"
    assert sum(row.size_bytes for row in rows.values()) == path.stat().st_size


def test_dependent_codes_travel(tmp_path: Path) -> None:
    network = trace(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20)), [torch.randn(2, 40)]).eval()
    for path in "01":
        layer = network.get_submodule(path)
        rows = layer.weight.detach()
        codes = rounded_with_feedback(rows, torch.tensor(0.02), torch.eye(rows.shape[1]), dependent=True)
        shape = (len(rows), 1), (1, rows.shape[1])
        represent_(layer, "weight", Grid(codes, 0.02 + torch.rand(shape[0]), columns=0.5 + torch.rand(shape[1])))
    path = tmp_path / "small.pj"
    path.write_bytes(encode(network))
    _assert_same(network, load(path))
    assert {row.codec for row in inspect(path) if "weight" in row.name} == {"grid, dependent, contexts"}


def test_file_is_close_to_the_entropy_of_its_codes() -> None:
    network = trace(nn.Sequential(nn.Linear(300, 300, bias=False), nn.ReLU()), [torch.randn(2, 300)]).eval()
    with torch.no_grad():
        network.get_submodule("0").weight.normal_()
    codebook = cluster_(network.get_submodule("0"), "weight", 16)
    ideal = entropy_bits_per_symbol(torch.bincount(codebook.codes.flatten().int())) * 90_000 / 8
    assert ideal < len(encode(network)) < ideal * 1.005 + 120


def test_constant_tensors_take_next_to_nothing() -> None:
    network = trace(nn.Sequential(nn.Linear(1000, 1000), nn.ReLU()), [torch.randn(2, 1000)]).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.1)
    assert len(encode(network)) < 60
    _assert_same(network, decode(encode(network)))


def _integers(shape: tuple[int, ...], *, start: int) -> Tensor:
    """Of 24 bits: exact in float32, and nothing that could be compressed."""
    return (
        ((torch.arange(torch.Size(shape).numel()) + start) * 10_368_889 % (1 << 24) - (1 << 23)).float().reshape(shape)
    )


def _fixed() -> Network:
    """Whole numbers only, so that every machine has the same: plain, constant, masked and clustered tensors."""
    nodes = [
        Node("x", INPUT),
        Node("conv", MODULE, ("x",), "conv"),
        Node("relu", "relu", ("conv",)),
        Node("mean", "mean", ("relu",), settings={"dims": (2, 3), "keepdim": False}),
        Node("linear_0", MODULE, ("mean",), "exits.0"),
        Node("exit_0", "exit", ("linear_0",), settings={"threshold": 0.75}),
        Node("hidden", MODULE, ("mean",), "hidden"),
        Node("head", MODULE, ("hidden",), "head"),
        Node("output", OUTPUT, ("head",)),
    ]
    modules: dict[str, nn.Module] = {
        "conv": nn.Conv2d(1, 4, 3, padding=1),
        "exits.0": nn.Linear(4, 3),
        "hidden": nn.Linear(4, 8),
        "head": nn.Linear(8, 3),
    }
    network = Network(nodes, modules, [(1, 6, 6)]).eval()
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.copy_(_integers(tuple(parameter.shape), start=1000 * number))
        modules["conv"].bias.fill_(2)
    represent_(modules["exits.0"], "weight", Mask(_integers((3, 4), start=3) > 0))
    codes = torch.arange(24).reshape(3, 8) ** 2 % 7 % 5
    represent_(modules["head"], "weight", Codebook(codes, torch.tensor([-127.0, -3, 0, 40, 90])))
    return network


GOLDEN = (
    "8e504a01421d0801e3e46460acb8c02c2a25c5c0027219839084a888c1052631f1930cec500b189925c459ce303038d8333232b36564a6a4"
    "a4e601c564185832521353189965c4d90000000100000040038000000000000022000a003c81fd00285ace8000009691eb47a5f36cc30000"
    "00cbc8bbf1491c2287cad64cb54a8043e4c846d5d1ca5833554ac4ee31ca9077e34a10347f498caaa3ca66c4984aa032abc9b65deeca7822"
    "1c4aa4ff6aca20efc64a8084d747fc32c0caec77784a30aa0ecada19f54a3023c649420892cab066aa4af05249c96cbbdcca0c673f4a10bb"
    "47ca6a91d84ae0022849b290aeca40de8d4a38cbd6c9dc43f9ca2c56064a603dddca760fd84aa612afca4c5c8d4ad0c5f9ca0687bb4a10dc"
    "cbcac425614a58fc25cac07abaca32f4814ab83903ca16d2fa4a2004dd4906508ccaec1eb04a10911bc93003d7ca84d74a4a984a3ccaa649"
    "de4ac0c4554976d8a8ca7c96934a48eabfc9a08bf3caa4c6114a785b75ca36c1c14a00ec67c7e660c5ca181c6e4a040619caf0ebef4a886b"
    "b1492c3697cac638a54a40c272c956e9e1ca380b354ae41652ca7019a9ca8255934a30eec0c99accf3cab044114a6cdd75ca3c80c14a8034"
    "84c7d05686ca2218b64ac08ed7c882d4361a"
)


def test_golden_file_is_read_for_ever() -> None:
    network = _fixed()
    _assert_same(network, decode(bytes.fromhex(GOLDEN)))


def test_golden_file_is_written() -> None:
    assert encode(_fixed()).hex() == GOLDEN


def _fixed_several() -> dict[str, Network]:
    """Two networks that share a layer, a tied weight and a table; sizes in formulas, constants, types, an answer by name."""
    shared, tied, table = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Parameter(_integers((3, 4), start=7))
    with torch.no_grad():
        shared.weight.copy_(_integers((4, 4), start=1))
        shared.bias.fill_(-1)
    tied.weight = shared.weight
    length = Size(("n",))
    one = [
        Node("ids", INPUT, settings={"dtype": 4, "low": 0, "high": 2}),
        Node("table", "tensor", (), "table"),
        Node("rows", "embedding", ("ids", "table")),
        Node("shared", MODULE, ("rows",), "block.shared"),
        Node("far", "tensor", (), "constants.0"),
        Node("sum", "add_scalar", ("far",), settings={"value": 2**63 - 1}, scope="block"),
        Node("y", OUTPUT, ("shared", "sum"), settings={"form": ("dict", "x", 0, "rest", ("tuple", None, 1))}),
    ]
    two = [
        Node("x", INPUT),
        Node("first", MODULE, ("x",), "shared"),
        Node("again", MODULE, ("first",), "shared"),
        Node("tied", MODULE, ("again",), "tied"),
        Node("bias", "tensor", (), "shared.bias"),
        Node("more", "add", ("tied", "bias")),
        Node("half", "slice", ("more",), settings={"dim": 1, "start": 0, "end": Size(("n", 2, "//")), "step": 1}),
        Node("zeros", "full", (), settings={"shape": (Size(("batch",)), 1, 4), "value": 0.5, "dtype": 0}),
        Node("z", "concat", ("half", "zeros"), settings={"dim": 1}),
        Node("y", OUTPUT, ("z",)),
    ]
    constants = {"table": table, "constants.0": torch.tensor([-(2**63)])}
    return {
        "encode": Network(one, {"block.shared": shared}, [(length,)], {"n": 3}, constants).eval(),
        "decode": Network(two, {"shared": shared, "tied": tied}, [(length, 4)], {"n": 6}, limits={"n": (2, 0)}).eval(),
    }


GOLDEN_SEVERAL = (
    "8e504a01aa011400012590310e824010457766612db031eec2c443585810624c38cb1228480c856c4167e3813c062616a3d27808cfa02bfb"
    "cbf9c97fffcfba50a1e441b675cf90314ca4d33c76b63a368231a337208258ce7b3ddc9e9a1a24519ef825bdb3ddbf033098dde31b742e51"
    "824418a2c83fc6018ab850753353606060b94935e344e338ee850a911e11b9d6472f886e79128edbaab53d269e7f05a39f724a3fe6822c5f"
    "86ee428852afbc65d40f000001000080bf00004100000000000000800404c8bbf1491c2287cad64cb54a8043e4c846d5d1ca5833554ac4ee"
    "31ca9077e34a10347f498caaa3ca66c4984aa032abc9b65deeca78221c4aa4ff6aca20efc64ac4ee31ca9077e34a10347f498caaa3ca66c4"
    "984aa032abc9b65deeca78221c4aa4ff6aca20efc64a8084d747fc32c0caa07a4fc4"
)


def test_golden_file_of_several_networks_is_read_for_ever(tmp_path: Path) -> None:
    (tmp_path / "small.pj").write_bytes(bytes.fromhex(GOLDEN_SEVERAL))
    loaded, expected = load_networks(tmp_path / "small.pj"), _fixed_several()
    for name, network in expected.items():
        _assert_same(network, loaded[name])
        inputs = network.random_inputs(2, torch.Generator().manual_seed(0))
        for a, b in zip(tree_leaves(loaded[name](*inputs)), tree_leaves(network(*inputs)), strict=True):
            assert _bits(a) == _bits(b)
    assert loaded["encode"].get_submodule("block.shared") is loaded["decode"].get_submodule("shared")
    assert loaded["decode"].get_submodule("tied").weight is loaded["decode"].get_submodule("shared").weight
    assert dict(loaded["encode"].nodes[0].settings) == {"dtype": 4, "low": 0, "high": 2}
    assert (loaded["decode"].hints, loaded["decode"].limits) == ({"s1": 6}, {"s1": (2, 0)})
    assert "constants.0" not in loaded["encode"].state_dict()
    assert encode(loaded).hex() == GOLDEN_SEVERAL


def test_golden_file_of_several_networks_is_written() -> None:
    assert encode(_fixed_several()).hex() == GOLDEN_SEVERAL


def test_codes_keep_their_numbers() -> None:
    assert CODES[:5] == ("module", "call again", "exit", "output", "input")
    assert (CODES[5], CODES[26]) == ("add", "multiply_scalar")
    assert CODES[27:33] == ("tensor", "entry", "call as", "typed input", "formed output", "divide")
    assert len(set(CODES)) == len(CODES)


def test_what_cannot_travel_is_named() -> None:
    nodes = [Node("x", INPUT), Node("a", MODULE, ("x",), "a"), Node("y", OUTPUT, ("a",))]
    with pytest.raises(TraceError, match='the layer "a" is a Bilinear, which cannot travel'):
        encode(Network(nodes, {"a": nn.Bilinear(2, 2, 2)}, [(2,)]))
    wider = nn.Linear(2, 2)
    wider.weight = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(TraceError, match=r'"a\.weight" is not what a Linear with these settings has'):
        encode(Network(nodes, {"a": wider}, [(2,)]))
    with pytest.raises(ArtifactError, match=r"torch\.complex64 cannot be stored"):
        encode(Network(nodes, {"a": nn.Linear(2, 2, dtype=torch.complex64)}, [(2,)]))
    deep = ".".join("abc" * 20)
    with pytest.raises(TraceError, match="no name for a layer"):
        encode(Network([nodes[0], Node("a", MODULE, ("x",), deep), nodes[2]], {deep: nn.ReLU()}, [(2,)]))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        load(tmp_path / "nothing.pj")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "empty.pj").touch()
    with pytest.raises(ArtifactError, match=r"empty\.pj: the file is empty"):
        load(tmp_path / "empty.pj")
