"""Work: multiply-accumulates. 1 MAC = one multiplication and one addition."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from penjing.graph.network import EXIT, MODULE, OUTPUT, Network, Node, node_shapes

Shape = tuple[int, ...]


def layer_macs(layer: nn.Module, input_shape: Shape, output_shape: Shape) -> int:
    """MACs of one layer for one sample.

    Convolution: (in / groups) * kernel * out * output places; transposed: (out / groups) * kernel * in * input places.
    Linear: in * out * positions.  Everything else, biases and norms included: 0.
    """
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return layer.out_channels // layer.groups * math.prod(layer.kernel_size) * math.prod(input_shape)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size) * math.prod(output_shape)
    if isinstance(layer, nn.Linear):
        return layer.in_features * math.prod(output_shape)
    return 0


def operation_macs(op: str, settings: Mapping[str, Any], inputs: Sequence[Shape], output: Shape) -> int:
    """MACs of one operation for one sample.

    matmul: numbers in the result * summed length.  einsum: product of the sizes of all its letters.  attention: queries * keys
    * (width of keys + width of values) in every head.  linear, convolution: as the layers.  Everything else: 0.
    """
    if op == "matmul":
        return math.prod(output) * inputs[0][-1]
    if op == "linear":
        return math.prod(output) * inputs[1][1]
    if op == "convolution":
        return math.prod(inputs[1]) * inputs[0][0] * math.prod(inputs[0][2:] if settings["transposed"] else output[2:])
    if op == "attention":
        query, key, value = inputs[:3]
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if op == "einsum" and "." not in settings["equation"]:
        terms = str(settings["equation"]).split("->")[0].split(",")
        sizes = {
            letter: n for term, shape in zip(terms, inputs, strict=True) for letter, n in zip(term, shape, strict=True)
        }
        return math.prod(sizes.values())
    return 0


def macs_by_node(network: Network) -> dict[str, int]:
    """MACs of every node for one sample, by the node's name."""
    shapes = node_shapes(network)
    found: dict[str, int] = {}
    for node in network.nodes:
        inputs = [shapes[name] for name in node.inputs]
        if node.op == MODULE:
            found[node.name] = layer_macs(network.get_submodule(node.path), inputs[0], shapes[node.name])
        else:
            found[node.name] = operation_macs(node.op, node.settings, inputs, shapes[node.name])
    return found


def macs_to_exits(network: Network) -> list[int]:
    """MACs of a sample that leaves at each exit, and last of one that goes all the way; heads passed are counted."""
    by_node = macs_by_node(network)
    sums, total = [], 0
    for node in network.nodes:
        total += by_node[node.name]
        if node.op in (EXIT, OUTPUT):
            sums.append(total)
    return sums


def macs_without_exits(network: Network) -> int:
    """MACs of a sample that goes all the way in the network without its exits: the heads only they need are not counted."""
    by_node = macs_by_node(network)
    nodes = {node.name: node for node in network.nodes}
    needed: set[str] = set()
    stack: list[Node] = [network.nodes[-1]]
    while stack:
        for name in stack.pop().inputs:
            if name not in needed:
                needed.add(name)
                stack.append(nodes[name])
    return sum(by_node[name] for name in needed)
