"""What a gate computes of a map, in one call: for a single sample most of a gate's time is that of calling its operations."""

import math

import numpy as np
from numba import carray, njit

from penjing.kernels import llvm


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"})
def linear_of_row_means(
    x: int, state: int, weight: int, bias: int, y: int, n: int, n_rows: int, n_columns: int, n_state: int, n_out: int
) -> None:
    """y[s] = W [means of the rows of x[s], tanh(state[s])] + b for n samples.

    Args:
        x, state, weight, bias, y: addresses of float32, (n, rows, columns), (n, n_state), (n_out, rows + n_state), (n_out,) and
            (n, n_out); state is not looked at where n_state is 0.
    """
    matrix = carray(llvm.pointer(weight), (n_out, n_rows + n_state), np.float32)
    added = carray(llvm.pointer(bias), (n_out,), np.float32)
    seen = np.empty(n_rows + n_state, np.float32)
    share = np.float32(1) / np.float32(n_columns)
    for s in range(n):
        rows = carray(llvm.pointer(x + 4 * s * n_rows * n_columns), (n_rows, n_columns), np.float32)
        out = carray(llvm.pointer(y + 4 * s * n_out), (n_out,), np.float32)
        for r in range(n_rows):
            total = np.float32(0)
            for c in range(n_columns):
                total += rows[r, c]
            seen[r] = total * share
        if n_state:
            before = carray(llvm.pointer(state + 4 * s * n_state), (n_state,), np.float32)
            for k in range(n_state):
                seen[n_rows + k] = math.tanh(before[k])
        for o in range(n_out):
            total = added[o]
            for k in range(n_rows + n_state):
                total += matrix[o, k] * seen[k]
            out[o] = total
