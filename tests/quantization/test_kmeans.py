"""Clusters of numbers: the optimum against brute force, Lloyd's descent, and codes whose length counts."""

import itertools

import kmeans1d
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import SettingError
from penjing.quantization import kmeans
from penjing.quantization.kmeans import (
    Line,
    between,
    code_lengths_of,
    distortion,
    entropy_constrained,
    first_guess,
    kmeans_1d,
    lloyd,
)

GUESSES = ("linear", "density", "random")
numbers = st.floats(-100, 100, width=32)


def _error(values: np.ndarray, codes: np.ndarray, centroids: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
    return float((weights * (values - centroids[codes]) ** 2).sum())


def _brute_force(values: np.ndarray, k: int, weights: np.ndarray) -> float:
    """The least error over all ways to cut the sorted values into at most k runs."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), min(k, len(values)) - 1):
        total = 0.0
        for run, mass in zip(np.split(values, cuts), np.split(weights, cuts), strict=True):
            total += float((mass * (run - np.average(run, weights=mass)) ** 2).sum())
        best = min(best, total)
    return best


@given(st.lists(st.tuples(numbers, st.floats(0.1, 10)), min_size=1, max_size=9), st.integers(1, 6))
def test_weighted_clusters_are_the_optimum(pairs: list[tuple[float, float]], k: int) -> None:
    values, weights = np.array(pairs).T
    codes, centroids = kmeans_1d(values, k, weights=weights)
    assert 1 <= len(centroids) <= k
    assert (np.diff(centroids) > 0).all()
    found = _error(values, codes, centroids, weights)
    assert found == pytest.approx(_brute_force(values, k, weights), rel=1e-9, abs=1e-8)
    assert found == pytest.approx(distortion(values, centroids, weights), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 8, 33])
def test_the_optimum_is_what_another_implementation_finds(k: int) -> None:
    values = np.random.default_rng(k).standard_t(3, 3000)
    _, theirs = kmeans1d.cluster(values, k)
    assert distortion(values, kmeans_1d(values, k)[1]) == pytest.approx(
        distortion(values, np.unique(np.array(theirs))), rel=1e-10
    )


@pytest.mark.parametrize("init", GUESSES)
@given(values=st.lists(numbers, min_size=1, max_size=60), k=st.integers(1, 9), seed=st.integers(0, 5))
def test_no_first_guess_ends_better_than_the_optimum(init: str, values: list[float], k: int, seed: int) -> None:
    array = np.array(values)
    generator = np.random.default_rng(seed)
    codes, centroids = kmeans_1d(array, k, init=init, generator=generator)  # type: ignore[arg-type]
    assert (np.bincount(codes, minlength=len(centroids)) > 0).all()
    best = distortion(array, kmeans_1d(array, k)[1])
    assert best <= _error(array, codes, centroids) * (1 + 1e-9) + 1e-8


@pytest.mark.parametrize("init", GUESSES)
def test_a_step_of_lloyd_never_makes_it_worse_and_ends_at_means(init: str) -> None:
    values = np.random.default_rng(1).laplace(size=4000)
    weights = np.random.default_rng(2).uniform(0.5, 2, 4000)
    line = Line(values, weights)
    begun = first_guess(line, 16, init, np.random.default_rng(0))  # type: ignore[arg-type]
    centroids, found = lloyd(line, begun)
    assert found[0] == pytest.approx(distortion(values, begun, weights), rel=1e-9)
    assert found[-1] == pytest.approx(distortion(values, centroids, weights), rel=1e-9)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(found))
    assert found[-1] < 0.95 * found[0]
    codes = np.searchsorted(between(centroids), values)
    mass = np.bincount(codes, weights)
    np.testing.assert_allclose(centroids, np.bincount(codes, weights * values) / mass, rtol=1e-9)


def test_first_guesses_are_those_of_the_paper() -> None:
    values = np.concatenate([np.zeros(8), np.arange(1.0, 9.0)])
    line = Line(values)
    np.testing.assert_allclose(first_guess(line, 5, "linear"), [0, 2, 4, 6, 8])
    np.testing.assert_allclose(first_guess(line, 4, "density"), [0, 3, 7])  # two of the four quantiles are 0
    drawn = first_guess(line, 4, "random", np.random.default_rng(0))
    assert len(drawn) == 4 and np.isin(drawn, values).all()
    with pytest.raises(SettingError, match="give it a generator"):
        first_guess(line, 4, "random")
    with pytest.raises(SettingError, match='no first guess "exact"'):
        first_guess(line, 4, "exact")


def test_a_fine_histogram_is_almost_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    for values in (np.random.default_rng(0).standard_normal(50_000), np.random.default_rng(0).standard_t(2, 50_000)):
        exact = [distortion(values, kmeans_1d(values, k)[1]) for k in (4, 16)]
        with monkeypatch.context() as patched:
            patched.setattr(kmeans, "_EXACT_UP_TO", 1000)
            for k, best in zip((4, 16), exact, strict=True):
                codes, centroids = kmeans_1d(values, k)
                assert len(centroids) == k
                assert best * (1 - 1e-9) <= _error(values, codes, centroids) < best * (1 + 1e-5)


@given(values=st.lists(numbers, min_size=1, max_size=80), k=st.integers(1, 9), price=st.floats(0, 1e4))
def test_priced_clusters_never_cost_more_than_those_of_kmeans(values: list[float], k: int, price: float) -> None:
    array = np.array(values)

    def cost(codes: np.ndarray, centroids: np.ndarray) -> float:
        lengths = code_lengths_of(np.bincount(codes, minlength=len(centroids)))
        return _error(array, codes, centroids) + price * float(lengths[codes].sum())

    codes, centroids = entropy_constrained(array, k, price)
    assert (np.bincount(codes, minlength=len(centroids)) > 0).all() and (np.diff(centroids) > 0).all()
    assert cost(codes, centroids) <= cost(*kmeans_1d(array, k)) * (1 + 1e-9) + 1e-8
    if price == 0:
        assert _error(array, codes, centroids) == pytest.approx(distortion(array, kmeans_1d(array, k)[1]), abs=1e-8)


def test_each_priced_code_is_the_cheapest_for_its_value() -> None:
    values = np.random.default_rng(3).laplace(size=5000)
    price = 0.3
    codes, centroids = entropy_constrained(values, 16, price)
    lengths = code_lengths_of(np.bincount(codes))
    costs = (values[:, None] - centroids) ** 2 + price * lengths
    np.testing.assert_allclose(costs[np.arange(len(values)), codes], costs.min(1), atol=1e-5)
    assert len(centroids) < 16


def test_a_dearer_bit_means_fewer_bits_and_clusters() -> None:
    values = np.random.default_rng(0).laplace(size=20_000)
    bits, errors, numbers_of = [], [], []
    for price in (0.0, 0.01, 0.1, 1.0, 100.0):
        codes, centroids = entropy_constrained(values, 32, price)
        lengths = code_lengths_of(np.bincount(codes))
        bits.append(lengths[codes].mean())
        errors.append(_error(values, codes, centroids))
        numbers_of.append(len(centroids))
    assert bits == sorted(bits, reverse=True) and errors == sorted(errors)
    assert numbers_of == sorted(numbers_of, reverse=True) and numbers_of[0] == 32 and numbers_of[-1] == 1


def test_bits_are_spent_better_than_by_kmeans() -> None:
    """At the rate of 8 clusters of k-means on a Laplace density, priced ones have a tenth less error."""
    values = np.random.default_rng(0).laplace(size=20_000)
    codes, centroids = kmeans_1d(values, 8)
    rate = code_lengths_of(np.bincount(codes))[codes].mean()
    ways = [entropy_constrained(values, 32, price) for price in np.geomspace(0.02, 0.3, 12)]
    rates = [code_lengths_of(np.bincount(c))[c].mean() for c, _ in ways]
    errors = [_error(values, *way) for way in ways]
    assert np.interp(rate, rates[::-1], errors[::-1]) < 0.9 * _error(values, codes, centroids)
