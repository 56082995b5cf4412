"""SqueezeNet: convolutions of 1 x 1 that first make few channels of many.

image ── conv1 ── pool ── fire2 ... fire9, pools between ── dropout ── 1x1 classes ── relu ── mean ── logits
fire:  x ── 1x1 squeeze ── relu ──┬── 1x1 expand ──┬── concat ── relu
                                  └── 3x3 expand ──┘
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import SettingError, nearest
from penjing.models.mobilenet import he_normal_

_VERSIONS = {"1.0": (96, 7, (1, 4, 8)), "1.1": (64, 3, (1, 3, 5))}
"""Filters and kernel of conv1, and the layers behind which there is a pool."""
_SQUEEZED = {2: 16, 3: 16, 4: 32, 5: 32, 6: 48, 7: 48, 8: 64, 9: 64}
"""Filters of squeeze by the number of the fire module; each of its expands has four times as many."""


class Fire(nn.Module):
    """Few channels by 1 x 1, then many by 1 x 1 and by 3 x 3. Source: arXiv:1602.07360, section 3.2."""

    def __init__(self, inputs: int, squeezed: int, norm: bool, bypass: bool) -> None:
        super().__init__()
        self.bypass = bypass and inputs == 8 * squeezed
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.norm1 = nn.BatchNorm2d(squeezed) if norm else nn.Identity()
        self.expand1 = nn.Conv2d(squeezed, 4 * squeezed, 1)
        self.expand3 = nn.Conv2d(squeezed, 4 * squeezed, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8 * squeezed) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.squeeze(x)))
        y = F.relu(self.norm2(torch.cat((self.expand1(y), self.expand3(y)), 1)))
        return x + y if self.bypass else y


def squeezenet(
    version: str | float = "1.1",
    *,
    classes: int = 1000,
    channels: int = 3,
    small_images: bool = False,
    bypass: bool = False,
) -> nn.Sequential:
    """SqueezeNet 1.0 of the paper, or 1.1, which has fewer filters in front and pools earlier.

    | version, 3 x 224 x 224 | parameters | multiply-accumulates |
    |------------------------|------------|----------------------|
    | 1.0                    |  1,248,424 |          818,924,576 |
    | 1.1                    |  1,235,496 |          349,151,936 |

    The small form has a 3 x 3 of stride 1 in front, pools of 2 x 2, batch norm behind each convolution but the last, and no
    ReLU behind that: for 3 x 32 x 32 and 100 classes 1.0 has 781,156 parameters and 53,280,768 multiply-accumulates.

    Args:
        version: "1.0" or "1.1".
        small_images: for 32 x 32 or 28 x 28 instead of 224 x 224.
        bypass: a shortcut around fire modules that keep the number of channels: 3, 5, 7 and 9.
    Raises: SettingError: another version.
    Source: Iandola et al. 2016, arXiv:1602.07360, table 1 and section 6; 1.1 is the authors' own later one.
    """
    if str(version) not in _VERSIONS:
        raise SettingError(f'squeezenet: there is no version "{version}"; {nearest(str(version), _VERSIONS)}.')
    inputs, kernel, pool_after = _VERSIONS[str(version)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if small_images:
        layers["conv1"] = nn.Conv2d(channels, inputs, 3, padding=1)
        layers["norm1"] = nn.BatchNorm2d(inputs)
    else:
        layers["conv1"] = nn.Conv2d(channels, inputs, kernel, 2)
    layers["relu1"] = nn.ReLU()
    for number in range(1, 10):
        if number > 1:
            layers[f"fire{number}"] = Fire(inputs, _SQUEEZED[number], small_images, bypass)
            inputs = 8 * _SQUEEZED[number]
        if number in pool_after:
            layers[f"pool{number}"] = nn.MaxPool2d(2) if small_images else nn.MaxPool2d(3, 2, ceil_mode=True)
    layers["drop9"] = nn.Dropout(0.5)
    layers["conv10"] = nn.Conv2d(inputs, classes, 1)
    if not small_images:
        layers["relu10"] = nn.ReLU()
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    return he_normal_(nn.Sequential(layers))
