"""Labels through operations that sum over products: matrices, convolutions, attention, embeddings."""

from collections.abc import Sequence

import numpy as np

from penjing.graph.labels import Axis, Labels, Split, Value
from penjing.graph.network import CONSTANTS, MODULE, Node
from penjing.graph.rules.rule import Axes, Rule, Shape, edge, elementwise, opaque, places_locked


def _contract(labels: Labels, node: Node, operands: Sequence[tuple[int, int, Axis]], reason: str) -> None:
    """Sum over one dimension of several inputs: (position among the node's inputs, dimension, axis); -1: a layer's own."""
    axes = [axis for _, _, axis in operands]
    if any(axis is None for axis in axes):
        for axis in axes:
            labels.lock(axis, reason)
        return
    for axis in axes[1:]:
        assert axes[0] is not None and axis is not None
        labels.tie(axes[0], axis)
    for position, dim, axis in operands:
        if position >= 0 and axis is not None:
            labels.edges.append(edge(node, position, dim, axis))


def _attend(labels: Labels, inputs: Sequence[Value]) -> None:
    """Note the channels of results that are multiplied by results: those of attention."""
    if sum(not value.learned for value in inputs) > 1:
        labels.attended += [axis for value in inputs for axis in value.axes if axis is not None]


def _matmul(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    left, right = inputs
    reason = f"{node.name} (matmul) sums over it together with something that has no channels to lose"
    if len(left.shape) < 2 or len(right.shape) < 2:
        return opaque(labels, node, inputs, shape, reason)
    _attend(labels, inputs)
    n, m = len(left.shape), len(right.shape)
    _contract(labels, node, [(0, n - 1, left.axes[-1]), (1, m - 2, right.axes[-2])], reason)
    lead = elementwise(
        labels,
        node,
        [Value(left.shape[:-2], left.axes[:-2]), Value(right.shape[:-2], right.axes[:-2])],
        shape[:-2],
    )
    _produce(labels, left, left.axes[-2])
    _produce(labels, right, right.axes[-1])
    return Value(shape, (*lead.axes, left.axes[-2], right.axes[-1]))


def _owner(labels: Labels, value: Value) -> str:
    """The path of the layer whose parameter this is; of the model's own parameters the name."""
    for site in labels.sites:
        if any(axis is site.labels for axis in value.axes):
            return site.path.partition(".parametrizations.")[0] or site.name
    return ""


def _produce(labels: Labels, value: Value, axis: Axis) -> None:
    """Channels come into being: rows of a weight. Those of a constant of the graph are not a layer's."""
    if axis is not None and value.learned and not f"{(owner := _owner(labels, value))}.".startswith(CONSTANTS):
        labels.produced.append((owner, axis))


def _einsum(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    equation = node.settings["equation"]
    reason = f"{node.name} (einsum {equation}) combines it with something that has no channels to lose"
    if "." in equation or "->" not in equation:
        return opaque(labels, node, inputs, shape, reason)
    _attend(labels, inputs)
    left, right = equation.split("->")
    where: dict[str, list[tuple[int, int, Axis]]] = {}
    for position, (term, value) in enumerate(zip(left.split(","), inputs, strict=True)):
        for dim, letter in enumerate(term):
            where.setdefault(letter, []).append((position, dim, value.axes[dim]))
    axes: dict[str, Axis] = {}
    for letter, operands in where.items():
        if letter not in right:
            _contract(labels, node, operands, reason)
            continue
        axis = operands[0][2]
        for _, _, other in operands[1:]:
            axis = labels.same(axis, other, reason)
        axes[letter] = axis
    for term, value in zip(left.split(","), inputs, strict=True):
        for letter, axis in zip(term, value.axes, strict=True):
            if letter in right:
                _produce(labels, value, axis)
    return Value(shape, tuple(axes[letter] for letter in right))


def _attention(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    query, key, value = inputs[:3]
    reason = f"{node.name} (attention) has no channels to lose there"
    _attend(labels, inputs[:3])
    rank = len(shape)
    if rank < 3 or {len(v.shape) for v in inputs[:3]} != {rank}:
        return opaque(labels, node, inputs, shape, reason)
    operands = [(0, rank - 1, query.axes[-1]), (1, rank - 1, key.axes[-1])]
    _contract(labels, node, operands, reason)
    for place in (query.axes[-2], key.axes[-2], value.axes[-2]):
        labels.lock(place, reason)
    axes: Axes = []
    for d in range(rank - 2):
        axis = query.axes[d]
        for other in (key, value):
            times = query.shape[d] // other.shape[d] if other.shape[d] else 1
            theirs = other.axes[d]
            if other.shape[d] == 1 and query.shape[d] != 1:
                labels.lock(axis, reason)
                axis = None
            else:
                axis = labels.same(axis, None if theirs is None else np.repeat(theirs, times), reason)
        axes.append(axis)
    for mask in inputs[3:]:
        for back in range(1, len(mask.shape) + 1):
            d = rank - back
            if d >= rank - 2:
                labels.lock(mask.axes[-back], reason)
            elif mask.shape[-back] != 1:
                axes[d] = labels.same(axes[d], mask.axes[-back], reason)
    return Value(shape, (*axes, None, value.axes[-1]))


def linear_on(
    labels: Labels, node: Node, x: Value, weight: Value, bias: Value | None, shape: Shape, where: str
) -> Value:
    _contract(labels, node, [(0, len(x.shape) - 1, x.axes[-1]), (-1, 1, weight.axes[1])], f"{where} reads all of it")
    out = weight.axes[0]
    if bias is not None:
        out = labels.same(out, bias.axes[0], f"the bias of {where} stays") if len(bias.shape) == 1 else out
    return Value(shape, (*x.axes[:-1], out))


def _linear(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    _attend(labels, inputs[:2])
    x, weight = inputs[:2]
    found = linear_on(labels, node, x, weight, inputs[2] if len(inputs) > 2 else None, shape, node.name)
    _produce(labels, weight, weight.axes[0])
    return found


def convolution_on(
    labels: Labels,
    node: Node,
    x: Value,
    weight: Value,
    bias: Value | None,
    shape: Shape,
    groups: int,
    transposed: bool,
    where: str,
) -> Value:
    """weight (out, in / groups, kernel ...), transposed (in, out / groups, kernel ...)."""
    for axis in weight.axes[2:]:
        labels.lock(axis, f"it is a kernel of {where}")
    if groups == 1:
        inn, out = (weight.axes[0], weight.axes[1]) if transposed else (weight.axes[1], weight.axes[0])
        _contract(labels, node, [(0, 1, x.axes[1]), (-1, 0, inn)], f"{where} reads all of it")
    else:
        inn, out = _grouped(labels, node, x.axes[1], weight, groups, transposed, where)
    if bias is not None:
        out = labels.same(out, bias.axes[0], f"the bias of {where} stays")
    return Value(shape, places_locked(labels, node, [x.axes[0], out, *x.axes[2:]], len(shape) - 2))


def _grouped(
    labels: Labels, node: Node, read: Axis, weight: Value, groups: int, transposed: bool, where: str
) -> tuple[Axis, Axis]:
    """Whole groups go, or the same channels of every group, as `Labels.choices` says."""
    first, second = weight.axes[0], weight.axes[1]  # the whole dimension, and the one that counts within a group
    per_first, per_second = weight.shape[0] // groups, weight.shape[1]
    if read is None:
        labels.lock(first if transposed else second, f"{where} reads all of it")
    n_read = per_first if transposed else per_second
    n_out = per_second if transposed else per_first
    if (first is None and weight.shape[0] > 1) or (second is None and per_second > 1):
        for axis in (read, first, second):
            labels.lock(axis, f"the weight of {where} is computed and cannot lose channels")
        return read, None
    whole = first if first is not None else labels.free(weight.shape[0])
    inside = second
    key = (node.name, -1)
    options = (0, 1) if n_read > 1 and n_out > 1 else (0,)
    chosen = labels.choices.get(key, 0 if len(options) == 1 or groups >= n_read else 1)
    if chosen == 0:  # whole groups: labels (groups,)
        each = labels.tie_all(whole.reshape(groups, per_first))
        labels.lock(inside, f"{where} is a grouped convolution that loses whole groups")
        if read is not None:
            labels.tie(labels.tie_all(read.reshape(groups, n_read)), each)
            labels.edges.append(edge(node, 0, 1, read))
        else:
            labels.lock(each, f"{where} reads something that has no channels to lose")
        out = np.repeat(each, n_out)
        marked = each
    else:
        rows = labels.tie_all(np.moveaxis(whole.reshape(groups, per_first), 0, 1))  # (per_first,)
        inner = inside if inside is not None else labels.free(per_second)
        inn, outward = (rows, inner) if transposed else (inner, rows)
        if read is not None:
            labels.tie(labels.tie_all(np.moveaxis(read.reshape(groups, n_read), 0, 1)), inn)
            labels.edges.append(edge(node, 0, 1, read))
        out = np.tile(outward, groups)
        marked = outward
    if len(options) > 1:
        labels.splits.append(Split(key, options, chosen, marked))
    counted = each if chosen == 0 else None
    if node.op == MODULE:
        labels.count("layer", node.path, "groups", None, counted)
    else:
        labels.count("node", node.name, "groups", None, counted)
    return read, out


def _convolution(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    s = node.settings
    bias = inputs[2] if len(inputs) > 2 else None
    weight = inputs[1]
    out = weight.axes[1 if s["transposed"] else 0]
    _produce(labels, weight, out)
    return convolution_on(labels, node, inputs[0], weight, bias, shape, s["groups"], s["transposed"], node.name)


def _embedding(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    indices, weight = inputs
    labels.lock(weight.axes[0], "its rows are looked up by number")
    _produce(labels, weight, weight.axes[1])
    labels.lock_all(indices, "they are places, not channels")
    return Value(shape, (*[None] * len(indices.shape), weight.axes[1]))


PRODUCTS: dict[str, Rule] = {
    "matmul": _matmul,
    "einsum": _einsum,
    "attention": _attention,
    "linear": _linear,
    "convolution": _convolution,
    "embedding": _embedding,
}
