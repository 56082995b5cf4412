"""What becomes of the weights that a mask keeps, and of those that it removes, before the network is trained again.

`KEPT` (mask-1 actions) and `REMOVED` (mask-0 actions) are the tables. Source of all: Zhou et al. 2019 (Deconstructing Lottery
Tickets), arXiv:1905.01067, sections 3 and 4; of "rewind" and "reinit" Frankle and Carbin 2019, arXiv:1803.03635.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from penjing.pruning.supermask import signed_constant

Kept = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Of the initial weights, the mask and a generator: the weights to start from, in the same shape."""
Removed = Callable[[Tensor, Tensor], Tensor]
"""Of the initial and the final weights: the values at which removed weights are held."""


def rewind(initial: Tensor, keep: Tensor, generator: torch.Generator) -> Tensor:
    """w_i: back to where they began; a winning ticket."""
    return initial.clone()


def reinit(initial: Tensor, keep: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, s^2) with s^2 = 2 / (fan_in + fan_out), drawn anew: the control of the lottery ticket hypothesis."""
    fans = nn.init._calculate_fan_in_and_fan_out(initial)
    return torch.randn(initial.shape, generator=generator) * math.sqrt(2 / sum(fans))


def reshuffle(initial: Tensor, keep: Tensor, generator: torch.Generator) -> Tensor:
    """The initial values of the kept weights, in another order."""
    found = initial.clone()
    values = initial[keep]
    found[keep] = values[torch.randperm(len(values), generator=generator)]
    return found


def constant(initial: Tensor, keep: Tensor, generator: torch.Generator) -> Tensor:
    """+s or -s at random, s the standard deviation of the layer's initial weights."""
    signs = torch.randint(0, 2, initial.shape, generator=generator) * 2.0 - 1.0
    return signs * initial.std()


def signed_reinit(initial: Tensor, keep: Tensor, generator: torch.Generator) -> Tensor:
    """`reinit`, each weight with the sign that it began with."""
    return reinit(initial, keep, generator).abs() * _signs(initial)


def signed_reshuffle(initial: Tensor, keep: Tensor, generator: torch.Generator) -> Tensor:
    """`reshuffle` among the kept weights of the same sign."""
    found = initial.clone()
    for chosen in (keep & (initial < 0), keep & (initial >= 0)):
        values = initial[chosen]
        found[chosen] = values[torch.randperm(len(values), generator=generator)]
    return found


def signed_constants(initial: Tensor, keep: Tensor, generator: torch.Generator) -> Tensor:
    """+s or -s as each weight began: only its sign is left of it."""
    return signed_constant(initial)


def _signs(weight: Tensor) -> Tensor:
    return torch.where(weight < 0, -1.0, 1.0)


KEPT: dict[str, Kept] = {
    "rewind": rewind,
    "reinit": reinit,
    "reshuffle": reshuffle,
    "constant": constant,
    "signed-reinit": signed_reinit,
    "signed-reshuffle": signed_reshuffle,
    "signed-constant": signed_constants,
}


def zero(initial: Tensor, final: Tensor) -> Tensor:
    """0: they are gone."""
    return torch.zeros_like(initial)


def freeze_init(initial: Tensor, final: Tensor) -> Tensor:
    """w_i: they stay where they began."""
    return initial.clone()


def freeze_init_zero_mask(initial: Tensor, final: Tensor) -> Tensor:
    """0 for those that training moved towards 0, |w_f| < |w_i|; the others stay where they began."""
    return torch.where(final.abs() < initial.abs(), 0.0, initial)


REMOVED: dict[str, Removed] = {
    "zero": zero,
    "freeze-init": freeze_init,
    "freeze-init-zero-mask": freeze_init_zero_mask,
}
