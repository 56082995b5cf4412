"""Factors of matrices and filter banks: optimal where they are said to be, exact at full rank, and the rank of the evidence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from penjing.architecture import cp_factors, energy_rank, evidence_rank, spatial_factors, svd_factors, tucker2
from penjing.architecture.factors import in_metric, moments_of_modes, refitted, relative_error, root_of
from penjing.architecture.tucker import kept_by_ranks
from penjing.architecture.vbmf import evidence, least_signal
from penjing.errors import SettingError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _moment(n: int, n_samples: int = 1000, seed: int = 0) -> Tensor:
    """Of correlated inputs that are not centred."""
    generator = _generator(seed)
    mixing = torch.randn(n, n, generator=generator, dtype=torch.float64) / torch.arange(1, n + 1)
    x = torch.randn(n_samples, n, generator=generator, dtype=torch.float64) @ mixing + 0.3
    return x.T @ x / n_samples


def _squared_change(weight: Tensor, product: Tensor, moment: Tensor) -> float:
    d = (weight - product).flatten(1)
    return float(((d @ moment) * d).sum())


def _tucker(first: Tensor, core: Tensor, last: Tensor) -> Tensor:
    return torch.einsum("op,pqyx,qi->oiyx", last, core, first)


def _cp(first: Tensor, vertical: Tensor, horizontal: Tensor, last: Tensor) -> Tensor:
    return torch.einsum("or,ri,ry,rx->oiyx", last, first, vertical, horizontal)


def _spatial(vertical: Tensor, horizontal: Tensor) -> Tensor:
    return torch.einsum("orx,riy->oiyx", horizontal.squeeze(2), vertical.squeeze(3))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_squared_error_is_the_sum_of_the_squared_singular_values_behind_the_rank(m: int, n: int, seed: int) -> None:
    weight = torch.randn(m, n, generator=_generator(seed))
    tail = torch.linalg.svdvals(weight.double()).square()
    for rank in range(1, min(m, n) + 1):
        first, second = svd_factors(weight, rank)
        assert first.shape == (rank, n) and second.shape == (m, rank) and first.dtype == weight.dtype
        error = float((weight.double() - second.double() @ first.double()).square().sum())
        assert error == pytest.approx(float(tail[rank:].sum()), rel=1e-4, abs=1e-10)


def test_norms_are_shared_evenly() -> None:
    first, second = svd_factors(torch.randn(7, 9), 4)
    torch.testing.assert_close(first.norm(dim=1), second.norm(dim=0))


def test_with_moments_no_factors_of_the_rank_change_the_answers_less() -> None:
    weight, moment = torch.randn(6, 8, dtype=torch.float64), _moment(8)
    root = root_of(moment, 0.0)
    for rank in (1, 3, 5):
        first, second = svd_factors(weight, rank, moment, damping=0.0)
        change = _squared_change(weight, second @ first, moment)
        tail = torch.linalg.svdvals(weight @ root)[rank:].square().sum()
        assert change == pytest.approx(float(tail), rel=1e-4)
        plain_first, plain_second = svd_factors(weight, rank)
        assert change < _squared_change(weight, plain_second @ plain_first, moment)
        for scale in (1e-3, 1e-2, 1e-1):
            for _ in range(30):
                near = (second + scale * torch.randn_like(second)) @ (first + scale * torch.randn_like(first))
                assert _squared_change(weight, near, moment) >= change


def test_singular_moments_do_no_harm() -> None:
    x = torch.randn(5, 12, dtype=torch.float64)
    x[:, 3] = 0
    weight, moment = torch.randn(9, 12, dtype=torch.float64), x.T @ x / 5
    first, second = svd_factors(weight, 5, moment)  # five samples are a space of five dimensions
    assert relative_error(weight, second @ first, moment) < 1e-2
    first, second = svd_factors(weight, 9, moment)
    torch.testing.assert_close(second @ first, weight)
    first, second = svd_factors(weight, 4, torch.zeros(12, 12))  # nothing known: all directions alike
    expected = svd_factors(weight, 4)
    torch.testing.assert_close(second @ first, expected[1] @ expected[0])
    first, second = svd_factors(torch.zeros(4, 5), 2)
    assert not (second @ first).any() and first.isfinite().all()


@pytest.mark.parametrize("seed", range(60))
def test_refitted_is_least_squares(seed: int) -> None:
    torch.manual_seed(seed)
    weight, basis, moment = torch.randn(4, 9).double(), torch.randn(3, 9).double(), _moment(9)
    found = refitted(weight, basis, moment, damping=0.0)
    expected = weight @ moment @ basis.T @ torch.linalg.inv(basis @ moment @ basis.T)
    torch.testing.assert_close(found, expected)
    doubled = refitted(weight, torch.cat([basis, basis]), moment, damping=0.0)  # directions that say the same
    torch.testing.assert_close(doubled @ torch.cat([basis, basis]), expected @ basis)


def test_moments_of_modes_are_the_factors_of_a_kronecker_product() -> None:
    channels, places = _moment(4, seed=1), _moment(6, seed=2)
    found = moments_of_modes(torch.kron(channels, places), (4, 6))
    torch.testing.assert_close(torch.kron(*found), torch.kron(channels, places))
    weight = torch.randn(5, 4, 6, dtype=torch.float64)
    roots = [root_of(part, 0.0) for part in found]
    norm = _squared_change(weight, torch.zeros_like(weight), torch.kron(channels, places))
    assert float(in_metric(weight, roots).square().sum()) == pytest.approx(norm)


@pytest.mark.parametrize(("out", "inputs", "height", "width"), [(6, 5, 3, 3), (4, 9, 3, 5), (7, 3, 1, 4)])
@pytest.mark.parametrize("aware", [False, True])
def test_full_rank_is_exact(out: int, inputs: int, height: int, width: int, aware: bool) -> None:
    weight = torch.randn(out, inputs, height, width)
    moment = _moment(inputs * height * width) if aware else None
    rank = min(out * width, inputs * height)
    torch.testing.assert_close(_spatial(*spatial_factors(weight, rank, moment)), weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(_tucker(*tucker2(weight, out, inputs, moment)), weight, rtol=1e-4, atol=1e-4)
    largest = out * inputs * height * width // max(out, inputs, height, width)
    torch.testing.assert_close(_cp(*cp_factors(weight, largest, _generator(), moment)), weight, rtol=1e-4, atol=1e-4)


def test_spatial_error_is_that_of_the_singular_values() -> None:
    weight = torch.randn(6, 5, 3, 4, dtype=torch.float64)
    tail = torch.linalg.svdvals(weight.permute(0, 3, 1, 2).reshape(24, 15)).square()
    for rank in (1, 7, 14):
        vertical, horizontal = spatial_factors(weight, rank)
        assert vertical.shape == (rank, 5, 3, 1) and horizontal.shape == (6, rank, 1, 4)
        error = (weight - _spatial(vertical, horizontal)).square().sum()
        assert float(error) == pytest.approx(float(tail[rank:].sum()), rel=1e-4)


def test_tucker_keeps_what_its_core_holds_and_iterating_never_keeps_less_than_the_start() -> None:
    weight = torch.randn(8, 7, 3, 3, dtype=torch.float64)
    kept = kept_by_ranks(weight)
    assert float(kept[-1, -1]) == pytest.approx(float(weight.square().sum()))
    for ranks in ((1, 1), (3, 4), (8, 2), (6, 6)):
        first, core, last = tucker2(weight, *ranks)
        torch.testing.assert_close(first @ first.T, torch.eye(ranks[1], dtype=torch.float64))
        torch.testing.assert_close(last.T @ last, torch.eye(ranks[0], dtype=torch.float64))
        error = float((weight - _tucker(first, core, last)).square().sum())
        assert error == pytest.approx(float(weight.square().sum() - core.square().sum()))
        assert error <= float(kept[-1, -1] - kept[ranks[0] - 1, ranks[1] - 1]) + 1e-9


def test_the_table_of_ranks_is_what_truncating_the_bases_keeps() -> None:
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    kept = kept_by_ranks(weight)
    u_out = torch.linalg.svd(weight.flatten(1))[0]
    u_in = torch.linalg.svd(weight.transpose(0, 1).flatten(1))[0]
    for p, q in ((1, 1), (2, 3), (5, 2)):
        core = torch.einsum("oiyx,op,iq->pqyx", weight, u_out[:, :p], u_in[:, :q])
        assert float(kept[p - 1, q - 1]) == pytest.approx(float(core.square().sum()))


def test_tucker_finds_a_tensor_of_its_ranks() -> None:
    weight = _tucker(torch.randn(3, 9).double(), torch.randn(4, 3, 3, 3).double(), torch.randn(10, 4).double())
    for moment in (None, _moment(81)):
        torch.testing.assert_close(_tucker(*tucker2(weight, 4, 3, moment)), weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("out", "inputs", "rank"), [(16, 12, 5), (10, 10, 10), (20, 8, 3), (6, 5, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_cp_finds_a_tensor_of_its_rank(out: int, inputs: int, rank: int, seed: int) -> None:
    shapes = ((rank, inputs), (rank, 3), (rank, 3), (out, rank))
    generator = _generator(seed)
    weight = _cp(*(torch.randn(shape, generator=generator).double() for shape in shapes))
    first, vertical, horizontal, last = cp_factors(weight, rank, _generator(seed + 7))
    assert relative_error(weight, _cp(first, vertical, horizontal, last)) < 1e-3
    norms = torch.stack([first.norm(dim=1), vertical.norm(dim=1), horizontal.norm(dim=1), last.norm(dim=0)])
    torch.testing.assert_close(norms, norms[:1].expand(4, -1))  # shared evenly


def test_sizes_of_cp_components_stay_bounded_where_no_best_approximation_exists() -> None:
    """a a b + a b a + b a a has rank 3, and is the limit of tensors of rank 2 whose components grow for ever."""
    a, b = torch.eye(2, dtype=torch.float64)
    weight = sum(torch.einsum("i,j,k->ijk", *triple) for triple in ((a, a, b), (a, b, a), (b, a, a)))[..., None]
    found = cp_factors(weight, 2, _generator(), sweeps=2000)
    assert relative_error(weight, _cp(*found)) < 0.05
    assert max(float(factor.norm()) ** 4 for factor in found) < 1e4


def test_generators_decide_and_nothing_else() -> None:
    weight = torch.randn(6, 6, 3, 3)
    first, second = (cp_factors(weight, 4, _generator(3)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("method", ["tucker", "spatial", "cp"])
def test_with_moments_filters_change_the_answers_less(method: str) -> None:
    weight = torch.randn(8, 6, 3, 3, dtype=torch.float64)
    known, others = _moment(54, seed=0, n_samples=4000), _moment(54, seed=0, n_samples=8000)
    assert not torch.equal(known, others)
    make = {
        "tucker": lambda moment: _tucker(*tucker2(weight, 4, 3, moment)),
        "spatial": lambda moment: _spatial(*spatial_factors(weight, 6, moment)),
        "cp": lambda moment: _cp(*cp_factors(weight, 8, _generator(), moment)),
    }[method]
    assert relative_error(weight, make(known), others) < 0.8 * relative_error(weight, make(None), others)


def test_energy_rank_is_the_smallest_that_keeps_enough() -> None:
    values = torch.tensor([3.0, 2.0, 1.0])  # squares 9, 4, 1 of 14
    assert [energy_rank(values, e) for e in (0.1, 9 / 14, 0.65, 13 / 14, 0.93, 1.0)] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("m", "n", "rank", "noise"),
    [
        (50, 80, 5, 0.1),
        (100, 100, 10, 0.3),
        (300, 60, 8, 0.5),
        (64, 576, 12, 1.0),
        (20, 25, 2, 0.1),
        (400, 300, 20, 0.5),
    ],
)
def test_evidence_finds_rank_and_noise(m: int, n: int, rank: int, noise: float) -> None:
    signal = torch.randn(m, rank).double() @ torch.randn(rank, n).double() / math.sqrt(rank)
    matrix = signal + noise * torch.randn(m, n).double()
    found = evidence(matrix)
    assert found.rank == evidence_rank(matrix) == evidence_rank(matrix.T) == rank
    assert found.noise_variance == pytest.approx(noise**2, rel=0.1)
    assert (found.singular_values < torch.linalg.svdvals(matrix)[:rank]).all()


def test_evidence_of_noise_alone_and_of_no_noise() -> None:
    assert evidence(torch.randn(100, 200)).rank == 0
    assert evidence_rank(torch.randn(100, 200)) == 1
    assert evidence_rank(torch.zeros(3, 4)) == evidence_rank(torch.randn(1, 7)) == evidence_rank(torch.randn(1, 1)) == 1
    assert evidence_rank(torch.randn(40, 3).double() @ torch.randn(3, 50).double()) == 3


def _free_energy(gamma: float, short: int, long: int, noise: float) -> tuple[float, float]:
    """Twice the free energy of one component against none, and its size, by the updates of variational Bayes."""
    a = b = math.sqrt(gamma)
    spread_a = spread_b = noise / gamma
    for _ in range(20_000):
        prior_a, prior_b = a * a / long + spread_a, b * b / short + spread_b
        spread_a = 1 / ((b * b + short * spread_b) / noise + 1 / prior_a)
        a = spread_a * gamma * b / noise
        spread_b = 1 / ((a * a + long * spread_a) / noise + 1 / prior_b)
        b = spread_b * gamma * a / noise
    square_a, square_b = a * a + long * spread_a, b * b + short * spread_b
    energy = long * math.log(prior_a / spread_a) + short * math.log(prior_b / spread_b)
    energy += square_a / prior_a + square_b / prior_b - long - short
    return energy + (square_a * square_b - 2 * a * b * gamma) / noise, a * b


@pytest.mark.parametrize(("short", "long", "noise"), [(20, 50, 0.5), (30, 30, 1.0)])
def test_a_component_is_there_where_that_makes_the_free_energy_less(short: int, long: int, noise: float) -> None:
    threshold = math.sqrt(least_signal(short / long) * long * noise)
    for factor, lower in ((0.99, False), (1.01, True), (1.5, True)):
        energy, size = _free_energy(factor * threshold, short, long, noise)
        assert (energy < 0) == lower
        matrix = torch.zeros(short, long, dtype=torch.float64)
        matrix[0, 0] = factor * threshold
        found = evidence(matrix, noise)
        assert found.rank == lower
        if lower:
            assert float(found.singular_values[0]) == pytest.approx(size, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: svd_factors(torch.randn(3, 4), 0), "rank must be 1 to 3, got 0"),
        (lambda: svd_factors(torch.randn(3, 4), 4), "rank must be 1 to 3, got 4"),
        (lambda: svd_factors(torch.randn(3, 4, 1), 1), r"must have 2 dimensions, got the shape \(3, 4, 1\)"),
        (lambda: svd_factors(torch.full((3, 4), math.nan), 1), "the weight has values that are not finite"),
        (lambda: svd_factors(torch.randn(3, 4), 1, torch.eye(3)), r"moments must be \(4, 4\), got \(3, 3\)"),
        (lambda: svd_factors(torch.randn(3, 2), 1, torch.full((2, 2), math.inf)), "inputs are not finite"),
        (lambda: svd_factors(torch.randn(3, 2), 1, -torch.eye(2)), "inputs are not positive"),
        (lambda: tucker2(torch.randn(3, 4, 3, 3), 4, 1), "rank_out must be 1 to 3, got 4"),
        (lambda: tucker2(torch.randn(3, 4, 3, 3), 1, 0), "rank_in must be 1 to 4, got 0"),
        (lambda: tucker2(torch.randn(3, 4, 3, 3), 1, 1, torch.eye(4)), r"moments must be \(36, 36\), got \(4, 4\)"),
        (lambda: cp_factors(torch.randn(3, 4, 3, 3), 0, torch.Generator()), "rank must be at least 1, got 0"),
        (lambda: cp_factors(torch.randn(3, 4), 1, torch.Generator()), "must have 4 dimensions"),
        (lambda: spatial_factors(torch.randn(3, 4, 3, 3), 10), "rank must be 1 to 9, got 10"),
        (lambda: spatial_factors(torch.randn(3, 4), 1), "must have 4 dimensions"),
        (lambda: energy_rank(torch.ones(3), 1.5), "energy must be above 0 and at most 1, got 1.5"),
        (lambda: evidence_rank(torch.randn(3)), "must have 2 dimensions"),
    ],
)
def test_bad_inputs_are_told(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SettingError, match=message):
        call()
