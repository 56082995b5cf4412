"""Kernels give what the dense matrix gives, at every shape, and read nothing outside of their arrays."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.errors import DataError
from penjing.kernels import codebook, signs, sparse

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 300))
SAMPLES = st.sampled_from([0, 1, 2, 5, 17])
few = settings(max_examples=40, deadline=None)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def with_zeros(shape: tuple[int, int], share: float, height: int = 1) -> np.ndarray:
    """A matrix with such a share of zeros, in blocks of `height` rows."""
    kept = np.random.default_rng(shape[1]).random((-(-shape[0] // height), shape[1])) >= share
    return numbers(*shape) * np.repeat(kept, height, 0)[: shape[0]]


def run(kernel: Any, *arrays: np.ndarray, x: np.ndarray, out: tuple[int, ...], rest: tuple[Any, ...]) -> np.ndarray:
    """The answers of a kernel, in memory that is fenced in by numbers which must stay."""
    fenced = np.full(int(np.prod(out)) + 64, 7.25, np.float32)
    inputs = np.ascontiguousarray(x, dtype=np.float32)
    kernel(*[array.ctypes.data for array in arrays], inputs.ctypes.data, fenced[32:].ctypes.data, *rest)
    assert (fenced[:32] == 7.25).all() and (fenced[-32:] == 7.25).all()
    return fenced[32:-32].reshape(out)


def agrees(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * (1 + np.abs(wanted).max(initial=0)))


@few
@given(SHAPES, SAMPLES, st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.booleans())
def test_sparse_times_vectors(shape: tuple[int, int], n: int, share: float, rectify: bool) -> None:
    matrix, bias, x = with_zeros(shape, share), numbers(shape[0]), numbers(n, shape[1])
    groups, starts = sparse.pack(matrix)
    np.testing.assert_array_equal(sparse.unpack(groups, starts, shape), matrix)
    found = run(sparse.times_vectors, groups, starts, bias, x=x, out=(n, shape[0]), rest=(*shape, n, rectify))
    wanted = x.astype(float) @ matrix.T + bias
    agrees(found, np.maximum(wanted, 0) if rectify else wanted)


@few
@given(SHAPES, SAMPLES, st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.booleans())
def test_sparse_blocks_times_vectors(shape: tuple[int, int], n: int, share: float, rectify: bool) -> None:
    matrix, bias, x = with_zeros(shape, share, height=4), numbers(shape[0]), numbers(n, shape[1])
    groups, starts = sparse.pack_blocks(matrix)
    np.testing.assert_array_equal(sparse.unpack(groups, starts, shape), matrix)
    rest = (*shape, n, rectify)
    found = run(sparse.blocks_times_vectors, groups, starts, bias, x=x, out=(n, shape[0]), rest=rest)
    wanted = x.astype(float) @ matrix.T + bias
    agrees(found, np.maximum(wanted, 0) if rectify else wanted)


@few
@given(SHAPES, st.integers(1, 70), st.booleans())
def test_sparse_times_columns(shape: tuple[int, int], n: int, rectify: bool) -> None:
    matrix, bias, x = with_zeros(shape, 0.8), numbers(shape[0]), numbers(shape[1], n)
    rest = (*shape, n, rectify)
    found = run(sparse.times_columns, *sparse.pack(matrix), bias, x=x, out=(shape[0], n), rest=rest)
    wanted = matrix.astype(float) @ x + bias[:, None]
    agrees(found, np.maximum(wanted, 0) if rectify else wanted)


def test_the_last_of_65536_columns_is_reached_and_more_are_refused() -> None:
    matrix = np.zeros((1, 1 << 16), np.float32)
    matrix[0, -1] = 3
    x = np.arange(1 << 16, dtype=np.float32)[None]
    found = run(
        sparse.times_vectors, *sparse.pack(matrix), numbers(1) * 0, x=x, out=(1, 1), rest=(1, 1 << 16, 1, False)
    )
    assert found[0, 0] == 3 * 65535
    with pytest.raises(DataError, match="1 to 65536 columns"):
        sparse.pack(np.zeros((1, (1 << 16) + 1), np.float32))


def test_groups_that_would_be_read_outside_are_refused() -> None:
    matrix = with_zeros((8, 50), 0.5)
    for pack in (sparse.pack, sparse.pack_blocks):
        groups, starts = pack(matrix)
        sparse.check(groups, starts, matrix.shape)
        with pytest.raises(DataError, match="columns must be below 20"):
            sparse.check(groups, starts, (8, 20))
        for wrong in (starts[:-1], starts + 1, starts[::-1].copy(), starts * 2):
            with pytest.raises(DataError, match="rows must follow one another"):
                sparse.check(groups, wrong, matrix.shape)
        with pytest.raises(DataError, match="rows must follow one another"):
            sparse.check(groups[:, :50], starts, matrix.shape)


@pytest.mark.skipif(not codebook.lanes_here(), reason="this processor has neither AVX-512 nor AVX2")
@few
@given(SHAPES, SAMPLES, st.booleans())
def test_codes_times_vectors(shape: tuple[int, int], n: int, rectify: bool) -> None:
    codes = np.random.default_rng(shape[0]).integers(0, 16, shape).astype(np.uint8)
    table, scales, bias, x = numbers(16), numbers(shape[0]), numbers(shape[0], 1)[:, 0], numbers(n, shape[1])
    words = codebook.pack(codes)
    np.testing.assert_array_equal(codebook.unpack(words, shape[1]), codes)
    wanted = x.astype(float) @ (table[codes] * scales[:, None]).T + bias
    rest = (*shape, n, rectify)
    found = run(codebook.times_vectors, words, table, scales, bias, x=x, out=(n, shape[0]), rest=rest)
    agrees(found, np.maximum(wanted, 0) if rectify else wanted)


LESSER = {"generic": ("", 0), "haswell": ("+avx,+avx2,+fma,+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt", 8)}
"""Processors without vectors and with AVX2 alone: what Numba is told of them, and the lanes of their registers."""


@pytest.mark.parametrize("name", LESSER)
def test_lesser_processors_give_the_same_answers(name: str, tmp_path: Path) -> None:
    """Numba is told to compile for them, in a process of its own, since it asks only once."""
    features, lanes = LESSER[name]
    if codebook.lanes_here() < lanes:
        pytest.skip("this processor has no AVX2")
    program = """
