"""Which weights importance is asked of: the matrices and filters of layers, as the layers use them."""

from typing import Any

from torch import Tensor, nn

from penjing.graph import Network
from penjing.graph.modules import kind_of
from penjing.representation import named_weights


def weighted_layers(network: Network) -> dict[str, nn.Module]:
    """The layers with a weight of more than one dimension, by the weight's full name, in the order of the network.

    Biases, norms, parameters of no layer, and recurrent layers (their weights have other names) are left out.
    """
    layers = network.layers()
    found: dict[str, nn.Module] = {}
    for full_name, layer, name in named_weights(network):
        path = full_name.rpartition(".")[0]
        value: Tensor = getattr(layer, name)
        if name == "weight" and path in layers and "Norm" not in str(kind_of(layer)) and value.dim() > 1:
            found[full_name] = layer
    order = {path: position for position, path in enumerate(layers)}
    return dict(sorted(found.items(), key=lambda item: order[item[0].rpartition(".")[0]]))


def layer_weights(network: Network) -> dict[str, Tensor]:
    """The values of these weights, masks and codebooks applied, without gradient."""
    layers: dict[str, Any] = weighted_layers(network)
    return {name: layer.weight.detach() for name, layer in layers.items()}
