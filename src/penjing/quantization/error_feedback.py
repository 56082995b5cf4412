"""Rounding one weight after the other, each time moving those that are left so that the layer's answers change least.

For a row w of a layer with input second moments C, rounding w_j to q_j leaves the error e = w_j - q_j; the change of the
remaining weights F = {j+1, ...} that makes (w - q) C (w - q)^T least is

    w_F <- w_F - e / [C_R^-1]_jj * [C_R^-1]_jF,   R = {j, j+1, ...},

and all of these come from one Cholesky factor: C^-1 = U^T U with U upper triangular has U_jF / U_jj for that ratio. The least
that then remains is the sum of (e_j / U_jj)^2.

With dependent quantization (`entropy.trellis`) which numbers w_j may become depends on those before it. Of all
ways to a state of
its machine the best is kept (Viterbi), each with a row of its own that its own errors have moved.

A price for bits makes the choice one of rate and distortion: (e_j / U_jj)^2 + price * bits of the number, its code length
under the codes that the pass before gave rows and columns of this size.
Source: Hassibi and Stork 1993 (optimal brain surgeon); Frantar et al. 2023 (GPTQ), arXiv:2210.17323, sections 3.2 and 3.3;
Marcellin and Fischer 1990 for the trellis; Shoham and Gersho 1988 for the price.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from penjing.entropy import trellis
from penjing.errors import SettingError

_BLOCK = 32
_PASSES = 2
"""Passes in which bits have a price, after the one that finds out what they cost."""
_MOST = 24
"""Larger magnitudes have the code length of this one."""
_LEVELS = 12
"""Sizes of rows and columns, in half octaves."""


def conditional_factor(covariance: Tensor, damping: float = 0.01) -> Tensor:
    """U with (C + damping * mean(diag C) I)^-1 = U^T U, upper triangular; float64.

    1 / U_jj^2 is the variance of input j that later inputs do not explain. Inputs that are always 0 are harmless: damping keeps
    them apart.

    Args:
        covariance: (n, n), symmetric, no negative eigenvalues up to rounding.
    Raises: SettingError: it has values that are not finite, or negative eigenvalues below that.
    """
    moments = covariance.double()
    mean = float(moments.diagonal().mean())
    if not bool(torch.isfinite(moments).all()):
        raise SettingError("error feedback: the layer's inputs are not finite; check the samples.")
    eye = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    moments = moments + eye * max(damping * mean, 1e-12)
    factor, failed = torch.linalg.cholesky_ex(moments)
    if int(failed):
        raise SettingError(
            "error feedback: the second moments of the layer's inputs are not positive; check the samples."
        )
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    return upper


def rounded_with_feedback(
    weight: Tensor,
    steps: Tensor,
    factor: Tensor,
    keep: Tensor | None = None,
    *,
    dependent: bool = False,
    price: Tensor | None = None,
    largest: int = (1 << 15) - 1,
) -> Tensor:
    """Whole multiples of the steps, in order of the columns, with the error of each fed to those after it.

    Args:
        weight: (rows, n).
        steps: broadcasts to (rows, n), above 0.
        factor: (n, n), see `conditional_factor`; of a diagonal one nothing is fed on.
        keep: bool, (rows, n); others become 0, and their error is fed on too.
        dependent: on the grids of `trellis`, so that the context coder writes indices.
        price: (rows,), at least 0: what a bit may cost, in the unit of the squared change (w - q) C (w - q)^T.
        largest: the largest magnitude there may be.
    Returns: (rows, n), int64, on the CPU. Later columns see all errors before them; rows depend on one another by code
    lengths alone.
    """
    n = weight.shape[1]
    rounding = _Rounding(
        weight.detach().double().cpu(),
        np.ascontiguousarray(np.broadcast_to(steps.detach().double().cpu().numpy(), weight.shape)),
        factor.double().cpu(),
        np.ones(weight.shape, bool) if keep is None else np.ascontiguousarray(keep.cpu().numpy()),
        trellis.NEXT_STATE if dependent else trellis.ALONE,
        largest - dependent,
    )
    if n == 0 or not len(weight):
        return torch.zeros(weight.shape, dtype=torch.int64)
    found = rounding.carried_out(_free(weight.shape), np.zeros(len(weight)))
    if price is not None and bool((price > 0).any()):
        for _ in range(_PASSES):
            found = rounding.carried_out(_code_lengths(found, dependent), price.double().cpu().numpy())
    return found


def squared_change(difference: Tensor, covariance: Tensor) -> float:
    """sum over rows of d C d^T: how far the layer's answers move, squared and summed over a sample.

    Args:
        difference: (rows, n).
        covariance: (n, n).
    """
    d = difference.double()
    return float(((d @ covariance.double()) * d).sum())


@dataclass(frozen=True)
class _CodeLengths:
    """In bits, (levels, grids, magnitudes of an index), and the level of each weight, (rows, n)."""

    bits: np.ndarray
    level: np.ndarray


def _free(shape: tuple[int, ...]) -> _CodeLengths:
    return _CodeLengths(np.zeros((1, 2, _MOST + 1)), np.zeros(shape, dtype=np.int8))


def _code_lengths(numbers: Tensor, dependent: bool) -> _CodeLengths:
    """Of what a pass gave: -log2 of the counts of magnitudes, by the size of row and column, and a bit for the sign.

    Counts begin as four draws from a geometric distribution of the same mean.
    """
    matrix = numbers.numpy().astype(np.int32)
    index = trellis.indices(matrix) if dependent else matrix
    assert index is not None
    magnitude = np.minimum(np.abs(index), _MOST)
    # an odd number stands on the second grid, an even one but 0 on the first; where a 0 stood is not worth finding out
    grid = (matrix & 1).astype(bool) if dependent else np.zeros(matrix.shape, dtype=bool)
    size = np.log2(magnitude.mean(1, keepdims=True) + 0.02) + np.log2(magnitude.mean(0, keepdims=True) + 0.02)
    level = np.clip(np.round(size - size.min()), 0, _LEVELS - 1).astype(np.int8)
    values = np.arange(_MOST + 1)
    bits = np.zeros((_LEVELS, 2, _MOST + 1))
    for number in np.unique(level):
        here = level == number
        for on in (0, 1):
            own = magnitude[here & ((grid == on) | (magnitude == 0))]
            mean = (float(own.mean()) if own.size else 1.0) + 0.1
            prior = (mean / (1 + mean)) ** values
            counts = np.bincount(own, minlength=_MOST + 1) + 4 * prior / prior.sum()
            bits[number, on] = -np.log2(counts / counts.sum()) + (values > 0)
    return _CodeLengths(bits, level)


@dataclass(frozen=True)
class _Rounding:
    """One weight, and where its numbers may lie."""

    weight: Tensor
    steps: np.ndarray
    factor: Tensor
    keep: np.ndarray
    next_state: np.ndarray
    largest: int

    def carried_out(self, lengths: _CodeLengths, price: np.ndarray) -> Tensor:
        """The numbers, (rows, n), int64."""
        rows, n = self.weight.shape
        states = len(self.next_state)
        left = self.weight[:, None].repeat(1, states, 1)  # a row for every state, as the best way to it has moved it
        cost = np.full((rows, states), np.inf)
        cost[:, 0] = 0.0
        numbers = torch.zeros(rows, states, n, dtype=torch.int16)
        spread = self.factor.diagonal().numpy()
        for start in range(0, n, _BLOCK):
            part = slice(start, min(start + _BLOCK, n))
            own = np.ascontiguousarray(left[:, :, part].numpy())
            errors, found = np.zeros_like(own), np.zeros(own.shape, dtype=np.int16)
            origin = np.zeros((rows, states), dtype=np.int64)
            _round_block(
                own,
                cost,
                np.ascontiguousarray(self.steps[:, part]),
                np.ascontiguousarray(spread[part]),
                np.ascontiguousarray(self.factor[part, part].numpy()),
                np.ascontiguousarray(self.keep[:, part]),
                np.ascontiguousarray(lengths.level[:, part]),
                lengths.bits,
                price,
                self.next_state,
                self.largest,
                errors,
                found,
                origin,
            )
            whence = torch.from_numpy(origin)[:, :, None]
            if states > 1 and start:
                numbers[:, :, :start] = numbers[:, :, :start].gather(1, whence.expand(-1, -1, start))
            numbers[:, :, part] = torch.from_numpy(found)
            if part.stop < n:
                rest = left[:, :, part.stop :]
                if states > 1:
                    rest = rest.gather(1, whence.expand(-1, -1, n - part.stop))
                moved = torch.from_numpy(errors).flatten(0, 1) @ self.factor[part, part.stop :]
                left[:, :, part.stop :] = rest - moved.view(rows, states, -1)
        best = torch.from_numpy(cost).argmin(1)
        return numbers[torch.arange(rows), best].long()


@njit(cache=True)
def _round_block(
    left: Any,
    cost: Any,
    steps: Any,
    spread: Any,
    factor: Any,
    keep: Any,
    level: Any,
    bits: Any,
    price: Any,
    next_state: Any,
    largest: int,
    errors: Any,
    numbers: Any,
    origin: Any,
) -> None:  # pragma: no cover  (compiled)
    """Columns of a block: for each row and state the best way there.

    Filled in: cost, and of the best ways errors / U_jj and numbers (rows, states, columns) and the state that they were in
    before the block (rows, states).
    """
    rows, states, n = left.shape
    most = bits.shape[2] - 1
    way_left, way_errors = np.empty((states, n)), np.empty((states, n))
    way_numbers, way_origin = np.empty((states, n), dtype=np.int16), np.empty(states, dtype=np.int64)
    least, whence = np.empty(states), np.empty(states, dtype=np.int64)
    number_of, error_of = np.empty(states, dtype=np.int64), np.empty(states)
    for r in range(rows):
        for s in range(states):
            origin[r, s] = s
        for j in range(n):
            step, weight_of_error = steps[r, j], 1.0 / spread[j] ** 2
            least[:] = np.inf
            for s in range(states):
                if cost[r, s] == np.inf:
                    continue
                odd = s & 1
                aim = left[r, s, j] / step
                aim = min(max(aim, -float(largest)), float(largest))
                if states == 1:
                    first = int(np.round(aim)) if price[r] == 0.0 else int(np.floor(aim))
                    last = first if price[r] == 0.0 else first + 1
                elif odd == 0:
                    first = int(np.floor(aim / 2)) - 1
                    last = first + 3
                elif aim >= 0:
                    first = int(np.floor((aim + 1) / 2)) - 1
                    last = first + 3
                else:
                    last = -int(np.floor((1 - aim) / 2)) + 1
                    first = last - 3
                if not keep[r, j]:
                    first = last = 0
                for index in range(first, last + 2):
                    if index > last:
                        if first <= 0 <= last:
                            break
                        index = 0  # nothing is cheaper to write
                    magnitude = abs(index)
                    number = index if states == 1 else 2 * magnitude - odd
                    if states > 1 and index <= 0:
                        number = -number if index < 0 else 0
                    if abs(number) > largest:
                        continue
                    error = left[r, s, j] - number * step
                    total = cost[r, s] + error * error * weight_of_error
                    if price[r] > 0.0:
                        total += price[r] * bits[level[r, j], odd, min(magnitude, most)]
                    after = next_state[s, magnitude & 1]
                    if total < least[after]:
                        least[after], whence[after] = total, s
                        number_of[after], error_of[after] = number, error / spread[j]
            for s in range(states):
                if least[s] == np.inf:
                    continue
                before, error = whence[s], error_of[s]
                for i in range(j + 1, n):
                    way_left[s, i] = left[r, before, i] - error * factor[j, i]
                for i in range(j):
                    way_errors[s, i], way_numbers[s, i] = errors[r, before, i], numbers[r, before, i]
                way_errors[s, j], way_numbers[s, j] = error, number_of[s]
                way_origin[s] = origin[r, before]
            for s in range(states):
                cost[r, s] = least[s]
                if least[s] == np.inf:
                    continue
                for i in range(j + 1, n):
                    left[r, s, i] = way_left[s, i]
                for i in range(j + 1):
                    errors[r, s, i], numbers[r, s, i] = way_errors[s, i], way_numbers[s, i]
                origin[r, s] = way_origin[s]
