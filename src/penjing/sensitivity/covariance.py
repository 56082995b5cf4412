"""What goes into each layer together: the second moments that decide how one weight can make up for another."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import DataError
from penjing.graph import Network
from penjing.representation import plain
from penjing.sensitivity.layer_weights import weighted_layers
from penjing.training import Batch

_WITH_COVARIANCE = (nn.Linear, nn.Conv1d, nn.Conv2d)


def input_covariances(network: Network, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """C = (1 / N) sum over samples and places of x x^T, x all that one output of a layer is computed from.

    For a linear layer x is its input; for a convolution the window under the filter, in the order of the filter's weights,
    zeros of the padding included. The mean is not taken off. N counts samples, so a layer used in many places has a larger C:
    if a row changes by d, the squared change of that output, summed over the places of a sample, is d C d^T.

    Returns: by the weight's full name, (groups, n, n), float64, n the weights of one output; other layers than linear ones and
    one- and two-dimensional convolutions, and layers that were not used, have no entry.
    Raises: DataError: no samples.
    """
    dense = plain(network).eval()
    layers: dict[str, Any] = {
        name: layer for name, layer in weighted_layers(dense).items() if isinstance(layer, _WITH_COVARIANCE)
    }
    device = next((layer.weight.device for layer in layers.values()), torch.device("cpu"))
    totals: dict[str, Tensor] = {}

    def note(name: str, layer: Any, x: Tensor) -> None:
        windows = _windows(layer, x.detach().float())  # (groups, n, uses)
        found = torch.bmm(windows, windows.transpose(1, 2)).double()
        totals[name] = totals[name] + found if name in totals else found

    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda own, inputs, name=name: note(name, own, inputs[0]))
    n = 0
    with torch.no_grad():
        for batch in batches:
            moved = batch.to(device)
            n += moved.size
            dense.all_answers(*moved.args, **moved.kwargs)
    if not n:
        raise DataError("covariances: there are no samples; check the loader and the number of samples.")
    return {name: total / n for name, total in totals.items()}


def input_windows(layer: nn.Module) -> int:
    """How many groups of inputs a layer has, each with second moments of its own; 0: it is of another kind."""
    return int(getattr(layer, "groups", 1)) if isinstance(layer, _WITH_COVARIANCE) else 0


def _windows(layer: Any, x: Tensor) -> Tensor:
    """All that outputs are computed from, (groups, weights of an output, uses)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    if isinstance(layer, nn.Conv1d):
        x = x.unsqueeze(2)
    kernel, stride, dilation = (_pair(value) for value in (layer.kernel_size, layer.stride, layer.dilation))
    x = F.pad(x, _pads(layer), mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    columns = F.unfold(x, kernel, dilation=dilation, stride=stride)  # (batch, channels * places, uses)
    return columns.reshape(len(columns), layer.groups, -1, columns.shape[-1]).permute(1, 2, 0, 3).flatten(2)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return (1, value[0]) if len(value) == 1 else (value[0], value[1])


def _pads(layer: Any) -> tuple[int, int, int, int]:
    """Left, right, top, bottom."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding == "same":
        missing = [d * (k - 1) for d, k in zip(_pair(layer.dilation), _pair(layer.kernel_size), strict=True)]
        return (missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2)
    own = layer.padding
    height, width = (0, own[0]) if len(own) == 1 else own
    return (width, width, height, height)
