"""Fire modules: few channels are squeezed out, and expanded again by a cheap and a wide convolution side by side.

x ── 1 x 1 squeeze (s) ──┬── 1 x 1 expand ──┬── concatenated
                         └── k x k expand ──┘

I s + s e1 + k^2 s e3 weights instead of k^2 I O, O = e1 + e3.
Source: Iandola et al. 2016 (SqueezeNet), arXiv:1602.07360, section 3.1.
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


def fire_approximation(
    weight: Tensor, squeeze: int, wide: int, *, ordered: bool = False
) -> tuple[Tensor, Tensor, Tensor, float, tuple[int, ...]]:
    """The weights of a Fire module without activations that is closest to a convolution.

    The outputs whose filters have least outside their centre become 1 x 1 ones. What is left, all taps of the wide outputs and
    the centres of the others, is a matrix of rows over input channels; its best approximation of rank s gives both factors.

    Args:
        weight: (O, I, k, k), k odd. squeeze: s. wide: e3, outputs of the k x k convolution.
        ordered: the first O - e3 outputs become 1 x 1 ones, whatever they are.
    Returns: squeeze (s, I, 1, 1), cheap (O - e3, s, 1, 1), wide (e3, s, k, k), |W - W'|^2 / |W|^2, and the order of outputs.
    Source: Eckart and Young 1936.
    """
    out, inputs, height, width = weight.shape
    w = weight.detach().double()
    centre = w[:, :, height // 2, width // 2]
    outside = w.square().sum((1, 2, 3)) - centre.square().sum(1)  # (O,): what a 1 x 1 filter cannot do
    order = torch.arange(out) if ordered else outside.argsort(stable=True)
    cheap, full = order[: out - wide].sort().values, order[out - wide :].sort().values
    rows = torch.cat([centre[cheap], w[full].permute(0, 2, 3, 1).reshape(-1, inputs)])
    u, s, vh = torch.linalg.svd(rows, full_matrices=False)
    kept = min(squeeze, len(s))
    root = s[:kept].sqrt()
    first, second = w.new_zeros(squeeze, inputs), w.new_zeros(len(rows), squeeze)
    first[:kept], second[:, :kept] = root[:, None] * vh[:kept], u[:, :kept] * root
    expanded = second[len(cheap) :].reshape(wide, height, width, squeeze).permute(0, 3, 1, 2)
    lost = s[kept:].square().sum() + outside[cheap].sum()
    error = float(lost / w.square().sum().clamp_min(1e-300))
    made = (first[:, :, None, None], second[: len(cheap), :, None, None], expanded)
    return *(x.to(weight.dtype) for x in made), error, tuple(torch.cat([cheap, full]).tolist())  # type: ignore[return-value]


class FireModules(ConvSwap):
    """Replace k x k convolutions by Fire modules: squeeze, then expand by 1 x 1 and k x k convolutions side by side."""

    label: ClassVar[str] = "fire-modules"
    squeeze: float = Field(default=0.25, gt=0, description="channels between, as a share of the output channels")
    wide: float = Field(
        default=0.5, gt=0, lt=1, description="share of the outputs that k x k filters make; 1 x 1 the others"
    )

    def replacement(self, conv: nn.Conv2d, places: tuple[int, int], *, ordered: bool = False) -> Replacement:
        if any(k % 2 == 0 for k in conv.kernel_size):
            raise SettingError(f"its kernel is {conv.kernel_size[0]} x {conv.kernel_size[1]}, without a centre")
        centred = tuple(d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
        if conv.padding not in ("same", centred):
            raise SettingError(f"its padding is {conv.padding}, so a 1 x 1 filter would look beside its centre")
        n_wide = min(max(1, round(self.wide * conv.out_channels)), conv.out_channels - 1)
        n_squeezed = max(1, math.ceil(self.squeeze * conv.out_channels))
        if conv.out_channels < 2:
            raise SettingError("it has one output channel, and a Fire module splits them")
        first, cheap, full, error, order = fire_approximation(conv.weight, n_squeezed, n_wide, ordered=ordered)
        has_bias = conv.bias is not None
        narrow: Any = nn.Conv2d(n_squeezed, conv.out_channels - n_wide, 1, conv.stride, bias=has_bias)  # type: ignore[arg-type]
        broad: Any = like(conv, n_squeezed, n_wide, bias=has_bias)
        squeezed: Any = nn.Conv2d(conv.in_channels, n_squeezed, 1, bias=False)
        with torch.no_grad():
            for layer, weight in ((squeezed, first), (narrow, cheap), (broad, full)):
                layer.weight.copy_(weight)
            if conv.bias is not None:
                bias = conv.bias[list(order)]
                narrow.bias.copy_(bias[: narrow.out_channels])
                broad.bias.copy_(bias[narrow.out_channels :])
        before: dict[str, nn.Module] = {"squeeze": squeezed}
        behind("", before, n_squeezed, self.norm, self.activation)
        nodes = list(chain(before))
        last = nodes[-1].name
        nodes += [Node(name, MODULE, (last,), name) for name in ("cheap", "wide")]
        nodes.append(Node("joined", "concat", ("cheap", "wide"), settings={"dim": 1}))
        layers = {**before, "cheap": narrow, "wide": broad}
        return Replacement({n: x.to(conv.weight) for n, x in layers.items()}, tuple(nodes), error, order)
