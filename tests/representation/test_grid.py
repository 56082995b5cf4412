"""Uniform grids: LSQ's gradients, steps as stored, what is settled, cut, and read back from a file."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.artifact import decode, encode
from penjing.errors import SettingError
from penjing.graph import trace
from penjing.representation import Grid, represent_, representations
from penjing.representation.grid import spread
from penjing.representation.steps import LARGEST, SMALLEST, exponents_of, steps_of


def test_steps_are_sixteenths_of_octaves_exactly_doubling_and_found_again() -> None:
    exponents = torch.arange(SMALLEST, LARGEST + 1)
    steps = steps_of(exponents)
    assert bool(torch.isfinite(steps).all())
    assert torch.equal(steps[16:], 2 * steps[:-16])
    torch.testing.assert_close(steps.double(), torch.exp2(exponents.double() / 16), rtol=1e-7, atol=0)
    assert torch.equal(exponents_of(steps), exponents.to(torch.int16))


@given(st.floats(1e-30, 1e30))
def test_the_nearest_step_is_at_most_a_32nd_of_an_octave_away(step: float) -> None:
    stored = float(steps_of(exponents_of(torch.tensor([step]))))
    assert abs(math.log2(stored / step)) <= 1 / 32 + 1e-6


def test_a_weight_is_codes_less_zeros_times_steps() -> None:
    codes = torch.tensor([[0, 3, -4], [7, 1, 2]])
    grid = Grid(codes, torch.tensor([[0.5], [2.0]]), zero=torch.tensor([[1], [-2]]))
    expected = torch.tensor([[-0.5, 1.0, -2.5], [18.0, 6.0, 8.0]])
    assert torch.equal(grid(torch.empty(2, 3)).detach(), expected)
    assert (grid.low, grid.high, grid.bits_per_weight) == (-4, 7, math.log2(12))


def test_a_step_learns_by_the_sum_over_its_weights() -> None:
    codes = torch.randint(-7, 8, (4, 6))
    grid = Grid(codes, torch.full((4, 1), 0.25))
    upstream = torch.randn(4, 6)
    (grid(torch.empty(4, 6)) * upstream).sum().backward()
    torch.testing.assert_close(grid.steps.grad, (upstream * codes).sum(1, keepdim=True))


def test_a_following_grid_has_the_gradients_of_learned_step_size_quantization() -> None:
    """Esser et al. 2020, equation 3: -v/s + round(v/s) inside, the end of the range where it is clipped."""
    torch.manual_seed(1)
    step = 2.0**-3
    original = torch.randn(5, 8, requires_grad=True)
    grid = Grid(torch.zeros(5, 8), torch.full((1, 1), step), low=-4, high=3, follow=True)
    out = grid(original)
    ratio = original.detach() / step
    torch.testing.assert_close(out, torch.round(ratio.clamp(-4, 3)) * step)
    upstream = torch.randn(5, 8)
    (out * upstream).sum().backward()
    inside = (ratio > -4) & (ratio < 3)
    torch.testing.assert_close(original.grad, upstream * inside)
    slope = torch.where(inside, torch.round(ratio) - ratio, ratio.sign() * torch.where(ratio > 0, 3.0, 4.0))
    torch.testing.assert_close(grid.steps.grad, (upstream * slope).sum().reshape(1, 1))


@pytest.mark.parametrize("shape", [(1, 1), (6, 1), (6, 2), (1, 10), (6, 10), (6, 3)])
def test_what_is_settled_computes_what_followed(shape: tuple[int, int]) -> None:
    original = torch.randn(6, 10)
    grid = Grid(
        torch.zeros(6, 10), torch.rand(shape) + 0.1, zero=torch.randint(-2, 3, shape), low=-8, high=7, follow=True
    )
    before = grid(original).detach()
    grid.settle_(original)
    assert not grid.reads_original
    torch.testing.assert_close(grid(torch.empty(0)).detach(), before)


def test_blocks_have_a_step_each() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0]])
    assert spread(values, (2, 8)).tolist() == [[1, 1, 1, 2, 2, 2, 3, 3]]
    assert spread(values, (2, 3)).shape == (1, 3)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (8, 1, 1, 1), (8, 2, 1, 1), (1, 6, 1, 1)])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_slice_is_the_slice_of_the_weight(shape: tuple[int, ...], dim: int) -> None:
    grid = Grid(
        torch.randint(-9, 9, (8, 6, 3, 3)),
        torch.rand(shape) + 0.1,
        zero=torch.randint(-3, 3, shape),
        columns=torch.rand(1, 3, 1, 1) + 0.1,
    )
    keep = torch.tensor([0, 2, 3, 5])
    empty = torch.empty(0)
    torch.testing.assert_close(grid.sliced(dim, keep)(empty), grid(empty).index_select(dim, keep))


def test_a_step_is_the_product_of_its_row_s_and_its_column_s() -> None:
    codes = torch.randint(-9, 9, (4, 6))
    grid = Grid(codes, torch.tensor([[0.5], [1.0], [2.0], [4.0]]), columns=torch.tensor([[1.0, 2.0]]))
    each = torch.tensor([[0.5], [1.0], [2.0], [4.0]]) * torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    assert torch.equal(grid(torch.empty(0)), codes * each)
    grid(torch.empty(0)).sum().backward()
    factors = each / torch.tensor([[0.5], [1.0], [2.0], [4.0]])
    torch.testing.assert_close(grid.steps.grad, (codes * factors).sum(1, keepdim=True))


def _network(grid: Grid, weight: Tensor) -> nn.Module:
    rows, columns = weight.shape
    network = trace(nn.Sequential(nn.Linear(columns, rows), nn.ReLU()), [torch.randn(2, columns)]).eval()
    represent_(network.get_submodule("0"), "weight", grid)
    return network


@pytest.mark.parametrize("shape", [(1, 1), (40, 1), (40, 4), (40, 30)])
@pytest.mark.parametrize("spread_of_codes", [1, 7, 100, 20000])
@pytest.mark.parametrize("with_zeros", [False, True])
def test_files_hold_grids_bit_for_bit(shape: tuple[int, int], spread_of_codes: int, with_zeros: bool) -> None:
    codes = (torch.randn(40, 30) * spread_of_codes / 3).round().clamp(-spread_of_codes, spread_of_codes)
    grid = Grid(codes, torch.rand(shape) * 0.1 + 1e-3, zero=torch.randint(-5, 6, shape) if with_zeros else None)
    network = _network(grid, codes)
    weight = network.get_submodule("0").weight.detach()
    content = encode(network)  # type: ignore[arg-type]
    assert torch.equal(decode(content).get_submodule("0").weight, weight)
    again = decode(content, for_training=True)
    found = representations(again.get_submodule("0"), "weight")[0]
    assert isinstance(found, Grid)
    assert torch.equal(found.codes, grid.codes)
    assert (found.low, found.high) == (grid.low, grid.high)
    assert encode(again) == content


def test_a_file_of_a_large_grid_is_near_the_entropy() -> None:
    torch.manual_seed(0)
    codes = torch.randn(256, 512).mul(0.8).round()
    content = encode(_network(Grid(codes, torch.ones(1, 1) * 0.01), codes))  # type: ignore[arg-type]
    p = torch.bincount(codes.flatten().long() + 10).double() / codes.numel()
    ideal = float(-(p[p > 0] * p[p > 0].log2()).sum()) * codes.numel() / 8
    assert 0.99 * ideal < len(content) - 4 * 256 < 1.02 * ideal  # less the biases, float32


@pytest.mark.parametrize(
    ("codes", "steps", "ends", "message"),
    [
        ((3, 4), (3,), {}, "steps must have the weight's dimensions"),
        ((3, 4), (4, 1), {}, "each of size 1 up to the weight's"),
        ((3, 4), (1, 1), {"low": 1}, r"codes must be in \[1, 0\]"),
        ((3, 4), (1, 1), {"high": 40000}, "32767"),
    ],
)
def test_impossible_grids_are_refused(
    codes: tuple[int, ...], steps: tuple[int, ...], ends: dict[str, int], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        Grid(torch.zeros(codes), torch.ones(steps), **ends)
    with pytest.raises(SettingError, match="finite and above 0"):
        Grid(torch.zeros(2, 2), torch.zeros(1, 1))
