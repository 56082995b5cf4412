"""Work: multiply-accumulates. 1 MAC = one multiplication and one addition."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from penjing.graph.network import ALWAYS, EXIT, MODULE, NEVER, OUTPUT, Network, Node, node_shapes
from penjing.graph.ops import PUT, TAKE
from penjing.graph.program import gates_around

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
    """MACs of a sample that leaves at each exit, and last of one that goes all the way; heads passed are counted.

    As if somebody could leave at every exit, and with all gates open.
    """
    by_node = macs_by_node(network)
    sums, total = [], 0
    done: set[str] = set()
    for answer in network.nodes:
        if answer.op in (EXIT, OUTPUT):
            new = _needs(network, answer) - done
            done |= new
            total += sum(by_node[name] for name in new)
            sums.append(total)
    return sums


def macs_of_answers(network: Network) -> list[int]:
    """MACs of a sample if nothing but the answer of one exit is computed, for each exit and last for the final answer."""
    by_node = macs_by_node(network)
    answers = [node for node in network.nodes if node.op in (EXIT, OUTPUT)]
    return [sum(by_node[name] for name in _needs(network, answer)) for answer in answers]


def macs_without_exits(network: Network) -> int:
    """MACs of a sample that goes all the way in the network without exits and gates: what only they need is not counted.

    Where a gate chooses one of several ways, that is the dearest of them.
    """
    by_node = macs_by_node(network)
    nodes = {node.name: node for node in network.nodes}
    around = gates_around(network.nodes)
    total = 0
    choices: dict[str, dict[str, int]] = {}  # by logits, of each of the ways of which one is gone
    for name in _needs(network, network.nodes[-1], gates=False):
        one_of = [gate for gate in around[name] if nodes[gate].settings["rule"] == "largest"]
        if one_of:
            ways = choices.setdefault(nodes[one_of[0]].inputs[0], {})
            ways[one_of[0]] = ways.get(one_of[0], 0) + by_node[name]
        else:
            total += by_node[name]
    return total + sum(max(ways.values()) for ways in choices.values())


def macs_of_samples(network: Network, left_at: Tensor, opened: Mapping[str, Tensor]) -> Tensor:
    """MACs of each sample on the way that it went, (n,), int64; `left_at` and `opened` are what `Network.route` tells."""
    by_node = macs_by_node(network)
    around = gates_around(network.nodes)
    found = torch.zeros(len(left_at), dtype=torch.int64)
    done: set[str] = set()
    exits = [*network.thresholds, ALWAYS]
    for k, answer in enumerate(node for node in network.nodes if node.op in (EXIT, OUTPUT)):
        if exits[k] >= NEVER:
            continue
        comes_here = (left_at >= k).long()
        by_gates: dict[tuple[str, ...], int] = {}
        for name in _needs(network, answer) - done:
            by_gates[around[name]] = by_gates.get(around[name], 0) + by_node[name]
            done.add(name)
        for gates, macs in by_gates.items():
            computed = comes_here
            for gate in gates:
                computed = computed * (opened[gate].long() if gate in opened else 0)  # nobody came to it
            found += macs * computed
        if exits[k] <= ALWAYS:
            break
    return found


def _needs(network: Network, answer: Node, *, gates: bool = True) -> set[str]:
    """The nodes that an answer depends on; without gates, those that would be there if nothing were gated."""
    nodes = {node.name: node for node in network.nodes}
    found: set[str] = set()
    stack = [answer]
    while stack:
        node = stack.pop()
        inputs = node.inputs[:-1] if node.op in (TAKE, PUT) and not gates else node.inputs
        for name in inputs:
            if name not in found:
                found.add(name)
                stack.append(nodes[name])
    return found
