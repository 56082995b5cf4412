"""A matrix with many zeros times a vector or many columns.

A row's weights that are not 0 lie in groups of 16: 16 float32 values, then 16 columns as uint16, 96 bytes. The last group of a
row is filled with 0 at column 0. So values and columns come in one stream, no row ends inside a vector, and four columns are
one load. Entries of the input are read one by one: a gather of 16 takes Zen 5 more than 20 cycles, 16 loads take 10.

Where whole 4 x 1 blocks are zero, four rows share their columns: 16 values and 4 columns, 72 bytes a group.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from penjing.errors import DataError
from penjing.kernels import llvm

GROUP = 16
ROWS = 4
MOST_COLUMNS = 1 << 16
_GROUP_BYTES, _BLOCKS_BYTES = 96, 72
_AHEAD = 4096
"""Bytes by which groups are fetched ahead: 4096 x 4096 at 95 % zeros take 0.33 ms instead of 0.44. Blocks gain nothing."""

Groups = NDArray[np.uint8]
"""(groups, 96), or (groups, 72) for blocks."""
Starts = NDArray[np.int64]
"""(rows + 1,), or (rows / 4 + 1,): row r has the groups starts[r] to starts[r + 1] - 1."""


def pack(matrix: NDArray[np.float32]) -> tuple[Groups, Starts]:
    """The groups of a matrix.

    Args:
        matrix: (rows, columns), at most 65536 columns.
    Raises: DataError: more columns, or another shape.
    """
    matrix = _checked(matrix)
    rows, columns = np.nonzero(matrix)
    return _pack(matrix[rows, columns][:, None], rows, columns, len(matrix))


def pack_blocks(matrix: NDArray[np.float32]) -> tuple[Groups, Starts]:
    """The same for blocks of 4 rows and one column, each kept where one of its weights is not 0; rows are filled up to fours.

    Raises: DataError: as `pack`.
    """
    matrix = _checked(matrix)
    height = -(-len(matrix) // ROWS)
    tall = np.zeros((height * ROWS, matrix.shape[1]), np.float32)
    tall[: len(matrix)] = matrix
    blocks = tall.reshape(height, ROWS, -1).transpose(0, 2, 1)
    rows, columns = np.nonzero(blocks.any(2))
    return _pack(blocks[rows, columns], rows, columns, height)


def unpack(groups: Groups, starts: Starts, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The matrix again.

    Raises: DataError: columns that the matrix does not have, or rows that do not follow one another.
    """
    check(groups, starts, shape)
    in_blocks = groups.shape[1] == _BLOCKS_BYTES
    values, columns = _parts(groups)
    per_group, height = columns.shape[1], ROWS if in_blocks else 1
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts) * per_group)
    found = np.zeros((len(starts) - 1, shape[1], height), np.float32)
    np.add.at(found, (rows, columns.reshape(-1)), values.reshape(-1, height))
    return np.ascontiguousarray(found.transpose(0, 2, 1).reshape(-1, shape[1])[: shape[0]])


