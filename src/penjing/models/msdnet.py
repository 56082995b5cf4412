"""MSDNet: a network that can answer at any time, with coarse features for classifiers from the first layer on.

              layer 1   layer 2   layer 3   ...
scale 1  image ── o ──── o ──── o            each layer of a scale sees all earlier ones of its scale (dense), and
                  │ ╲      ╲                 by strided convolutions all earlier ones of the finer scale;
scale 2           o ──── o ──── o            classifiers look at the coarsest scale;
                  │ ╲      ╲                 after each third of the layers the finest scale ends, and 1x1 convolutions
scale 3           o ──── o ──┬─ o            halve the others' channels
                             └── classifier
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from penjing.errors import SettingError

_FACTORS = (1, 2, 4)
"""How many times as many channels a scale has as the finest, and how many times as wide its bottlenecks are."""
_HEAD = 128


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _bottleneck(inputs: int, outputs: int, factor: int, stride: int) -> nn.Sequential:
    """A 1x1 convolution to at most `factor` times the outputs, then a 3x3."""
    inner = min(inputs, factor * outputs)
    return nn.Sequential(_convolution(inputs, inner, 1), _convolution(inner, outputs, 3, stride))


class First(nn.Module):
    """Layer 1: the image at every scale, each made of the finer one."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList()
        for factor in _FACTORS:
            self.scales.append(_convolution(inputs, width * factor, 3, 1 if factor == 1 else 2))
            inputs = width * factor

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for scale in self.scales:
            x = scale(x)
            found.append(x)
        return found


class Layer(nn.Module):
    """A layer: at every scale what there was and `growth` times the scale's factor new channels, half of them from the finer.

    Args:
        width: channels of the finest scale before, if it is still there; other scales have their factor times as many.
        finest: the number of the finest scale that this layer computes.
        ends: the scale before that one ends here, it is only read.
    """

    def __init__(self, width: int, growth: int, finest: int, ends: bool) -> None:
        super().__init__()
        self.ends = ends
        self.same, self.finer = nn.ModuleList(), nn.ModuleList()
        for scale in range(finest, len(_FACTORS)):
            new, alone = growth * _FACTORS[scale], scale == finest and not ends
            if not alone:
                before = _FACTORS[scale - 1]
                self.finer.append(_bottleneck(width * before, new // 2, before, 2))
            share = new if alone else new // 2
            self.same.append(_bottleneck(width * _FACTORS[scale], share, _FACTORS[scale], 1))

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        found = []
        own = scales[1:] if self.ends else scales
        finer = [None, *self.finer] if not self.ends else list(self.finer)
        for i, (x, same) in enumerate(zip(own, self.same, strict=True)):
            down = finer[i]
            new = [x] if down is None else [x, down(scales[i if self.ends else i - 1])]
            found.append(torch.cat([*new, same(x)], 1))
        return found


class Transition(nn.Module):
    """Half of the channels at every scale, by 1x1 convolutions."""

    def __init__(self, width: int, after: int, finest: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_convolution(width * f, after * f, 1) for f in _FACTORS[finest:])

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        return [scale(x) for scale, x in zip(self.scales, scales, strict=True)]


class Classifier(nn.Module):
    """Two strided convolutions of 128 channels, a mean of 2 x 2 places, a linear layer."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(_convolution(inputs, _HEAD, 3, 2), _convolution(_HEAD, _HEAD, 3, 2))
        self.pool = nn.AvgPool2d(2)
        self.linear = nn.Linear(_HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(self.convolutions(x)).flatten(1))


class MSDNet(nn.Module):
    """See `msdnet`. In training and evaluation it answers with the logits of all classifiers, first one first."""

    def __init__(self, steps: list[int], width: int, growth: int, channels: int, classes: int) -> None:
        super().__init__()
        self.blocks, self.classifiers = nn.ModuleList(), nn.ModuleList()
        n_layers, n_scales = sum(steps), len(_FACTORS)
        third = math.ceil(n_layers / n_scales)  # layers until another scale ends
        number = 0
        start = width
        for step in steps:
            layers: list[nn.Module] = [First(channels, start)] if number == 0 else []
            for _ in range(step):
                before, finest = max(0, number - 1) // third, number // third
                layers.append(Layer(width, growth, finest, ends=finest > before))
                width += growth
                if finest > before:
                    layers.append(Transition(width, width // 2, finest))
                    width //= 2
                number += 1
            self.blocks.append(nn.Sequential(*layers))
            self.classifiers.append(Classifier(width * _FACTORS[-1], classes))

    def forward(self, x: Tensor) -> list[Tensor]:
        scales: Tensor | list[Tensor] = x
        answers = []
        for block, classifier in zip(self.blocks, self.classifiers, strict=True):
            scales = block(scales)
            answers.append(classifier(scales[-1]))
        return answers


def msdnet(
    blocks: int = 7,
    *,
    base: int = 4,
    step: int = 2,
    grow: Literal["even", "linear"] = "even",
    width: int = 16,
    growth: int = 6,
    channels: int = 3,
    classes: int = 10,
) -> nn.Module:
    """A multi-scale dense network for images of 32 x 32, with a classifier after every block: a network with exits when traced.

    Anytime prediction in the paper's code: blocks=10 (or 7), base=4, step=2. Budgeted batches: blocks=7 (or 5), base=1, step=1,
    grow="linear".

    Args:
        blocks: how many classifiers; base: layers of the first block.
        step: layers of each later one; with "linear" the k-th has `step` k + 1 (k = 1, 2 ...).
        width, growth: channels of the finest scale in layer 1, and how many each layer adds.
    Raises: SettingError: no block, or an odd growth, whose halves are no whole numbers.
    Source: Huang et al. 2018, arXiv:1703.09844, sections 4 and A; settings of the authors' published code.
    """
    if min(blocks, base, step, width, growth) < 1 or growth % 2:
        raise SettingError(
            "msdnet: blocks, base, step and width must be at least 1 and growth even, got "
            f"{blocks}, {base}, {step}, {width} and {growth}."
        )
    steps = [base, *(step if grow == "even" else step * k + 1 for k in range(1, blocks))]
    model = MSDNet(steps, width, growth, channels, classes)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        elif isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
    return model
