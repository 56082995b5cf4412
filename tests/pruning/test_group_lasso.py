"""The group lasso: its proximal step, exact zeros that others do not give, and removal that changes no answer."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.pruning.group_lasso import ProximalGroupLasso, block_soft_threshold, shrink_
from penjing.pruning.same_answers import answer_difference
from penjing.pruning.structured_sparsity import GroupLasso, mask_zero_shapes_, without_zeros
from penjing.pruning.weight_groups import group_norms, weight_groups, zero_groups
from penjing.representation import Codebook, Mask, represent_, representations
from penjing.training import Batch, Fit, LearnFromLabels, Part, Schedule, Task, fit_
from penjing.training.part import Answers


def objective(z: Tensor, w: Tensor, threshold: float) -> Tensor:
    return 0.5 * (z - w).square().sum() + threshold * (z.shape[1] ** 0.5 * z.norm(dim=1)).sum()


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0, 1.5))
def test_the_proximal_step_is_the_minimum(seed: int, size: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(4, size, generator=generator, dtype=torch.float64)
    found = block_soft_threshold(w, threshold)
    best = objective(found, w, threshold)
    for scale in (1.0, 1e-2, 1e-5):  # the problem is convex: no point near is better, so none at all
        near = found + scale * torch.randn(64, 4, size, generator=generator, dtype=torch.float64)
        assert all(objective(z, w, threshold) >= best - 1e-12 for z in near)
    # and what a numeric minimiser comes to, along the ray on which the minimum must lie
    lengths = torch.linspace(0, 1, 20001, dtype=torch.float64)
    for row, own in zip(w, found, strict=True):
        values = 0.5 * ((lengths - 1) * row.norm()).square() + threshold * size**0.5 * lengths * row.norm()
        assert float((lengths[values.argmin()] * row - own).norm()) <= 1e-4 * float(row.norm()) + 1e-12


def test_small_groups_become_exactly_zero_and_others_shrink_by_the_same_length() -> None:
    w = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    found = block_soft_threshold(w, 0.5)  # times sqrt(2)
    assert torch.equal(found[1:], torch.zeros(2, 2))
    torch.testing.assert_close(w[0].norm() - found[0].norm(), torch.tensor(0.5 * 2**0.5))
    torch.testing.assert_close(F.normalize(found[0], dim=0), F.normalize(w[0], dim=0))
    assert torch.equal(block_soft_threshold(w, 0), w)
    with pytest.raises(SettingError, match="threshold must be at least 0"):
        block_soft_threshold(w, -1)


def test_steps_down_and_proximal_steps_find_the_minimum_of_the_whole_objective() -> None:
    """Least squares with groups: at the minimum, zero groups have a small gradient and others one that balances the penalty."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(40, 12, generator=generator, dtype=torch.float64), torch.randn(40, generator=generator).double()
    strength, rate = 0.08, 0.1
    w = torch.zeros(4, 3, dtype=torch.float64)
    for _ in range(4000):
        w = block_soft_threshold(w - rate * (a.T @ (a @ w.flatten() - b) / 40).view(4, 3), rate * strength)
    gradient = (a.T @ (a @ w.flatten() - b) / 40).view(4, 3)
    zero = w.norm(dim=1) == 0
    assert 0 < int(zero.sum()) < 4
    bound = strength * 3**0.5
    assert bool((gradient[zero].norm(dim=1) <= bound + 1e-9).all())
    torch.testing.assert_close(gradient[~zero], -bound * F.normalize(w[~zero], dim=1), rtol=1e-6, atol=1e-9)


class Net(nn.Module):
    """A residual block, a norm, a hidden layer; `act` decides whether zero stays zero."""

    def __init__(self, act: Any = F.relu) -> None:
        super().__init__()
        self.act = act
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.conv2, self.last = (
            nn.Conv2d(6, 5, 3, padding=1),
            nn.Conv2d(5, 6, 3, padding=1),
            nn.BatchNorm2d(6),
        )
        self.hidden, self.out = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = x + self.last(self.conv2(self.act(self.conv1(x))))
        return self.out(self.act(self.hidden(x.mean((2, 3)))))


X = torch.randn(2, 2, 6, 6)


