"""A table for all outputs and a scale for each: values, gradients, cuts, and the file."""

import pytest
import torch
from torch import nn

from penjing.artifact import decode, encode
from penjing.errors import SettingError
from penjing.graph import trace
from penjing.quantization.cluster import cluster_
from penjing.quantization.search import Search, output_scales
from penjing.representation import Codebook, Mask, ScaledCodebook, represent_, representations
from penjing.representation.steps import exponents_of, steps_of


def _scaled(follow: bool = False, shape: tuple[int, ...] = (4, 7)) -> ScaledCodebook:
    book = Codebook(torch.randint(0, 5, shape), torch.randn(5), follow=follow)
    return ScaledCodebook(book, torch.rand(shape[0]) + 0.2)


@pytest.mark.parametrize("shape", [(4, 7), (4, 3, 2, 2)])
def test_a_weight_is_its_entry_times_its_rows_scale(shape: tuple[int, ...]) -> None:
    scaled = _scaled(shape=shape)
    value = scaled(torch.zeros(shape)).detach()
    for row in range(4):
        scale = steps_of(exponents_of(scaled.scales))[row]
        torch.testing.assert_close(
            value[row], scaled.codebook.table().detach()[scaled.codebook.codes[row].int()] * scale
        )
    assert (steps_of(exponents_of(scaled.scales)) / scaled.scales).log2().abs().max() <= 1 / 32 + 1e-6


@pytest.mark.parametrize("follow", [False, True])
def test_gradients_of_tables_scales_and_originals(follow: bool) -> None:
    scaled = _scaled(follow)
    original = torch.randn(4, 7, requires_grad=True)
    out = torch.randn(4, 7)
    (scaled(original) * out).sum().backward()
    entries = scaled.codebook.table().detach()[scaled.codebook.codes.int()]
    scales = scaled.stored_scales().detach()
    torch.testing.assert_close(scaled.scales.grad, (out * entries).sum(1))
    expected = torch.zeros(5).index_add_(0, scaled.codebook.codes.flatten().int(), (out * scales[:, None]).flatten())
    torch.testing.assert_close(scaled.codebook.centroids.grad, expected)
    if follow:
        torch.testing.assert_close(original.grad, out)
    else:
        assert original.grad is None


def test_reassigned_weights_have_the_nearest_value() -> None:
    scaled, original = _scaled(), torch.randn(4, 7)
    scaled.reassign_(original)
    values = scaled.stored_scales()[:, None] * scaled.codebook.table()[None]
    nearest = (original[..., None] - values[:, None]).abs().amin(-1)
    torch.testing.assert_close((original - scaled(original)).abs(), nearest)


def test_cuts_take_codes_and_scales_along() -> None:
    scaled = _scaled()
    whole = scaled(torch.zeros(4, 7))
    keep = torch.tensor([0, 3])
    assert torch.equal(scaled.sliced(0, keep)(torch.zeros(2, 7)), whole[keep])
    assert torch.equal(scaled.sliced(1, keep)(torch.zeros(4, 2)), whole[:, keep])


def test_rows_of_different_sizes_are_written_better_and_survive_the_file() -> None:
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)), (torch.randn(2, 64),))
    layer = network.get_submodule("0")
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-1, 1, 32)[:, None])
        layer.weight[5] = 0
    represent_(layer, "weight", Mask(layer.weight.detach().abs() > 0.02))
    before = layer.weight.detach().clone()
    removed = before == 0
    scaled = cluster_(layer, "weight", 8, Search(per="channel"))
    assert isinstance(scaled, ScaledCodebook) and torch.equal(layer.weight == 0, removed)
    assert float(scaled.scales.detach()[5]) == 1
    error = float((layer.weight.detach() - before).square().sum())
    other = nn.Linear(64, 32)
    with torch.no_grad():
        other.weight.copy_(before)
    cluster_(other, "weight", 8)
    assert error < 0.5 * float((other.weight.detach() - before).square().sum())
    content = encode(network)
    loaded = decode(content, for_training=True)
    assert torch.equal(loaded.get_submodule("0").weight, layer.weight)
    assert isinstance(representations(loaded.get_submodule("0"), "weight")[-1], ScaledCodebook)
    assert encode(loaded) == content


def test_scales_are_what_a_file_holds_and_must_fit() -> None:
    value = torch.randn(5, 9)
    scales = output_scales(value)
    assert torch.equal(steps_of(exponents_of(scales)), scales)
    assert (scales / value.square().mean(1).sqrt()).log2().abs().max() <= 1 / 32 + 1e-6
    book = Codebook(torch.zeros(3, 2), torch.ones(1))
    with pytest.raises(SettingError, match="there must be a scale for each output"):
        ScaledCodebook(book, torch.ones(2))
    with pytest.raises(SettingError, match="finite and above 0"):
        ScaledCodebook(book, torch.tensor([1.0, 0.0, 1.0]))
