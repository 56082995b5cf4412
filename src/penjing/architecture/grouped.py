"""Grouped convolution, a channel shuffle, and a grouped 1 x 1 convolution: ShuffleNet's way to mix channels with less work.

x ── k x k in g groups ── shuffle ── 1 x 1 in g groups

The shuffle gives every group of the second a share of every group of the first, so that each output depends on all inputs:
k^2 I M / g + M O / g weights instead of k^2 I O, M channels between.
Source: Zhang et al. 2018 (ShuffleNet), arXiv:1707.01083, section 3.1.
"""

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from penjing.architecture.swap import ConvSwap, Replacement, behind, like
from penjing.errors import SettingError
from penjing.graph import Node, chain
from penjing.graph.network import MODULE


def grouped_approximation(weight: Tensor, groups: int, between: int) -> tuple[Tensor, Tensor, float]:
    """The two grouped weights whose product with the shuffle is closest to a convolution's.

    Block (p, q) of W, from input group q to output group p, as an (O/g, k^2 I/g) matrix is approximated by its
    r = M / g^2 largest singular triples; these r channels of group q are what the shuffle brings to group p. The blocks do not
    share channels, so this is the best there is.

    Args:
        weight: (O, I, kernel height, kernel width), O and I multiples of g.
        groups: g. between: M, a multiple of g^2.
    Returns: (M, I/g, kernel height, kernel width), (O, M/g, 1, 1), and |W - W'|^2 / |W|^2.
    Source: Eckart and Young 1936, for each block.
    """
    out, inputs, height, width = weight.shape
    rank = between // groups**2
    # by input group q, output group p: (g, g, O/g, k^2 I/g)
    blocks = weight.detach().double().reshape(groups, out // groups, groups, -1).permute(2, 0, 1, 3)
    u, s, vh = torch.linalg.svd(blocks, full_matrices=False)
    kept = min(rank, s.shape[-1])
    root = s[..., :kept].sqrt()
    first = weight.new_zeros(groups, groups, rank, vh.shape[-1], dtype=torch.float64)
    second = weight.new_zeros(groups, groups, out // groups, rank, dtype=torch.float64)
    first[:, :, :kept] = root[..., None] * vh[..., :kept, :]
    second[..., :kept] = u[..., :kept] * root[..., None, :]
    # the first gives channels (q, p, r); the shuffle makes (p, r, q) of them
    spatial = first.reshape(between, inputs // groups, height, width)
    mixing = second.permute(1, 2, 3, 0).reshape(out, between // groups, 1, 1)
    error = float(s[..., kept:].square().sum() / s.square().sum().clamp_min(1e-300))
    return spatial.to(weight.dtype), mixing.to(weight.dtype), error


def shuffled(between: int, groups: int, places: tuple[int, int]) -> tuple[Node, ...]:
    """Nodes that shuffle: channel (i, j) of g rows and M / g columns becomes (j, i)."""
    whole = (-1, between, *places)
    return (
        Node("apart", "reshape", ("",), settings={"shape": (-1, groups, between // groups, *places)}),
        Node("turned", "permute", ("apart",), settings={"dims": (0, 2, 1, 3, 4)}),
        Node("shuffled", "reshape", ("turned",), settings={"shape": whole}),
    )


class GroupedConvs(ConvSwap):
    """Replace k x k convolutions by grouped ones, a channel shuffle and a grouped 1 x 1 convolution."""

    label: ClassVar[str] = "grouped-convs"
    groups: int = Field(
        default=2, ge=2, description="of both convolutions; input and output channels must be multiples"
    )
    between: float = Field(default=1.0, gt=0, description="channels between the two, as a share of the output channels")

    def replacement(self, conv: nn.Conv2d, places: tuple[int, int], *, ordered: bool = False) -> Replacement:
        g = self.groups
        if conv.in_channels % g or conv.out_channels % g:
            raise SettingError(
                f"{conv.in_channels} and {conv.out_channels} channels are not both multiples of {g} groups"
            )
        between = g * g * max(1, math.ceil(self.between * conv.out_channels / g**2))
        spatial, mixing, error = grouped_approximation(conv.weight, g, between)
        first: Any = like(conv, conv.in_channels, between, groups=g, bias=False)
        second = nn.Conv2d(between, conv.out_channels, 1, groups=g, bias=conv.bias is not None)
        with torch.no_grad():
            first.weight.copy_(spatial)
            second.weight.copy_(mixing)
            if conv.bias is not None and second.bias is not None:
                second.bias.copy_(conv.bias)
        before: dict[str, nn.Module] = {"spatial": first}
        behind("", before, between, self.norm, self.activation)
        layers = {**before, "mixing": second}
        nodes = list(chain(before))
        apart, turned, whole = shuffled(between, g, places)
        nodes += [Node(apart.name, apart.op, (nodes[-1].name,), settings=apart.settings), turned, whole]
        nodes.append(Node("mixing", MODULE, ("shuffled",), "mixing"))
        return Replacement({n: x.to(conv.weight) for n, x in layers.items()}, tuple(nodes), error)
