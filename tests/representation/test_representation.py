"""Representations: what they compute, their gradients, how they stack, are cut, copied and taken off."""

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.quantization.cluster import cluster_, cluster_together_
from penjing.representation import (
    Codebook,
    Mask,
    MasksInPlace,
    masks_in_place,
    named_weights,
    plain,
    represent_,
    representations,
)


def _codebook(shape: tuple[int, ...] = (5, 7), k: int = 6, *, zero: bool = False, follow: bool = False) -> Codebook:
    return Codebook(torch.randint(0, k, shape), torch.randn(k), zero=zero, follow=follow)


def _network() -> Network:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    return trace(model, [torch.randn(2, 2, 4, 4)]).eval()


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("follow", [False, True])
def test_gradient_of_a_centroid_is_the_sum_over_its_weights(zero: bool, follow: bool) -> None:
    layer = nn.Linear(7, 5)
    codebook = _codebook(zero=zero, follow=follow)
    represent_(layer, "weight", codebook)
    x, y = torch.randn(9, 7), torch.randn(9, 5)
    dense = layer.weight.detach().clone().requires_grad_()
    ((x @ dense.T + layer.bias - y).square().mean()).backward()
    (layer(x) - y).square().mean().backward()
    expected = torch.zeros(6).index_add_(0, codebook.codes.flatten().int(), dense.grad.flatten())
    if zero:
        expected[0] = 0
    torch.testing.assert_close(codebook.centroids.grad, expected)
    original = layer.parametrizations.weight.original
    assert original.requires_grad == follow
    if follow:
        torch.testing.assert_close(original.grad, dense.grad)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), st.integers(-30, 4), st.booleans())
def test_table_is_whole_multiples_of_a_half_precision_step(values: list[float], exponent: int, zero: bool) -> None:
    centroids = torch.tensor(values) * 2.0**exponent
    codebook = Codebook(torch.zeros(1), centroids, zero=zero)
    multiples, step = codebook.steps()
    assert multiples.abs().max() <= 127
    assert step.half().float() == step > 0
    table = codebook.table().detach()
    assert torch.equal(table, multiples * step)
    if zero:
        assert table[0] == 0
    used = centroids[1:] if zero else centroids
    if len(used):
        largest = float(used.abs().max())
        coarse = max(float(step), largest / 127) * (1 if largest < 2**-9 else 0.5)  # half precision thins out there
        assert (table[-len(used) :] - used).abs().max() <= coarse * (1 + 1e-3)
    stored = Codebook(torch.zeros(1), table, zero=zero)  # what a file gives back is stored as it is
    assert torch.equal(stored.table(), table)


def test_stored_tables_of_tiny_values_stay_as_they_are() -> None:
    for n_steps in range(1, 300):
        for part in (0.02, 0.1, 0.3, 0.6, 0.9):
            largest = (n_steps + part) * 127 * 2.0**-24  # between two float16 steps
            codebook = Codebook(torch.zeros(1), torch.tensor([-largest, largest / 3]))
            table = codebook.table().detach()
            assert torch.equal(Codebook(torch.zeros(1), table).table(), table)


