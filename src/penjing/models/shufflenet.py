"""ShuffleNet: 1 x 1 convolutions in groups, and a shuffle so that the groups learn of each other.

image ── 3x3 24, stride 2 ── pool ── 4 units, the first with stride 2 ── 8 units ── 4 units ── mean ── linear ── logits
unit:  x ──┬── 1x1 in groups ── norm ── relu ── shuffle ── 3x3 of each channel ── norm ── 1x1 in groups ── norm ──┬── relu
           └── x, added; with stride 2 its mean over 3x3, concatenated ───────────────────────────────────────────┘
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.models.mobilenet import he_normal_

_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Of the first stage, by the number of groups; the next has twice, the last four times as many."""
_REPEATS = (4, 8, 4)
_FIRST_SCALE = 0.2
"""Of what a unit adds: with 1 the sums of 8 units grow until training at a rate of 0.02 diverges."""


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Channel i of group g becomes channel g of group i: (batch, groups, each) transposed.

    Source: Zhang et al. 2018, arXiv:1707.01083, section 3.1.
    """
    batch, channels, height, width = x.shape
    x = x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


class Unit(nn.Module):
    """A bottleneck; with stride 2 the means of its input go in front of its channels. Source: arXiv:1707.01083, figure 2."""

    def __init__(self, inputs: int, inner: int, outputs: int, groups: int, first_groups: int, stride: int) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        self.reduce = nn.Conv2d(inputs, inner, 1, groups=first_groups, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.expand = nn.Conv2d(inner, outputs, 1, groups=groups, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        if stride == 1:
            nn.init.constant_(self.norm3.weight, _FIRST_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.reduce(x)))
        if self.groups > 1:
            y = shuffle_channels(y, self.groups)
        y = self.norm3(self.expand(self.norm2(self.depthwise(y))))
        if self.stride == 2:
            return F.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1), y), 1))
        return F.relu(x + y)


class ShuffleNet(nn.Module):
    """See `shufflenet`; its keys are `conv`, `norm`, `units.{i}.{reduce,norm1,depthwise,norm2,expand,norm3}`, `linear`."""

    def __init__(self, groups: int, width: float, classes: int, channels: int, small_images: bool) -> None:
        super().__init__()
        inputs = _whole(int(24 * width), groups)
        kernel, stride, padding = (1, 1, 0) if small_images else (3, 2, 1)
        self.conv = nn.Conv2d(channels, inputs, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(inputs)
        self.pool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        self.units = nn.Sequential()
        first = max(_whole(int(_CHANNELS[groups] * width), groups), inputs + groups)
        for number, repeats in enumerate(_REPEATS):
            outputs = 2**number * first
            for i in range(repeats):
                own = outputs - inputs if i == 0 else outputs  # channels that are not the shortcut's
                inner = _whole((own if small_images else outputs) // 4, groups)
                first_groups = 1 if number == i == 0 else groups
                self.units.append(Unit(inputs, inner, own, groups, first_groups, 2 if i == 0 else 1))
                inputs = outputs
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.conv(x))))
        x = self.units(x)  # (batch, channels, side / 32, side / 32), for small images / 8
        return self.linear(x.mean((2, 3)))


def _whole(channels: int, groups: int) -> int:
    """Rounded up to channels that the groups share evenly, at least one each."""
    return max(1, -(-channels // groups)) * groups


def shufflenet(
    groups: int = 3, *, width: float = 1.0, classes: int = 1000, channels: int = 3, small_images: bool = False
) -> nn.Module:
    """ShuffleNet v1.

    | 3 x 224 x 224       | parameters | multiply-accumulates |
    |---------------------|------------|----------------------|
    | 1.0, 1 group        |  1,531,936 |          143,078,976 |
    | 1.0, 2 groups       |  1,733,848 |          140,836,512 |
    | 1.0, 3 groups       |  1,865,728 |          137,460,672 |
    | 1.0, 4 groups       |  1,968,344 |          134,339,776 |
    | 1.0, 8 groups       |  2,434,768 |          138,365,952 |
    | 0.75, 1 group       |    975,214 |           82,542,672 |
    | 0.75, 3 groups      |  1,238,266 |           79,740,144 |
    | 0.5, 1 group        |    534,484 |           38,517,408 |
    | 0.5, 3 groups       |    718,324 |           37,589,856 |
    | 0.25, 1 group       |    209,746 |           11,003,184 |
    | 0.25, 3 groups      |    305,902 |           11,009,808 |

    The small form has a 1 x 1 convolution in front and no pool, and where a unit has stride 2 its bottleneck has a quarter of
    the channels it adds, not of all: for 3 x 32 x 32 and 10 classes 887,582 parameters and 39,614,080 multiply-accumulates with
    2 groups, 862,768 and 38,605,056 with 3.

    Args:
        groups: 1, 2, 3, 4 or 8, in all 1 x 1 convolutions but the very first, which has few channels.
        width: all channels times this, > 0; then rounded up to what the groups share evenly.
        small_images: for 32 x 32 or 28 x 28 instead of 224 x 224.
    Raises: SettingError: another number of groups, or a width that is not positive.
    Source: Zhang et al. 2018, arXiv:1707.01083, table 1.
    """
    if groups not in _CHANNELS:
        raise SettingError(f"shufflenet: groups must be one of {', '.join(map(str, _CHANNELS))}, got {groups}.")
    if not width > 0:
        raise SettingError(f"shufflenet: width must be positive, such as 1.0 or 0.25, got {width}.")
    return he_normal_(ShuffleNet(groups, width, classes, channels, small_images))
