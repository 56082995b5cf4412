"""Depthwise separable convolution: a filter for each channel, then a mixture of channels at each place.

A k x k convolution with I inputs and O outputs has k^2 I O weights; depthwise k^2 I plus pointwise I O: the share 1/O + 1/k^2.
Source: Howard et al. 2017 (MobileNets), arXiv:1704.04861, section 3.1; Chollet 2017 (Xception), arXiv:1610.02357.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import Network, replace_node, select
from penjing.graph.modules import kind_of
from penjing.training import Stage, Workbench

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "hardswish": nn.Hardswish, "silu": nn.SiLU}


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
    depthwise = nn.Conv2d(
        conv.in_channels,
        conv.in_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        groups=conv.in_channels,
        bias=False,
        padding_mode=conv.padding_mode,
    )
    pointwise = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None)
    first, second = separable_approximation(conv.weight)
    with torch.no_grad():
        depthwise.weight.copy_(first)
        pointwise.weight.copy_(second)
        if conv.bias is not None and pointwise.bias is not None:
            pointwise.bias.copy_(conv.bias)
    layers: dict[str, nn.Module] = {"depthwise": depthwise}
    if norm:
        layers["norm"] = nn.BatchNorm2d(conv.in_channels)
    if activation is not None:
        layers["activation"] = _ACTIVATIONS[activation]()
    layers["pointwise"] = pointwise
    return {name: layer.to(conv.weight.device, conv.weight.dtype) for name, layer in layers.items()}


def separate_convolutions(
    network: Network, layers: list[str], *, norm: bool = True, activation: str | None = None
) -> tuple[Network, dict[str, str]]:
    """Replace convolutions by depthwise separable ones.

    Args:
        layers: paths of layers to replace where that is possible.
    Returns: the new network, and the layers that stayed, each with the reason.
    """
    stayed: dict[str, str] = {}
    for path in layers:
        conv = network.get_submodule(path)
        reason = _reason_to_stay(conv)
        if reason is None:
            assert isinstance(conv, nn.Conv2d)
            network = replace_node(network, path, separable(conv, norm=norm, activation=activation))
        else:
            stayed[path] = reason
    return network, stayed


def _reason_to_stay(layer: nn.Module) -> str | None:
    if kind_of(layer) != "Conv2d" or not isinstance(layer, nn.Conv2d):
        return "not a convolution"
    if hasattr(layer, "parametrizations"):
        return "its weight has a representation; separate before that"
    if layer.groups > 1:
        return "grouped or depthwise already"
    if max(layer.kernel_size) == 1:
        return "its kernel is 1 x 1"
    if layer.in_channels < 4:
        return f"only {layer.in_channels} input channels: a filter each would leave too little"
    return None


class SeparableConvs(Stage):
    """Replace k x k convolutions by depthwise separable ones, started from the best approximation of the old weights."""

    label: ClassVar[str] = "separable-convs"
    needs: ClassVar[tuple[str, ...]] = ("convolutions larger than 1 x 1",)
    layers: tuple[str, ...] = Field(default=("type:Conv2d",), description="which: names, globs, type:Class, !not-this")
    norm: bool = Field(default=True, description="batch norm between depthwise and pointwise")
    activation: Literal["relu", "hardswish", "silu"] | None = Field(default=None, description="between the two")

    def apply(self, bench: Workbench) -> None:
        chosen = select(bench.network.layers().items(), self.layers, f"{self.label}: layers")
        network, stayed = separate_convolutions(bench.network, chosen, norm=self.norm, activation=self.activation)
        replaced = [path for path in chosen if path not in stayed]
        if not replaced:
            reasons = "; ".join(f"{path}: {reason}" for path, reason in stayed.items())
            raise SettingError(f"{self.label}: none of the chosen layers can be replaced ({reasons}).")
        bench.network = network
        bench.facts |= {"replaced": replaced, "stayed": stayed}