def test_zero_entry_stays_zero_in_training() -> None:
    layer = nn.Linear(8, 8)
    keep = torch.rand(8, 8) < 0.4
    represent_(layer, "weight", Mask(keep))
    codebook = cluster_(layer, "weight", 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        (layer(torch.randn(16, 8)) - 3).square().mean().backward()
        optimizer.step()
    assert codebook.table()[0] == 0
    assert not layer.weight[~keep].any()
    assert codebook.centroids[1:].abs().max() > 0.5


def test_entry_under_a_mask_does_not_set_the_step() -> None:
    table = Codebook(torch.zeros(1), torch.tensor([1000.0, 0.5, -0.25]), zero=True).table()
    torch.testing.assert_close(table, torch.tensor([0.0, 0.5, -0.25]), rtol=1e-2, atol=0)


def test_reassigned_weights_have_the_nearest_entry() -> None:
    for zero in (False, True):
        codebook = _codebook((30, 20), zero=zero)
        before = codebook.codes.clone()
        original = torch.randn(30, 20)
        codebook.reassign_(original)
        table = codebook.table().detach()
        distance = (original[..., None] - table).abs()
        moved = before != 0 if zero else torch.ones_like(before, dtype=torch.bool)
        assert torch.equal((original - table[codebook.codes.int()]).abs()[moved], distance.amin(-1)[moved])
        assert torch.equal(codebook.codes[~moved], before[~moved])


@pytest.mark.parametrize("dim", [0, 1])
def test_slice_is_the_slice_of_the_weight(dim: int) -> None:
    keep = torch.tensor([0, 3, 4])
    original = torch.randn(5, 7)
    mask = Mask(torch.rand(5, 7) < 0.5)
    codebook = _codebook(zero=True)
    for part in (mask, codebook):
        expected = part(original).index_select(dim, keep)
        assert torch.equal(part.sliced(dim, keep)(original.index_select(dim, keep)), expected)
    assert codebook.sliced(dim, keep).centroids is codebook.centroids
    assert codebook.sliced(dim, keep).zero


def test_masked_weights_are_exactly_zero() -> None:
    original = torch.tensor([-1.0, math.inf, math.nan, 2.0, -3.0], requires_grad=True)
    mask = Mask(torch.tensor([False, False, False, True, True]))
    weight = mask(original)
    assert weight.tolist() == [0, 0, 0, 2, -3]
    assert not weight.signbit()[:3].any()
    weight.sum().backward()
    assert original.grad.tolist() == [0, 0, 0, 1, 1]
    assert mask.density == 0.4


def test_representations_stack() -> None:
    layer = nn.Linear(6, 4)
    keep = torch.rand(4, 6) < 0.5
    represent_(layer, "weight", Mask(keep))
    represent_(layer, "weight", Codebook(torch.where(keep, 1, 0), torch.tensor([0.0, 2.0]), zero=True))
    assert [part.kind for part in representations(layer, "weight")] == ["mask", "codebook"]
    assert torch.equal(layer.weight != 0, keep)
    assert representations(layer, "bias") == []
    assert not layer.parametrizations.weight.original.requires_grad  # nothing reads it any more
    assert [name for name, _, _ in named_weights(layer)] == ["weight", "bias"]


@pytest.mark.parametrize(
    ("codes", "k", "message"),
    [
        ([0], 0, "1 to 256 centroids, got 0"),
        ([0], 257, "got 257"),
        ([3], 3, r"in \[0, 3\), got 3"),
        ([-1], 3, "got -1"),
    ],
)
def test_impossible_codebooks_are_refused(codes: list[int], k: int, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Codebook(torch.tensor(codes), torch.zeros(k))


def test_only_parameters_are_represented() -> None:
    with pytest.raises(SettingError, match='a Linear has no parameter "kernel"'):
        represent_(nn.Linear(2, 2), "kernel", Mask(torch.ones(2, 2)))
    with pytest.raises(SettingError, match="no parameter"):
        represent_(nn.Linear(2, 2, bias=False), "bias", Mask(torch.ones(2)))


def test_a_representation_on_a_copy_does_not_reach_the_original() -> None:
    network = _network()
    linear = network.get_submodule("4")
    represent_(linear, "weight", Mask(torch.rand(3, 16) < 0.5))
    again = copy.deepcopy(network)
    represent_(again.get_submodule("4"), "bias", Mask(torch.tensor([True, False, True])))
    assert isinstance(linear.bias, nn.Parameter)
    assert not parametrize.is_parametrized(linear, "bias")
    assert again.get_submodule("4").bias[1] == 0
    x = torch.randn(2, 2, 4, 4)
    assert not torch.equal(network(x), again(x))


def test_plain_is_bit_equal_and_disturbs_nothing() -> None:
    network = _network()
    conv, linear = network.get_submodule("0"), network.get_submodule("4")
    represent_(conv, "weight", Mask(torch.rand(4, 2, 3, 3) < 0.5))
    cluster_(linear, "weight", 5)
    cluster_together_([(conv, "bias"), (linear, "bias"), (network.get_submodule("1"), "weight")], 3)
    x = torch.randn(5, 2, 4, 4)
    expected = network(x)
    weights = {name: getattr(owner, key).clone() for name, owner, key in named_weights(network)}
    dense = plain(network)
    assert not any(parametrize.is_parametrized(module) for module in dense.modules())
    assert {name: type(p) for name, p in dense.named_parameters()} == dict.fromkeys(weights, nn.Parameter)
    for name, owner, key in named_weights(dense):
        assert torch.equal(getattr(owner, key), weights[name])
    assert torch.equal(dense(x), expected)
    assert dense.nodes == network.nodes
    assert not dense.training
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.zero_()
    assert parametrize.is_parametrized(linear, "weight")
    assert torch.equal(network(x), expected)
    assert linear.parametrizations.weight[0].centroids.requires_grad


def test_shared_centroids_stay_shared_in_copies() -> None:
    network = _network()
    conv, linear = network.get_submodule("0"), network.get_submodule("4")
    cluster_together_([(conv, "bias"), (linear, "bias")], 4)
    shared = conv.parametrizations.bias[0].centroids
    assert linear.parametrizations.bias[0].centroids is shared
    again = copy.deepcopy(network)
    copied = again.get_submodule("0").parametrizations.bias[0].centroids
    assert copied is again.get_submodule("4").parametrizations.bias[0].centroids
    assert copied is not shared
    assert sum(p is copied for p in again.parameters()) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_mask_follows_every_change_of_itself(dtype: torch.dtype) -> None:
    """What it remembers of itself is made anew: after changes in place, loading, copying, another type or layout."""
    original = torch.randn(3, 4, 5, 5, dtype=dtype).to(memory_format=torch.channels_last)
    mask = Mask(torch.rand(3, 4, 5, 5) < 0.5)

    def right(mask: Mask, original: torch.Tensor) -> bool:
        return torch.equal(mask(original), original.masked_fill(~mask.keep, 0))

    assert right(mask, original)
    mask.keep.logical_and_(torch.rand(3, 4, 5, 5) < 0.5)
    assert right(mask, original)
    again = copy.deepcopy(mask)
    for _ in range(4):
        again.keep.logical_not_()
        assert right(again, original)
    assert right(mask, original)
    mask.load_state_dict({"keep": torch.rand(3, 4, 5, 5) < 0.5})
    assert right(mask, original) and right(mask, original.double()) and right(mask, original.contiguous())
    with torch.inference_mode():
        assert right(mask, original) and right(Mask(torch.rand(3, 4, 5, 5) < 0.5), original)


def test_a_mask_can_be_differentiated_twice_and_sample_by_sample() -> None:
    mask = Mask(torch.rand(4) < 0.5)
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda w: mask(w).pow(3), w)
    each = torch.func.vmap(torch.func.grad(lambda w: mask(w).pow(2).sum()))(torch.ones(3, 4))
    assert torch.equal(each, 2.0 * mask.keep.expand(3, -1))


def _masked_twins() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    for layer in (model[0], model[2]):
        represent_(layer, "weight", Mask(torch.rand(layer.weight.shape) < 0.3))
    return model, copy.deepcopy(model)


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, masks: MasksInPlace | None, clip: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        x, y = torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if clip:
            if masks is not None:
                masks.mask_gradients_()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        if masks is not None:
            masks.enforce_()


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9, nesterov=True)])
def test_masks_in_place_train_the_kept_weights_bit_for_bit_alike(optimizer: Any, clip: bool) -> None:
    usual, in_place = _masked_twins()
    _steps(usual, optimizer(usual.parameters(), lr=0.05, weight_decay=0.1), None, clip)
    with masks_in_place(in_place) as masks:
        _steps(in_place, optimizer(in_place.parameters(), lr=0.05, weight_decay=0.1), masks, clip)
    for index in (0, 2):
        assert torch.equal(usual[index].weight, in_place[index].weight)  # type: ignore[index]
        assert torch.equal(usual[index].bias, in_place[index].bias)  # type: ignore[index]


def test_masks_in_place_give_way_to_every_change_and_end_with_the_block() -> None:
    model, _ = _masked_twins()
    stack = model[0].parametrizations.weight  # type: ignore[index]
    original, mask = stack.original, stack[0]
    with masks_in_place(model) as masks:
        assert model[0].weight is original  # type: ignore[index]
        with torch.no_grad():
            original += 1.0  # somebody else
        assert (model[0].weight[~mask.keep] == 0).all()  # type: ignore[index]
        masks.enforce_()
        assert model[0].weight is original  # type: ignore[index]
        mask.keep.logical_and_(torch.rand(mask.keep.shape) < 0.5)
        assert torch.equal(model[0].weight == 0, ~mask.keep)  # type: ignore[index]
        twin = copy.deepcopy(model)
        assert twin[0].weight is not twin[0].parametrizations.weight.original  # type: ignore[index]
    model[0].weight.sum().backward()  # type: ignore[index]
    assert torch.equal(original.grad, mask.keep.float())
