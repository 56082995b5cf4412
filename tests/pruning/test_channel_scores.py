"""Measures of importance of channels against counting, brute force and automatic differentiation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import Group, Network, channel_groups, trace
from penjing.pruning.apoz import average_zeros, often_zero
from penjing.pruning.batch_norm_scale import batch_norm_scales
from penjing.pruning.channel_fisher import fisher_scores
from penjing.pruning.channel_scores import CHANNEL_SCORES, channel_scores, check_score
from penjing.pruning.geometric_median import geometric_median_scores
from penjing.pruning.grouped_weights import grouped_weights
from penjing.pruning.magnitude import magnitude_scores
from penjing.pruning.taylor import taylor_scores
from penjing.representation import named_weights
from penjing.sensitivity import Evidence
from penjing.training import Batch

X, Y = torch.randn(7, 2, 6, 6, generator=torch.Generator().manual_seed(5)), torch.arange(7) % 3


class Net(nn.Module):
    """Two convolutions that are added, norms, a pooling behind a ReLU, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.na, self.nb = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
        self.c = nn.Conv2d(5, 4, 3)
        self.hidden, self.out = nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.na(self.a(x)))
        x = F.relu(self.nb(self.b(x)) + x)
        x = F.max_pool2d(F.relu(self.c(x)), 2).flatten(1)
        return self.out(F.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    model = Net()
    for norm in (model.na, model.nb):
        norm.weight.data, norm.bias.data = torch.randn(5), torch.randn(5)
    return trace(model, (X,)).eval()


def group_of(network: Network, producer: str) -> Group:
    return next(g for g in channel_groups(network).groups if producer in g.producers)


def rows(network: Network, path: str) -> Tensor:
    return network.get_submodule(path).weight.detach().flatten(1)


def test_l1_is_the_sum_of_absolute_weights_of_all_coupled_filters(network: Network) -> None:
    expected = rows(network, "a").abs().sum(1) + rows(network, "b").abs().sum(1)
    torch.testing.assert_close(magnitude_scores(network, group_of(network, "a"), norm=1), expected)


def test_the_geometric_median_is_the_filter_with_the_least_sum_of_distances(network: Network) -> None:
    expected = torch.zeros(5)
    for path in ("a", "b"):
        weight = rows(network, path)
        for c in range(5):
            for d in range(5):
                expected[c] += (weight[c] - weight[d]).square().sum().sqrt()
    torch.testing.assert_close(geometric_median_scores(network, group_of(network, "a")), expected)


def test_the_geometric_median_does_not_ask_for_size() -> None:
    """Large filters that repeat one another go before a small one that nobody is like: what magnitude would not do."""
    layer = nn.Linear(2, 4, bias=False)
    layer.weight.data = torch.tensor([[9.0, 0.0], [9.0, 0.1], [9.0, -0.1], [0.1, 0.1]])
    network = trace(nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 2),))
    group = channel_groups(network).groups[0]
    assert int(geometric_median_scores(network, group).argmin()) == 0
    assert int(magnitude_scores(network, group).argmin()) == 3


def test_batch_norm_scales_are_those_of_the_norms_a_channel_passes(network: Network) -> None:
    norms = [network.get_submodule(path).weight.detach().abs() for path in ("na", "nb")]
    torch.testing.assert_close(batch_norm_scales(network, group_of(network, "a")), (norms[0] + norms[1]) / 2)
    with pytest.raises(SettingError, match=r'channels of hidden pass no batch norm .* \["!hidden"\]'):
        batch_norm_scales(network, group_of(network, "hidden"))


