"""How labels flow through each operation and each kind of layer. Whatever has no rule locks its inputs.

A rule takes the labels, the node, what is known of its inputs and the shape of its result, and says what is known of that.
"""

from collections.abc import Sequence

from penjing.graph.labels import Axis, Labels, Value
from penjing.graph.modules import MODULES, kind_of
from penjing.graph.network import MODULE, Network, Node
from penjing.graph.ops import OPERATIONS
from penjing.graph.rules.layers import LAYERS
from penjing.graph.rules.products import PRODUCTS
from penjing.graph.rules.rule import Axes, Rule, Shape, elementwise, opaque
from penjing.graph.rules.shapes import SHAPES
from penjing.graph.rules.statistics import STATISTICS

RULES: dict[str, Rule] = SHAPES | PRODUCTS | STATISTICS
"""By operation."""


def flow(labels: Labels, network: Network, node: Node, inputs: list[Value], shape: Shape) -> Value:
    """What is known of the result of an operation or a layer."""
    learned = all(value.learned for value in inputs)
    try:
        found = _flow(labels, network, node, inputs, shape)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a form that no rule was made for
        found = opaque(labels, node, inputs, shape, f"{node.name} ({node.op}) is of an unknown form ({error!r})")
    return Value(shape, _several(labels, node, found.axes, shape), learned)


def _several(labels: Labels, node: Node, axes: Sequence[Axis], shape: Shape) -> tuple[Axis, ...]:
    """A single channel is none: dimensions of size 1 come and go, so it must stay."""
    kept: Axes = []
    for axis, size in zip(axes, shape, strict=True):
        if size == 1:
            labels.lock(axis, f"{node.path or node.name} ({node.op}) has only this one")
        kept.append(None if size == 1 else axis)
    return tuple(kept)


def _flow(labels: Labels, network: Network, node: Node, inputs: list[Value], shape: Shape) -> Value:
    if node.op == MODULE:
        layer = network.get_submodule(node.path)
        kind = kind_of(layer)
        rule = LAYERS.get(kind or "")
        if rule is not None:
            return rule(labels, node, inputs, shape, layer)
        if kind is not None and MODULES[kind].elementwise:
            return inputs[0]
        return opaque(labels, node, inputs, shape, f"{node.path} ({kind or type(layer).__name__}) mixes channels")
    if node.op in RULES:
        return RULES[node.op](labels, node, inputs, shape)
    if OPERATIONS[node.op].elementwise:
        return elementwise(labels, node, inputs, shape)
    return opaque(labels, node, inputs, shape, f"{node.name} ({node.op}) mixes channels")
