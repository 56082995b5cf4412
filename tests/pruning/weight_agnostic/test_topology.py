"""Mutations: what each changes, and that none makes a cycle."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import SettingError
from penjing.pruning.weight_agnostic.topology import (
    ACTIVATIONS,
    MUTATIONS,
    Topology,
    add_connection,
    change_activation,
    codes,
    dense,
    enable_connection,
    insert_node,
    minimal,
    mutate,
    pack,
    reachable,
    topological_order,
    unpack,
)

Grow = Callable[..., Topology]
ALL = codes(ACTIVATIONS)
seeds = st.integers(0, 2**32 - 1)


def has_cycle(topology: Topology) -> bool:
    """Whether a walk from some node comes back to it; by powers of the adjacency matrix, disabled connections too."""
    adjacency = np.zeros((topology.n_nodes, topology.n_nodes))
    adjacency[topology.source, topology.target] = 1
    walks = adjacency
    for _ in range(topology.n_nodes):
        if np.trace(walks) > 0:
            return True
        walks = np.minimum(walks @ adjacency, 1)
    return False


@given(seeds, st.integers(0, 40))
def test_whatever_mutations_do_there_is_no_cycle_and_no_connection_twice(grown: Grow, seed: int, steps: int) -> None:
    topology = grown(seed, steps)
    assert not has_cycle(topology)
    pairs = list(zip(topology.source.tolist(), topology.target.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert topology.target.min() > topology.n_inputs  # nothing feeds the bias and the inputs
    assert not set(topology.source.tolist()) & set(topology.outputs)
    assert (topology.activation[: topology.first_hidden] == 0).all()
    assert topology.n_connections >= 1


@given(seeds)
def test_the_order_puts_every_node_behind_what_it_listens_to(grown: Grow, seed: int) -> None:
    topology = grown(seed)
    place = {node: at for at, node in enumerate(topological_order(topology))}
    assert len(place) == topology.n_nodes
    assert all(place[s] < place[t] for s, t in zip(topology.source.tolist(), topology.target.tolist(), strict=True))


@given(seeds)
def test_reachable_is_the_transitive_closure(grown: Grow, seed: int) -> None:
    topology = grown(seed)
    expected = np.zeros((topology.n_nodes, topology.n_nodes), dtype=bool)
    expected[topology.source, topology.target] = True
    for middle in range(topology.n_nodes):  # Warshall
        expected |= expected[:, middle, None] & expected[None, middle]
    np.testing.assert_array_equal(reachable(topology), expected)


def test_a_cycle_is_told() -> None:
    with pytest.raises(SettingError, match="2 nodes are on or behind a cycle"):
        topological_order(Topology(1, 1, [0, 0, 0, 4, 4], [1, 3, 4], [2, 4, 3], [True] * 3))


@given(seeds)
def test_an_inserted_node_splits_a_connection(grown: Grow, seed: int) -> None:
    before = grown(seed)
    after = insert_node(before, np.random.default_rng(seed), ALL)
    assert after is not None
    (split,) = np.flatnonzero(before.enabled != after.enabled[: len(before.enabled)])
    assert before.enabled[split]
    new = before.n_nodes
    assert after.source[-2:].tolist() == [before.source[split], new]
    assert after.target[-2:].tolist() == [new, before.target[split]]
    assert after.n_connections == before.n_connections + 1


@given(seeds)
def test_one_mutation_changes_one_thing(grown: Grow, seed: int) -> None:
    before, generator = grown(seed), np.random.default_rng(seed)
    added = add_connection(before, generator, ALL)
    assert added is not None
    assert (added.n_connections, added.n_nodes) == (before.n_connections + 1, before.n_nodes)
    changed = change_activation(before, generator, ALL)
    if before.n_hidden:
        assert changed is not None
        assert (changed.activation != before.activation).sum() == 1
        np.testing.assert_array_equal(changed.source, before.source)
    else:
        assert changed is None
    enabled = enable_connection(before, generator, ALL)
    assert (enabled is None) == before.enabled.all()
    assert enabled is None or enabled.n_connections == before.n_connections + 1


def test_every_pair_that_makes_no_cycle_can_be_joined_and_then_no_more() -> None:
    topology, generator = insert_node(minimal(2, 2, 1.0, np.random.default_rng(0)), np.random.default_rng(1), ALL), 0
    assert topology is not None
    draw = np.random.default_rng(generator)
    while (more := add_connection(topology, draw, ALL)) is not None:
        topology = more
    # bias and 2 inputs to 2 outputs and 1 hidden node, and the hidden node to 2 outputs
    assert len(topology.source) == 3 * 3 + 2


def test_mutations_are_drawn_by_their_probabilities() -> None:
    generator, topology = np.random.default_rng(0), dense(3, [4], 2)
    shares = {"insert_node": 1.0, "add_connection": 2.0, "change_activation": 5.0, "enable_connection": 2.0}
    kinds = {"insert_node": 0, "add_connection": 0, "change_activation": 0}
    for _ in range(4000):
        child = mutate(topology, shares, ALL, generator)
        added, nodes = len(child.source) - len(topology.source), child.n_nodes - topology.n_nodes
        kinds["insert_node" if nodes else "add_connection" if added else "change_activation"] += 1
    # nothing can be enabled: its share goes to the others in their proportions
    assert kinds["insert_node"] / 4000 == pytest.approx(1 / 8, abs=0.02)
    assert kinds["add_connection"] / 4000 == pytest.approx(2 / 8, abs=0.025)
    assert sum(kinds.values()) == 4000


def test_mutations_draw_from_the_generator_alone(grown: Grow) -> None:
    for mutation in MUTATIONS.values():
        first, second = (mutation(grown(5), np.random.default_rng(3), ALL) for _ in range(2))
        assert first == second


@given(seeds)
def test_a_topology_survives_packing(grown: Grow, seed: int) -> None:
    assert unpack(**pack(grown(seed))) == grown(seed)


def test_a_minimal_network_has_a_connection_even_at_zero_probability() -> None:
    assert minimal(3, 2, 0.0, np.random.default_rng(0)).n_connections == 1
    assert minimal(3, 2, 1.0, np.random.default_rng(0)).n_connections == (3 + 1) * 2


def test_a_topology_cannot_be_written_to(grown: Grow) -> None:
    with pytest.raises(ValueError, match="read-only"):
        grown(0).enabled[0] = False


def test_activations_that_are_not_known() -> None:
    with pytest.raises(SettingError, match='did you mean "gaussian"'):
        codes(["gausian"])
