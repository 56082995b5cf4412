"""Weights by the cross-entropy method, where the best ones are known."""

import numpy as np

from penjing.pruning.weight_agnostic.cart_pole import starts, swing_up_own
from penjing.pruning.weight_agnostic.topology import Topology
from penjing.pruning.weight_agnostic.tuning import tune_by_reward, tune_swing_up


def test_it_finds_the_top_of_a_hill() -> None:
    top = np.array([1.0, -0.5, 0.2, 2.0])
    found = tune_by_reward(lambda w: -((w - top) ** 2 @ [1, 2, 3, 4]), np.zeros(4), np.random.default_rng(0))
    np.testing.assert_allclose(found, top, atol=0.05)


def test_equal_seeds_give_equal_weights() -> None:
    first, second = (
        tune_by_reward(lambda w: -abs(w).sum(1), np.ones(3), np.random.default_rng(4), rounds=5) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_tuned_weights_earn_more_than_the_shared_one() -> None:
    topology = Topology(5, 1, [0] * 7, range(6), [6] * 6, [True] * 6)  # linear control
    found = tune_swing_up(topology, -0.1, np.random.default_rng(0), rounds=8)
    states = starts(8, np.random.default_rng(1))
    before, after = swing_up_own(topology, np.stack([np.full(6, -0.1), found]), states).mean(1)
    assert after > before + 200
