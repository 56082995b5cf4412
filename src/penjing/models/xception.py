"""Xception: separable convolutions with shortcuts around them.

image ── 3x3 32, stride 2 ── 3x3 64 ── blocks of 128, 256, 728 ── 8 of 728 ── 1024 ── 1536 ── 2048 ── mean ── linear ── logits
block:  x ──┬── relu ── separable ── norm, two times, among the 8 three ── pool, stride 2 ──┬── add
            └── x, or 1x1 with stride 2 and norm ────────────────────────────────────────────┘
separable:  3x3 of each channel ── 1x1, nothing between
"""

import torch.nn.functional as F
from torch import Tensor, nn

from penjing.models.mobilenet import he_normal_

_MIDDLE = 8


class Separable(nn.Module):
    """A filter for each channel, a mixture of channels at each place, batch norm. Source: arXiv:1610.02357, section 4.7."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pointwise(self.depthwise(x)))


class Block(nn.Module):
    """Separable convolutions of the given widths and a shortcut around them. Source: arXiv:1610.02357, figure 5."""

    def __init__(self, inputs: int, widths: tuple[int, ...], stride: int, bias: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        outputs = widths[-1]
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=bias))
            self.shortcut.append(nn.BatchNorm2d(outputs))
        for width in widths:
            self.layers.append(nn.ReLU())  # behind the stem it does nothing: there are no negative numbers
            self.layers.append(Separable(inputs, width))
            inputs = width
        if stride > 1:
            self.layers.append(nn.MaxPool2d(3, stride, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.shortcut(x)


class Xception(nn.Module):
    """See `xception`; its keys are `conv1`, `norm1`, `conv2`, `norm2`, `blocks`, `exit1`, `exit2`, `linear`."""

    def __init__(self, classes: int, channels: int, small_images: bool) -> None:
        super().__init__()
        stride, padding, third = (1, 1, 1) if small_images else (2, 0, 2)
        self.conv1 = nn.Conv2d(channels, 32, 3, stride, padding, bias=False)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, 1, padding, bias=False)
        self.norm2 = nn.BatchNorm2d(64)
        self.blocks = nn.Sequential(
            Block(64, (128, 128), 2, small_images),
            Block(128, (256, 256), 2, small_images),
            Block(256, (728, 728), third, small_images),
            *(Block(728, (728, 728, 728), 1, small_images) for _ in range(_MIDDLE)),
            Block(728, (728, 1024), 2, small_images),
        )
        self.exit1 = Separable(1024, 1536)
        self.exit2 = Separable(1536, 2048)
        self.linear = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = self.blocks(x)  # (batch, 1024, 10, 10) of 299 x 299, (batch, 1024, 4, 4) of 32 x 32
        x = F.relu(self.exit2(F.relu(self.exit1(x))))
        return self.linear(x.mean((2, 3)))


def xception(*, classes: int = 1000, channels: int = 3, small_images: bool = False) -> nn.Module:
    """Xception, 22,855,952 parameters and 8,357,403,496 multiply-accumulates for 3 x 299 x 299.

    The small form has stride 1 in the first convolution and in the third block, padding in the first two convolutions, and
    biases in those of the shortcuts: for 3 x 32 x 32 and 100 classes 21,013,988 parameters and 1,129,865,728
    multiply-accumulates.

    Args:
        small_images: for 32 x 32 or 28 x 28 instead of 299 x 299.
    Source: Chollet 2017, arXiv:1610.02357, figure 5.
    """
    return he_normal_(Xception(classes, channels, small_images))
