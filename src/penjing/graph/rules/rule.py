"""What a rule is, and the simplest ones: what passes elementwise, what is locked."""

from collections.abc import Callable, Sequence

import numpy as np

from penjing.graph.labels import Axis, Edge, Labels, Value
from penjing.graph.network import Node

Shape = tuple[int, ...]
Rule = Callable[[Labels, Node, list[Value], Shape], Value]
Axes = list[Axis]


def opaque(labels: Labels, node: Node, inputs: Sequence[Value], shape: Shape, reason: str) -> Value:
    for value in inputs:
        labels.lock_all(value, reason)
    return Value(shape, (None,) * len(shape))


def elementwise(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    axes: Axes = []
    for back in range(len(shape), 0, -1):
        size, axis, seen = shape[-back], None, False
        reason = f"{node.name} ({node.op}) combines it with something that has no channels to lose"
        for value in inputs:
            if back > len(value.shape) or (value.shape[-back] == 1 and size != 1):
                continue  # broadcast
            other = value.axes[-back]
            axis = labels.same(axis, other, reason) if seen else other
            seen = True
        axes.append(axis)
    return Value(shape, tuple(axes))


def nothing(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    return Value(shape, (None,) * len(shape))


def places_locked(labels: Labels, node: Node, axes: Axes, n: int) -> tuple[Axis, ...]:
    """The last n dimensions are places: what is there stays."""
    for axis in axes[len(axes) - n :]:
        labels.lock(axis, f"{node.path or node.name} ({node.op}) takes it for places")
    return (*axes[: len(axes) - n], *[None] * n)


def edge(node: Node, position: int, dim: int, axis: np.ndarray) -> Edge:
    return Edge(node.name, position, dim, axis)
