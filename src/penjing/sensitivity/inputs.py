"""How large the inputs of each layer are: what a weight is multiplied with."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import DataError
from penjing.graph import Network
from penjing.representation import plain
from penjing.sensitivity.layer_weights import weighted_layers
from penjing.training import Batch

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def input_mean_squares(network: Network, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The mean square of the inputs that each weight is multiplied with, over samples and places.

    m = (1 / places) sum x^2. A linear layer has one number an input; a convolution one for each channel and place of its
    window, zeros of the padding included; an embedding the frequency of each row.

    Returns: by the weight's full name, in the weight's shape (alike for all weights that see the same input), at least 0.
    """
    dense = plain(network).eval()
    layers: dict[str, Any] = weighted_layers(dense)
    device = next((layer.weight.device for layer in layers.values()), torch.device("cpu"))
    totals = {name: torch.zeros_like(layer.weight, dtype=torch.float64) for name, layer in layers.items()}
    counts = dict.fromkeys(layers, 0)
    twins = {name: _without_bias(layer) for name, layer in layers.items()}

    def note(name: str, inputs: tuple[Tensor, ...]) -> None:
        x, twin = inputs[0].detach(), twins[name]
        with torch.enable_grad():
            answer = twin(x.square() if x.is_floating_point() else x)
            # the weight's gradient of the sum: for each weight the sum of all that it was multiplied with
            (found,) = torch.autograd.grad(answer.sum(), twin.weight)
        totals[name] += found.double()
        counts[name] += _places(twin, x, answer)

    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
    n = 0
    with torch.no_grad():
        for batch in batches:
            moved = batch.to(device)
            n += moved.size
            dense.all_answers(*moved.args, **moved.kwargs)
    if not n:
        raise DataError("inputs: there are no samples; check the loader and the number of batches.")
    return {name: (total / max(counts[name], 1)).float() for name, total in totals.items()}


def _without_bias(layer: nn.Module) -> Any:
    twin: Any = copy.deepcopy(layer)
    if getattr(twin, "bias", None) is not None:
        twin.bias = None
    return twin


def _places(layer: nn.Module, x: Tensor, answer: Tensor) -> int:
    """How often each weight was used."""
    if isinstance(layer, nn.Embedding):
        return x.numel()
    if isinstance(layer, _TRANSPOSED):
        return x.numel() // int(layer.in_channels)
    return answer.numel() // int(getattr(layer, "out_channels", answer.shape[-1]))
