"""The rank that the evidence supports: empirical variational Bayesian matrix factorisation, solved in closed form.

V = B A^T + noise, with Gaussian priors on the columns of A and B whose variances, like the noise's, are those that make the
free energy least. For V of L x M, L <= M, with singular values g_1 >= g_2 >= ..., alpha = L / M, and the noise variance s:

    component h is there  iff  g_h^2 / (M s) > x_least = (1 + t)(1 + alpha / t),
    t > 0 the zero of f(t) + f(t / alpha),   f(z) = log(1 + z) / z - 1/2,
    and then it has the size   g_h / 2 * (1 - (L + M) s / g_h^2 + sqrt((1 - (L + M) s / g_h^2)^2 - 4 L M s^2 / g_h^4)).

Twice the free energy is M times the following, and a constant, and the noise is what makes it least:

    sum_h x_h + L log s + sum_{h there} (log(1 + t_h) + alpha log(1 + t_h / alpha) - t_h),
    x_h = g_h^2 / (M s),   t_h = (x_h - 1 - alpha + sqrt((x_h - 1 - alpha)^2 - 4 alpha)) / 2.

Source: Nakajima, Sugiyama, Babacan and Tomioka 2013, JMLR 14, 1-37, for the global solution; Nakajima, Tomioka, Sugiyama and
Babacan 2015, JMLR 16, 3757-3811, for this form of it and the bounds of the noise.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar  # type: ignore[import-untyped]
from torch import Tensor

from penjing.architecture.factors import as_float64

_GRID = 256
"""Noises among which the least free energy is looked for before it is narrowed down: it may have several minima."""
_EXACT = 1e-14
"""Of the mean square of the entries: less noise than that is rounding."""


@dataclass(frozen=True)
class Evidence:
    """What the evidence says of a matrix.

    Attributes:
        rank: components that are there; may be 0.
        noise_variance: of one entry.
        singular_values: (rank,), of the posterior mean, descending: shrunk from the matrix's own.
    """

    rank: int
    noise_variance: float
    singular_values: Tensor


def evidence_rank(matrix: Tensor) -> int:
    """The number of components that the evidence supports, at least 1; (m, n). See the module.

    Raises: SettingError: not a matrix, or values that are not finite.
    """
    return max(1, evidence(matrix).rank)


def evidence(matrix: Tensor, noise_variance: float | None = None) -> Evidence:
    """The global solution of empirical variational Bayes.

    Args:
        matrix: (m, n).
        noise_variance: of one entry; None: estimated.
    Raises: SettingError: not a matrix, or values that are not finite.
    """
    values = as_float64(matrix, 2)
    short, long = sorted(values.shape)
    squares = torch.linalg.svdvals(values).square().numpy() / long  # g^2 / M
    if not squares.any():
        return Evidence(0, 0.0, torch.zeros(0, dtype=torch.float64))
    alpha = short / long
    threshold = least_signal(alpha)
    noise = _noise_variance(squares, alpha, threshold) if noise_variance is None else noise_variance
    rank = int((squares > threshold * noise).sum())
    there = squares[:rank]
    room = 1 - (1 + alpha) * noise / there
    sizes = np.sqrt(there * long) / 2 * (room + np.sqrt(np.maximum(room**2 - 4 * alpha * (noise / there) ** 2, 0)))
    return Evidence(rank, noise, torch.from_numpy(sizes))


def least_signal(alpha: float) -> float:
    """x_least: the squared singular value, in units of M times the noise variance, from which a component is there.

    Args:
        alpha: L / M, above 0, at most 1.
    """

    def f(z: float) -> float:
        return math.log1p(z) / z - 0.5

    root = math.sqrt(alpha)  # the zero lies near 2.51 times it
    t = float(brentq(lambda t: f(t) + f(t / alpha), 1e-3 * root, 1e3 * root, xtol=1e-14))
    return (1 + t) * (1 + alpha / t)


def _noise_variance(squares: np.ndarray, alpha: float, threshold: float) -> float:
    """Where the free energy is least, between the bounds between which that must be."""
    n = len(squares)
    highest = float(squares.mean())
    most = max(min(math.ceil(n / (1 + alpha)) - 1, n - 1), 0)  # components that there can be
    lowest = max(float(squares[most]) / threshold, float(squares[most:].mean()), _EXACT * highest)
    if lowest >= highest:
        return highest

    def free_energy(log_noise: float) -> float:
        x = squares / math.exp(log_noise)
        reach = x[x > threshold] - 1 - alpha
        t = (reach + np.sqrt(np.maximum(reach**2 - 4 * alpha, 0))) / 2
        gain = np.log1p(t) + alpha * np.log1p(t / alpha) - t
        return float(x.sum() + n * log_noise + gain.sum())

    grid = np.linspace(math.log(lowest), math.log(highest), _GRID)
    energies = [free_energy(point) for point in grid]
    best = int(np.argmin(energies))
    ends = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, _GRID - 1)])
    found = minimize_scalar(free_energy, bounds=ends, method="bounded", options={"xatol": 1e-10})
    return math.exp(float(found.x) if found.fun < energies[best] else float(grid[best]))
