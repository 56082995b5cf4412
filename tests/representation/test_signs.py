"""Binary and ternary weights: the best scale, the papers' gradients, chance with the right mean, a bit a weight on disk."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.artifact import decode, encode, inspect
from penjing.entropy import BitReader, BitWriter
from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.representation import Mask, Signs, represent_, representations
from penjing.representation.signs import drawn_signs, mean_magnitude, signs_of, ternary_codes
from penjing.representation.steps import exponents_of, steps_of

EMPTY = torch.empty(0)
SIZES = [(1, 1), (6, 1), (1, 9)]


def _following(shape: tuple[int, ...], sizes: tuple[int, ...] | None, *, ternary: bool = False) -> Signs:
    scales = None if sizes is None else torch.ones(sizes)
    return Signs(torch.ones(shape), scales, ternary=ternary, follow=True)


def test_the_sign_of_zero_is_plus_one() -> None:
    values = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 5.0, -math.inf])
    assert signs_of(values).tolist() == [1, 1, 1, -1, 1, -1]
    assert _following((6,), None)(values).tolist()[:5] == [1, 1, 1, -1, 1]


@pytest.mark.parametrize("sizes", SIZES)
@given(seed=st.integers(0, 10**6))
def test_no_other_scale_and_no_other_signs_are_nearer(sizes: tuple[int, int], seed: int) -> None:
    """XNOR-Net, equations 3 to 6: B = sign(W), alpha = mean |W| minimise |W - alpha B|^2."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 9, generator=generator).double() ** 3
    best, signs = mean_magnitude(weight, sizes), signs_of(weight)
    error = (weight - best * signs).square().sum()
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert (weight - factor * best * signs).square().sum() > error
    for place in range(0, weight.numel(), 7):
        flipped = signs.clone()
        flipped.view(-1)[place] *= -1
        assert (weight - best * flipped).square().sum() >= error
    stored = steps_of(exponents_of(best)).double()  # half a sixteenth of an octave off, at most
    off = (stored / best - 1).abs().max()
    assert off <= 2 ** (1 / 32) - 1 + 1e-6
    worse = (weight - stored * signs).square().sum() - error
    assert worse <= off**2 * (best.expand(weight.shape) ** 2).sum() * (1 + 1e-6) <= 5e-4 * weight.square().sum()


@given(seed=st.integers(0, 10**6))
def test_the_ternary_scale_is_the_best_for_its_threshold(seed: int) -> None:
    """Ternary Weight Networks, equation 4: for given zeros, the mean magnitude of the others is the least-squares scale."""
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed)).double()
    codes = ternary_codes(weight, (5, 1))
    scale = mean_magnitude(weight, (5, 1), codes != 0)
    solved = (weight * codes).sum(1) / codes.square().sum(1)
    torch.testing.assert_close(scale[:, 0], solved)
    threshold = 0.7 * weight.abs().mean(1, keepdim=True)
    assert torch.equal(codes, torch.sign(weight) * (weight.abs() > threshold))


