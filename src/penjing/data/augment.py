"""Small random changes of images, a whole batch at a time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.data.splits import Augment


def random_affine(*, degrees: float = 10.0, scale: float = 0.1, shear: float = 0.1, shift: float = 2.0) -> Augment:
    """Rotate, scale, shear and shift each image by its own random amount; what comes in from outside is the border's value.

    Args:
        degrees: rotation, uniform in +-degrees.
        scale: factor, uniform in 1 +- scale, the same for both axes.
        shear: horizontal displacement per height, uniform in +-shear.
        shift: in pixels, uniform in +-shift along each axis.
    """

    def apply(images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        draw = torch.rand(5, n, device=images.device) * 2 - 1
        angle = draw[0] * math.radians(degrees)
        factor = 1 + draw[1] * scale
        cos, sin = factor * angle.cos(), factor * angle.sin()
        lean = draw[2] * shear
        # rows of the (2, 3) matrix from output to input coordinates, both in [-1, 1]
        across = torch.stack([cos, lean * cos - sin, draw[3] * 2 * shift / width], 1)
        down = torch.stack([sin, lean * sin + cos, draw[4] * 2 * shift / height], 1)
        grid = F.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    return apply


def random_crop_and_flip(*, padding: int = 4, erase: int = 0) -> Augment:
    """Shift each image by up to `padding` pixels, zeros from outside, and mirror every other one: the usual for CIFAR.

    Args:
        erase: a square of so many pixels a side is set to 0 as well, around a point drawn anywhere, so that part of it may lie
            outside. Source: DeVries and Taylor 2017 (cutout), arXiv:1708.04552, section 3.2.
    """

    def apply(images: Tensor) -> Tensor:
        return erased(shifted(images)) if erase else shifted(images)

    def shifted(images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        padded = F.pad(images, (padding,) * 4)
        top = torch.randint(2 * padding + 1, (n, 1), device=images.device)
        left = torch.randint(2 * padding + 1, (n, 1), device=images.device)
        columns = torch.arange(width, device=images.device)
        mirror = torch.rand(n, 1, device=images.device) < 0.5
        columns = torch.where(mirror, width - 1 - columns, columns) + left
        rows = torch.arange(height, device=images.device) + top
        index = torch.arange(n, device=images.device)
        return padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    def erased(images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        row, column = (torch.arange(length, device=images.device) for length in (height, width))
        top = torch.randint(height, (n, 1), device=images.device) - erase // 2
        left = torch.randint(width, (n, 1), device=images.device) - erase // 2
        inside_rows = (row >= top) & (row < top + erase)
        inside_columns = (column >= left) & (column < left + erase)
        return images.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0.0)

    return apply
