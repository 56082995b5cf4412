"""Small random changes of images, a whole batch at a time.

A change is drawn and made apart: what is drawn is a few numbers a sample, so that the same change can be made again.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Augment(ABC):
    """A random change of images. Subclasses are frozen settings, whose text form says all about them."""

    @abstractmethod
    def draw(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        """Random numbers for images of that shape (n, channels, height, width): (n, k)."""

    @abstractmethod
    def change(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The changed images, of the same shape; `drawn` is (n, k)."""

    def __call__(self, images: Tensor) -> Tensor:
        return self.change(images, self.draw(images.shape).to(images.device))


@dataclass(frozen=True)
class RandomAffine(Augment):
    """See `random_affine`."""

    degrees: float
    scale: float
    shear: float
    shift: float

    def draw(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        return (torch.rand(5, shape[0], generator=generator) * 2 - 1).T

    def change(self, images: Tensor, drawn: Tensor) -> Tensor:
        _, _, height, width = images.shape
        turn, size, lean, right, down = drawn.unbind(1)
        angle = turn * math.radians(self.degrees)
        factor = 1 + size * self.scale
        cos, sin = factor * angle.cos(), factor * angle.sin()
        lean = lean * self.shear
        # rows of the (2, 3) matrix from output to input coordinates, both in [-1, 1]
        across = torch.stack([cos, lean * cos - sin, right * 2 * self.shift / width], 1)
        along = torch.stack([sin, lean * sin + cos, down * 2 * self.shift / height], 1)
        grid = F.affine_grid(torch.stack([across, along], 1), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def random_affine(*, degrees: float = 10.0, scale: float = 0.1, shear: float = 0.1, shift: float = 2.0) -> Augment:
    """Rotate, scale, shear and shift each image by its own random amount; what comes in from outside is the border's value.

    Args:
        degrees: rotation, uniform in +-degrees.
        scale: factor, uniform in 1 +- scale, the same for both axes.
        shear: horizontal displacement per height, uniform in +-shear.
        shift: in pixels, uniform in +-shift along each axis.
    """
    return RandomAffine(degrees, scale, shear, shift)


@dataclass(frozen=True)
class RandomCropAndFlip(Augment):
    """See `random_crop_and_flip`."""

    padding: int
    erase: int

    def draw(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        n, _, height, width = shape
        drawn = [torch.randint(2 * self.padding + 1, (n, 1), generator=generator) for _ in range(2)]
        drawn.append(torch.rand(n, 1, generator=generator) < 0.5)
        if self.erase:
            drawn += [torch.randint(side, (n, 1), generator=generator) for side in (height, width)]
        return torch.cat([x.float() for x in drawn], 1)

    def change(self, images: Tensor, drawn: Tensor) -> Tensor:
        n, _, height, width = images.shape
        places = drawn.long().unsqueeze(2)  # (n, k, 1)
        padded = F.pad(images, (self.padding,) * 4)
        columns = torch.arange(width, device=images.device)
        columns = torch.where(places[:, 2] > 0, width - 1 - columns, columns) + places[:, 1]
        rows = torch.arange(height, device=images.device) + places[:, 0]
        index = torch.arange(n, device=images.device)
        moved = padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
        return self._erased(moved, places[:, 3], places[:, 4]) if self.erase else moved

    def _erased(self, images: Tensor, row: Tensor, column: Tensor) -> Tensor:
        _, _, height, width = images.shape
        rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
        top, left = row - self.erase // 2, column - self.erase // 2
        inside_rows = (rows >= top) & (rows < top + self.erase)
        inside_columns = (columns >= left) & (columns < left + self.erase)
        return images.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0.0)


def random_crop_and_flip(*, padding: int = 4, erase: int = 0) -> Augment:
    """Shift each image by up to `padding` pixels, zeros from outside, and mirror every other one: the usual for CIFAR.

    Args:
        erase: a square of so many pixels a side is set to 0 as well, around a point drawn anywhere, so that part of it may lie
            outside. Source: DeVries and Taylor 2017 (cutout), arXiv:1708.04552, section 3.2.
    """
    return RandomCropAndFlip(padding, erase)
