"""What runs how is measured, answers stay, and nothing of it is in the file."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import penjing as pj
from penjing.dynamic import attach_exits
from penjing.errors import PenjingError, SettingError
from penjing.graph import Network
from penjing.graph.features import node_named
from penjing.graph.network import EXIT, node_shapes
from penjing.inference import CompressedLayer, accelerate, backend
from penjing.inference.layers import SignConv, SignLinear, SparseConv1x1, SparseLinear
from penjing.kernels import codebook
from penjing.models import resnet_cifar
from penjing.quantization.sign_inputs import with_sign_inputs
from penjing.representation import Codebook, Grid, Mask, ScaledCodebook, Signs, plain, represent_


@pytest.fixture
def kernels_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel is faster than the dense layer, and an earlier candidate than a later one."""
    monkeypatch.setattr(backend, "_take_turns", lambda calls: [100.0, *range(1, len(calls))])


def perceptron() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))
    return pj.trace(model, (torch.randn(1, 1, 8, 8),)).eval()


def masked(network: Network, share: float = 0.9) -> Network:
    for layer in network.layers().values():
        if isinstance(getattr(layer, "weight", None), Tensor) and layer.weight.dim() > 1:
            represent_(layer, "weight", Mask(torch.rand_like(layer.weight) > share))
    return network


def ways(network: Network) -> list[type]:
    return [
        type(layer) for layer in network.layers().values() if isinstance(layer, (nn.Linear, nn.Conv2d, CompressedLayer))
    ]


def agree(own: Network, network: Network, *x: Tensor) -> None:
    dense = plain(network).eval()
    with torch.no_grad():
        found, wanted = own(*x), dense(*x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=3e-5 * (1 + float(wanted.abs().max())))


@pytest.mark.usefixtures("kernels_win")
def test_a_network_runs_from_its_masks_and_its_relus_with_it() -> None:
    network = masked(perceptron())
    found = accelerate(network)
    assert ways(found.network) == [SparseLinear] * 3 and [choice.way for choice in found.choices] == ["sparse"] * 3
    assert [node.op for node in found.network.nodes].count("module") == 4  # flatten and three layers
    assert found.choices[0].own_bytes < found.choices[0].dense_bytes / 2
    for n in (1, 5, 70):
        agree(found.network, network, torch.randn(n, 1, 8, 8))
    assert ways(network) == [nn.Linear] * 3 or all("Linear" in way.__name__ for way in ways(network))  # as it was


def test_dense_stays_where_dense_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_take_turns", lambda calls: [1.0] + [0.95] * (len(calls) - 1))
    network = masked(perceptron())
    found = accelerate(network)
    assert ways(found.network) == [nn.Linear] * 3
    assert all(c.way == "dense" and c.why == "sparse is 1.05 x as fast here" for c in found.choices)
    assert all(c.way == "dense" and "no kernel: neither many zeros" in c.why for c in accelerate(perceptron()).choices)
    agree(found.network, network, torch.randn(2, 1, 8, 8))


@pytest.mark.skipif(not codebook.lanes_here(), reason="this processor has neither AVX-512 nor AVX2")
@pytest.mark.usefixtures("kernels_win")
@pytest.mark.parametrize("kind", ["codebook", "scaled codebook", "grid", "grid by row", "ternary", "half zeros"])
def test_codes_of_every_kind(kind: str) -> None:
    network = perceptron()
    for layer in (layer for layer in network.layers().values() if isinstance(layer, nn.Linear)):
        shape = tuple(layer.weight.shape)
        codes, scales = torch.randint(0, 16, shape), torch.rand(shape[0]) + 0.5
        made: Any = {
            "codebook": lambda: Codebook(codes, torch.randn(16)),  # noqa: B023
            "scaled codebook": lambda: ScaledCodebook(Codebook(codes, torch.randn(16)), scales),  # noqa: B023
            "grid": lambda: Grid(codes - 8, torch.full((1, 1), 0.1)),  # noqa: B023
            "grid by row": lambda: Grid(codes - 8, scales[:, None]),  # noqa: B023
            "ternary": lambda: Signs(codes % 3 - 1, scales[:, None], ternary=True),  # noqa: B023
            "half zeros": lambda: Codebook(codes * (codes > 8), torch.randn(16), zero=True),  # noqa: B023
        }[kind]()
        represent_(layer, "weight", made)
    found = accelerate(network)
    assert {choice.way for choice in found.choices} == {"codebook"}
    agree(found.network, network, torch.randn(3, 1, 8, 8))


