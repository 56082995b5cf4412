"""Depthwise separable convolution: a filter for each channel, then a mixture of channels at each place.

A k x k convolution with I inputs and O outputs has k^2 I O weights; depthwise k^2 I plus pointwise I O: the share 1/O + 1/k^2.
Source: Howard et al. 2017 (MobileNets), arXiv:1704.04861, section 3.1; Chollet 2017 (Xception), arXiv:1610.02357.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from penjing.architecture.factors import relative_error
from penjing.architecture.swap import Activation, ConvSwap, Replacement, behind, like
from penjing.errors import SettingError
from penjing.graph import Network, chain

_LEAST_INPUTS = 4


def separable_approximation(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The depthwise and pointwise weights whose product is closest to a convolution's.

    For each input channel i, W[:, i] as an (O, k^2) matrix is approximated by its largest singular triple:
    pointwise[o, i] * depthwise[i, k] = U[o] s V[k], with s shared evenly. Exact where every such matrix has rank 1.

    Args:
        weight: (out, in, kernel height, kernel width).
    Returns: depthwise (in, 1, kernel height, kernel width) and pointwise (out, in, 1, 1).
    Source: Eckart and Young 1936, for each channel.
    """
    out, inputs, height, width = weight.shape
    matrices = weight.detach().double().permute(1, 0, 2, 3).reshape(inputs, out, height * width)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    root = s[:, 0].sqrt()
    depthwise = (root[:, None] * vh[:, 0]).reshape(inputs, 1, height, width)
    pointwise = (root[:, None] * u[:, :, 0]).T.reshape(out, inputs, 1, 1)
    return depthwise.to(weight.dtype), pointwise.to(weight.dtype)


def separable(conv: nn.Conv2d, *, norm: bool = True, activation: str | None = None) -> dict[str, nn.Module]:
    """The layers that take the place of a convolution: depthwise, norm, activation, pointwise.

    Args:
        conv: groups 1, a kernel larger than 1 x 1.
        norm: batch norm between the two.
        activation: "relu", "hardswish", "silu" or None, between the two.
    Returns: the layers by name, in order; stride, padding and dilation are the depthwise's, the bias the pointwise's.
    """
    depthwise = like(conv, conv.in_channels, conv.in_channels, groups=conv.in_channels, bias=False)
    pointwise = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None)
    first, second = separable_approximation(conv.weight)
    with torch.no_grad():
        depthwise.weight.copy_(first)
        pointwise.weight.copy_(second)
        if conv.bias is not None and pointwise.bias is not None:
            pointwise.bias.copy_(conv.bias)
    layers: dict[str, nn.Module] = {"depthwise": depthwise}
    behind("", layers, conv.in_channels, norm, activation)
    layers["pointwise"] = pointwise
    return {name: layer.to(conv.weight.device, conv.weight.dtype) for name, layer in layers.items()}


def separate_convolutions(
    network: Network, layers: list[str], *, norm: bool = True, activation: Activation | None = None
) -> tuple[Network, dict[str, str]]:
    """Replace convolutions by depthwise separable ones.

    Args:
        layers: paths of layers to replace where that is possible.
    Returns: the new network, and the layers that stayed, each with the reason.
    """
    network, _, stayed = SeparableConvs(norm=norm, activation=activation).swap(network, layers)
    return network, stayed


class SeparableConvs(ConvSwap):
    """Replace k x k convolutions by depthwise separable ones, started from the best approximation of the old weights."""

    label: ClassVar[str] = "separable-convs"

    def replacement(self, conv: nn.Conv2d, places: tuple[int, int], *, ordered: bool = False) -> Replacement:
        if conv.in_channels < _LEAST_INPUTS:
            raise SettingError(f"only {conv.in_channels} input channels: a filter each would leave too little")
        layers = separable(conv, norm=self.norm, activation=self.activation)
        depthwise, pointwise = layers["depthwise"].weight, layers["pointwise"].weight
        product: Any = depthwise.transpose(0, 1) * pointwise  # type: ignore[operator]
        return Replacement(layers, chain(layers), relative_error(conv.weight, product) ** 2)