def check(groups: Groups, starts: Starts, shape: tuple[int, int]) -> None:
    """See that a kernel reads nothing outside of its arrays. Raises: DataError: it would."""
    in_blocks = groups.ndim == 2 and groups.shape[1] == _BLOCKS_BYTES
    n_rows = -(-shape[0] // ROWS) if in_blocks else shape[0]
    sound = (
        groups.ndim == 2
        and groups.shape[1] in (_GROUP_BYTES, _BLOCKS_BYTES)
        and starts.shape == (n_rows + 1,)
        and starts[0] == 0
        and starts[-1] == len(groups)
        and bool((np.diff(starts) >= 0).all())
    )
    if not sound:
        raise DataError(
            f"kernels.sparse: rows must follow one another and end with the last group; {n_rows} rows in "
            f"{groups.shape} bytes have starts of shape {starts.shape}."
        )
    columns = _parts(groups)[1]
    if columns.size and int(columns.max()) >= shape[1]:
        raise DataError(f"kernels.sparse: columns must be below {shape[1]}, got {int(columns.max())}.")


def _checked(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    if matrix.ndim != 2 or not 1 <= matrix.shape[1] <= MOST_COLUMNS:
        raise DataError(f"kernels.sparse: a matrix of 1 to {MOST_COLUMNS} columns is needed, got {matrix.shape}.")
    return np.ascontiguousarray(matrix, dtype=np.float32)


def _pack(values: NDArray[np.float32], rows: Any, columns: Any, n_rows: int) -> tuple[Groups, Starts]:
    """Entries (n, 1 or 4) at rows, ascending, and columns."""
    per_group = GROUP // values.shape[1]
    counts = np.bincount(rows, minlength=n_rows)
    starts = np.concatenate([[0], np.cumsum(-(-counts // per_group))]).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(counts)])
    place = starts[rows] * per_group + np.arange(len(rows)) - first[rows]
    groups = np.zeros((int(starts[-1]), _GROUP_BYTES if per_group == GROUP else _BLOCKS_BYTES), np.uint8)
    own_values = np.zeros((len(groups) * per_group, values.shape[1]), np.float32)
    own_columns = np.zeros(len(groups) * per_group, np.uint16)
    own_values[place], own_columns[place] = values, columns
    groups[:, :64] = own_values.reshape(len(groups), GROUP).view(np.uint8)
    groups[:, 64:] = own_columns.reshape(len(groups), per_group).view(np.uint8)
    return groups, starts


def _parts(groups: Groups) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Values (groups, 16) and columns (groups, 16 or 4)."""
    values = np.ascontiguousarray(groups[:, :64]).view(np.float32)
    return values, np.ascontiguousarray(groups[:, 64:]).view(np.uint16)


def _columns(builder: Any, address: Any, n: int) -> list[Any]:
    """n columns, four a load."""
    words = [llvm.load(builder, llvm.add(builder, address, 8 * k), llvm.INT64) for k in range(n // 4)]
    return [
        builder.and_(builder.lshr(words[k // 4], llvm.INT64(16 * (k % 4))), llvm.INT64(MOST_COLUMNS - 1))
        for k in range(n)
    ]


def _entry(builder: Any, x: Any, column: Any) -> Any:
    return llvm.load(builder, builder.add(x, builder.shl(column, llvm.INT64(2))), llvm.FLOAT)


@intrinsic
def _dot(typing_context: Any, groups: Any, x: Any, n: Any) -> Any:
    """float32: the sum of value * x[column] over n groups that lie one after another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        groups, x, n = arguments
        four = llvm.vector(llvm.FLOAT, 4)
        sums = llvm.Sums(builder, 4, 4)
        with cgutils.for_range(builder, n) as loop:
            group = builder.add(groups, builder.mul(loop.index, llvm.INT64(_GROUP_BYTES)))
            columns = _columns(builder, llvm.add(builder, group, 64), GROUP)
            llvm.fetch(builder, llvm.add(builder, group, _AHEAD))
            llvm.fetch(builder, llvm.add(builder, group, _AHEAD + 64))
            for k in range(4):
                values = llvm.load(builder, llvm.add(builder, group, 16 * k), four)
                entries = ir.Constant(four, ir.Undefined)
                for lane in range(4):
                    entry = _entry(builder, x, columns[4 * k + lane])
                    entries = builder.insert_element(entries, entry, llvm.INT32(lane))
                sums.update(k, lambda total, a=values, b=entries: llvm.multiply_add(builder, a, b, total))  # type: ignore[misc]
        return llvm.lanes_added(builder, sums.together())

    return types.float32(types.intp, types.intp, types.intp), generate


@intrinsic
def _four_dots(typing_context: Any, groups: Any, x: Any, n: Any, out: Any) -> Any:
    """Four rows at once: n groups of four blocks each; the four sums are written to `out`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        groups, x, n, out = arguments
        four = llvm.vector(llvm.FLOAT, 4)
        sums = llvm.Sums(builder, 4, 4)
        with cgutils.for_range(builder, n) as loop:
            group = builder.add(groups, builder.mul(loop.index, llvm.INT64(_BLOCKS_BYTES)))
            for k, column in enumerate(_columns(builder, llvm.add(builder, group, 64), 4)):
                values = llvm.load(builder, llvm.add(builder, group, 16 * k), four)
                entry = _entry(builder, x, column)
                entries = llvm.spread(builder, entry, 4)
                sums.update(k, lambda total, a=values, b=entries: llvm.multiply_add(builder, a, b, total))  # type: ignore[misc]
        llvm.store(builder, out, sums.together())
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), generate


@njit(nogil=True, cache=True)
def times_vectors(
    groups: int, starts: int, bias: int, x: int, y: int, n_rows: int, n_columns: int, n: int, rectify: bool
) -> None:
    """y[s] = W x[s] + b for n samples.

    Args:
        groups, starts: addresses of what `pack` gives. bias: of float32 (rows,). x: of float32 (n, columns). y: of float32
            (n, rows). rectify: what is below 0 becomes 0.
    """
    first = carray(llvm.pointer(starts), (n_rows + 1,), np.int64)
    added = carray(llvm.pointer(bias), (n_rows,), np.float32)
    for s in range(n):
        own, out = x + 4 * s * n_columns, carray(llvm.pointer(y + 4 * s * n_rows), (n_rows,), np.float32)
        for r in range(n_rows):
            total = added[r] + _dot(groups + 96 * first[r], own, first[r + 1] - first[r])
            out[r] = np.float32(0) if rectify and total < 0 else total


@njit(nogil=True, cache=True)
def blocks_times_vectors(
    groups: int, starts: int, bias: int, x: int, y: int, n_rows: int, n_columns: int, n: int, rectify: bool
) -> None:
    """The same for what `pack_blocks` gives."""
    height = (n_rows + 3) // 4
    first = carray(llvm.pointer(starts), (height + 1,), np.int64)
    added = carray(llvm.pointer(bias), (n_rows,), np.float32)
    four = np.empty(4, np.float32)
    for s in range(n):
        own, out = x + 4 * s * n_columns, carray(llvm.pointer(y + 4 * s * n_rows), (n_rows,), np.float32)
        for r in range(height):
            _four_dots(groups + 72 * first[r], own, first[r + 1] - first[r], four.ctypes.data)
            for k in range(min(4, n_rows - 4 * r)):
                total = added[4 * r + k] + four[k]
                out[4 * r + k] = np.float32(0) if rectify and total < 0 else total


@njit(nogil=True, cache=True, fastmath=True)
def times_columns(
    groups: int, starts: int, bias: int, x: int, y: int, n_rows: int, n_columns: int, n: int, rectify: bool
) -> None:
    """Y = W X + b; x and y are addresses of float32 (columns, n) and (rows, n)."""
    first = carray(llvm.pointer(starts), (n_rows + 1,), np.int64)
    added = carray(llvm.pointer(bias), (n_rows,), np.float32)
    inputs = carray(llvm.pointer(x), (n_columns, n), np.float32)
    out = carray(llvm.pointer(y), (n_rows, n), np.float32)
    n_groups = first[n_rows]
    values = carray(llvm.pointer(groups), (n_groups, 24), np.float32)
    columns = carray(llvm.pointer(groups), (n_groups, 48), np.uint16)
    for r in range(n_rows):
        total = out[r]
        total[:] = added[r]
        for g in range(first[r], first[r + 1]):
            for k in range(4):
                a, b = values[g, 4 * k], values[g, 4 * k + 1]
                c, d = values[g, 4 * k + 2], values[g, 4 * k + 3]
                if a == 0 and b == 0 and c == 0 and d == 0:
                    continue
                p, q = inputs[columns[g, 32 + 4 * k]], inputs[columns[g, 33 + 4 * k]]
                u, v = inputs[columns[g, 34 + 4 * k]], inputs[columns[g, 35 + 4 * k]]
                for j in range(n):
                    total[j] += a * p[j] + b * q[j] + c * u[j] + d * v[j]
        if rectify:
            for j in range(n):
                total[j] = np.float32(0) if total[j] < 0 else total[j]
