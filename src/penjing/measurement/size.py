"""Size: numbers in the network, bytes while it runs. Bytes of a file are those of the file."""

import math

from torch import nn

from penjing.graph.network import EXIT, INPUT, OUTPUT, TENSOR, Network, node_shapes
from penjing.representation import named_weights

_VIEWS = ("reshape", "flatten", "permute", "expand", "slice", "select")


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """(all, not zero): numbers in weights, biases and norms as the layers use them; hidden originals do not count.

    A parameter that several layers share counts once.
    """
    total = nonzero = 0
    seen: set[int] = set()
    for _, owner, name in named_weights(network):
        stored = owner._parameters.get(name)
        if stored is not None and id(stored) in seen:
            continue
        seen.add(id(stored))
        value = getattr(owner, name).detach()
        total += value.numel()
        nonzero += int((value != 0).sum())
    return total, nonzero


def peak_memory_bytes(network: Network) -> int:
    """Bytes of one inference of one sample: all weights, and the largest sum of activations alive at the same time.

    An activation lives from the node that makes it until its last use, or that of a view of it. Weights and activations in
    float32.
    """
    shapes = node_shapes(network)
    size = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
    base = {node.name: node.name for node in network.nodes}
    for node in network.nodes:
        if node.op == TENSOR:
            size[node.name] = 0  # counted as a weight
        elif node.op in _VIEWS:
            size[node.name] = 0
            base[node.name] = base[node.inputs[0]]
    last_use = {base[name]: position for position, node in enumerate(network.nodes) for name in node.inputs}
    live = {node.name for node in network.nodes if node.op == INPUT}
    peak = sum(size[name] for name in live)
    for position, node in enumerate(network.nodes):
        if node.op not in (INPUT, EXIT, OUTPUT):
            live.add(node.name)
        peak = max(peak, sum(size[name] for name in live))
        live = {name for name in live if last_use.get(name, -1) > position}
    return 4 * count_parameters(network)[0] + peak