@pytest.mark.usefixtures("kernels_win")
def test_layers_that_take_signs_need_no_signs_made_for_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)),
        *(nn.Flatten(), nn.Linear(288, 50), nn.BatchNorm1d(50), nn.Linear(50, 10)),
    )
    network = pj.trace(model, (torch.randn(2, 3, 8, 8),)).eval()
    network = with_sign_inputs(network, ["2", "5"])
    for path in ("2", "5", "7"):
        layer = network.get_submodule(path)
        scales = torch.rand(len(layer.weight), *[1] * (layer.weight.dim() - 1)) + 0.5
        represent_(layer, "weight", Signs(torch.where(layer.weight >= 0, 1, -1), scales))
    found = accelerate(network)
    assert ways(found.network) == [nn.Conv2d, SignConv, SignLinear, SignLinear]
    assert found.network.get_submodule("5").of_signs and not found.network.get_submodule("7").of_signs
    assert "sign_through" in [node.op for node in network.nodes]
    assert "sign_through" not in [node.op for node in found.network.nodes]
    agree(found.network, network, torch.randn(3, 3, 8, 8))


@pytest.mark.usefixtures("kernels_win")
def test_pointwise_convolutions_run_from_their_masks_at_any_size() -> None:
    torch.manual_seed(0)
    network = masked(
        pj.trace(nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3)), (torch.randn(1, 4, 6, 6),))
    )
    found = accelerate(network)
    assert ways(found.network) == [SparseConv1x1, nn.Conv2d]
    agree(found.network, network.eval(), torch.randn(2, 4, 9, 7))


@pytest.mark.usefixtures("kernels_win")
def test_a_shared_layer_and_a_relu_that_others_bypass() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.other = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(torch.relu(self.layer(x)))
            z = self.other(y)
            return z + torch.relu(z)

    network = masked(pj.trace(Shared(), (torch.randn(1, 16),)).eval())
    found = accelerate(network)
    assert ways(found.network) == [SparseLinear] * 2
    assert not any(layer.rectify for layer in found.network.layers().values() if isinstance(layer, CompressedLayer))
    agree(found.network, network, torch.randn(3, 16))


def test_a_file_says_nothing_of_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = masked(perceptron())
    pj.save(network, tmp_path / "a.pj")
    monkeypatch.setattr(backend, "_take_turns", lambda calls: [100.0, *range(1, len(calls))])
    own = pj.load(tmp_path / "a.pj", backend="auto")
    assert ways(own) == [SparseLinear] * 3 and ways(pj.load(tmp_path / "a.pj")) == [nn.Linear] * 3
    agree(own, network, torch.randn(2, 1, 8, 8))
    assert node_shapes(own)[own.nodes[-1].name] == (1, 10)
    with pytest.raises(PenjingError, match="SparseLinear"):
        pj.save(own, tmp_path / "b.pj")
    with pytest.raises(SettingError, match='must be "dense" or "auto"'):
        pj.load(tmp_path / "a.pj", backend="fast")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="for inference"):
        pj.load(tmp_path / "a.pj", backend="auto", for_training=True)


@pytest.mark.usefixtures("kernels_win")
def test_weights_that_are_not_numbers_stay_dense() -> None:
    network = masked(perceptron())
    layer = network.get_submodule("1")
    with torch.no_grad():
        layer.parametrizations.weight.original.fill_(float("nan"))
    assert accelerate(network).choices[0].way == "dense"


def test_it_really_is_faster_where_it_says_so() -> None:
    """A matrix that is far too large for a wrong choice."""
    torch.manual_seed(0)
    network = masked(pj.trace(nn.Sequential(nn.Linear(2048, 2048)), (torch.randn(1, 2048),)), 0.98)
    (choice,) = accelerate(network.eval()).choices
    assert choice.way == "sparse" and choice.own_ms is not None and choice.dense_ms is not None
    assert choice.own_ms < 0.7 * choice.dense_ms


