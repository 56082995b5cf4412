"""Inputs out of nothing, for networks whose batch norms know what goes through them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from penjing.graph import Network
from penjing.training import Batch

_SHARED = 0.8
"""Of the amplitude of a picture, what all channels have together; 0.6 is each channel's own, and the squares add up to 1."""


def smooth_noise(shape: Sequence[int], n: int, generator: torch.Generator) -> Tensor:
    """Normal noise of mean 0 and variance 1, (n, *shape), float32.

    Of three dimensions and more, (channels, *places), its amplitude falls with the inverse of the frequency, as that of
    photographs does, and channels have a correlation of 0.64; of fewer it is white.
    Source: Field 1987, JOSA A 4(12), for the spectrum.
    """
    if len(shape) < 3:
        return torch.randn(n, *shape, generator=generator)
    places = shape[1:]
    axes = torch.meshgrid(*(torch.fft.fftfreq(size) for size in places), indexing="ij")
    frequency = torch.stack(axes).square().sum(0).sqrt()
    frequency.view(-1)[0] = 1 / max(places)
    dims = tuple(range(2, 2 + len(places)))

    def drawn(channels: int) -> Tensor:
        white = torch.fft.fftn(torch.randn(n, channels, *places, generator=generator), dim=dims)
        smooth = torch.fft.ifftn(white / frequency, dim=dims).real
        return smooth / smooth.square().mean().sqrt().clamp_min(1e-12)

    return _SHARED * drawn(1) + (1 - _SHARED**2) ** 0.5 * drawn(shape[0])


def noise_inputs(network: Network, n: int, generator: torch.Generator, batch_size: int = 64) -> list[Batch] | None:
    """Batches of `smooth_noise` for every input of a network; None where an input is of whole numbers."""
    examples = network.random_inputs(1, generator)
    if not all(x.is_floating_point() for x in examples):
        return None
    inputs = [smooth_noise(x.shape[1:], n, generator).to(x.dtype) for x in examples]
    return [Batch(tuple(parts), {}, None) for parts in zip(*(x.split(batch_size) for x in inputs), strict=True)]
