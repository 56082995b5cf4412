"""Labels through sums and means over dimensions, and through norms."""

import math

from penjing.graph.labels import Axis, Labels, Value
from penjing.graph.network import MODULE, Node
from penjing.graph.rules.rule import Rule, Shape, edge, places_locked


def _reduce(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    value = inputs[0]
    rank = len(value.shape)
    dims = {d % rank for d in node.settings["dims"]}
    for d in dims:
        axis = value.axes[d]
        if axis is None:
            continue
        if node.op == "sum" or (
            node.op == "vector_norm" and node.settings["order"] > 0 and math.isfinite(node.settings["order"])
        ):
            labels.edges.append(edge(node, 0, d, axis))
        elif node.op in ("mean", "variance"):
            labels.statistics.append(edge(node, 0, d, axis))
        else:
            labels.lock(axis, f"{node.name} ({node.op}) runs along it")
    keep = node.settings["keepdim"]
    axes = [None if d in dims else axis for d, axis in enumerate(value.axes) if keep or d not in dims]
    return Value(shape, tuple(axes))


def _weight_norm(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    dim = node.settings["dim"] % len(shape)
    reason = f"{node.name} (weight norm) takes the norm of the weight along it"
    for value in inputs:
        labels.lock_all(value, reason, but=[dim])
    axis = labels.same(inputs[0].axes[dim], inputs[1].axes[dim], reason)
    return Value(shape, tuple(axis if d == dim else None for d in range(len(shape))))


def _last_norm(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    """Layer and RMS norm as operations: statistics over the last dimension."""
    x = inputs[0]
    n = len(node.settings["shape"])
    if n != 1:
        reason = f"{node.name} ({node.op}) takes statistics over {n} dimensions"
        for value in inputs[1:]:
            labels.lock_all(value, reason)
        return Value(shape, places_locked(labels, node, list(x.axes), n))
    axis = x.axes[-1]
    for value in inputs[1:]:
        axis = labels.same(axis, value.axes[-1], f"{node.name} scales it")
    if axis is not None:
        labels.statistics.append(edge(node, 0, len(shape) - 1, axis))
        labels.count("node", node.name, "shape", 0, axis)
    return Value(shape, (*x.axes[:-1], axis))


def _group_norm(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    axis = inputs[0].axes[1]
    for value in inputs[1:]:
        axis = labels.same(axis, value.axes[0], f"{node.name} scales it")
    axis = whole_groups(labels, node, axis, node.settings["groups"], len(shape))
    return Value(shape, places_locked(labels, node, [inputs[0].axes[0], axis, *inputs[0].axes[2:]], len(shape) - 2))


def whole_groups(labels: Labels, node: Node, axis: Axis, groups: int, rank: int) -> Axis:
    if axis is None:
        return None
    if groups == 1:
        labels.statistics.append(edge(node, 0, 1, axis))
        return axis
    each = labels.tie_all(axis.reshape(groups, -1))
    owner = ("layer", node.path, "num_groups") if node.op == MODULE else ("node", node.name, "groups")
    labels.count(owner[0], owner[1], owner[2], None, each)  # type: ignore[arg-type]
    return axis


def _batch_norm(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    axis = inputs[0].axes[1]
    for value in inputs[1:]:
        axis = labels.same(axis, value.axes[0], f"{node.name} scales it")
    return Value(shape, (inputs[0].axes[0], axis, *inputs[0].axes[2:]))


STATISTICS: dict[str, Rule] = {
    "mean": _reduce,
    "sum": _reduce,
    "amax": _reduce,
    "amin": _reduce,
    "variance": _reduce,
    "vector_norm": _reduce,
    "logsumexp": _reduce,
    "weight_norm": _weight_norm,
    "layer_norm": _last_norm,
    "rms_norm": _last_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
}