def made(act: Any = F.relu) -> Network:
    torch.manual_seed(0)
    network = trace(Net(act), (X,)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data = torch.randn(tensor.shape)
    return network


def groups_of(network: Network, kind: Any) -> dict[str, Any]:
    return {g.name: g for g in weight_groups(network, [kind])[0]}


def test_groups_are_the_weights_they_are_said_to_be() -> None:
    network = made()
    layer = network.get_submodule
    filters = groups_of(network, "filters")
    assert set(filters) == {"stem + conv2", "conv1", "hidden"}
    rows = torch.cat([layer("stem").weight.flatten(1), layer("conv2").weight.flatten(1)], 1)
    norms, sizes = group_norms(network, filters["stem + conv2"])
    torch.testing.assert_close(norms, rows.norm(dim=1).detach())
    assert sizes.tolist() == [18 + 45] * 6
    norms, sizes = group_norms(network, groups_of(network, "channels")["conv2"])
    torch.testing.assert_close(norms, layer("conv2").weight.detach().transpose(0, 1).flatten(1).norm(dim=1))
    assert sizes.tolist() == [54] * 5
    norms, sizes = group_norms(network, groups_of(network, "shapes")["conv2"])
    torch.testing.assert_close(norms, layer("conv2").weight.detach().norm(dim=0).flatten())
    assert sizes.tolist() == [6] * 45
    (block,) = groups_of(network, "depth").values()
    norms, sizes = group_norms(network, block)
    both = torch.cat([layer(n).weight.detach().flatten() for n in ("conv1", "conv2")])
    torch.testing.assert_close(norms, both.norm()[None])
    assert sizes.tolist() == [540]


@pytest.mark.parametrize("kind", ["filters", "channels", "shapes"])
def test_a_step_on_a_network_is_the_proximal_operator_of_each_group(kind: str) -> None:
    network = made()
    before = copy.deepcopy(network)
    groups = groups_of(network, kind)["conv1"]
    norms, sizes = group_norms(network, groups)
    threshold = float((norms / sizes.sqrt()).median()) * 1.001
    shrink_(network, groups, threshold)
    weight, now = before.get_submodule("conv1").weight.detach(), network.get_submodule("conv1").weight.detach()
    as_rows = {
        "filters": lambda w: w.flatten(1),
        "channels": lambda w: w.transpose(0, 1).flatten(1),
        "shapes": lambda w: w.flatten(1).T,
    }[kind]
    expected = block_soft_threshold(as_rows(weight), threshold)
    torch.testing.assert_close(as_rows(now), expected)
    assert torch.equal(zero_groups(network, groups), (expected == 0).all(1))
    assert 0 < int(zero_groups(network, groups).sum()) < groups.n
    if kind == "filters":  # a filter that is zero but has a bias would still answer
        assert torch.equal(network.get_submodule("conv1").bias == 0, zero_groups(network, groups))


def zeroed(network: Network, kind: str, name: str, positions: list[int], silent: bool = True) -> None:
    """Make groups zero by hand."""
    groups = groups_of(network, kind)[name]
    with torch.no_grad():
        for piece in groups.pieces:
            inside = torch.isin(piece.group_of, torch.tensor(positions))
            network.get_submodule(piece.path).weight.masked_fill_(inside, 0)
        for place in groups.silent if silent else ():
            gone = torch.as_tensor(place.indices)[torch.isin(torch.as_tensor(place.channels), torch.tensor(positions))]
            getattr(network.get_submodule(place.path), place.name)[gone] = 0


def test_what_is_zero_goes_and_no_answer_changes() -> None:
    network = made()
    zeroed(network, "filters", "conv1", [0, 3])
    zeroed(network, "filters", "stem + conv2", [2])
    zeroed(network, "channels", "out", [1, 5, 6])  # hidden units that nobody reads, whatever they are
    small, gone, left = without_zeros(network)
    assert gone == {"conv1": 2, "stem + conv2": 1, "hidden": 3} and not left
    assert small.get_submodule("stem").weight.shape[0] == 5 and small.get_submodule("hidden").weight.shape == (4, 5)
    assert answer_difference(network, small) <= 1e-9
    torch.testing.assert_close(small(X), network(X))


def test_what_is_not_read_any_more_goes_too() -> None:
    network = trace(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), (X[0, 0, :, :3],)
    )
    with torch.no_grad():
        network.get_submodule("4").weight[:, 1] = 0  # nobody reads unit 1 of the second layer,
        network.get_submodule("2").weight[[0, 2, 3, 4], 3] = 0  # which alone reads unit 3 of the first
    small, gone, _ = without_zeros(network.eval())
    assert gone == {"0": 1, "2": 1} and answer_difference(network, small) <= 1e-9


def test_a_filter_that_is_zero_but_answers_stays() -> None:
    biased = made()
    zeroed(biased, "filters", "conv1", [0], silent=False)
    assert without_zeros(biased)[1] == {}
    shifted = made(torch.sigmoid)  # of zero it makes a half
    zeroed(shifted, "filters", "conv1", [0, 3])
    zeroed(shifted, "channels", "out", [1])
    small, gone, left = without_zeros(shifted)
    assert gone == {"hidden": 1} and list(left) == ["conv1"]
    assert answer_difference(shifted, small) <= 1e-9


def test_one_channel_of_a_layer_that_is_zero_stays() -> None:
    network = made()
    zeroed(network, "filters", "hidden", list(range(7)))
    small, gone, _ = without_zeros(network)
    assert gone == {"hidden": 6} and answer_difference(network, small) <= 1e-9


def test_a_block_that_is_zero_goes() -> None:
    network = made()
    zeroed(network, "depth", next(iter(groups_of(network, "depth"))), [0])
    small, gone, left = without_zeros(network)
    assert sum(gone.values()) == 3 and not left and "conv1" not in small.layers()
    assert answer_difference(network, small) <= 1e-9
    loud = made()
    zeroed(loud, "depth", next(iter(groups_of(loud, "depth"))), [0], silent=False)
    assert "last" in without_zeros(loud)[0].layers()


