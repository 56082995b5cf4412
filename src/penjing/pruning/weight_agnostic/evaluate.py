"""What a topology answers, for many inputs and many weights at once.

Node after node in topological order, each a sum and an activation over all samples; nodes that no output hears are left out.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from penjing.errors import DataError
from penjing.pruning.weight_agnostic.topology import Indices, Topology, topological_order

_CHUNK = 256  # samples at once: a hundred nodes of them fit into the cache


@dataclass(frozen=True)
class Plan:
    """The work that a topology's answer takes.

    Attributes:
        n_nodes: all nodes.
        nodes: (computed,), in topological order; the hidden nodes that reach an output, and the outputs.
        begin: (computed + 1,), where each one's connections begin in `sources`.
        sources: (used connections,), what it listens to.
        genes: (used connections,), the connection's place among all genes.
        activation: (computed,), codes.
        outputs: (outputs,), nodes.
    """

    n_nodes: int
    nodes: Indices
    begin: Indices
    sources: Indices
    genes: Indices
    activation: Indices
    outputs: Indices


def plan(topology: Topology) -> Plan:
    """What must be computed for the outputs, along enabled connections."""
    heard: list[list[tuple[int, int]]] = [[] for _ in range(topology.n_nodes)]
    for gene in np.flatnonzero(topology.enabled).tolist():
        heard[topology.target[gene]].append((int(topology.source[gene]), gene))
    order = topological_order(topology)
    used = set(topology.outputs)
    for node in reversed(order):
        if node in used:
            used.update(source for source, _ in heard[node])
    nodes = [node for node in order if node in used and node > topology.n_inputs]
    links = [link for node in nodes for link in heard[node]]
    begin = np.cumsum([0, *(len(heard[node]) for node in nodes)])
    return Plan(
        topology.n_nodes,
        np.array(nodes, dtype=np.int32),
        begin.astype(np.int32),
        np.array([source for source, _ in links], dtype=np.int32),
        np.array([gene for _, gene in links], dtype=np.int32),
        topology.activation[nodes],
        np.array(topology.outputs, dtype=np.int32),
    )


def evaluate(topology: Topology, inputs: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """The answers under each of several shared weights.

    Args:
        inputs: (samples, inputs).
        weights: (weights,), each shared by all connections.
    Returns: (weights, samples, outputs).
    Raises: DataError: inputs of another width.
    """
    values = np.asarray(weights, dtype=np.float64).reshape(-1, 1)
    return _evaluate(topology, inputs, values, own=False)


def evaluate_own(topology: Topology, inputs: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """The answers where each connection has a weight of its own.

    Args:
        inputs: (samples, inputs).
        weights: (sets, genes), a weight for every gene of the topology, disabled ones too.
    Returns: (sets, samples, outputs).
    Raises: DataError: inputs of another width, or another number of weights.
    """
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(topology.source):
        raise DataError(f"evaluate_own: weights must be (sets, {len(topology.source)}), got {values.shape}.")
    return _evaluate(topology, inputs, values[:, plan(topology).genes], own=True)


def _evaluate(topology: Topology, inputs: ArrayLike, weights: NDArray[np.float64], *, own: bool) -> NDArray[np.float64]:
    x = np.ascontiguousarray(np.asarray(inputs, dtype=np.float64).T)
    if x.ndim != 2 or len(x) != topology.n_inputs:
        raise DataError(f"evaluate: inputs must be (samples, {topology.n_inputs}), got {np.shape(inputs)}.")
    work = plan(topology)
    answers = np.empty((len(weights), len(work.outputs), x.shape[1]))
    _answer(work.nodes, work.begin, work.sources, work.activation, work.outputs, work.n_nodes, x, weights, own, answers)
    return answers.transpose(0, 2, 1)


@njit(cache=True)
def activate_(code, row):  # type: ignore[no-untyped-def]
    """Apply an activation to a row of numbers, in place."""
    if code == 1:
        for i in range(len(row)):
            row[i] = 1.0 if row[i] > 0 else 0.0
    elif code == 2:
        for i in range(len(row)):
            row[i] = np.sin(np.pi * row[i])
    elif code == 3:
        for i in range(len(row)):
            row[i] = np.exp(-0.5 * row[i] * row[i])
    elif code == 4:
        for i in range(len(row)):
            row[i] = np.tanh(row[i])
    elif code == 5:
        for i in range(len(row)):
            row[i] = 1.0 / (1.0 + np.exp(-row[i]))
    elif code == 6:
        for i in range(len(row)):
            row[i] = -row[i]
    elif code == 7:
        for i in range(len(row)):
            row[i] = abs(row[i])
    elif code == 8:
        for i in range(len(row)):
            row[i] = max(row[i], 0.0)
    elif code == 9:
        for i in range(len(row)):
            row[i] = np.cos(np.pi * row[i])


@njit(cache=True)
def feed_(nodes, begin, sources, activation, weights, values):  # type: ignore[no-untyped-def]
    """Compute all nodes from the bias and the inputs, in place.

    Args:
        weights: (1, lanes), shared by all connections, or (used connections, lanes).
        values: (nodes, lanes); the rows of the bias and the inputs are given.
    """
    n_lanes = values.shape[1]
    shared = len(weights) == 1
    for place in range(len(nodes)):
        row = values[nodes[place]]
        row[:] = 0.0
        for link in range(begin[place], begin[place + 1]):
            heard = values[sources[link]]
            if shared:
                for i in range(n_lanes):
                    row[i] += heard[i]
            else:
                for i in range(n_lanes):
                    row[i] += weights[link, i] * heard[i]
        if shared:
            for i in range(n_lanes):
                row[i] *= weights[0, i]
        activate_(activation[place], row)


@njit(cache=True)
def _answer(nodes, begin, sources, activation, outputs, n_nodes, x, weights, own, answers):  # type: ignore[no-untyped-def]
    """Fill `answers` (weights, outputs, samples) from x (inputs, samples), a part of the samples at a time."""
    n_links = len(sources) if own else 1
    for first in range(0, x.shape[1], _CHUNK):
        last = min(first + _CHUNK, x.shape[1])
        values = np.zeros((n_nodes, last - first))
        values[0] = 1.0
        values[1 : 1 + len(x)] = x[:, first:last]
        lanes = np.empty((n_links, last - first))
        for number in range(len(weights)):
            for link in range(n_links):
                lanes[link] = weights[number, link]
            feed_(nodes, begin, sources, activation, lanes, values)
            for place in range(len(outputs)):
                answers[number, place, first:last] = values[outputs[place]]
