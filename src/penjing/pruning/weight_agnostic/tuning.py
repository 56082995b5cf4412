"""Weights of a topology where the reward has no gradient: by the cross-entropy method."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from penjing.pruning.weight_agnostic import cart_pole
from penjing.pruning.weight_agnostic.topology import Topology

Sets = NDArray[np.float64]


def tune_by_reward(
    reward: Callable[[Sets], NDArray[np.float64]],
    first: Sets,
    generator: np.random.Generator,
    *,
    rounds: int = 40,
    sets: int = 64,
    best: int = 8,
    spread: float = 0.5,
) -> Sets:
    """Draw weights around a centre, move the centre to the mean of the best ones and the spreads to theirs, and again.

    sd <- sqrt(variance of the best + (spread / 10)^2 * (1 - round / rounds)): it does not fall to 0 too early.

    Args:
        reward: of weights (sets, weights), each drawn set's, (sets,).
        first: (weights,), where it starts.
        spread: the standard deviation at first.
    Returns: (weights,), the centre at the end.
    Source: de Boer, Kroese, Mannor and Rubinstein 2005, A tutorial on the cross-entropy method, section 5; the added variance
        is Szita and Lörincz's, 2006.
    """
    centre, deviation = np.array(first, dtype=np.float64), np.full(np.shape(first), spread)
    for number in range(rounds):
        drawn = centre + deviation * generator.standard_normal((sets, len(centre)))
        drawn[0] = centre
        chosen = drawn[np.argsort(-reward(drawn), kind="stable")[:best]]
        centre = chosen.mean(0)
        deviation = np.sqrt(chosen.var(0) + (spread / 10) ** 2 * (1 - number / rounds))
    return centre


def tune_swing_up(
    topology: Topology, weight: float, generator: np.random.Generator, *, rounds: int = 40, episodes: int = 4
) -> Sets:
    """Weights for each gene, from one that all shared; new episodes in every round."""

    def reward(weights: Sets) -> NDArray[np.float64]:
        states = cart_pole.starts(episodes, generator)
        return cart_pole.swing_up_own(topology, weights, states).mean(1)

    return tune_by_reward(reward, np.full(len(topology.source), weight), generator, rounds=rounds, spread=0.2)
