"""Answers against a slow reference that follows the definition."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import DataError
from penjing.pruning.weight_agnostic.evaluate import evaluate, evaluate_own, plan
from penjing.pruning.weight_agnostic.topology import ACTIVATIONS, Topology, dense

Grow = Callable[..., Topology]
seeds = st.integers(0, 2**32 - 1)
DEFINITIONS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "step": lambda x: 1.0 if x > 0 else 0.0,
    "sin": lambda x: math.sin(math.pi * x),
    "gaussian": lambda x: math.exp(-(x**2) / 2),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "inverse": lambda x: -x,
    "abs": abs,
    "relu": lambda x: max(x, 0.0),
    "cos": lambda x: math.cos(math.pi * x),
}


def slow(topology: Topology, x: list[float], weights: list[float]) -> list[float]:
    """One sample, by recursion from the outputs, a weight for each gene."""
    known = {0: 1.0, **{1 + i: value for i, value in enumerate(x)}}

    def value(node: int) -> float:
        if node not in known:
            heard = [g for g in range(len(topology.source)) if topology.enabled[g] and topology.target[g] == node]
            total = sum(weights[g] * value(int(topology.source[g])) for g in heard)
            known[node] = DEFINITIONS[ACTIVATIONS[topology.activation[node]]](total)
        return known[node]

    return [value(node) for node in topology.outputs]


@given(seeds)
def test_answers_are_those_of_the_definition(grown: Grow, seed: int) -> None:
    topology, generator = grown(seed), np.random.default_rng(seed)
    x = generator.normal(size=(3, 4)) / 2
    shared = np.array([-1.3, 0.7])
    expected = [[slow(topology, row, [w] * len(topology.source)) for row in x.tolist()] for w in shared.tolist()]
    np.testing.assert_allclose(evaluate(topology, x, shared), expected, rtol=1e-9, atol=1e-9)
    own = generator.uniform(-1, 1, (2, len(topology.source)))
    expected = [[slow(topology, row, w) for row in x.tolist()] for w in own.tolist()]
    np.testing.assert_allclose(evaluate_own(topology, x, own), expected, rtol=1e-9, atol=1e-9)


def test_many_samples_are_each_answered_as_if_alone(grown: Grow) -> None:
    topology, x = grown(7, 60), np.random.default_rng(0).normal(size=(700, 4))
    answers = evaluate(topology, x, [0.5, -2.0])
    assert answers.shape == (2, 700, 3)
    for sample in (0, 255, 256, 699):
        np.testing.assert_array_equal(evaluate(topology, x[[sample]], [0.5, -2.0])[:, 0], answers[:, sample])


def test_dense_layers_are_the_product_of_their_matrices() -> None:
    topology, x = dense(3, [5], 2, "relu"), np.random.default_rng(0).normal(size=(4, 3))
    hidden = np.maximum(0.6 * (x.sum(1) + 1), 0)
    expected = 0.6 * (5 * hidden + 1)
    np.testing.assert_allclose(evaluate(topology, x, [0.6])[0], np.stack([expected, expected], 1))
    assert topology.n_connections == 4 * 5 + 6 * 2


def test_nodes_that_no_output_hears_are_left_out() -> None:
    nodes = [0, 0, 0, ACTIVATIONS.index("tanh"), ACTIVATIONS.index("tanh")]
    topology = Topology(1, 1, nodes, [1, 3, 1], [3, 2, 4], [True, True, True])
    assert plan(topology).nodes.tolist() == [3, 2]


def test_an_output_that_hears_nothing_is_zero() -> None:
    topology = Topology(1, 2, [0, 0, 0, 0], [1], [2], [True])
    np.testing.assert_array_equal(evaluate(topology, [[3.0]], [2.0]), [[[6.0, 0.0]]])


def test_shapes_are_checked(grown: Grow) -> None:
    with pytest.raises(DataError, match=r"inputs must be \(samples, 4\)"):
        evaluate(grown(0), np.zeros((2, 3)), [1.0])
    with pytest.raises(DataError, match="weights must be"):
        evaluate_own(grown(0), np.zeros((2, 4)), np.zeros((2, 1)))
