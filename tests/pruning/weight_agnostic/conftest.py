"""Topologies as mutations grow them."""

from collections.abc import Callable

import numpy as np
import pytest

from penjing.pruning.weight_agnostic.topology import ACTIVATIONS, MUTATIONS, Topology, codes, minimal


@pytest.fixture(scope="session")
def grown() -> Callable[..., Topology]:
    """From a seed, a number of mutations and sizes."""

    def grow(seed: int, steps: int = 30, n_inputs: int = 4, n_outputs: int = 3) -> Topology:
        generator = np.random.default_rng(seed)
        topology = minimal(n_inputs, n_outputs, 0.5, generator)
        for _ in range(steps):
            mutation = MUTATIONS[generator.choice(sorted(MUTATIONS))]
            topology = mutation(topology, generator, codes(ACTIVATIONS)) or topology
        return topology

    return grow
