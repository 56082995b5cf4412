"""Curves of size against loss, and what a file takes at a loss that was not measured exactly."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from sklearn.isotonic import IsotonicRegression

Point = tuple[float, float]
"""Bytes of a file, and what is lost with it; both above 0."""


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both, from small files to large: losses fall strictly."""
    best: list[Point] = []
    for size, loss in sorted(points):
        if not best or loss < best[-1][1]:
            best.append((size, loss))
    return best


def bytes_at(points: Sequence[Point], loss: float) -> float:
    """The size at which a method loses so much: between two points of its frontier, linear in the logarithms of both.

    NaN where the points do not reach from below to above the loss: nothing is extrapolated.
    """
    best = frontier(points)
    for (small, much), (large, little) in itertools.pairwise(best):
        if little <= loss <= much:
            share = (math.log(much) - math.log(loss)) / (math.log(much) - math.log(little))
            return math.exp(math.log(small) + share * (math.log(large) - math.log(small)))
    return math.nan


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Accuracies made never to fall as files grow: least squares (isotonic regression), a point for each level.

    Args:
        points: bytes and accuracy.
    Returns: for each level, from small files to large, the mean logarithm's size and the accuracy.
    """
    ordered = sorted(points)
    logs = np.log([size for size, _ in ordered])
    levels = IsotonicRegression().fit_transform(logs, [value for _, value in ordered])
    return [(float(np.exp(logs[levels == level].mean())), float(level)) for level in np.unique(levels)]


def bytes_at_accuracy(points: Sequence[tuple[float, float]], accuracy: float) -> float:
    """The size at which the smoothed curve has that accuracy, linear between its levels in the logarithm of the size.

    NaN where the curve does not reach from below to above it.
    """
    levels = smoothed(points)
    for (small, low), (large, high) in itertools.pairwise(levels):
        if low <= accuracy <= high:
            share = (accuracy - low) / (high - low)
            return math.exp(math.log(small) + share * (math.log(large) - math.log(small)))
    return math.nan
