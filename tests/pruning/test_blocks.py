"""Residual blocks: found, skipped, removed; what changes the shape stays."""

import copy

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.artifact import decode, encode
from penjing.errors import SurgeryError
from penjing.graph import Network, trace
from penjing.measurement import count_parameters
from penjing.models import resnet_cifar
from penjing.pruning import PruneBlocks
from penjing.pruning.blocks import Block, find_blocks, last_magnitudes, remove_block, skip_losses
from penjing.sensitivity import Evidence
from penjing.training import Batch, Task, Workbench

X, Y = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 10


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    model = resnet_cifar(14, width=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data = torch.randn(tensor.shape)
    return trace(model.eval(), (X,)).eval()


def test_blocks_are_found_and_those_that_change_the_shape_stay(network: Network) -> None:
    blocks, kept = find_blocks(network)
    assert [b.layers[0].rpartition(".")[0] for b in blocks] == ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]
    assert all([path.rpartition(".")[2] for path in b.layers] == ["conv1", "bn1", "conv2", "bn2"] for b in blocks)
    assert len(kept) == 2
    first, second = kept.values()
    assert "it changes the shape from 4x8x8 to 8x4x4" in first and "layer2.0.conv1" in first
    assert "it changes the shape from 8x4x4 to 16x2x2" in second


@pytest.mark.parametrize("number", range(4))
def test_removing_is_skipping(number: int, network: Network) -> None:
    block = find_blocks(network)[0][number]
    small = remove_block(network, block)
    with torch.no_grad():
        with network.watched({(block.name, block.position): torch.zeros_like}):
            skipped = network(X)
        assert torch.equal(small(X), skipped)
        assert not torch.allclose(skipped, network(X))
    assert not set(block.layers) & set(small.layers()) and set(block.layers) < set(network.layers())
    weights = sum(p.numel() for path in block.layers for p in network.get_submodule(path).parameters())
    assert count_parameters(small)[0] == count_parameters(network)[0] - weights
    assert torch.equal(decode(encode(small))(X), small(X))
    assert len(find_blocks(small)[0]) == 3


def test_all_blocks_can_go_one_after_the_other(network: Network) -> None:
    small = network
    while blocks := find_blocks(small)[0]:
        small = remove_block(small, blocks[-1])
    assert len(find_blocks(small)[1]) == 2
    assert small(X).shape == (6, 10)


def test_the_score_of_a_block_is_the_loss_without_it(network: Network) -> None:
    blocks, _ = find_blocks(network)
    batches = [Batch((X[:4],), {}, Y[:4]), Batch((X[4:],), {}, Y[4:])]
    evidence = Evidence(lambda: batches, lambda n, batch: F.cross_entropy(n(*batch.args), batch.labels))
    found = skip_losses(network, blocks, evidence)
    with torch.no_grad():
        whole = F.cross_entropy(network(X), Y)
        expected = [float(F.cross_entropy(remove_block(network, b)(X), Y) - whole) for b in blocks]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_size_of_a_block_is_that_of_its_last_norm(network: Network) -> None:
    blocks, _ = find_blocks(network)
    expected = [float(network.get_submodule(b.layers[-1]).weight.detach().square().mean().sqrt()) for b in blocks]
    assert last_magnitudes(network, blocks) == pytest.approx(expected)


class Layer(nn.Module):
    """A transformer's layer: attention without heads, and a feed-forward part scaled by a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.LayerNorm(6), nn.LayerNorm(6)
        self.qkv, self.out, self.up, self.down = nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.scale = nn.Parameter(torch.full((6,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.one(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return self.scale * self.down(F.gelu(self.up(self.other(x)))) + x


def test_both_parts_of_a_transformers_layer_are_blocks() -> None:
    x = torch.randn(3, 5, 6)
    network = trace(nn.Sequential(Layer(), nn.Linear(6, 2)), (x,)).eval()
    (attention, forward), kept = find_blocks(network)
    assert not kept
    assert set(attention.layers) == {"0.one", "0.qkv", "0.out"}
    assert set(forward.layers) == {"0.other", "0.up", "0.down", "0.scale"}
    small = remove_block(network, forward)
    assert "0.scale" not in dict(small.named_parameters()) and "0.other" not in small.layers()
    layer = network.get_submodule
    q, k, v = layer("0.qkv")(layer("0.one")(x)).chunk(3, -1)
    expected = layer("1")(x + layer("0.out")(F.scaled_dot_product_attention(q, k, v)))
    torch.testing.assert_close(small(x), expected)
    torch.testing.assert_close(remove_block(small, attention)(x), layer("1")(x))


class Nested(nn.Module):
    """A block within a block, a layer that both and the rest use, and additions that are no blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.shared = (nn.Linear(4, 4) for _ in "abcs")
        self.position = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x) + self.position  # a parameter: no shortcut
        y = self.a(x)
        y = y + self.b(y)
        x = x + self.shared(y)
        x = x + x.tanh()  # nothing is learned there
        return self.c(x)


def test_nested_blocks_and_shared_layers() -> None:
    x = torch.randn(3, 4)
    network = trace(Nested(), (x,)).eval()
    (inner, outer), kept = find_blocks(network)
    assert inner.layers == ("b",) and outer.layers == ("a", "b") and not kept
    small = remove_block(network, outer)
    assert "shared" in small.layers() and "a" not in small.layers()
    layer = network.get_submodule
    h = layer("shared")(x) + dict(network.named_parameters())["position"]
    torch.testing.assert_close(small(x), layer("c")(h + h.tanh()))
    assert find_blocks(small)[0] == ()
    with pytest.raises(SurgeryError, match=f'the network has no block "{inner.name}" of b'):
        remove_block(small, inner)
    with pytest.raises(SurgeryError, match="has no block"):
        remove_block(network, Block("nothing", "x", 0, (), ("b",)))


def bench_of(network: Network) -> Workbench:
    data = TensorDataset(X, Y)
    loader = DataLoader(data, batch_size=3)
    return Workbench(copy.deepcopy(network), Task(loader, loader), accelerator=Accelerator(cpu=True))


def test_the_stage_removes_the_least_important(network: Network) -> None:
    quiet = copy.deepcopy(network)
    with torch.no_grad():
        for path in ("layer1.1.bn2", "layer3.1.bn2"):  # blocks that say nothing
            quiet.get_submodule(path).weight.mul_(1e-6)
            quiet.get_submodule(path).bias.mul_(1e-6)
        for path in ("layer1.0.bn2", "layer2.1.bn2"):
            quiet.get_submodule(path).weight.add_(4)
    bench = bench_of(quiet)
    PruneBlocks(blocks=2, rounds=2, epochs=0, score="magnitude").apply(bench)
    left = {b.layers[0].rpartition(".")[0] for b in find_blocks(bench.network)[0]}
    assert left == {"layer1.0", "layer2.1"}
    assert len(bench.facts["blocks removed"]) == 2 and len(bench.facts["blocks kept"]) == 2  # type: ignore[arg-type]
    torch.testing.assert_close(bench.network(X), quiet(X), rtol=1e-3, atol=1e-3)


def test_more_blocks_than_there_are(network: Network) -> None:
    bench = bench_of(network)
    PruneBlocks(blocks=9, rounds=2, epochs=0).apply(bench)
    assert find_blocks(bench.network)[0] == ()
    assert any("only 4 of 9 blocks can go" in text and "changes the shape" in text for text in bench.warnings)
