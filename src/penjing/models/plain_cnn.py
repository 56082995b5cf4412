"""A plain convolutional network: blocks of convolution, batch norm and ReLU, the mean over places, a linear layer.

image ── block 0 ── block 1 ── ... ── block n ── mean ── linear ── logits
         5x5 /2     3x3 [pool]        3x3
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from penjing.errors import SettingError


def plain_cnn(
    widths: Sequence[int] = (20, 32, 48, 64, 72),
    *,
    channels: int = 1,
    classes: int = 10,
    first_kernel: int = 5,
    first_stride: int = 2,
    pool_after: Sequence[int] = (1,),
) -> nn.Sequential:
    """A plain convolutional network.

    Args:
        widths: output channels of each block.
        channels: of the image.
        first_kernel, first_stride: of block 0; the others are 3 x 3 with stride 1, all with same padding.
        pool_after: blocks behind which a 2 x 2 maximum halves the resolution.
    Raises: SettingError: no widths, or widths that are not positive.
    """
    if not widths or min(widths) < 1:
        raise SettingError(f"plain_cnn: widths must be positive numbers, at least one, got {list(widths)}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = channels
    for number, width in enumerate(widths):
        kernel, stride = (first_kernel, first_stride) if number == 0 else (3, 1)
        block: OrderedDict[str, nn.Module] = OrderedDict()
        block["conv"] = nn.Conv2d(inputs, width, kernel, stride, kernel // 2, bias=False)
        block["norm"] = nn.BatchNorm2d(width)
        block["relu"] = nn.ReLU()
        if number in pool_after:
            block["pool"] = nn.MaxPool2d(2)
        layers[f"block{number}"] = nn.Sequential(block)
        inputs = width
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)
