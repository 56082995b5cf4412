"""Training while weights follow their originals: pulled to their clusters, and clusters found anew."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.objective import cluster_pull
from penjing.quantization import Cluster, Search
from penjing.quantization.cluster import cluster_, cluster_network
from penjing.quantization.following import (
    PullToClusters,
    follow_originals_,
    keep_codes_,
    recluster_,
    shared_weights,
)
from penjing.quantization.kmeans import distortion, kmeans_1d
from penjing.representation import Codebook, Mask, represent_
from penjing.training import LearnFromLabels, Schedule, Task, Workbench, fit_


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3))
    return trace(model, (torch.randn(2, 1, 8, 8),)).eval()


@pytest.fixture
def task() -> Task:
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x.mean((2, 3))[:, 0].mul(12).round().clamp(-1, 1).long() + 1)
    return Task(DataLoader(data, batch_size=16), DataLoader(data, batch_size=64))


def _originals(network: Network) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    for name, owner, key, _ in shared_weights(network):
        yield name, owner.parametrizations[key].original.detach(), getattr(owner, key).detach()


def _move_(network: Network, by: float = 0.05) -> None:
    with torch.no_grad():
        for _, owner, key, _ in shared_weights(network):
            original = owner.parametrizations[key].original
            original.add_(by * torch.randn(original.shape))


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_new_clusters_are_those_of_the_originals(network: Network, per: str) -> None:
    found, _ = cluster_network(network, 5, bias_codes=3, search=Search(per=per))
    follow_originals_(found)
    _move_(found)
    recluster_(found, Search(per=per))
    for name, owner, key, shared in shared_weights(found):
        original = owner.parametrizations[key].original.detach()
        if original.dim() == 1:
            continue
        scales = torch.ones(len(original)) if isinstance(shared, Codebook) else shared.stored_scales().detach()
        spread = scales.view(-1, *[1] * (original.dim() - 1))
        weights = (spread**2).expand_as(original).double().numpy()
        book = shared if isinstance(shared, Codebook) else shared.codebook
        _, best = kmeans_1d((original / spread).double().numpy(), 5, weights=weights.ravel())
        torch.testing.assert_close(book.centroids.detach().double(), torch.from_numpy(best), rtol=1e-5, atol=1e-6)
        error = float((original - getattr(owner, key).detach()).double().square().sum())
        expected = distortion((original / spread).double().numpy(), best, weights)
        assert error == pytest.approx(expected, rel=0.02), name  # the table is rounded to 8 bits
    biases = torch.cat([value for name, _, value in _originals(found) if name.endswith("bias")])
    assert len(biases.unique()) <= 3


def test_new_clusters_leave_removed_weights_and_fixed_codes_alone(network: Network) -> None:
    layer = network.get_submodule("3")
    keep = torch.rand(8, 144) < 0.3
    represent_(layer, "weight", Mask(keep))
    codebook = cluster_(layer, "weight", 4)
    before = codebook.codes.clone()
    with torch.no_grad():
        layer.parametrizations["weight"].original.add_(torch.randn(8, 144))
    recluster_(network, Search())
    assert torch.equal(codebook.codes, before)  # it does not follow
    follow_originals_(network)
    recluster_(network, Search())
    assert torch.equal(codebook.codes != 0, keep) and not torch.equal(codebook.codes, before)
    assert not layer.weight[~keep].any() and float(codebook.table().detach()[0]) == 0
    keep_codes_(network)
    assert not layer.parametrizations["weight"].original.requires_grad


def test_fewer_clusters_than_entries_keep_the_table_whole(network: Network) -> None:
    found, _ = cluster_network(network, 6)
    follow_originals_(found)
    layer = found.get_submodule("5")
    with torch.no_grad():
        layer.parametrizations["weight"].original.fill_(0.5)
    recluster_(found, Search())
    assert layer.parametrizations["weight"][0].centroids.tolist() == [0.5] * 6
    torch.testing.assert_close(layer.weight, torch.full((3, 8), 0.5), rtol=0, atol=0.002)


def test_the_pull_is_the_sum_over_layers_and_rises(network: Network) -> None:
    found, _ = cluster_network(network, 3)
    follow_originals_(found)
    _move_(found)
    part = PullToClusters(2.0)
    terms = [cluster_pull(original, value) for _, original, value in _originals(found) if value.dim() > 1]
    for step in (0, 3, 10):
        fit = type("Fit", (), {"network": found, "step": step, "total_steps": 10})()
        assert float(part.loss(fit, None, None).detach()) == pytest.approx(0.2 * step * float(sum(terms)), rel=1e-5)
    fit.network = network
    assert part.loss(fit, None, None) is None


def test_pulled_originals_end_nearer_to_their_values(network: Network, task: Task) -> None:
    apart = {}
    for strength in (0.0, 30.0):
        found, _ = cluster_network(network, 3)
        follow_originals_(found)
        schedule = Schedule(epochs=10, lr=0.01, decay="constant")
        fit_(found, task, schedule, [LearnFromLabels(), PullToClusters(strength)])
        apart[strength] = sum(float(cluster_pull(o, v)) for _, o, v in _originals(found) if v.dim() > 1)
    assert apart[30.0] < 0.1 * apart[0.0]


def test_the_stage_does_all_of_it_and_refuses_what_makes_no_sense(network: Network, task: Task) -> None:
    stage = Cluster(codes=4, epochs=3, lr=0.01, recluster=True, pull=1.0, init="random", per="channel")
    bench = Workbench(network, task)
    stage.apply(bench)
    again = Workbench(network, task)
    stage.apply(again)
    for (name, owner, key, shared), (_, other, _, _) in zip(
        shared_weights(bench.network), shared_weights(again.network), strict=True
    ):
        assert torch.equal(getattr(owner, key), getattr(other, key)), name
        assert not shared.follow
    with pytest.raises(SettingError, match="recluster: true needs weights that change their value"):
        Cluster(recluster=True, reassign=False)
    with pytest.raises(SettingError, match=r"pull: 0\.5 needs weights that change their value"):
        Cluster(pull=0.5, reassign=False)
    with pytest.raises(SettingError, match="write per: layer, or leave price out"):
        Cluster(per="channel", price=0.1)


def test_a_price_leaves_as_many_values_as_they_are_worth(network: Network) -> None:
    sizes = []
    for price in (None, 0.05, 1.0):
        found, _ = cluster_network(network, 16, search=Search(price=price))
        sizes.append(len(found.get_submodule("3").weight.unique()))
    assert sizes[0] == 16 > sizes[1] > sizes[2] >= 1
