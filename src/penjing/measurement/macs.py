"""Work: multiply-accumulates. 1 MAC = one multiplication and one addition."""

import math

from torch import nn

from penjing.graph.network import EXIT, MODULE, OUTPUT, Network, Node, node_shapes


def layer_macs(layer: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
    """MACs of one layer for one sample.

    Conv2d: (in / groups) * kernel height * kernel width * out * output height * output width.
    Linear: in * out * positions.  Everything else, biases and norms included: 0.
    """
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size) * math.prod(output_shape[1:])
    if isinstance(layer, nn.Linear):
        return layer.in_features * math.prod(output_shape[1:])
    return 0


def macs_by_node(network: Network) -> dict[str, int]:
    """MACs of every node for one sample, by the node's name."""
    shapes = node_shapes(network)
    return {
        node.name: layer_macs(network.get_submodule(node.path), shapes[node.inputs[0]], shapes[node.name])
        if node.op == MODULE
        else 0
        for node in network.nodes
    }


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
