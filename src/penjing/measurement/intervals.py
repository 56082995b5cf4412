"""Intervals: how sure a figure is."""

import math
from statistics import NormalDist

import numpy as np

Z95 = NormalDist().inv_cdf(0.975)


def wilson_interval(k: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a fraction k / n.

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n),  p = k / n.
    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if n == 0:
        return 0.0, 1.0
    p = k / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def paired_drop_interval(only_first: int, only_second: int, n: int, z: float = Z95) -> tuple[float, float, float]:
    """How much less often the second of two networks is right on the same n samples, with its interval.

    d = (b - c) / n, where b samples only the first has right and c only the second.
    Interval: with p = (b + 1) / (n + 2), q = (c + 1) / (n + 2):  (p - q) +- z sqrt((p + q - (p - q)^2) / (n + 2)).
    Returns: d, low, high.
    Source: Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", eq. 3.
    """
    p, q = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return (only_first - only_second) / n, max(-1.0, p - q - half), min(1.0, p - q + half)


def mean_interval(values: np.ndarray, z: float = Z95) -> tuple[float, float, float]:
    """The mean of n numbers with its normal interval: mean +- z s / sqrt(n). Returns: mean, low, high."""
    mean = float(np.mean(values))
    half = z * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return mean, mean - half, mean + half