import sys
import numpy as np
from penjing.kernels import codebook, signs, sparse
lanes = int(sys.argv[1])
assert codebook.lanes_here() == lanes
rng = np.random.default_rng(0)
matrix, x = rng.standard_normal((5, 100)).astype(np.float32), rng.standard_normal((1, 100)).astype(np.float32)
bias = np.zeros(5, np.float32)
matrix[rng.random(matrix.shape) < 0.7] = 0
y = np.zeros((1, 5), np.float32)
groups, starts = sparse.pack(matrix)
rest = x.ctypes.data, y.ctypes.data, 5, 100, 1, False
sparse.times_vectors(groups.ctypes.data, starts.ctypes.data, bias.ctypes.data, *rest)
assert np.abs(y - x @ matrix.T).max() < 1e-4
signed, ones = np.where(matrix < 0, -1, 1), np.ones(5, np.float32)
words = signs.pack(signed)
signs.signs_times_signs(words.ctypes.data, ones.ctypes.data, bias.ctypes.data, *rest)
assert (y == np.where(x < 0, -1, 1) @ signed.T).all()
signs.signs_times_vectors(words.ctypes.data, ones.ctypes.data, bias.ctypes.data, *rest)
assert np.abs(y - x @ signed.T).max() < 1e-4
for _ in range(40 if lanes else 0):
    rows, columns, n = (int(k) for k in rng.integers(1, (40, 300, 6)))
    codes, table = rng.integers(0, 16, (rows, columns)).astype(np.uint8), rng.standard_normal(16).astype(np.float32)
    x, scales, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((n, columns), rows, rows))
    words, y = codebook.pack(codes), np.zeros((n, rows), np.float32)
    arrays = [array.ctypes.data for array in (words, table, scales, bias, x, y)]
    codebook.times_vectors(*arrays, rows, columns, n, False)
    wanted = x.astype(float) @ (table[codes] * scales[:, None]).T + bias
    assert np.abs(y - wanted).max() <= 1e-5 * (1 + np.abs(wanted).max())
