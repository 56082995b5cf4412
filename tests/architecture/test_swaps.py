"""Convolutions swapped for grouped ones, Fire and Ghost modules: closest weights, exact where that is possible, and limits."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from penjing.architecture import (
    FireModules,
    GhostModules,
    GroupedConvs,
    SeparableConvs,
    fire_approximation,
    ghost_approximation,
    grouped_approximation,
)
from penjing.artifact import decode, encode
from penjing.errors import SettingError, SurgeryError
from penjing.graph import Network, channel_groups, permute_channels, trace
from penjing.measurement.macs import macs_by_node
from penjing.models import resnet_cifar

STAGES: list[Any] = [SeparableConvs, GroupedConvs, FireModules, GhostModules]


def plain(weight: torch.Tensor, **settings: Any) -> Network:
    """A convolution with a given weight between two others, so that its channels are free to be told otherwise."""
    torch.manual_seed(1)
    out, inputs, k, _ = weight.shape
    conv = nn.Conv2d(inputs, out, k, padding=k // 2, **settings)
    with torch.no_grad():
        conv.weight.copy_(weight)
    layers = [nn.Conv2d(3, inputs, 1), conv, nn.BatchNorm2d(out), nn.ReLU(), nn.Conv2d(out, 5, 3)]
    network = trace(nn.Sequential(*layers), (torch.randn(2, 3, 9, 9),)).eval()
    norm: Any = network.get_submodule("2")
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.uniform_(0.5, 1.5)
    return network


def swapped(network: Network, stage: Any) -> Network:
    changed, figures, stayed = stage.swap(network, ["1"])
    assert "1" in figures, stayed
    return changed.eval()


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def same(a: Network, b: Network, margin: int = 0) -> bool:
    """Whether they answer alike, but for places near the border."""
    x = torch.randn(3, 3, 9, 9)
    with torch.no_grad():
        inside = slice(margin, -margin or None)
        return torch.allclose(a(x)[..., inside, inside], b(x)[..., inside, inside], atol=2e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_grouped_is_exact_where_the_ranks_allow(stride: int) -> None:
    g, r = 2, 2  # 8 channels between: r for each pair of groups
    weight = (
        torch.einsum("qpor,pqri->qpoi", drawn(g, g, 4, r), drawn(g, g, r, 27)).permute(1, 2, 0, 3).reshape(8, 6, 3, 3)
    )
    before = plain(weight, stride=stride)
    after = swapped(before, GroupedConvs(groups=2, norm=False))
    assert same(before, after)
    assert [n.op for n in after.nodes].count("permute") == 1


def test_the_blocks_of_a_grouped_approximation_are_the_closest() -> None:
    weight = drawn(8, 6, 3, 3)
    spatial, mixing, error = grouped_approximation(weight, 2, 4)  # one channel for each pair of groups
    expected = 0.0
    for p in range(2):
        for q in range(2):
            expected += float(
                torch.linalg.svdvals(weight[4 * p : 4 * p + 4, 3 * q : 3 * q + 3].reshape(4, -1))[1:].square().sum()
            )
    assert error == pytest.approx(expected / float(weight.square().sum()), rel=1e-5)
    assert spatial.shape == (4, 3, 3, 3) and mixing.shape == (8, 2, 1, 1)


def test_fire_is_exact_for_a_fire_module_told_as_a_convolution() -> None:
    squeeze, cheap, wide = drawn(3, 6), drawn(4, 3), drawn(4, 3, 3, 3)
    weight = torch.zeros(8, 6, 3, 3)
    mixed = torch.tensor(
        [5, 0, 6, 3]
    )  # which outputs look at one place only: found, and the channels told in another order
    weight[mixed, :, 1, 1] = cheap @ squeeze
    others = torch.tensor([1, 2, 4, 7])
    weight[others] = torch.einsum("osab,si->oiab", wide, squeeze)
    before = plain(weight)
    after = swapped(before, FireModules(squeeze=3 / 8, wide=0.5, norm=False))
    assert same(before, after)
    assert fire_approximation(weight, 3, 4)[3] < 1e-10
    assert sum(p.numel() for p in after.get_submodule("1").parameters()) == 3 * 6 + 4 * 3 + 4 * 27 + 8


def test_ghosts_are_found_with_their_makers() -> None:
    torch.manual_seed(2)
    computed = 4 * torch.randn(4, 6, 3, 3)
    cheap = torch.zeros(4, 1, 3, 3)
    cheap[:, 0, 1, 1] = torch.tensor([0.5, -0.4, 0.3, 0.2])  # in the middle alone, so that all is inside 3 x 3
    weight = torch.zeros(8, 6, 3, 3)
    order = torch.tensor([3, 6, 0, 5])
    weight[order] = computed
    weight[torch.tensor([1, 2, 4, 7])] = (computed * cheap[:, 0, 1, 1].view(4, 1, 1, 1))[torch.tensor([2, 0, 3, 1])]
    before = plain(weight)
    after = swapped(before, GhostModules(norm=False))
    assert same(before, after)
    assert ghost_approximation(weight, 2, 3)[2] < 1e-8


def test_a_ghosts_filter_moves_what_it_is_made_of() -> None:
    """The made filter is the computed one convolved: checked as images, away from the border."""
    first = 4 * drawn(1, 2, 3, 3)
    moved = torch.zeros(1, 2, 3, 3)
    moved[:, :, :, 1:] = first[:, :, :, :-1]
    first[:, :, :, -1] = 0
    weight = torch.cat([first, 0.5 * moved])
    computed, cheap, error, order = ghost_approximation(weight, 2, 3)
    assert order == (0, 1) and error < 1e-6
    x = torch.randn(1, 2, 12, 12)
    ghost = F.conv2d(F.conv2d(x, computed), cheap, padding=1)
    torch.testing.assert_close(ghost[..., 1:-1, 1:-1], F.conv2d(x, weight[1:])[..., 1:-1, 1:-1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_what_was_swapped_is_closer_than_chance_and_survives_a_file(stage: Any) -> None:
    torch.manual_seed(0)
    network = trace(resnet_cifar(8).eval(), (torch.randn(2, 3, 32, 32),)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    changed, figures, stayed = stage().swap(network, [p for p in network.layers() if "conv" in p])
    assert len(figures) >= 6 and ("conv1" in stayed or stage in (FireModules, GhostModules))
    assert all(0 < f["relative error of the weight"] < 1 for f in figures.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    x = torch.randn(2, 3, 32, 32)
    loaded = decode(encode(changed))
    with torch.no_grad():
        assert torch.equal(loaded(x), changed.eval()(x))
    saved = sum(f["MACs saved"] for f in figures.values())
    assert sum(macs_by_node(network).values()) - sum(macs_by_node(changed).values()) == saved > 0
    n = [sum(p.numel() for p in net.parameters()) for net in (network, changed)]
    assert n[0] - n[1] == sum(f["parameters saved"] for f in figures.values()) > 0
    changed.train()(x).sum().backward()
    assert channel_groups(changed).groups  # still to be pruned


def test_no_more_is_swapped_than_a_limit_takes_and_first_what_changes_least() -> None:
    network = trace(resnet_cifar(8).eval(), (torch.randn(2, 3, 32, 32),))
    paths = [p for p in network.layers() if "conv" in p]
    n = sum(p.numel() for p in network.parameters())
    _, all_figures, _ = SeparableConvs().swap(network, paths)
    some, figures, stayed = SeparableConvs(max_parameters=n - 30_000).swap(network, paths)
    assert sum(p.numel() for p in some.parameters()) <= n - 30_000
    assert set(figures) < set(all_figures) and "the limits are met without it" in stayed.values()
    price = {p: f["relative error of the weight"] ** 2 / f["parameters saved"] for p, f in all_figures.items()}
    assert max(price[p] for p in figures) <= 1.001 * min(price[p] for p in all_figures if p not in figures)
    _, none, _ = SeparableConvs(max_macs="1 G").swap(network, paths)
    assert not none
    with pytest.raises(
        SettingError, match=r"with every layer swapped that can be, .* parameters and .* the limit is 1,000"
    ):
        SeparableConvs(max_parameters=1000).swap(network, paths)


def test_what_cannot_be_swapped_stays_with_the_reason() -> None:
    torch.manual_seed(0)
    layers = [
        *(nn.Conv2d(3, 4, 2), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 5, 3, padding=1)),
        *(nn.Conv2d(5, 4, 3, padding=1), nn.ReLU()),
    ]
    network = trace(nn.Sequential(*layers), (torch.randn(2, 3, 12, 12),))
    paths = ["0", "1", "2", "3", "4"]
    assert "without a centre" in FireModules().swap(network, paths)[2]["0"]
    assert "would look beside its centre" in FireModules().swap(network, paths)[2]["1"]
    assert FireModules().swap(network, paths)[2]["2"] == "grouped or depthwise already"
    assert "6 and 5 channels are not both multiples of 2" in GroupedConvs().swap(network, paths)[2]["3"]
    assert "5 output channels are no multiple of 2" in GhostModules().swap(network, paths)[2]["3"]
    grown = GroupedConvs(between=40).swap(network, ["1"])[2]["1"]
    assert grown.startswith("it would grow: ") and "instead of 222 parameters" in grown
    for stage, bad in ((GroupedConvs, {"groups": 1}), (FireModules, {"squeeze": 0}), (GhostModules, {"ratio": 1})):
        with pytest.raises(SettingError, match=next(iter(bad))):
            stage(**bad)


def test_channels_in_another_order_are_the_same_function() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 49, 4)]
    network = trace(nn.Sequential(*layers), (torch.randn(2, 3, 9, 9),)).eval()
    group = channel_groups(network).groups[0]
    order = [4, 2, 0, 5, 1, 3]
    changed = permute_channels(network, group, order)
    x = torch.randn(4, 3, 9, 9)
    torch.testing.assert_close(changed(x), network(x))
    assert torch.equal(changed.get_submodule("0").weight, network.get_submodule("0").weight[order])
    with pytest.raises(SurgeryError, match="must be a permutation of 0 to 5"):
        permute_channels(network, group, [0, 0, 1, 2, 3, 4])
    grouped = [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)]
    apart = trace(nn.Sequential(*grouped), (torch.randn(2, 3, 4, 4),)).eval()
    first = next(g for g in channel_groups(apart).groups if "0" in g.producers)
    if first.n_channels == 4:
        with pytest.raises(SurgeryError, match="changes the answers"):
            permute_channels(copy.deepcopy(apart), first, [2, 1, 0, 3])
