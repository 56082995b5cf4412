"""A network as genes: which nodes there are, what each computes, who listens to whom; and the mutations that grow it.

node 0            the bias, always 1
nodes 1 .. n      the inputs
the next m        the outputs, linear
the rest          hidden nodes, in the order of their birth

A node's value is f(w * sum of the values it listens to), with one weight w that all connections share.

Source: Gaier and Ha 2019, arXiv:1906.04358, section 3; Stanley and Miikkulainen 2002 (NEAT), for the genes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from penjing.errors import SettingError, nearest

ACTIVATIONS = ("linear", "step", "sin", "gaussian", "tanh", "sigmoid", "inverse", "abs", "relu", "cos")
"""x, x > 0, sin(pi x), exp(-x^2/2), tanh x, 1/(1+exp(-x)), -x, |x|, max(x, 0), cos(pi x). A node's code is the place here."""
LINEAR = 0
Indices: TypeAlias = NDArray[np.int32]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Topology:
    """A network without weights. Its arrays cannot be written to.

    Attributes:
        n_inputs, n_outputs: without the bias.
        activation: (nodes,), codes of `ACTIVATIONS`; the bias, the inputs and the outputs are linear.
        source, target: (genes,), the nodes that a connection joins; together without cycles, disabled ones counted too.
        enabled: (genes,), whether a connection is there.
    """

    n_inputs: int
    n_outputs: int
    activation: Indices
    source: Indices
    target: Indices
    enabled: Flags

    def __post_init__(self) -> None:
        for name, kind in (("activation", np.int32), ("source", np.int32), ("target", np.int32), ("enabled", np.bool_)):
            array = np.array(getattr(self, name), dtype=kind)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if not len(self.source) == len(self.target) == len(self.enabled):
            raise SettingError(
                f"Topology: source, target and enabled must be of one length, got {len(self.source)}, "
                f"{len(self.target)} and {len(self.enabled)}."
            )
        if self.n_nodes < self.first_hidden:
            raise SettingError(
                f"Topology: there must be a bias, {self.n_inputs} inputs and {self.n_outputs} outputs, "
                f"got {self.n_nodes} nodes."
            )

    @property
    def n_nodes(self) -> int:
        """All nodes, the bias too."""
        return len(self.activation)

    @property
    def n_connections(self) -> int:
        """Connections that are enabled."""
        return int(self.enabled.sum())

    @property
    def outputs(self) -> range:
        """The output nodes."""
        return range(self.n_inputs + 1, self.first_hidden)

    @property
    def first_hidden(self) -> int:
        """The first hidden node, which is the number of all others."""
        return 1 + self.n_inputs + self.n_outputs

    @property
    def n_hidden(self) -> int:
        """Hidden nodes, whether something listens to them or not."""
        return self.n_nodes - self.first_hidden

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Topology)
            and (self.n_inputs, self.n_outputs) == (other.n_inputs, other.n_outputs)
            and all(
                np.array_equal(getattr(self, name), getattr(other, name))
                for name in ("activation", "source", "target", "enabled")
            )
        )

    __hash__ = None  # type: ignore[assignment]


Mutation: TypeAlias = Callable[[Topology, np.random.Generator, Sequence[int]], Topology | None]


def codes(names: Sequence[str]) -> tuple[int, ...]:
    """The codes of activations. Raises: SettingError: a name that is not known, or none at all."""
    if not names:
        raise SettingError(f"activations: at least one must be named. Known: {', '.join(ACTIVATIONS)}.")
    for name in names:
        if name not in ACTIVATIONS:
            raise SettingError(f'activations: there is no "{name}"; {nearest(name, ACTIVATIONS)}.')
    return tuple(ACTIVATIONS.index(name) for name in names)


def minimal(n_inputs: int, n_outputs: int, enabled: float, generator: np.random.Generator) -> Topology:
    """No hidden node; every connection from bias and inputs to outputs is known, each enabled with a probability.

    One connection at least is enabled.
    """
    source, target = np.divmod(np.arange((n_inputs + 1) * n_outputs), n_outputs)
    on = generator.random(len(source)) < enabled
    if not on.any():
        on[generator.integers(len(on))] = True
    nodes = np.full(1 + n_inputs + n_outputs, LINEAR)
    return Topology(n_inputs, n_outputs, nodes, source, target + n_inputs + 1, on)


def dense(n_inputs: int, hidden: Sequence[int], n_outputs: int, activation: str = "tanh") -> Topology:
    """An ordinary network of fully connected layers, each node with a bias: what a found topology is compared with."""
    sizes = [n_inputs, *hidden, n_outputs]
    first_hidden = 1 + n_inputs + n_outputs
    layers = [np.arange(1, 1 + n_inputs)]
    for size in hidden:
        layers.append(first_hidden + np.arange(size))
        first_hidden += size
    layers.append(1 + n_inputs + np.arange(n_outputs))
    pairs = [(int(s), int(t)) for before, after in pairwise(layers) for t in after for s in [0, *before]]
    nodes = np.full(1 + sum(sizes), LINEAR)
    nodes[1 + n_inputs + n_outputs :] = codes([activation])[0]
    source, target = np.array(pairs).T
    return Topology(n_inputs, n_outputs, nodes, source, target, np.ones(len(pairs), dtype=bool))


