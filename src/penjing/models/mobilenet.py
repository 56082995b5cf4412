"""MobileNet: depthwise separable convolutions all the way.

image ── 3x3 32, stride 2 ── 13 blocks: 64, 128, 128, 256, 256, 512 x 6, 1024, 1024 ── mean ── linear ── logits
block:  x ── 3x3 of each channel ── norm ── relu ── 1x1 ── norm ── relu
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import SettingError

Model = TypeVar("Model", bound=nn.Module)

_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *5 * [(512, 1)], (1024, 2), (1024, 1))
"""Channels and stride of each block."""


@torch.no_grad()
def he_normal_(model: Model) -> Model:
    """Draw weights of convolutions from N(0, 2 / fan_in), those of linear layers from N(0, 0.01^2); set biases to 0.

    The fan-in of a filter is that of its own group: k^2 where each channel has a filter.
    Source: He et al. 2015, arXiv:1502.01852, equation 10.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            layer.bias.zero_()
    return model


class Block(nn.Module):
    """A filter for each channel, then a mixture of channels at each place. Source: arXiv:1704.04861, figure 3."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.depthwise(x)))
        return F.relu(self.norm2(self.pointwise(x)))


class MobileNet(nn.Module):
    """See `mobilenet`; its keys are `conv`, `norm`, `blocks.{i}.{depthwise,norm1,pointwise,norm2}`, `linear`."""

    def __init__(self, width: float, classes: int, channels: int, first_stride: int) -> None:
        super().__init__()
        inputs = max(1, int(width * 32))
        self.conv = nn.Conv2d(channels, inputs, 3, first_stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(inputs)
        self.blocks = nn.Sequential()
        for filters, stride in _BLOCKS:
            outputs = max(1, int(width * filters))
            self.blocks.append(Block(inputs, outputs, stride))
            inputs = outputs
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.conv(x))))  # (batch, 1024 * width, side / 32, side / 32), if small / 16
        return self.linear(x.mean((2, 3)))


def mobilenet(width: float = 1.0, *, classes: int = 1000, channels: int = 3, small_images: bool = False) -> nn.Module:
    """MobileNet v1.

    | width, 3 x 224 x 224 | parameters | multiply-accumulates |
    |----------------------|------------|----------------------|
    | 1.0                  |  4,231,976 |          568,740,352 |
    | 0.75                 |  2,585,560 |          325,400,448 |
    | 0.5                  |  1,331,592 |          149,497,088 |
    | 0.25                 |    470,072 |           41,030,272 |

    The small form differs only in the stride of the first convolution, which is 1: for 3 x 32 x 32 and 10 classes 3,217,226
    parameters and 46,354,432 multiply-accumulates.

    Args:
        width: all channels times this, > 0, rounded down.
        small_images: for 32 x 32 or 28 x 28 instead of 224 x 224.
    Raises: SettingError: a width that is not positive.
    Source: Howard et al. 2017, arXiv:1704.04861, table 1.
    """
    if not width > 0:
        raise SettingError(f"mobilenet: width must be positive, such as 1.0 or 0.25, got {width}.")
    return he_normal_(MobileNet(width, classes, channels, 1 if small_images else 2))
