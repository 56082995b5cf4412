"""Clustering: the optimal clusters, and networks that have no more values than they were given."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.quantization import kmeans
from penjing.quantization.cluster import cluster_, cluster_network, cluster_together_
from penjing.quantization.following import ReassignCodes, follow_originals_
from penjing.quantization.kmeans import kmeans_1d
from penjing.representation import Mask, named_weights, represent_, representations


def _error(values: np.ndarray, codes: np.ndarray, centroids: np.ndarray) -> float:
    return float(((values - centroids[codes]) ** 2).sum())


def _brute_force(values: np.ndarray, k: int) -> float:
    """The least error over all ways to cut the sorted values into at most k runs."""
    ordered = np.sort(values)
    best = np.inf
    for cuts in itertools.combinations(range(1, len(ordered)), min(k, len(ordered)) - 1):
        runs = np.split(ordered, cuts)
        best = min(best, sum(float(((run - run.mean()) ** 2).sum()) for run in runs))
    return best


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=9), st.integers(1, 6))
def test_clusters_are_the_optimum(values: list[float], k: int) -> None:
    array = np.array(values)
    codes, centroids = kmeans_1d(array, k)
    assert 1 <= len(centroids) <= k
    assert (np.diff(centroids) > 0).all()
    distance = np.abs(array[:, None] - centroids)
    np.testing.assert_allclose(distance[np.arange(len(array)), codes], distance.min(1), rtol=0, atol=1e-12)
    assert _error(array, codes, centroids) == pytest.approx(_brute_force(array, k), rel=1e-9, abs=1e-9)


def test_fewer_values_than_clusters() -> None:
    values = np.array([3.0, -1.0, 3.0, 0.5, -1.0])
    codes, centroids = kmeans_1d(values, 8)
    assert centroids.tolist() == [-1.0, 0.5, 3.0]
    assert codes.tolist() == [2, 0, 2, 1, 0]
    codes, centroids = kmeans_1d(np.full(7, 0.3), 4)
    assert centroids.tolist() == [0.3]
    assert codes.tolist() == [0] * 7


def test_many_values_are_clustered_almost_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal(20_000)
    codes, centroids = kmeans_1d(values, 8)
    exact = _error(values, codes, centroids)
    monkeypatch.setattr(kmeans, "_EXACT_UP_TO", 1 << 10)
    codes, centroids = kmeans_1d(values, 8)
    assert exact <= _error(values, codes, centroids) < 1.01 * exact
    assert codes.shape == values.shape
    assert len(centroids) == 8
    assert (codes == np.abs(values[:, None] - centroids).argmin(1)).all()


def _network() -> Network:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.BatchNorm1d(5),
    )
    return trace(model, [torch.randn(2, 2, 8, 8)]).eval()


def test_every_layer_has_at_most_its_number_of_values() -> None:
    network = _network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    clustered, stayed = cluster_network(network, 5, {"type:Linear": 3, "0": 7}, 4)
    assert stayed == ["10"]
    limits = {"0.weight": 7, "7.weight": 3}
    vectors: list[Tensor] = []
    for name, owner, key in named_weights(clustered):
        value = getattr(owner, key).detach()
        assert representations(owner, key)[-1].kind == "codebook"
        if value.dim() > 1:
            assert len(value.unique()) <= limits.get(name, 5)
        else:
            vectors.append(value)
    assert len(torch.cat(vectors).unique()) <= 4
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_enough_values_lose_only_what_the_table_rounds() -> None:
    network = _network()
    clustered, _ = cluster_network(network, 256, bias_codes=256)
    x = torch.randn(4, 2, 8, 8)
    torch.testing.assert_close(clustered.eval()(x), network(x), rtol=0.05, atol=0.05)


def test_masked_weights_stay_zero_and_take_one_value() -> None:
    layer = nn.Linear(20, 20)
    keep = torch.rand(20, 20) < 0.3
    represent_(layer, "weight", Mask(keep))
    codebook = cluster_(layer, "weight", 4)
    assert codebook.zero
    assert len(codebook.centroids) == 4
    assert torch.equal(codebook.codes != 0, keep)
    assert not layer.weight[~keep].any()
    empty = nn.Linear(3, 3)
    represent_(empty, "weight", Mask(torch.zeros(3, 3)))
    assert len(cluster_(empty, "weight", 4).centroids) == 1
    assert not empty.weight.any()


def test_what_cannot_be_clustered_is_refused() -> None:
    layer = nn.Linear(4, 4)
    cluster_(layer, "weight", 4)
    with pytest.raises(SettingError, match=r"Linear\.weight has a codebook already"):
        cluster_(layer, "weight", 4)
    with torch.no_grad():
        layer.bias[1] = float("nan")
    with pytest.raises(SettingError, match=r"Linear\.bias holds values that are not finite"):
        cluster_together_([(layer, "bias")], 4)
    with pytest.raises(SettingError, match=r"float64; codebooks hold float32"):
        cluster_(nn.Linear(4, 4).double(), "weight", 4)
    cluster_together_([], 4)


def test_weights_follow_their_originals_until_training_ends() -> None:
    network, _ = cluster_network(_network(), 4)
    follow_originals_(network)
    assert all(owner.parametrizations[key].original.requires_grad for _, owner, key in named_weights(network))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    network(torch.randn(8, 2, 8, 8)).square().sum().backward()
    optimizer.step()
    fit = type("Fit", (), {"network": network})()
    codes = {name: representations(o, k)[-1].codes.clone() for name, o, k in named_weights(network)}
    ReassignCodes().after_step(fit)
    moved = 0
    for name, owner, key in named_weights(network):
        codebook, original = representations(owner, key)[-1], owner.parametrizations[key].original
        nearest = (original.detach()[..., None] - codebook.table().detach()).abs().amin(-1)
        assert torch.equal((original - getattr(owner, key)).detach().abs(), nearest)
        moved += int((codebook.codes != codes[name]).sum())
    assert moved
    weights = {name: getattr(owner, key).detach().clone() for name, owner, key in named_weights(network)}
    ReassignCodes().finish(fit)
    for name, owner, key in named_weights(network):
        assert torch.equal(getattr(owner, key), weights[name])
        assert not owner.parametrizations[key].original.requires_grad


def test_parameters_that_belong_to_no_layer_stay() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    clustered, stayed = cluster_network(trace(model, [torch.randn(2, 6)]), 4)
    assert set(stayed) == {f"0.{name}" for name, _ in model[0].named_parameters()}
    assert len(clustered.get_submodule("2").weight.unique()) <= 4