"""
    told = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program, str(lanes)], check=True, env=os.environ | told, timeout=300)


def test_codes_above_fifteen_are_refused() -> None:
    with pytest.raises(DataError, match="codes 0 to 15"):
        codebook.pack(np.full((2, 2), 16, np.uint8))


def drawn_signs(*shape: int) -> np.ndarray:
    return np.where(np.random.default_rng(sum(shape) + 1).random(shape) < 0.5, -1, 1).astype(np.int8)


@few
@given(SHAPES, SAMPLES, st.booleans())
def test_signs_times_signs_are_counted_exactly(shape: tuple[int, int], n: int, rectify: bool) -> None:
    matrix, x = drawn_signs(*shape), numbers(n, shape[1])
    x[x > 1] = 0  # whose sign is +1
    one, none = np.ones(shape[0], np.float32), np.zeros(shape[0], np.float32)
    words = signs.pack(matrix)
    np.testing.assert_array_equal(signs.unpack(words, shape[1]), matrix)
    rest = (*shape, n, rectify)
    found = run(signs.signs_times_signs, words, one, none, x=x, out=(n, shape[0]), rest=rest)
    wanted = np.where(x >= 0, 1, -1) @ matrix.T
    np.testing.assert_array_equal(found, np.maximum(wanted, 0) if rectify else wanted)


@few
@given(SHAPES, SAMPLES)
def test_signs_times_vectors(shape: tuple[int, int], n: int) -> None:
    matrix, x, scales, bias = drawn_signs(*shape), numbers(n, shape[1]), numbers(shape[0]), numbers(shape[0], 1)[:, 0]
    rest = (*shape, n, False)
    found = run(signs.signs_times_vectors, signs.pack(matrix), scales, bias, x=x, out=(n, shape[0]), rest=rest)
    agrees(found, x.astype(float) @ (matrix * scales[:, None]).T + bias)


PICTURES = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
KERNELS = st.tuples(st.integers(1, 3), st.integers(1, 3))
PAIRS = st.tuples(st.integers(0, 2), st.integers(0, 2))


@few
@given(PICTURES, KERNELS, PAIRS, PAIRS)
def test_convolutions_of_signs_are_exact_with_zeros_around(
    sizes: tuple[int, ...], kernel: tuple[int, int], less: tuple[int, int], padding: tuple[int, int]
) -> None:
    n, n_in, n_out, height, width = sizes
    stride = (less[0] + 1, less[1] + 1)
    if height + 2 * padding[0] < kernel[0] or width + 2 * padding[1] < kernel[1]:
        return
    filters, x = drawn_signs(n_out, n_in, *kernel), numbers(n, n_in, height, width)
    words = signs.pack_filters(filters)
    np.testing.assert_array_equal(signs.unpack_filters(words, n_out, n_in), filters)
    pictures = torch.from_numpy(np.where(x >= 0, np.float32(1), np.float32(-1)))
    wanted = F.conv2d(pictures, torch.from_numpy(filters).float(), stride=stride, padding=padding).numpy()
    scales, bias = np.full(len(words), 2, np.float32), np.arange(len(words), dtype=np.float32)
    found = run(
        *(signs.convolve_signs, words, scales, bias),
        x=x,
        out=wanted.shape,
        rest=(n, (n_in, n_out), (height, width, *wanted.shape[2:]), kernel, stride, padding),
    )
    np.testing.assert_array_equal(found, 2 * wanted + np.arange(n_out)[:, None, None])


def test_other_numbers_than_signs_are_refused() -> None:
    with pytest.raises(DataError, match="-1 and 1"):
        signs.pack(np.array([[1, 0]]))
