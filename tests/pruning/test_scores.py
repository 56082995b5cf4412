"""Scores of channels against brute force, and the choice among them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.graph import Group, Network, channel_groups, trace
from penjing.pruning import choose_channels, magnitude_scores, taylor_scores
from penjing.training import Batch


class Shortcut(nn.Module):
    """Two convolutions whose results are added: their channels can only go together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.c, self.linear = nn.Conv2d(5, 4, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.b(x)
        return self.linear(self.c(x).flatten(1))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return trace(Shortcut(), (torch.randn(2, 2, 6, 6),)).eval()


def group_of(network: Network, producer: str) -> Group:
    return next(g for g in channel_groups(network).groups if producer in g.producers)


def test_magnitude_is_the_norm_over_all_coupled_filters(network: Network) -> None:
    group = group_of(network, "a")
    assert set(group.producers) == {"a", "b"}
    rows = [torch.cat([network.get_submodule(n).weight[c].flatten() for n in "ab"]).norm() for c in range(5)]
    torch.testing.assert_close(magnitude_scores(network, group), torch.stack(rows).detach())


def shrunk(network: Network, group: Group, channel: int, factor: float) -> Network:
    """The network that hears one channel times a factor."""
    changed = copy.deepcopy(network)
    for place in group.places:
        if not place.produces and place.dim == 1:
            with torch.no_grad():
                changed.get_submodule(place.path).weight[:, place.indices[place.channels == channel]] *= factor
    return changed


@pytest.mark.parametrize("producer", ["a", "c"])
def test_taylor_is_the_first_order_change_of_the_loss_found_by_brute_force(network: Network, producer: str) -> None:
    """With a loss that is linear in the answers, and readers that do not feed each other, first order is exact."""
    torch.manual_seed(1)
    x, direction = torch.randn(6, 2, 6, 6), torch.randn(6, 3)
    group = group_of(network, producer)
    if producer == "a":  # b reads a and writes into what c reads: cut that path, so that each channel is read once
        network = copy.deepcopy(network)
        with torch.no_grad():
            network.get_submodule("b").weight.zero_()
    (found,) = taylor_scores(
        network, [group], lambda b: (network(*b.args) * direction).sum(1).mean(), [Batch((x,), {})]
    )
    with torch.no_grad():
        full = (network(x) * direction).sum(1)
        changes = [full - (shrunk(network, group, c, 0)(x) * direction).sum(1) for c in range(group.n_channels)]
    expected = torch.stack([change.abs().mean() for change in changes])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_taylor_is_the_limit_of_small_changes_for_any_loss(network: Network) -> None:
    torch.manual_seed(2)
    x, y = torch.randn(1, 2, 6, 6), torch.tensor([1])
    exact = copy.deepcopy(network).double()
    group = group_of(exact, "c")
    (found,) = taylor_scores(exact, [group], lambda b: F.cross_entropy(exact(*b.args), y), [Batch((x.double(),), {})])
    eps, changes = 1e-6, []
    with torch.no_grad():
        base = F.cross_entropy(exact(x.double()), y)
        for channel in range(group.n_channels):
            less = shrunk(exact, group, channel, 1 - eps)
            changes.append((F.cross_entropy(less(x.double()), y) - base).abs() / eps)
    torch.testing.assert_close(found.double(), torch.stack(changes), rtol=1e-3, atol=1e-7)


class Heads(nn.Module):
    """Attention of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 6) for _ in "qkv")
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], 2, 3).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_scores_of_heads() -> None:
    """A head is everything that goes with it: its rows of three layers, its values at every place of a sample."""
    x, direction = torch.randn(5, 7, 4), torch.randn(5, 7, 3)
    network = trace(Heads(), (x,)).eval()
    (group,) = channel_groups(network).groups
    assert (set(group.producers), group.n_channels) == ({"q", "k", "v"}, 2)
    rows = torch.cat([network.get_submodule(n).weight.view(2, 12) for n in "qkv"], 1)
    torch.testing.assert_close(magnitude_scores(network, group), rows.norm(dim=1).detach())

    (found,) = taylor_scores(
        network, [group], lambda b: (network(*b.args) * direction).sum((1, 2)).mean(), [Batch((x,), {})]
    )
    with torch.no_grad():
        full, less = ((n(x) * direction).sum((1, 2)) for n in (network, shrunk(network, group, 0, 0)))
        torch.testing.assert_close(found[0], (full - less).abs().mean(), rtol=1e-4, atol=1e-5)


def test_the_score_of_a_set_does_not_depend_on_its_batches(network: Network) -> None:
    torch.manual_seed(3)
    x, y = torch.randn(8, 2, 6, 6), torch.arange(8) % 3
    group = group_of(network, "a")

    def score(*sizes: int) -> Tensor:
        batches = [Batch((a,), {}, b) for a, b in zip(x.split(sizes), y.split(sizes), strict=True)]
        return taylor_scores(network, [group], lambda b: F.cross_entropy(network(*b.args), b.labels), batches)[0]

    torch.testing.assert_close(score(8), score(5, 3), rtol=1e-4, atol=1e-6)


def test_scoring_leaves_no_trace(network: Network) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    taylor_scores(
        network, [group_of(network, "a")], lambda b: network(*b.args).sum(), [Batch((torch.randn(2, 2, 6, 6),), {})]
    )
    assert network.training
    network.eval()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not any(module._forward_pre_hooks for module in network.modules())


class Fake:
    def __init__(self, n: int) -> None:
        self.n_channels = n


def choose(scores: list[list[float]], n: int, **limits: float) -> list[list[int]]:
    return choose_channels([Fake(len(s)) for s in scores], [torch.tensor(s) for s in scores], n, **limits)  # type: ignore[arg-type]


def test_the_least_important_of_all_groups_go_first() -> None:
    scores = [[0.9, 0.1, 0.5, 0.8], [0.2, 0.3, 0.7, 0.6]]
    assert choose(scores, 3) == [[1], [0, 1]]
    assert choose(scores, 0) == [[], []]


def test_limits_hold_and_the_next_ones_go_instead() -> None:
    scores = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]
    assert choose(scores, 4) == [[0, 1], [0, 1]]  # two of each stay
    assert choose(scores, 4, keep_at_least=1) == [[0, 1, 2], [0]]
    assert choose(scores, 4, keep_at_least=1, at_most=0.25) == [[0], [0]]
    assert choose(scores, 99, keep_at_least=1) == [[0, 1, 2], [0, 1, 2]]
    assert choose([[0.1]], 5) == [[]]