@pytest.mark.parametrize(
    ("draw", "best"),
    [(lambda u: 2 * u - 1, 2 / 3), (lambda u: torch.special.ndtri(u), 0.767)],
    ids=["uniform", "normal"],
)
def test_seven_tenths_of_the_mean_is_near_the_best_threshold(draw: object, best: float) -> None:
    """Equation 6 is an approximation: exact is a / 3 for uniform weights in [-a, a] and 0.612 sigma for normal ones, which
    is 0.667 and 0.767 of the mean magnitude. The error at 0.7 is within 1 % of the least."""
    weight = draw((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)  # type: ignore[operator]
    magnitudes = weight.abs().sort(descending=True).values
    n = torch.arange(1, len(weight) + 1)
    errors = magnitudes.square().sum() - magnitudes.cumsum(0) ** 2 / n  # of keeping the n largest with their best scale
    least = int(errors.argmin())
    assert float(magnitudes[least] / magnitudes.mean()) == pytest.approx(best, abs=0.01)
    ours = int((magnitudes > 0.7 * magnitudes.mean()).sum()) - 1
    assert float(errors[ours]) <= 1.01 * float(errors[least])


def test_binary_weights_without_scale_pass_the_gradient_as_it_is() -> None:
    """BinaryConnect, algorithm 1."""
    original = torch.randn(4, 5, requires_grad=True)
    upstream = torch.randn(4, 5)
    out = _following((4, 5), None)(original)
    assert torch.equal(out.detach(), signs_of(original))
    (out * upstream).sum().backward()
    assert torch.equal(original.grad, upstream)


@pytest.mark.parametrize("sizes", SIZES)
def test_scaled_binary_weights_have_xnor_nets_gradient(sizes: tuple[int, int]) -> None:
    """XNOR-Net, section 3.1: dC/dW = dC/dW' (1 / n + alpha 1[|W| <= 1])."""
    torch.manual_seed(0)
    original = torch.randn(6, 9, requires_grad=True)
    upstream = torch.randn(6, 9)
    out = _following((6, 9), sizes)(original)
    alpha = steps_of(exponents_of(mean_magnitude(original, sizes)))
    assert torch.equal(out.detach(), alpha * signs_of(original))
    (out * upstream).sum().backward()
    n = original.numel() / alpha.numel()
    torch.testing.assert_close(original.grad, upstream * (1 / n + alpha * (original.detach().abs() <= 1)))


def test_ternary_weights_pass_the_gradient_as_it_is() -> None:
    original = torch.randn(4, 50, requires_grad=True)
    upstream = torch.randn(4, 50)
    out = _following((4, 50), (1, 1), ternary=True)(original)
    low, zero, high = out.detach().unique().tolist()
    assert zero == 0 and low == -high
    (out * upstream).sum().backward()
    assert torch.equal(original.grad, upstream)


def test_drawn_signs_have_the_clipped_weight_as_their_mean() -> None:
    torch.manual_seed(0)
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.3, 1.0, 1.5])
    n = 40_000
    drawn = drawn_signs(values.expand(n, -1))
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert bool(((drawn.mean(0) - values.clamp(-1, 1)).abs() <= 4.5 / math.sqrt(n)).all())


def test_chance_has_its_place_in_training_only() -> None:
    torch.manual_seed(0)
    signs = Signs(torch.ones(50, 50), follow=True, stochastic=True)
    original = torch.rand(50, 50) - 0.5
    assert not torch.equal(signs(original), signs(original))
    assert torch.equal(signs.eval()(original), signs_of(original))
    signs.train().settle_(original)
    assert torch.equal(signs(EMPTY), signs_of(original))


def test_fixed_scales_learn_by_the_sum_over_their_weights() -> None:
    codes = torch.randint(-1, 2, (4, 6))
    signs = Signs(codes, torch.full((4, 1), 0.25), ternary=True)
    upstream = torch.randn(4, 6)
    (signs(EMPTY) * upstream).sum().backward()
    torch.testing.assert_close(signs.scales.grad, (upstream * codes).sum(1, keepdim=True))  # type: ignore[union-attr]


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("sizes", [None, (1, 1, 1, 1), (8, 1, 1, 1), (1, 6, 1, 1)])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_slice_is_the_slice_of_the_weight(sizes: tuple[int, ...] | None, ternary: bool, dim: int) -> None:
    original = torch.randn(8, 6, 3, 3)
    signs = _following((8, 6, 3, 3), sizes, ternary=ternary)
    signs.settle_(original)
    keep = torch.tensor([0, 2, 3, 5])
    cut = signs.sliced(dim, keep)
    assert torch.equal(cut(EMPTY), signs(EMPTY).index_select(dim, keep))
    assert cut.bits_per_weight == (math.log2(3) if ternary else 1)


def test_masked_weights_stay_zero_and_do_not_lower_the_threshold() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(400, 3)
    keep = torch.rand(3, 400) < 0.1
    before = layer.weight.detach()[keep]
    represent_(layer, "weight", Mask(keep))
    represent_(layer, "weight", Signs(torch.ones(3, 400), torch.ones(1, 1), ternary=True, follow=True))
    after = layer.weight.detach()
    assert bool((after[~keep] == 0).all())
    assert torch.equal(after[keep] != 0, before.abs() > 0.7 * before.abs().mean())


