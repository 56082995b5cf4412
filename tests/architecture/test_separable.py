"""Separable convolutions: the count of weights, and the best approximation of the convolution they replace."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.architecture.separable import separable, separable_approximation, separate_convolutions
from penjing.graph import trace


def _product(depthwise: Tensor, pointwise: Tensor) -> Tensor:
    """The convolution that the two together are: W[o, i, y, x] = P[o, i] D[i, y, x]."""
    return pointwise * depthwise.permute(1, 0, 2, 3)


def _n_weights(layers: dict[str, nn.Module]) -> int:
    return sum(layer.weight.numel() for layer in layers.values())


def test_lecture_example() -> None:
    conv = nn.Conv2d(2, 4, 3, bias=False)
    layers = separable(conv, norm=False)
    assert conv.weight.numel() == 72
    assert layers["depthwise"].weight.numel() == 18
    assert layers["pointwise"].weight.numel() == 8


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([2, 3, 5]))
def test_share_of_weights(inputs: int, out: int, kernel: int) -> None:
    conv = nn.Conv2d(inputs, out, kernel)
    share = _n_weights(separable(conv, norm=False)) / conv.weight.numel()
    assert share == pytest.approx(1 / out + 1 / kernel**2)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(2, 3), st.integers(0, 2**32))
def test_exact_where_every_channel_has_rank_1(inputs: int, out: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    depthwise = torch.randn(inputs, 1, height, width, generator=generator)
    pointwise = torch.randn(out, inputs, 1, 1, generator=generator)
    weight = _product(depthwise, pointwise)
    torch.testing.assert_close(_product(*separable_approximation(weight)), weight)


def test_error_is_that_of_eckart_and_young_and_no_neighbour_is_better() -> None:
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    depthwise, pointwise = separable_approximation(weight)
    error = (weight - _product(depthwise, pointwise)).square().sum()
    tails = sum(torch.linalg.svdvals(weight[:, i].reshape(6, 9))[1:].square().sum() for i in range(5))
    torch.testing.assert_close(error, tails)
    for scale in (1e-3, 1e-2, 1e-1, 1.0):
        for _ in range(100):
            moved = _product(
                depthwise + scale * torch.randn_like(depthwise), pointwise + scale * torch.randn_like(pointwise)
            )
            assert (weight - moved).square().sum() >= error


def test_scale_is_shared_evenly() -> None:
    depthwise, pointwise = separable_approximation(torch.randn(6, 5, 3, 3))
    torch.testing.assert_close(depthwise.flatten(1).norm(dim=1), pointwise.flatten(1).norm(dim=0))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_layers_compute_the_approximation(padding_mode: str) -> None:
    conv = nn.Conv2d(5, 6, 3, stride=2, padding=2, dilation=2, padding_mode=padding_mode)
    layers = separable(conv, norm=False)
    assert list(layers) == ["depthwise", "pointwise"]
    x = torch.randn(2, 5, 9, 9)
    closest = nn.Conv2d(5, 6, 3, stride=2, padding=2, dilation=2, padding_mode=padding_mode)
    with torch.no_grad():
        closest.weight.copy_(_product(layers["depthwise"].weight, layers["pointwise"].weight))
        closest.bias.copy_(conv.bias)
    torch.testing.assert_close(layers["pointwise"](layers["depthwise"](x)), closest(x))
    assert separable(nn.Conv2d(4, 4, 3, bias=False))["pointwise"].bias is None
    assert list(separable(conv, activation="relu")) == ["depthwise", "norm", "activation", "pointwise"]


def test_layers_that_stay_say_why() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3), nn.ReLU()
    )
    network = trace(model, [torch.randn(2, 3, 9, 9)]).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    changed, stayed = separate_convolutions(network, list(network.layers()), norm=False)
    assert stayed == {
        "0": "only 3 input channels: a filter each would leave too little",
        "1": "grouped or depthwise already",
        "2": "its kernel is 1 x 1",
        "4": "not a convolution",
    }
    assert list(changed.layers()) == ["0", "1", "2", "3.depthwise", "3.pointwise", "4"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    x = torch.randn(2, 3, 9, 9)
    weight = _product(changed.get_submodule("3.depthwise").weight, changed.get_submodule("3.pointwise").weight)
    hidden = model[2](model[1](model[0](x)))
    torch.testing.assert_close(changed(x), F.relu(F.conv2d(hidden, weight, model[3].bias)))
