"""Attention heads: told from other channels, removed with all that is theirs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.graph import Network, channel_groups, prove_removal, trace
from penjing.pruning.heads import PruneHeads, head_groups
from penjing.training import Task, Workbench

X = torch.randn(2, 7, 12)


class Attention(nn.Module):
    """Four heads of width 3, written in one of several ways; with fewer heads of keys, queries share them."""

    def __init__(self, way: str = "fused", keys: int = 4) -> None:
        super().__init__()
        self.way, self.keys = way, keys
        self.q, self.out = nn.Linear(12, 12), nn.Linear(12, 12)
        self.k, self.v = nn.Linear(12, 3 * keys), nn.Linear(12, 3 * keys)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, -1, 3) for layer in (self.q, self.k, self.v))
        if self.way == "einsum":
            weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / 3**0.5).softmax(-1)
            return self.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if self.way == "matmul":
            mixed = ((q @ k.transpose(-1, -2)) / 3**0.5).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.keys < 4)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Two layers, a feed-forward part in each, and classes."""

    def __init__(self, way: str = "fused", keys: int = 4) -> None:
        super().__init__()
        self.attend = nn.ModuleList(Attention(way, keys) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(4))
        self.up, self.down = (
            nn.ModuleList(nn.Linear(12, 20) for _ in range(2)),
            nn.ModuleList(nn.Linear(20, 12) for _ in range(2)),
        )
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = x + self.attend[i](self.norms[2 * i](x))
            x = x + self.down[i](F.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return self.head(x.mean(1))


class Shuffled(nn.Module):
    """Grouped convolutions with a shuffle: dimensions that are read as several, and no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        n, _, h, w = x.shape
        return self.c(x.view(n, 4, 2, h, w).transpose(1, 2).reshape(n, 8, h, w))


@pytest.mark.parametrize("way", ["fused", "matmul", "einsum"])
def test_heads_are_told_from_hidden_units_and_widths(way: str) -> None:
    network = trace(Transformer(way), (X,)).eval()
    heads = head_groups(network)
    assert [set(g.producers) for g in heads] == [{f"attend.{i}.{n}" for n in "qkv"} for i in range(2)]
    assert [g.n_channels for g in heads] == [4, 4]
    names = {g.name for g in heads}
    others = [g for g in channel_groups(network).groups if g.name not in names]
    assert {"up.0", "up.1"} <= {path for g in others for path in g.producers}  # ordinary channels


def test_grouped_queries_go_with_their_keys() -> None:
    heads = head_groups(trace(Transformer(keys=2), (X,)).eval())
    assert [g.n_channels for g in heads] == [2, 2]


def test_where_there_is_no_attention_there_are_no_heads() -> None:
    assert head_groups(trace(Shuffled(), (torch.randn(2, 2, 6, 6),)).eval()) == []
    gate = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    assert head_groups(trace(gate, (X,)).eval()) == []


def task() -> Task:
    x = torch.randn(16, 7, 12, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x.mean((1, 2)) > 0).long())
    return Task(DataLoader(data, batch_size=8), DataLoader(data, batch_size=8))


def bench_of(network: Network) -> Workbench:
    return Workbench(copy.deepcopy(network), task(), accelerator=Accelerator(cpu=True))


@pytest.mark.parametrize("score", ["taylor", "magnitude", "fisher", "weights:magnitude"])
def test_the_least_important_heads_go_and_nothing_else(score: str) -> None:
    network = trace(Transformer(), (X,)).eval()
    with torch.no_grad():  # heads that nobody hears and that are small: whatever one looks at
        for i, head in ((0, 1), (1, 3), (1, 0)):
            rows = slice(3 * head, 3 * head + 3)
            for name in "qkv":
                network.get_submodule(f"attend.{i}.{name}").weight[rows] *= 1e-3
                network.get_submodule(f"attend.{i}.{name}").bias[rows] *= 1e-3
            network.get_submodule(f"attend.{i}.out").weight[:, rows] *= 1e-3
    bench = bench_of(network)
    PruneHeads(sparsity=3 / 8, rounds=1, epochs=0, score=score).apply(bench)
    layer = bench.network.get_submodule
    assert layer("attend.0.q").weight.shape == (9, 12) and layer("attend.1.q").weight.shape == (6, 12)
    old = network.get_submodule("attend.1.v").weight.detach()
    assert torch.equal(layer("attend.1.v").weight.detach(), old[3:9])
    assert layer("attend.1.out").weight.shape == (12, 6) and layer("up.0").weight.shape == (20, 12)
    assert not bench.warnings


def test_removing_a_head_is_its_output_at_zero() -> None:
    network = trace(Transformer(), (X,)).eval()
    grouping = channel_groups(network)
    (first, _) = head_groups(network, grouping)
    proof = prove_removal(network, grouping.removal({first.name: [2]}))
    assert proof.error <= 1e-9 and proof.effect > 1e-6 and not proof.changed
    bench = bench_of(network)
    PruneHeads(sparsity=1 / 4, rounds=1, epochs=0, layers=("attend.0.*",), score="magnitude").apply(bench)
    (name,) = bench.facts["removed in each round"][0]  # type: ignore[index, misc]
    small = bench.network
    rows = small.get_submodule("attend.0.q").weight[:, 0].tolist()
    gone = [i for i, value in enumerate(network.get_submodule("attend.0.q").weight[:, 0].tolist()) if value not in rows]
    silent = copy.deepcopy(network)
    with torch.no_grad():
        silent.get_submodule("attend.0.out").weight[:, gone] = 0
    torch.testing.assert_close(small(X), silent(X))
    assert name == first.name


def test_without_heads_the_network_is_trained_and_a_warning_says_so() -> None:
    bench = bench_of(trace(nn.Sequential(nn.Flatten(), nn.Linear(84, 6), nn.ReLU(), nn.Linear(6, 2)), (X,)))
    PruneHeads(rounds=1, epochs=1).apply(bench)
    assert any("no attention heads that can go" in text for text in bench.warnings)
    assert len(bench.history["round-1"].losses) == 1
