"""Steps with which codes take so many bits, before anything is trained."""

from collections.abc import Mapping

import torch
from torch import Tensor

from penjing.representation.steps import PER_OCTAVE, exponents_of, steps_of

_OCTAVES = 5


def steps_at_rate(weights: Mapping[str, Tensor], rate: float, ends: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """A step for each weight: the least error there is at `rate` bits a weight, over all of them.

    minimise sum_l n_l D_l(s_l) subject to sum_l n_l H_l(s_l) <= rate * sum_l n_l,

    D the squared error relative to the layer's squares, H the entropy of its codes. Each layer takes the step of the least
    D + price * H, and the price is found by halving. Where no step is coarse enough the coarsest are taken.
    Args:
        weights: by name, float.
        ends: by name, the smallest and the largest code.
    Returns: by name, a scalar, a power of two to the 16th part.
    Source: Shoham and Gersho 1988, for equal slopes; Sullivan 1996 for uniform steps at low rates.
    """
    tried = {name: _tried(weight.detach().flatten().float(), *ends[name]) for name, weight in weights.items()}
    total = sum(weight.numel() for weight in weights.values())

    def chosen(price: float) -> dict[str, int]:
        return {name: int((error + price * bits).argmin()) for name, (_, error, bits) in tried.items()}

    def bits_of(found: Mapping[str, int]) -> float:
        return sum(float(tried[name][2][i]) * weights[name].numel() for name, i in found.items()) / max(total, 1)

    cheap, dear = 0.0, 1e4
    for _ in range(60):
        middle = (cheap + dear) / 2 if cheap else dear / 4
        if bits_of(chosen(middle)) > rate:
            cheap = middle
        else:
            dear = middle
        if dear / max(cheap, 1e-12) < 1.0001:
            break
    return {name: tried[name][0][i] for name, i in chosen(dear).items()}


def _tried(values: Tensor, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps, and with each the relative squared error and the entropy of the codes."""
    largest = max(float(values.abs().max()) if values.numel() else 0.0, 1e-30)
    top = int(exponents_of(torch.tensor(2.1 * largest)))
    steps = steps_of(torch.arange(top, top - _OCTAVES * PER_OCTAVE, -1))
    squares = max(float(values.square().sum()), 1e-30)
    errors, bits = [], []
    for step in steps:
        codes = torch.round(values / step).clamp(low, high)
        counts = torch.bincount((codes - low).long(), minlength=high - low + 1).double()
        p = counts[counts > 0] / max(values.numel(), 1)
        errors.append(float((codes * step - values).square().sum()) / squares)
        bits.append(float(-(p * p.log2()).sum()))
    return steps, torch.tensor(errors), torch.tensor(bits)
