"""Size: numbers in the network, bytes while it runs. Bytes of a file are those of the file."""

import torch
from torch import Tensor, nn

from penjing.graph.network import INPUT, Network, without_data
from penjing.graph.sizes import BATCH
from penjing.representation import named_weights


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

    An activation lives from the node that makes it until the last use of it or of a view of it. Weights and activations in
    float32.
    """
    twin = without_data(network)
    weights = {tensor.untyped_storage()._cdata for tensor in [*twin.parameters(), *twin.buffers()]}
    inputs = [node.name for node in network.nodes if node.op == INPUT]
    drawn = network.random_inputs(1, torch.Generator())
    values = {name: torch.empty_like(x, device="meta") for name, x in zip(inputs, drawn, strict=True)}
    peak = 0
    with torch.no_grad():
        for _ in twin.steps(values, {**network.hints, BATCH: 1}):
            alive = {
                t.untyped_storage()._cdata: 4 * t.untyped_storage().nbytes() // t.element_size()
                for t in values.values()
                if isinstance(t, Tensor)
            }
            peak = max(peak, sum(size for key, size in alive.items() if key not in weights))
    return 4 * count_parameters(network)[0] + peak
