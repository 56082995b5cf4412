"""Who is better where two things count: the fronts of NSGA-II, and how lonely a member is on its front.

Source: Deb, Pratap, Agarwal and Meyarivan 2002, A fast and elitist multiobjective genetic algorithm: NSGA-II, section III.
"""

import numpy as np
from numpy.typing import NDArray


def fronts(objectives: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """The non-dominated ones, then those that only the first front dominates, and so on.

    a dominates b: nowhere smaller, somewhere greater. Equal members stand on one front.

    Args:
        objectives: (members, objectives), larger is better, no NaN.
    Returns: indices of the members, front by front, each in ascending order.
    """
    no_smaller: NDArray[np.bool_] = np.all(objectives[:, None] >= objectives[None], axis=-1)
    dominates = no_smaller & ~no_smaller.T
    left = np.ones(len(objectives), dtype=bool)
    found = []
    while left.any():
        beaten = np.any(dominates & left[:, None], axis=0)
        front = np.flatnonzero(left & ~beaten)
        found.append(front)
        left[front] = False
    return found


def crowding(objectives: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far apart a member's neighbours on its front are; infinite at the ends.

    distance[i] = sum over objectives of (value of the next - value of the one before) / (largest - smallest).

    Args:
        objectives: (members of one front, objectives).
    Returns: (members,).
    """
    distance = np.zeros(len(objectives))
    for values in objectives.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    return distance


def ranked(objectives: NDArray[np.float64]) -> NDArray[np.intp]:
    """All members, the best first: by front, the less crowded before the more crowded, then as they came."""
    order = []
    for front in fronts(objectives):
        order.append(front[np.argsort(-crowding(objectives[front]), kind="stable")])
    return np.concatenate(order)
