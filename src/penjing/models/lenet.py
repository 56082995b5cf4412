"""The small networks of the pruning papers: LeNet-300-100, LeNet-5, and Conv-2, -4, -6.

image ── flatten ── 300 ── 100 ── logits                       LeNet-300-100, 266,610 parameters
image ── 5x5 20 ── pool ── 5x5 50 ── pool ── 500 ── logits     LeNet-5 as Caffe has it, 431,080
image ── [3x3, 3x3, pool] x n/2 ── 256 ── 256 ── logits        Conv-n for 32 x 32: 64, 128, 256 filters in its pairs
"""

from collections import OrderedDict

import torch
from torch import nn

from penjing.errors import SettingError


def lenet_300_100(*, inputs: int = 784, classes: int = 10, hidden: tuple[int, int] = (300, 100)) -> nn.Sequential:
    """Two hidden layers of 300 and 100 units with ReLU. Source: LeCun et al. 1998; sizes as in Han et al. 2016, table 2."""
    first, second = hidden
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(inputs, first),
            relu1=nn.ReLU(),
            fc2=nn.Linear(first, second),
            relu2=nn.ReLU(),
            out=nn.Linear(second, classes),
        )
    )


def lenet5(*, channels: int = 1, classes: int = 10, side: int = 28) -> nn.Sequential:
    """Caffe's LeNet: 20 and 50 filters of 5 x 5, each behind it a maximum of 2 x 2, then 500 units with ReLU.

    The ReLU behind each convolution, as in later work, is here too. Source: Han et al. 2016, arXiv:1510.00149, table 3.
    """
    places = ((side - 4) // 2 - 4) // 2
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 20, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * places**2, 500),
            relu3=nn.ReLU(),
            out=nn.Linear(500, classes),
        )
    )


def conv_n(
    depth: int = 2, *, width: float = 1.0, channels: int = 3, classes: int = 10, side: int = 32
) -> nn.Sequential:
    """Conv-2, Conv-4 or Conv-6: VGG in small, for 32 x 32 images.

    Args:
        depth: 2, 4 or 6 convolutions.
        width: all filters and units times this.
    Raises: SettingError: another depth.
    Source: Frankle and Carbin 2019, arXiv:1803.03635, figure 2.
    """
    if depth not in (2, 4, 6):
        raise SettingError(f"conv_n: depth must be 2, 4 or 6, got {depth}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = channels
    for number in range(depth):
        filters = max(1, round(width * 64 * 2 ** (number // 2)))
        layers[f"conv{number + 1}"] = nn.Conv2d(inputs, filters, 3, padding=1)
        layers[f"relu{number + 1}"] = nn.ReLU()
        if number % 2:
            layers[f"pool{number // 2 + 1}"] = nn.MaxPool2d(2)
            side //= 2
        inputs = filters
    units = max(1, round(width * 256))
    layers["flatten"] = nn.Flatten()
    for number, size in enumerate((inputs * side**2, units), 1):
        layers[f"fc{number}"] = nn.Linear(size, units)
        layers[f"relu{depth + number}"] = nn.ReLU()
    layers["out"] = nn.Linear(units, classes)
    return nn.Sequential(layers)


@torch.no_grad()
def glorot_normal_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw weights from N(0, 2 / (fan_in + fan_out)), set biases to 0. Source: Glorot and Bengio 2010, eq. 16, as a normal."""
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.xavier_normal_(layer.weight, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
    return model