def gated(network: Network, group: Group, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """The loss of one sample where all that reads a group's channels hears them times a gate."""
    edges = {}
    for read in group.reads:
        factor_of = torch.as_tensor(read.channels)[torch.as_tensor(read.indices).argsort()]

        def times(t: Tensor, dim: int = read.dim, own: Tensor = factor_of) -> Tensor:
            # the places of a flattened channel follow one another: the channel of every index along the dimension
            return t * gate[own].reshape([-1 if d == dim else 1 for d in range(t.dim())])

        edges[read.node, read.position] = times
    with network.watched(edges):
        return F.cross_entropy(network(x), y)


@pytest.mark.parametrize("producer", ["a", "c", "hidden"])
def test_taylor_and_fisher_are_gradients_of_a_gate_found_by_autograd(network: Network, producer: str) -> None:
    group = group_of(network, producer)
    each = []
    for i in range(len(X)):
        gate = torch.ones(group.n_channels, requires_grad=True)
        (gradient,) = torch.autograd.grad(gated(network, group, X[i : i + 1], Y[i : i + 1], gate), gate)
        each.append(gradient)
    gradients = torch.stack(each)
    batches = [Batch((X[:4],), {}, Y[:4]), Batch((X[4:],), {}, Y[4:])]

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(network(*batch.args), batch.labels)

    (fisher,) = fisher_scores(network, [group], loss, batches)
    torch.testing.assert_close(fisher, gradients.square().mean(0) / 2, rtol=1e-4, atol=1e-8)
    (taylor,) = taylor_scores(network, [group], loss, batches)
    torch.testing.assert_close(taylor, gradients.abs().mean(0), rtol=1e-4, atol=1e-7)
    mean = gradients.mean(0).square() / 2  # the gradient of a batch, squared, is not the Fisher
    assert not torch.allclose(fisher, mean, rtol=0.1)


def test_apoz_counts_zeros_behind_the_relu_and_before_the_pooling(network: Network) -> None:
    groups = [group_of(network, name) for name in ("a", "c", "hidden")]
    found = average_zeros(network, groups, [Batch((X[:4],), {}), Batch((X[4:],), {})])
    with torch.no_grad():
        layer = network.get_submodule
        a = F.relu(layer("na")(layer("a")(X)))
        b = F.relu(layer("nb")(layer("b")(a)) + a)
        c = F.relu(layer("c")(b))
        hidden = F.relu(layer("hidden")(F.max_pool2d(c, 2).flatten(1)))
    both = torch.cat([a, b], 2)  # the channels of a and of the sum are the same ones
    for share, values in zip(found, (both, c, hidden[:, :, None, None]), strict=True):
        torch.testing.assert_close(share, (values == 0).float().mean((0, 2, 3)))
    assert not torch.allclose(found[1], (F.max_pool2d(c, 2) == 0).float().mean((0, 2, 3)))


@pytest.mark.parametrize("smooth", [nn.LeakyReLU(0.1), nn.GELU(), nn.Tanh(), nn.Identity()])
def test_apoz_refuses_what_is_never_zero(smooth: nn.Module) -> None:
    network = trace(nn.Sequential(nn.Conv2d(2, 4, 3), smooth, nn.Conv2d(4, 3, 3), nn.Flatten()), (X,))
    with pytest.raises(SettingError, match=r'the channels of 0 meet no ReLU .* layers: \["!0"\]'):
        average_zeros(network, channel_groups(network).groups, [Batch((X,), {})])


def test_the_rule_of_zeros_is_one_standard_deviation_over_the_mean() -> None:
    shares = torch.tensor([0.1, 0.5, 0.5, 0.5, 0.9])  # mean 0.5, deviation 0.253
    assert often_zero(shares) == [4]
    assert often_zero(torch.tensor([0.5, 0.5])) == []
    assert often_zero(torch.tensor([0.5, 0.5, 0.76])) == [2]


def test_scores_of_weights_add_up_over_the_rows_of_a_channel(network: Network) -> None:
    scores = {name: getattr(owner, own).detach().square() for name, owner, own in named_weights(network)}
    group = group_of(network, "a")
    (found,) = grouped_weights(scores, [group])
    torch.testing.assert_close(found.sqrt(), magnitude_scores(network, group))
    with pytest.raises(SettingError, match=r"none of a\.weight, b\.weight has scores"):
        grouped_weights({}, [group])


def evidence() -> Evidence:
    return Evidence(
        lambda: [Batch((X,), {}, Y)], lambda network, batch: F.cross_entropy(network(*batch.args), batch.labels)
    )


@pytest.mark.parametrize("name", [*CHANNEL_SCORES])
def test_every_score_finds_the_channel_that_does_nothing(name: str, network: Network) -> None:
    """A channel of a whose filters, scales and biases are 0 is the least important, whatever one looks at."""
    dead = copy.deepcopy(network)
    with torch.no_grad():
        for path in ("a", "b", "na", "nb"):
            layer = dead.get_submodule(path)
            layer.weight[2] = 0
            layer.bias[2] = 0
    group = group_of(dead, "a")
    (scores,) = channel_scores(name, dead, [group], evidence())
    assert scores.shape == (5,) and bool(scores.isfinite().all())
    if name != "geometric-median":  # for which 0 is in the middle of filters, but need not be the median
        assert int(scores.argmin()) == 2
    assert int(scores.min() * 1e6) >= 0


def test_scores_need_what_they_need(network: Network) -> None:
    groups = [group_of(network, "c")]
    for name, score in CHANNEL_SCORES.items():
        if "samples" in score.needs:
            with pytest.raises(SettingError, match=f"{name}: it looks at"):
                channel_scores(name, network, groups, Evidence())
        elif "batch norm" in score.needs:
            with pytest.raises(SettingError, match="pass no batch norm"):
                channel_scores(name, network, groups, Evidence())
        else:
            channel_scores(name, network, groups, Evidence())
    with pytest.raises(SettingError, match='there is no score "tailor"; did you mean "taylor"'):
        check_score("tailor", "prune")


def test_scoring_leaves_the_network_alone(network: Network) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    for name in CHANNEL_SCORES:
        channel_scores(name, network, [group_of(network, "a")], evidence())
        assert network.training
    network.eval()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