def topological_order(topology: Topology) -> list[int]:
    """Every node behind all that it listens to, disabled connections counted too.

    Raises: SettingError: there is a cycle.
    """
    waiting = np.bincount(topology.target, minlength=topology.n_nodes)
    listeners: list[list[int]] = [[] for _ in range(topology.n_nodes)]
    for source, target in zip(topology.source.tolist(), topology.target.tolist(), strict=True):
        listeners[source].append(target)
    left = waiting.tolist()
    order = [node for node in range(topology.n_nodes) if not left[node]]
    for node in order:  # grows while it is read
        for target in listeners[node]:
            left[target] -= 1
            if not left[target]:
                order.append(target)
    if len(order) < topology.n_nodes:
        raise SettingError(
            f"Topology: {topology.n_nodes - len(order)} nodes are on or behind a cycle; there must be none."
        )
    return order


def reachable(topology: Topology) -> Flags:
    """(nodes, nodes): whether a path of any connections, disabled ones too, leads from the first node to the second."""
    reach = np.zeros((topology.n_nodes, topology.n_nodes), dtype=bool)
    listeners: list[list[int]] = [[] for _ in range(topology.n_nodes)]
    for source, target in zip(topology.source.tolist(), topology.target.tolist(), strict=True):
        listeners[source].append(target)
    for node in reversed(topological_order(topology)):
        for target in listeners[node]:
            reach[node] |= reach[target]
            reach[node, target] = True
    return reach


def insert_node(topology: Topology, generator: np.random.Generator, activations: Sequence[int]) -> Topology | None:
    """Split an enabled connection: it is disabled, and a new node stands in its place. None: no connection is enabled."""
    chosen = _draw(np.flatnonzero(topology.enabled), generator)
    if chosen is None:
        return None
    enabled = topology.enabled.copy()
    enabled[chosen] = False
    new = topology.n_nodes
    return replace(
        topology,
        activation=np.append(topology.activation, generator.choice(activations)),
        source=np.append(topology.source, [topology.source[chosen], new]),
        target=np.append(topology.target, [new, topology.target[chosen]]),
        enabled=np.append(enabled, [True, True]),
    )


def add_connection(topology: Topology, generator: np.random.Generator, activations: Sequence[int]) -> Topology | None:
    """Join two nodes that no gene joins and that make no cycle. None: there are no two such nodes."""
    free = ~reachable(topology).T  # target does not lead back to source
    np.fill_diagonal(free, False)
    free[:, : topology.n_inputs + 1] = False
    free[list(topology.outputs)] = False
    free[topology.source, topology.target] = False
    chosen = _draw(np.flatnonzero(free), generator)
    if chosen is None:
        return None
    source, target = divmod(chosen, topology.n_nodes)
    return replace(
        topology,
        source=np.append(topology.source, source),
        target=np.append(topology.target, target),
        enabled=np.append(topology.enabled, True),
    )


def change_activation(
    topology: Topology, generator: np.random.Generator, activations: Sequence[int]
) -> Topology | None:
    """Give a hidden node another activation. None: there is no hidden node, or no other activation."""
    node = _draw(np.arange(topology.first_hidden, topology.n_nodes), generator)
    if node is None:
        return None
    code = _draw(np.array([a for a in activations if a != topology.activation[node]]), generator)
    if code is None:
        return None
    changed = topology.activation.copy()
    changed[node] = code
    return replace(topology, activation=changed)


def enable_connection(
    topology: Topology, generator: np.random.Generator, activations: Sequence[int]
) -> Topology | None:
    """Enable a disabled connection. None: all are enabled."""
    chosen = _draw(np.flatnonzero(~topology.enabled), generator)
    if chosen is None:
        return None
    enabled = topology.enabled.copy()
    enabled[chosen] = True
    return replace(topology, enabled=enabled)


MUTATIONS: dict[str, Mutation] = {
    "insert_node": insert_node,
    "add_connection": add_connection,
    "change_activation": change_activation,
    "enable_connection": enable_connection,
}


def mutate(
    topology: Topology,
    probabilities: dict[str, float],
    activations: Sequence[int],
    generator: np.random.Generator,
) -> Topology:
    """Exactly one mutation, drawn by its probability; where it is not possible, one of the others is drawn.

    Args:
        probabilities: by names of `MUTATIONS`; they need not add up to 1.
    Returns: a new topology; the same one where no mutation is possible.
    """
    left = {name: share for name, share in probabilities.items() if share > 0}
    while left:
        shares = np.array(list(left.values()))
        name = list(left)[generator.choice(len(left), p=shares / shares.sum())]
        found = MUTATIONS[name](topology, generator, activations)
        if found is not None:
            return found
        del left[name]
    return topology


def pack(topology: Topology) -> dict[str, NDArray[Any]]:
    """The topology as named arrays, for a file."""
    sizes = np.array([topology.n_inputs, topology.n_outputs, topology.n_nodes, len(topology.source)])
    connections = np.stack([topology.source, topology.target, topology.enabled.astype(np.int32)])
    return {"sizes": sizes, "activation": topology.activation, "connections": connections}


def unpack(sizes: NDArray[Any], activation: NDArray[Any], connections: NDArray[Any]) -> Topology:
    """The inverse of `pack`."""
    return Topology(int(sizes[0]), int(sizes[1]), activation, connections[0], connections[1], connections[2] != 0)


def _draw(candidates: NDArray[Any], generator: np.random.Generator) -> int | None:
    return int(candidates[generator.integers(len(candidates))]) if len(candidates) else None
