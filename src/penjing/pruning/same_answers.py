"""Whether two networks are one function, as far as numbers can tell."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from penjing.graph import Network

TOLERANCE = 1e-9
"""What rounding in float64 may do."""
_LEAST_SCALE = 1e-6


def answer_difference(
    large: Network,
    small: Network,
    edges: Mapping[tuple[str, int], Callable[[Tensor], Tensor]] | None = None,
    *,
    n_inputs: int = 3,
    seed: int = 0,
) -> float:
    """The largest relative difference of two networks' answers in float64, in evaluation, to random inputs.

    max |large - small| / max |large|, the largest over all answers; NaN where one of them has no number.

    Args:
        edges: what becomes of inputs of nodes in the large network, as `Network.watched` takes it.
    """
    inputs = large.random_inputs(n_inputs, torch.Generator().manual_seed(seed), torch.float64)
    one, other = large.in_float64().eval(), small.in_float64().eval()
    with torch.no_grad():
        with one.watched(edges or {}):
            expected = one.all_answers(*inputs)
        found = other.all_answers(*inputs)
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return float("nan")
        if a.numel():
            difference = float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp_min(_LEAST_SCALE))
            worst = difference if not difference <= worst else worst
            if difference != difference:  # NaN
                return difference
    return worst
