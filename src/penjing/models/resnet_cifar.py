"""The residual networks for 32 x 32 images: ResNet-20, -32, -44, -56, -110.

image ── 3x3 16 ── n blocks of 16 ── n of 32, the first with stride 2 ── n of 64, the same ── mean ── logits
block:  x ──┬── 3x3 ── norm ── relu ── 3x3 ── norm ──┬── add ── relu
            └── x, or every other place of it with channels of zeros around ──┘
"""

import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import SettingError


class Subsample(nn.Module):
    """A shortcut without parameters: every other place, and channels of zeros before and behind.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2, option A.
    """

    def __init__(self, missing: int) -> None:
        super().__init__()
        self.missing = missing

    def forward(self, x: Tensor) -> Tensor:
        before = self.missing // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.missing - before))


class Block(nn.Module):
    """Two convolutions of 3 x 3 with batch norm, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else Subsample(outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNetCifar(nn.Module):
    """See `resnet_cifar`; its keys are `conv1`, `bn1`, `layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}`, `linear`."""

    def __init__(self, n: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for number, factor in enumerate((1, 2, 4), 1):
            blocks = []
            for i in range(n):
                blocks.append(Block(inputs, factor * width, 2 if number > 1 and i == 0 else 1))
                inputs = factor * width
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (batch, width, side, side)
        for stage in ("layer1", "layer2", "layer3"):
            x = self.get_submodule(stage)(x)  # at last (batch, 4 * width, side / 4, side / 4)
        return self.linear(x.mean((2, 3)))


def resnet_cifar(depth: int = 20, *, width: int = 16, channels: int = 3, classes: int = 10) -> nn.Module:
    """A residual network for small images; ResNet-20 has 269,722 parameters and 40.6 million multiply-accumulates.

    Args:
        depth: 6 n + 2.
        width: filters of the first stage.
    Raises: SettingError: another depth.
    Source: He et al. 2016, arXiv:1512.03385, section 4.2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise SettingError(f"resnet_cifar: depth must be 6 n + 2, such as 20, 32 or 56, got {depth}.")
    model = ResNetCifar((depth - 2) // 6, width, channels, classes)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
    return model
