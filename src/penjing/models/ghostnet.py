"""GhostNet: half of the channels by 1 x 1, the other half are cheap filters of these.

image ── 3x3 16, stride 2 ── 16 blocks ── 1x1 960 ── mean ── 1x1 1280 ── linear ── logits
block:  x ──┬── ghost, relu ── [k x k of each channel, stride 2] ── [gates] ── ghost ──┬── add
            └── x, or k x k of each channel ── 1x1 ────────────────────────────────────┘
ghost:  x ── 1x1 to half ──┬──────────────────────────┬── concat
                           └── 3x3 of each channel ───┘
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.models.mobilenet import he_normal_

_BLOCKS = (
    *((3, 16, 16, False, 1), (3, 48, 24, False, 2), (3, 72, 24, False, 1), (5, 72, 40, True, 2), (5, 120, 40, True, 1)),
    *((3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1), (3, 184, 80, False, 1)),
    *((3, 480, 112, True, 1), (3, 672, 112, True, 1), (5, 672, 160, True, 2), (5, 960, 160, False, 1)),
    *((5, 960, 160, True, 1), (5, 960, 160, False, 1), (5, 960, 160, True, 1)),
)
"""Kernel, channels inside, channels, whether there are gates, stride."""


class Ghost(nn.Module):
    """Twice the channels of a 1 x 1 convolution: its own and a 3 x 3 filter of each. Source: arXiv:1911.11907, equation 4."""

    def __init__(self, inputs: int, outputs: int, activation: bool) -> None:
        super().__init__()
        self.activation = activation
        half = outputs // 2
        self.primary = nn.Conv2d(inputs, half, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(half)
        self.cheap = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.norm2 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.primary(x))
        x = F.relu(x) if self.activation else x
        y = self.norm2(self.cheap(x))
        return torch.cat((x, F.relu(y) if self.activation else y), 1)


class Gates(nn.Module):
    """Each channel times a number from 0 to 1 that follows from the means of all. Source: arXiv:1709.01507, section 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = _fours(channels / 4)
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.reduce(x.mean((2, 3), keepdim=True)))  # (batch, reduced, 1, 1)
        return x * F.hardsigmoid(self.expand(y))


class Block(nn.Module):
    """Two ghost modules and a shortcut around them. Source: arXiv:1911.11907, figure 3."""

    def __init__(self, inputs: int, inside: int, outputs: int, kernel: int, gates: bool, stride: int) -> None:
        super().__init__()
        self.ghost1 = Ghost(inputs, inside, True)
        self.between = nn.Sequential()
        if stride > 1:
            self.between.append(nn.Conv2d(inside, inside, kernel, stride, kernel // 2, groups=inside, bias=False))
            self.between.append(nn.BatchNorm2d(inside))
        if gates:
            self.between.append(Gates(inside))
        self.ghost2 = Ghost(inside, outputs, False)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs, bias=False))
            self.shortcut.append(nn.BatchNorm2d(inputs))
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.ghost2(self.between(self.ghost1(x))) + self.shortcut(x)


class GhostNet(nn.Module):
    """See `ghostnet`; its keys are `conv1`, `norm1`, `blocks`, `conv2`, `norm2`, `head`, `linear`."""

    def __init__(self, width: float, classes: int, channels: int, small_images: bool) -> None:
        super().__init__()
        inputs = _fours(16 * width)
        self.conv1 = nn.Conv2d(channels, inputs, 3, 1 if small_images else 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.blocks = nn.Sequential()
        for number, (kernel, inside, outputs, gates, stride) in enumerate(_BLOCKS):
            stride = 1 if small_images and number == 1 else stride
            self.blocks.append(Block(inputs, _fours(inside * width), _fours(outputs * width), kernel, gates, stride))
            inputs = _fours(outputs * width)
        last = _fours(960 * width)
        self.conv2 = nn.Conv2d(inputs, last, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(last)
        self.head = nn.Conv2d(last, 1280, 1)
        self.dropout = nn.Dropout(0.2)
        self.linear = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm1(self.conv1(x))))
        x = F.relu(self.norm2(self.conv2(x)))  # (batch, 960 * width, side / 32, side / 32), if small / 8
        x = F.relu(self.head(x.mean((2, 3), keepdim=True)))  # (batch, 1280, 1, 1)
        return self.linear(self.dropout(x.flatten(1)))


def _fours(channels: float) -> int:
    """The nearest multiple of 4, halves up, at least 4; the one above where the nearest is less than 0.9 of `channels`."""
    nearest = max(4, int(channels + 2) // 4 * 4)
    return nearest if nearest >= 0.9 * channels else nearest + 4


def ghostnet(width: float = 1.0, *, classes: int = 1000, channels: int = 3, small_images: bool = False) -> nn.Module:
    """GhostNet.

    | form                 | parameters | multiply-accumulates |
    |----------------------|------------|----------------------|
    | 0.5, 3 x 224 x 224   |  2,587,292 |           42,328,152 |
    | 1.0                  |  5,182,508 |          141,150,512 |
    | 1.3                  |  7,358,820 |          227,003,256 |

    The small form has stride 1 in the first convolution and in the second block: for 3 x 32 x 32 and 10 classes 3,913,790
    parameters and 42,680,384 multiply-accumulates.

    Args:
        width: all channels but the 1280 times this, > 0, each rounded to a multiple of 4.
        small_images: for 32 x 32 or 28 x 28 instead of 224 x 224.
    Raises: SettingError: a width that is not positive.
    Source: Han et al. 2020, arXiv:1911.11907, table 1.
    """
    if not width > 0:
        raise SettingError(f"ghostnet: width must be positive, such as 1.0 or 0.5, got {width}.")
    return he_normal_(GhostNet(width, classes, channels, small_images))
