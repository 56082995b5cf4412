"""Worth of topologies whose worth is known."""

import numpy as np
import pytest

from penjing.pruning.weight_agnostic.digits import digits_trial
from penjing.pruning.weight_agnostic.topology import Topology, dense, minimal
from penjing.pruning.weight_agnostic.weighing import weigh, weigh_digits, weigh_swing_up


def test_a_score_that_is_known() -> None:
    """-(w - 0.5)^2 has its best at 0.5, and under U(-2, 2) the mean -(4/3 + 1/4)."""
    topology = minimal(2, 1, 1.0, np.random.default_rng(0))
    seen: list[np.ndarray] = []

    def own(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights.mean(1)

    def score(weights: np.ndarray) -> np.ndarray:
        return -((weights - 0.5) ** 2)

    worth = weigh(topology, score, score, own, np.random.default_rng(0))
    assert worth.best_weight == 0.5 and worth.best == 0
    assert abs(worth.shared_mean + 4 / 3 + 1 / 4) < 0.5
    assert seen[0].shape == (100, 3) and abs(seen[0]).max() <= 2
    assert len({tuple(row) for row in seen[0].tolist()}) == 100


def test_the_best_weight_is_chosen_on_training_data() -> None:
    topology = minimal(2, 1, 1.0, np.random.default_rng(0))
    worth = weigh(topology, lambda w: w, lambda w: -w, lambda w: w.mean(1), np.random.default_rng(0))
    assert worth.best_weight == -2 and worth.best == -2


def test_dense_layers_of_one_weight_tell_no_digits_apart() -> None:
    """All outputs are equal: the first class is the answer."""
    trial = digits_trial()
    worth = weigh_digits(dense(64, [20], 10), trial, np.random.default_rng(0))
    share = float((trial.test_y == 0).mean())
    assert worth.best == worth.ensemble == share < 0.15
    assert worth.shared_mean == pytest.approx(share)
    assert worth.connections == 65 * 20 + 21 * 10


def test_a_cart_that_nothing_pushes_earns_little() -> None:
    idle = Topology(5, 1, [0] * 7, [0], [6], [False])
    worth = weigh_swing_up(idle, np.random.default_rng(0))
    assert worth.ensemble is None
    assert worth.shared_sd < 1e-9 and 0 < worth.best < 60
    assert worth.shared_mean == pytest.approx(worth.best)
