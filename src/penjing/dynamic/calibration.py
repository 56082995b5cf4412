"""Calibration: temperatures that make confidences mean what they say, so that exits can be compared."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.graph import Network, Node, insert_after
from penjing.graph.network import EXIT, MODULE, OUTPUT
from penjing.measurement import Answers

_LOWEST, _HIGHEST = 1e-2, 1e2


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature at which softmax(logits / T) gives the labels the highest probability.

    It minimises -mean log softmax(logits / T)[label], convex in 1 / T, by halving on its slope
    mean(sum_c p_c z_c - z_label), which rises with 1 / T.

    Args:
        logits: (n, classes). labels: (n,).
    Returns: T from 0.01 to 100; 100 where answers are no better than chance, and where all are right, a T so small that they
        are certain to rounding.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2 (temperature scaling).
    """
    z = logits.double()
    at_label = z.gather(1, labels[:, None]).squeeze(1).mean()
    low, high = math.log(1 / _HIGHEST), math.log(1 / _LOWEST)  # of log(1 / T)
    for _ in range(60):
        middle = (low + high) / 2
        p = (z * math.exp(middle)).softmax(1)
        low, high = (middle, high) if float((p * z).sum(1).mean() - at_label) < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def calibrate_exits(network: Network, answers: Answers) -> tuple[Network, list[float]]:
    """Divide the logits of every answer by its own temperature. Nothing changes but how sure answers are.

    The temperature goes into the last linear layer of the answer, where it costs nothing; where that layer does something else
    besides or has a representation, into a multiplication behind it.
    Args:
        answers: of this network to a validation set.
    Returns: the network and the temperatures, first exit first, final answer last.
    """
    assert answers.at_exits is not None
    found = [temperature(logits, answers.labels) for logits in answers.at_exits]
    return with_temperatures(network, found), found


def with_temperatures(network: Network, temperatures: Sequence[float]) -> Network:
    """The network with the logits of each of its answers divided by a temperature, first exit first, final answer last."""
    changed = copy.deepcopy(network)
    places = [node.name for node in changed.nodes if node.op in (EXIT, OUTPUT)]
    for name, t in zip(places, temperatures, strict=True):
        changed = _scaled(changed, name, 1 / t)
    return changed


def _scaled(network: Network, answer: str, factor: float) -> Network:
    node = next(n for n in network.nodes if n.name == answer)
    source = next(n for n in network.nodes if n.name == node.inputs[0])
    layer = network.get_submodule(source.path) if source.op == MODULE else None
    calls = sum(n.op == MODULE and n.path == source.path for n in network.nodes)
    alone = len(network.consumers(source.name)) == 1 and calls == 1
    if isinstance(layer, nn.Linear) and alone and not parametrize.is_parametrized(layer):
        with torch.no_grad():
            layer.weight.mul_(factor)
            if layer.bias is not None:
                layer.bias.mul_(factor)
        return network
    name = network.fresh_name(f"{answer}_temperature")
    scaled = insert_after(
        network, source.name, [Node(name, "multiply_scalar", (source.name,), settings={"value": factor})], {}
    )
    scaled.nodes = [replace(n, inputs=(name, *n.inputs[1:])) if n.name == answer else n for n in scaled.nodes]
    return scaled