def test_zero_shapes_are_masked_in_the_same_places_of_all_filters() -> None:
    network = made()
    zeroed(network, "shapes", "conv2", [0, 7, 44])
    before = network(X)
    assert mask_zero_shapes_(network) == {"conv2": 3}
    (mask,) = representations(network.get_submodule("conv2"), "weight")
    assert isinstance(mask, Mask) and torch.equal((~mask.keep).all(0), ~mask.keep[0])
    assert int((~mask.keep).sum()) == 18 and torch.equal(network(X), before)
    zeroed(network, "shapes", "stem", [1])
    assert mask_zero_shapes_(network) == {"conv2": 3, "stem": 1}  # once more is no second mask
    assert len(representations(network.get_submodule("conv2"), "weight")) == 1


def test_weights_that_cannot_be_zero_are_left_alone() -> None:
    network = made()
    codes = torch.zeros(5, 6, 3, 3, dtype=torch.int64)
    represent_(network.get_submodule("conv1"), "weight", Codebook(codes, torch.tensor([0.5, 1.0])))
    groups, left = weight_groups(network, ["filters", "channels", "shapes", "depth"])
    assert left == {"conv1": "its weight is written as a codebook"}
    assert not any(piece.path == "conv1" for g in groups for piece in g.pieces)
    assert {g.kind for g in groups} == {"filters", "channels", "shapes"}


class Penalty(Part):
    """A penalty in the loss, to which plain gradient steps are made."""

    def __init__(self, of: Any, strength: float) -> None:
        self.of, self.strength = of, strength

    def loss(self, fit: Fit, batch: Batch, answers: Answers) -> Tensor:
        weights = (fit.network.get_submodule("0").weight, fit.network.get_submodule("2").weight)
        return self.strength * torch.stack([w.shape[1] ** 0.5 * self.of(w) for w in weights]).sum()


def trained(parts: list[Part]) -> Network:
    torch.manual_seed(0)
    x = torch.randn(128, 8, generator=torch.Generator().manual_seed(1))
    task = Task(DataLoader(TensorDataset(x, (x[:, 0] + x[:, 1] > 0).long()), batch_size=16), [])
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)]
    network = trace(nn.Sequential(*layers), (x[:2],))
    fit_(network, task, Schedule(epochs=15, lr=0.1, optimizer="sgd"), [LearnFromLabels(), *parts])
    return network


def test_factors_multiply_the_strengths_of_layers_and_zero_leaves_them_alone() -> None:
    """With the gradient out of the way, one step shrinks each norm by rate * strength * factor * sqrt(size)."""
    torch.manual_seed(0)
    network = trace(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), [torch.ones(2, 4)]
    )
    before = {path: network.get_submodule(path).weight.detach().clone() for path in ("0", "2", "4")}
    fit = SimpleNamespace(
        network=network,
        where="test",
        optimizer=SimpleNamespace(param_groups=[{"lr": 0.1, "params": list(network.parameters())}]),
    )
    part = ProximalGroupLasso({"filters": 0.1}, {"*": 2.0, "2": 0.0})
    part.start(fit)  # type: ignore[arg-type]
    part.after_step(fit)  # type: ignore[arg-type]
    shrunk = before["0"].norm(dim=1) - network.get_submodule("0").weight.norm(dim=1)
    torch.testing.assert_close(shrunk, torch.full((6,), 0.1 * 0.1 * 2.0 * 4**0.5))
    assert torch.equal(network.get_submodule("2").weight, before["2"])
    with pytest.raises(SettingError, match="nothing"):
        ProximalGroupLasso({"filters": 0.1}, {"nothing": 2.0}).start(fit)  # type: ignore[arg-type]


def test_only_the_proximal_step_makes_exact_zeros() -> None:
    """Neither the squared norm, which is ridge regression, nor gradient steps on the norm itself ever reach zero."""

    def zeros(network: Network) -> int:
        return sum(int((network.get_submodule(path).weight == 0).all(1).sum()) for path in "02")

    strength = 0.06
    squared = trained([Penalty(lambda w: w.square().sum(), strength)])
    subgradient = trained([Penalty(lambda w: w.norm(dim=1).sum(), strength)])
    proximal = trained([ProximalGroupLasso({"filters": strength})])
    assert zeros(squared) == zeros(subgradient) == 0
    assert zeros(proximal) >= 16  # half of all filters
    small, gone, left = without_zeros(proximal)
    assert sum(gone.values()) == zeros(proximal) and not left
    assert answer_difference(proximal, small) <= 1e-9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average": 0.9}, "group-lasso: a moving average of weights has no exact zeros"),
        ({"filters": 0, "channels": 0}, "group-lasso: all strengths are 0"),
        ({"filters": -1}, "group-lasso: filters: it must be at least 0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        GroupLasso(**settings)
