"""A matrix of 4-bit codes and a table of 16 values times vectors: the weights stay codes, in memory and on the way from it.

128 columns of a row are 16 words of 32 bits: bits 4 k to 4 k + 3 of word i are the code of column 16 k + i. So eight shifts
give eight vectors of codes of neighbouring columns, and an instruction that permutes the lanes of a register (AVX-512: one of
16 lanes; AVX2: two of 8, and a choice) turns codes into values. Other processors have none: `is_fast_here` says so.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import llvmlite.binding as llvm_binding
import numpy as np
from numba import carray, njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic
from numpy.typing import NDArray

from penjing.errors import DataError
from penjing.kernels import llvm

SIZE = 16
"""Entries of a table."""
_COLUMNS, _WORDS = 128, 16
_AHEAD = 2048
"""Bytes by which weights are fetched ahead: 4096 x 4096 take 0.56 ms instead of 0.93."""


@cache
def lanes_here() -> int:
    """Floats in the registers that tables are permuted in: 16 (AVX-512), 8 (AVX2 with fused multiplication), or 0.

    Of the processor that Numba compiles for: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES may name a lesser one.
    """
    named = config.CPU_FEATURES
    features: Mapping[str, bool] = (
        llvm_binding.get_host_cpu_features()
        if named is None
        else {word[1:]: word.startswith("+") for word in named.split(",")}
    )
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx2") and features.get("fma") else 0


def pack(codes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The words of a matrix of codes below 16: (rows, columns) -> (rows, ceil(columns / 128), 16).

    Raises: DataError: larger codes, or no matrix.
    """
    if codes.ndim != 2 or (codes.size and int(codes.max()) >= SIZE):
        raise DataError(f"kernels.codebook: a matrix of codes 0 to {SIZE - 1} is needed, got {codes.shape}.")
    rows, columns = codes.shape
    n_blocks = -(-columns // _COLUMNS)
    wide = np.zeros((rows, n_blocks * _COLUMNS), np.uint32)
    wide[:, :columns] = codes
    lanes = wide.reshape(rows, n_blocks, 8, _WORDS)
    words = np.zeros((rows, n_blocks, _WORDS), np.uint32)
    for k in range(8):
        words |= lanes[:, :, k] << np.uint32(4 * k)
    return words


def unpack(words: NDArray[np.uint32], columns: int) -> NDArray[np.uint8]:
    """The codes again, (rows, columns)."""
    lanes = np.stack([words >> np.uint32(4 * k) & np.uint32(SIZE - 1) for k in range(8)], 2)
    return lanes.reshape(len(words), -1)[:, :columns].astype(np.uint8)


def _looked_up(builder: Any, tables: list[Any], codes: Any) -> Any:
    """Values of a vector of words whose lowest four bits are codes."""
    lanes = codes.type.count
    floats = llvm.vector(llvm.FLOAT, lanes)
    if lanes == SIZE:
        return llvm.call(builder, "llvm.x86.avx512.permvar.sf.512", floats, [tables[0], codes])
    low, high = (llvm.call(builder, "llvm.x86.avx2.permps", floats, [table, codes]) for table in tables)
    upper = builder.icmp_signed(
        "!=", builder.and_(codes, llvm.same(8, llvm.INT32, lanes)), llvm.same(0, llvm.INT32, lanes)
    )
    return builder.select(upper, high, low)


@intrinsic
def _dot(typing_context: Any, words: Any, x: Any, table: Any, n: Any) -> Any:
    """float32: the sum of table[code] * x over n blocks of 128 columns, in registers of as many lanes as there are here."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = lanes_here()
        if not lanes:
            raise DataError("kernels.codebook: this processor permutes no registers; see lanes_here.")
        words, x, table, n = arguments
        floats, whole = llvm.vector(llvm.FLOAT, lanes), llvm.vector(llvm.INT32, lanes)
        halves = range(0, 4 * SIZE, 4 * lanes)
        tables = [llvm.load(builder, llvm.add(builder, table, half), floats) for half in halves]
        sums = llvm.Sums(builder, 4, lanes)
        with cgutils.for_range(builder, n) as loop:
            block = builder.add(words, builder.mul(loop.index, llvm.INT64(4 * _WORDS)))
            place = builder.add(x, builder.mul(loop.index, llvm.INT64(4 * _COLUMNS)))
            for half in halves:
                word = llvm.load(builder, llvm.add(builder, block, half), whole)
                llvm.fetch(builder, llvm.add(builder, block, half + _AHEAD))
                for k in range(8):
                    codes = builder.lshr(word, llvm.same(4 * k, llvm.INT32, lanes)) if k else word
                    values = _looked_up(builder, tables, codes)
                    entries = llvm.load(builder, llvm.add(builder, place, 4 * _WORDS * k + half), floats)
                    sums.update(k, lambda total, a=values, b=entries: llvm.multiply_add(builder, a, b, total))  # type: ignore[misc]
        return llvm.lanes_added(builder, sums.together())

    return types.float32(types.intp, types.intp, types.intp, types.intp), generate


@njit(nogil=True, cache=True)
def _filled(x: int, n_columns: int, n: int) -> Any:
    """n vectors with zeros up to whole blocks; none where they are whole already."""
    n_blocks = (n_columns + 127) // 128
    if n_columns % 128 == 0:
        return np.zeros((0, 0), np.float32)
    filled = np.zeros((n, 128 * n_blocks), np.float32)
    filled[:, :n_columns] = carray(llvm.pointer(x), (n, n_columns), np.float32)
    return filled


@njit(nogil=True, cache=True)
def times_vectors(
    words: int, table: int, scales: int, bias: int, x: int, y: int, n_rows: int, n_columns: int, n: int, rectify: bool
) -> None:
    """y[s, r] = scale[r] * sum_c table[code[r, c]] x[s, c] + b[r] for n samples; not where `lanes_here` is 0.

    Args:
        words: address of what `pack` gives. table: of 16 float32. scales, bias: of float32 (rows,). x: of float32 (n, columns).
            y: of float32 (n, rows). rectify: what is below 0 becomes 0.
    """
    n_blocks = (n_columns + 127) // 128
    filled = _filled(x, n_columns, n)
    inputs = filled.ctypes.data if filled.size else x
    factors = carray(llvm.pointer(scales), (n_rows,), np.float32)
    added = carray(llvm.pointer(bias), (n_rows,), np.float32)
    out = carray(llvm.pointer(y), (n, n_rows), np.float32)
    for r in range(n_rows):
        for s in range(n):
            found = _dot(words + 64 * n_blocks * r, inputs + 512 * n_blocks * s, table, n_blocks)
            total = factors[r] * found + added[r]
            out[s, r] = np.float32(0) if rectify and total < 0 else total