NETWORKS = runpy.run_path(str(Path(__file__).parents[1] / "artifact" / "conftest.py"))["NETWORKS"]


@pytest.mark.usefixtures("kernels_win")
@pytest.mark.parametrize("name", list(NETWORKS))
def test_whatever_a_file_can_hold_answers_the_same(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    own, dense = accelerate(network).network, plain(network).eval()
    dtype = next(p.dtype for p in network.parameters() if p.is_floating_point())
    x = network.random_inputs(2, torch.Generator().manual_seed(1), dtype)
    with torch.no_grad():
        found, wanted, before = (pytree.tree_leaves(one(*x)) for one in (own, dense, network))
    for a, b, c in zip(found, wanted, before, strict=True):
        if isinstance(a, Tensor) and a.is_floating_point() and a.numel():
            room = 1e-5 * (1 + float(b.double().nan_to_num().abs().max()))
            torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=room, equal_nan=True)
            assert torch.equal(b.nan_to_num(), c.nan_to_num()), (
                "plain weights are what representations give, bit for bit"
            )
        else:
            assert not isinstance(a, Tensor) or torch.equal(a, b)


def test_batch_norms_are_computed_with_plain_layers_before_them() -> None:
    """Not with a layer that has a mask, nor with one that another norm reads too; gates and exits go where they went."""
    torch.manual_seed(0)
    network = pj.trace(resnet_cifar(8, width=4), (torch.randn(2, 3, 16, 16),)).train()
    for _ in range(3):
        network(torch.randn(8, 3, 16, 16) * 2 + 1)
    represent_(network.get_submodule("layer2.0.conv1"), "weight", Mask(torch.rand(8, 4, 3, 3) > 0.5))
    network = attach_exits(network.eval(), [node_named(network, "layer1.0")])
    x = torch.randn(6, 3, 16, 16)
    sure = network.all_answers(x)[0].softmax(1).amax(1).sort().values[2:4].mean().item()
    network.nodes = [replace(n, settings={"threshold": sure}) if n.op == EXIT else n for n in network.nodes]
    found = accelerate(network, batch=6)
    fast = found.network
    assert set(found.folded) == {path for path in network.layers() if "bn" in path} - {"layer2.0.bn1"}
    norms = [path for path, layer in fast.layers().items() if isinstance(layer, nn.BatchNorm2d)]
    assert norms == ["layer2.0.bn1"]
    for ours, theirs in zip(fast.all_answers(x), network.all_answers(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    mine, theirs = fast.route(x), network.route(x)
    torch.testing.assert_close(mine.answers, theirs.answers)
    assert torch.equal(mine.left_at, theirs.left_at)
    assert len(torch.unique(theirs.left_at)) == 2


@pytest.mark.parametrize(
    ("first_ms", "last_ms", "layout"), [(1.0, 0.5, "channels last"), (1.0, 0.95, "channels first")]
)
def test_maps_lie_in_memory_as_is_faster(
    monkeypatch: pytest.MonkeyPatch, first_ms: float, last_ms: float, layout: str
) -> None:
    """Whole networks of images are timed both ways; perceptrons are not."""
    monkeypatch.setattr(backend, "_take_turns", lambda calls: [first_ms, last_ms])
    network = pj.trace(resnet_cifar(8, width=4), (torch.randn(2, 3, 16, 16),)).eval()
    found = accelerate(network, batch=2)
    assert found.layout == layout
    x = torch.randn(2, 3, 16, 16)
    weight = found.network.get_parameter("layer1.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) == (layout == "channels last")
    torch.testing.assert_close(found.network(x), network(x))
    assert accelerate(perceptron()).layout is None


def test_a_layout_that_changes_answers_is_not_used(kernels_win: None, monkeypatch: pytest.MonkeyPatch) -> None:
    network = pj.trace(resnet_cifar(8, width=4), (torch.randn(2, 3, 16, 16),)).eval()
    own = Network.to

    def spoiled(self: Network, *args: Any, **kwargs: Any) -> Network:
        made = own(self, *args, **kwargs)
        if "memory_format" in kwargs:
            with torch.no_grad():
                made.get_parameter("layer1.0.conv1.weight").mul_(1.1)
        return made

    monkeypatch.setattr(Network, "to", spoiled)
    assert accelerate(network).layout == "channels first"
