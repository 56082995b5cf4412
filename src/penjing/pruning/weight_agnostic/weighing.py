"""What a found topology is worth: under weights that the search never saw, with its best one, and with trained ones.

Source: Gaier and Ha 2019, arXiv:1906.04358, section 4 and table 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penjing.pruning.weight_agnostic import cart_pole, digits
from penjing.pruning.weight_agnostic.evaluate import evaluate, evaluate_own
from penjing.pruning.weight_agnostic.search import SERIES
from penjing.pruning.weight_agnostic.topology import Topology

DRAWS, LARGEST = 100, 2.0
_CANDIDATES = np.linspace(-LARGEST, LARGEST, 81)
_EPISODES = 20
Scores = NDArray[np.float64]
Score = Callable[[Scores], Scores]
"""From weights (sets,), or (sets, genes), to how well the topology does with each, (sets,)."""


@dataclass(frozen=True)
class Worth:
    """What a topology is worth.

    Attributes:
        shared_mean, shared_sd: one weight for all connections, drawn from U(-2, 2) 100 times.
        series_mean: the mean over the six weights of the search.
        best: with the shared weight that did best on training data or training episodes.
        best_weight: that weight.
        own_mean, own_sd: every connection's weight drawn by itself from U(-2, 2), 100 times.
        ensemble: the answers under the six weights averaged; None where answers are not classes.
        connections, hidden: its size.
    """

    shared_mean: float
    shared_sd: float
    series_mean: float
    best: float
    best_weight: float
    own_mean: float
    own_sd: float
    ensemble: float | None
    connections: int
    hidden: int


def weigh_digits(topology: Topology, trial: digits.DigitsTrial, generator: np.random.Generator) -> Worth:
    """Accuracies on the held-out part; the best weight is chosen by accuracy on the training part."""

    def on_test(weights: Scores) -> Scores:
        return digits.accuracy(evaluate(topology, trial.test_x, weights), trial.test_y)

    def on_train(weights: Scores) -> Scores:
        return digits.accuracy(evaluate(topology, trial.train_x, weights), trial.train_y)

    def own(weights: Scores) -> Scores:
        return digits.accuracy(evaluate_own(topology, trial.test_x, weights), trial.test_y)

    ensemble = digits.ensemble_accuracy(evaluate(topology, trial.test_x, SERIES), trial.test_y)
    return weigh(topology, on_test, on_train, own, generator, ensemble)


def weigh_swing_up(topology: Topology, generator: np.random.Generator) -> Worth:
    """Rewards of whole episodes, means over 20 new ones; the best weight is chosen on 20 others."""
    test, train = cart_pole.starts(_EPISODES, generator), cart_pole.starts(_EPISODES, generator)
    return weigh(
        topology,
        lambda weights: cart_pole.swing_up(topology, weights, test).mean(1),
        lambda weights: cart_pole.swing_up(topology, weights, train).mean(1),
        lambda weights: cart_pole.swing_up_own(topology, weights, test).mean(1),
        generator,
    )


def weigh(
    topology: Topology,
    test: Score,
    train: Score,
    own: Score,
    generator: np.random.Generator,
    ensemble: float | None = None,
) -> Worth:
    """Draw weights and measure.

    Args:
        test: of shared weights (sets,), on what nothing was chosen by.
        train: the same where the best weight is chosen.
        own: of weights (sets, genes).
    """
    shared = test(generator.uniform(-LARGEST, LARGEST, DRAWS))
    each = own(generator.uniform(-LARGEST, LARGEST, (DRAWS, len(topology.source))))
    best = float(_CANDIDATES[np.argmax(train(_CANDIDATES))])
    return Worth(
        shared_mean=float(shared.mean()),
        shared_sd=float(shared.std(ddof=1)),
        series_mean=float(test(np.array(SERIES)).mean()),
        best=float(test(np.array([best]))[0]),
        best_weight=best,
        own_mean=float(each.mean()),
        own_sd=float(each.std(ddof=1)),
        ensemble=ensemble,
        connections=topology.n_connections,
        hidden=topology.n_hidden,
    )
