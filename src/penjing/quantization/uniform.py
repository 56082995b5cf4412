"""Uniform quantization: weights become whole multiples of a step, b bits each.

symmetric:   w' = s * clip(round(w / s), -(2^(b-1) - 1), 2^(b-1) - 1)
asymmetric:  w' = s * (clip(round(w / s) + z, 0, 2^b - 1) - z),   z a whole number, so that 0.0 stays 0.0

Source: Jacob et al. 2018, arXiv:1712.05877; Krishnamoorthi 2018, arXiv:1806.08342, for steps of channels; the search for the
step of least squared error, Banner et al. 2019, arXiv:1810.05723. Deviates: steps are those a file holds, powers of two to the
16th part, and the search looks at all of them in five octaves.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.representation import Grid, represent_, representations
from penjing.representation.grid import spread
from penjing.representation.steps import PER_OCTAVE, steps_of

Per = Literal["tensor", "channel", "group"]
Range = Literal["min-max", "percentile", "mse"]
_SEARCHED = range(-PER_OCTAVE, 4 * PER_OCTAVE)
"""How far below the step that reaches over everything; above it, a coarser grid may happen to fit better."""
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Scheme:
    """How a weight is put on a grid.

    Attributes:
        bits: 1 to 16; symmetric grids need 2.
        per: what has a step of its own: the tensor, each output channel, each `group_size` inputs of an output channel.
        symmetric: 0.0 is code 0 and the grid reaches as far up as down; else the grid reaches from the least to the largest.
        range: what the grid reaches over: all values ("min-max"), all but the outermost ("percentile", in percent of the
            magnitudes), or what makes the squared error least ("mse").
    """

    bits: int
    per: Per = "channel"
    group_size: int = 64
    symmetric: bool = True
    range: Range = "mse"
    percentile: float = 99.9

    def __post_init__(self) -> None:
        least = 2 if self.symmetric else 1
        if not least <= self.bits <= 15:
            raise SettingError(f"quantize: bits must be in {least}..15, got {self.bits}.")
        if self.group_size < 1:
            raise SettingError(f"quantize: group_size must be at least 1, got {self.group_size}.")
        if not 0 < self.percentile <= 100:
            raise SettingError(f"quantize: percentile must be in (0, 100], got {self.percentile:g}.")

    @property
    def ends(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        half = 2 ** (self.bits - 1) - 1
        return (-half, half) if self.symmetric else (0, 2**self.bits - 1)


def steps_shape(layer: nn.Module, shape: tuple[int, ...], scheme: Scheme) -> tuple[int, ...]:
    """How many steps there are along each dimension of a parameter of a layer."""
    sizes = [1] * len(shape)
    if scheme.per == "tensor" or len(shape) < 2:
        return tuple(sizes)
    outputs, inputs = (1, 0) if isinstance(layer, _TRANSPOSED) else (0, 1)
    sizes[outputs] = shape[outputs]
    if scheme.per == "group":
        sizes[inputs] = -(-shape[inputs] // scheme.group_size)
    return tuple(sizes)


def quantized(weight: Tensor, sizes: tuple[int, ...], scheme: Scheme) -> Grid:
    """A grid for a weight.

    Args:
        weight: any shape, finite.
        sizes: of the steps, see `Grid`.
    Raises: SettingError: values that are not finite.
    """
    value = weight.detach().float()
    if not bool(torch.isfinite(value).all()):
        raise SettingError("quantize: the weight holds values that are not finite; train with a smaller lr.")
    low, high = scheme.ends
    block = spread(torch.arange(_count(sizes), device=value.device).reshape(sizes), value.shape).expand(value.shape)
    first, last = _ends(value, block, _count(sizes), scheme)
    widest = torch.maximum(-first, last) / high if scheme.symmetric else (last - first) / (high - low)
    top = torch.ceil(torch.log2(widest.double().clamp_min(2.0**-120)) * PER_OCTAVE - 1e-6).long()
    top = torch.where(widest > 0, top, 0)
    best, least = top, torch.full_like(widest, torch.inf, dtype=torch.float64)
    for down in _SEARCHED if scheme.range == "mse" else (0,):
        steps = steps_of(top - down)
        codes = _codes(value, steps, _zeros(first, steps, scheme), block, scheme)
        error = torch.zeros_like(least).index_add_(
            0, block.flatten(), (codes * steps[block] - value).double().square().flatten()
        )
        best, least = torch.where(error < least, top - down, best), torch.minimum(error, least)
    steps = steps_of(best)
    zeros = _zeros(first, steps, scheme)
    codes = _codes(value, steps, zeros, block, scheme)
    if zeros is not None:
        codes = codes + zeros[block]
    return Grid(
        codes,
        steps.reshape(sizes),
        zero=None if zeros is None else zeros.reshape(sizes),
        low=low,
        high=high,
    )


def quantize_(layer: nn.Module, name: str, scheme: Scheme) -> Grid:
    """Put a layer's parameter on a grid, in place; what a mask removed stays exactly 0.

    Raises: SettingError: it has codes already, is not float32, or is not finite.
    """
    others = [part.kind for part in representations(layer, name) if part.kind != "mask"]
    if others:
        raise SettingError(f"quantize: {type(layer).__name__}.{name} has a {others[-1]} already.")
    value: Tensor = getattr(layer, name).detach()
    if value.dtype != torch.float32:
        raise SettingError(
            f"quantize: {type(layer).__name__}.{name} is {value.dtype}; grids stand for float32. Call .float() before."
        )
    grid = quantized(value, steps_shape(layer, tuple(value.shape), scheme), scheme)
    represent_(layer, name, grid)
    return grid


def _count(sizes: tuple[int, ...]) -> int:
    return int(torch.Size(sizes).numel())


def _ends(value: Tensor, block: Tensor, n: int, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """From where to where the values of each block reach, 0 included, (n,)."""
    flat, of = value.flatten(), block.flatten()
    if scheme.range == "percentile" and flat.numel():
        order = flat.abs().argsort(stable=True)
        order = order[of[order].argsort(stable=True)]
        counts = torch.bincount(of, minlength=n)
        rank = (counts * scheme.percentile / 100).ceil().long().clamp_min(1) - 1
        edge = flat.abs()[order][(counts.cumsum(0) - counts + rank).clamp(max=len(flat) - 1)]
        flat = flat.clamp(-edge[of], edge[of])
    zeros = torch.zeros(n, dtype=flat.dtype, device=flat.device)
    return zeros.scatter_reduce(0, of, flat, "amin"), zeros.scatter_reduce(0, of, flat, "amax")


def _zeros(first: Tensor, steps: Tensor, scheme: Scheme) -> Tensor | None:
    """The code of 0.0 of each block."""
    if scheme.symmetric:
        return None
    low, high = scheme.ends
    return torch.round(-first / steps).clamp(low, high)


def _codes(value: Tensor, steps: Tensor, zeros: Tensor | None, block: Tensor, scheme: Scheme) -> Tensor:
    """Whole multiples of the step, in the value's shape."""
    low, high = scheme.ends
    wanted = value / steps[block]
    if zeros is None:
        return torch.round(wanted).clamp(low, high)
    own = zeros[block]
    return torch.round(wanted + own).clamp(low, high) - own