def _network(signs: Signs) -> Network:
    rows, columns = signs.codes.shape
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(columns, rows, bias=False), nn.ReLU()), [torch.randn(2, columns)]).eval()
    represent_(network.get_submodule("0"), "weight", signs)
    return network


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("sizes", [None, (1, 1), (40, 1), (1, 30)])
def test_files_hold_signs_bit_for_bit(sizes: tuple[int, ...] | None, ternary: bool) -> None:
    torch.manual_seed(1)
    signs = _following((40, 30), sizes, ternary=ternary)
    signs.settle_(torch.randn(40, 30))
    network = _network(signs)
    content = encode(network)
    assert torch.equal(decode(content).get_submodule("0").weight, network.get_submodule("0").weight)
    again = decode(content, for_training=True)
    found = representations(again.get_submodule("0"), "weight")[0]
    assert isinstance(found, Signs) and found.ternary == ternary and not found.follow
    assert torch.equal(found.codes, signs.codes)
    assert encode(again) == content


@pytest.mark.parametrize("sizes", [None, (40, 1)])
def test_a_file_made_while_the_original_is_trained_holds_what_the_network_computes(
    sizes: tuple[int, ...] | None,
) -> None:
    network = _network(_following((40, 30), sizes))
    weight = network.get_submodule("0").weight.detach()
    assert torch.equal(decode(encode(network)).get_submodule("0").weight, weight)


def test_a_binary_weight_takes_a_bit_and_its_scale_a_byte(tmp_path: object) -> None:
    """Codes without any pattern cannot be shorter than a bit; 512 scales that spread take less than a byte each."""
    torch.manual_seed(0)
    original = torch.randn(512, 300) * torch.rand(512, 1).add(0.5)
    sizes: dict[str, int] = {}
    for name, shape in {"none": None, "tensor": (1, 1), "filter": (512, 1)}.items():
        signs = _following((512, 300), shape)
        signs.settle_(original)
        path = tmp_path / f"{name}.pj"  # type: ignore[operator]
        path.write_bytes(encode(_network(signs)))
        row = next(row for row in inspect(path) if row.name == "0.weight")
        sizes[name] = row.size_bytes
    n = 512 * 300 // 8
    assert n <= sizes["none"] <= n + 4 and n <= sizes["tensor"] <= n + 8
    assert sizes["none"] < sizes["filter"] <= n + 512 + 8
    assert sizes["filter"] < n + 2 * 512  # what float16 would take


def test_signs_that_follow_a_pattern_take_less_than_a_bit() -> None:
    codes = torch.ones(256, 256)
    codes[:, ::2] = torch.where(torch.rand(256, 128) < 0.05, -1.0, 1.0)
    assert len(encode(_network(Signs(codes)))) < 0.6 * 256 * 256 / 8


def test_a_product_of_signs_is_a_count_of_bits() -> None:
    """a . b = n - 2 popcount(a xor b), on codes packed as the file packs them, is the product of floats exactly."""
    torch.manual_seed(0)
    a, b = (torch.randint(0, 2, (n, 203)) * 2 - 1 for n in (7, 11))

    def packed(codes: Tensor) -> list[int]:
        rows = []
        for row in codes:
            writer = BitWriter()
            writer.fields(((row + 1) // 2).numpy(), 1)
            data = writer.finish()
            assert len(data) == math.ceil(203 / 8)
            assert np.array_equal(BitReader(data, "").fields(203, 1), ((row + 1) // 2).numpy())
            rows.append(int.from_bytes(data, "little"))
        return rows

    counted = [[203 - 2 * (x ^ y).bit_count() for y in packed(b)] for x in packed(a)]
    assert torch.equal(torch.tensor(counted).float(), a.float() @ b.float().T)


@pytest.mark.parametrize(
    ("codes", "scales", "message"),
    [
        (torch.zeros(3, 4), None, "codes must be -1 or 1"),
        (torch.full((3, 4), 0.5), None, "codes must be -1 or 1"),
        (torch.ones(3, 4), torch.ones(3), "scales must have the weight's dimensions"),
        (torch.ones(3, 4), torch.ones(3, 4), "all of size 1 but at most one"),
        (torch.ones(3, 4), torch.zeros(1, 1), "finite and above 0"),
        (torch.ones(3, 4), torch.full((3, 1), math.inf), "finite and above 0"),
    ],
)
def test_impossible_signs_are_refused(codes: Tensor, scales: Tensor | None, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Signs(codes, scales)
    with pytest.raises(SettingError, match="codes must be -1, 0 or 1"):
        Signs(2 * torch.ones(3), ternary=True)
