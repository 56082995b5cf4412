"""The adaptive context coder: what goes in comes out, near the ideal length, the same bytes everywhere, hostile data or not."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import laplace

from penjing.entropy import context_coder, count, entropy_bits, trellis
from penjing.errors import ArtifactError, DataError


def geometric(rows: int, columns: int, mean: float, seed: int = 0) -> NDArray[np.int64]:
    generator = np.random.default_rng(seed)
    sizes = generator.geometric(1 / (mean + 1), (rows, columns)) - 1
    return sizes * generator.choice([-1, 1], (rows, columns))


def same(matrix: NDArray[np.int64]) -> int:
    data = context_coder.encode(matrix)
    back = context_coder.decode(data, *matrix.shape)
    assert back.dtype == np.int16
    assert np.array_equal(back, matrix)
    return len(data)


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(0, 30), st.sampled_from([0.01, 0.3, 2.0, 40.0, 9000.0])
)
def test_everything_comes_back(seed: int, rows: int, columns: int, mean: float) -> None:
    same(np.clip(geometric(rows, columns, mean, seed), -32767, 32767))


@pytest.mark.parametrize(
    "values", [[0], [1], [-1], [14], [15], [-15], [16], [-16], [32767], [-32767], [0, 0, 32767, 0], [-32767] * 40]
)
def test_the_ends_of_every_range_come_back(values: list[int]) -> None:
    same(np.array([values]))
    same(np.array(values)[:, None])


def test_carries_go_as_far_as_they_must() -> None:
    """Long streams of near certain answers meet words of ones; 300 streams of different lengths."""
    for seed in range(300):
        same(geometric(3, 40 + seed, 0.02 if seed % 2 else 3.0, seed))


@pytest.mark.parametrize("mean", [0.05, 0.5, 1.0, 3.0])
def test_without_any_structure_it_is_within_three_percent_of_the_entropy(mean: float) -> None:
    """Adaptation costs what a table would: for 100,000 geometric numbers the ideal is known."""
    p = 1 / (mean + 1)
    ideal = -np.log2(p) - mean * np.log2(1 - p) + (1 - p)  # the geometric distribution, and a sign where it is not 0
    n_bits = 8 * same(geometric(250, 400, mean))
    assert 0.98 * ideal < n_bits / 100_000 < 1.03 * ideal + 0.002


def test_rows_and_columns_of_different_sizes_are_found() -> None:
    """Laplace numbers whose spread differs by row and column: near the ideal of a coder that is told every spread."""
    generator = np.random.default_rng(0)
    spread = np.exp(generator.normal(0, 0.7, (64, 1)) + generator.normal(0, 0.7, (1, 288)))
    matrix = np.rint(generator.laplace(0, spread)).astype(np.int64)
    told = -np.log2(laplace.cdf(matrix + 0.5, scale=spread) - laplace.cdf(matrix - 0.5, scale=spread)).sum() / 8
    shifted = matrix - matrix.min()
    together = entropy_bits(count(shifted, int(shifted.max()) + 1)) / 8
    assert told < same(matrix) < min(1.08 * told, 0.95 * together)
    disorder = generator.permutation(matrix.reshape(-1)).reshape(matrix.shape)
    assert same(disorder) > together


def test_zeros_take_next_to_nothing_and_nothing_takes_nothing() -> None:
    assert same(np.zeros((1000, 1000), np.int64)) < 2000  # 0.016 bit: as near to certain as an adaptive chance comes
    assert context_coder.encode(np.zeros((0, 7), np.int64)) == b""
    assert context_coder.decode(b"", 5, 0).shape == (5, 0)


def test_time_is_linear_and_large_matrices_need_no_large_buffers() -> None:
    assert same(geometric(2000, 500, 0.7)) > 10 * 10_000


def test_the_bytes_are_part_of_the_file_format() -> None:
    """These bytes must never change: files have them."""
    data = context_coder.encode(geometric(20, 30, 1.5, seed=7))
    assert (len(data), hashlib.sha256(data).hexdigest()[:16]) == (232, "7e8e7708a47a6e63")


def on_the_grids(index: NDArray[np.int64]) -> NDArray[np.int32]:
    """The numbers that these indices stand for."""
    numbers = np.zeros(index.shape, dtype=np.int32)
    for row, own in zip(numbers, index.tolist(), strict=True):
        state = 0
        for j, k in enumerate(own):
            row[j] = 2 * k - np.sign(k) * (state & 1)
            state = trellis.NEXT_STATE[state, k & 1]
    return numbers


@given(st.integers(0, 1 << 20), st.integers(1, 9), st.integers(1, 40), st.sampled_from([0.1, 1.0, 30.0]))
def test_dependent_numbers_come_back(seed: int, rows: int, columns: int, mean: float) -> None:
    numbers = on_the_grids(geometric(rows, columns, mean, seed=seed))
    data = context_coder.encode(numbers, dependent=True)
    assert np.array_equal(context_coder.decode(data, rows, columns, dependent=True), numbers)


def test_the_bytes_of_dependent_numbers_are_part_of_the_file_format() -> None:
    """These bytes must never change: files have them."""
    data = context_coder.encode(on_the_grids(geometric(20, 30, 1.5, seed=7)), dependent=True)
    assert (len(data), hashlib.sha256(data).hexdigest()[:16]) == (231, "d57d13ae90e837d7")


def test_numbers_off_the_grids_are_refused() -> None:
    with pytest.raises(DataError, match="not on the grids of dependent quantization"):
        context_coder.encode(np.array([[1, 0]]), dependent=True)


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_some_matrix_or_an_error(data: bytes, dependent: bool) -> None:
    try:
        found = context_coder.decode(data, 6, 11, dependent=dependent)
    except ArtifactError:
        return
    assert found.shape == (6, 11)
    if dependent:
        assert trellis.indices(found) is not None
    assert np.array_equal(context_coder.decode(context_coder.encode(found), 6, 11), found)


def test_a_number_that_is_too_large_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="too large"):
        context_coder.decode(b"\x00" * 64, 20, 20)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros(3, np.int64), "a matrix of integers is needed"),
        (np.zeros((3, 3)), "a matrix of integers is needed, got float64"),
        (np.array([[40000]]), r"must be in \[-32767, 32767\], got 40000 to 40000"),
        (np.array([[-32768]]), r"got -32768 to -32768"),
    ],
)
def test_what_cannot_be_coded_is_refused(matrix: NDArray[np.float64], message: str) -> None:
    with pytest.raises(DataError, match=message):
        context_coder.encode(matrix)
    with pytest.raises(ArtifactError, match="cannot hold"):
        context_coder.decode(b"", -1, 2)


@pytest.mark.parametrize("value", [0, 1, -1, 15, -32767, 32767])
def test_a_few_bytes_cannot_stand_for_any_number_of_numbers(value: int) -> None:
    """Not even of the likeliest: what is read back is bounded by what is there, and constants stay within the bound."""
    same(np.full((1500, 1000), value))
    data = context_coder.encode(np.full((3, 3), value))
    with pytest.raises(ArtifactError, match=r"\d+ bytes cannot hold a matrix of 100000 x 10000"):
        context_coder.decode(data, 100_000, 10_000)
