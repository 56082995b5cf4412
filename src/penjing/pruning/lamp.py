"""Magnitude made comparable between layers: what a weight is of those that would be left with it."""

import torch
from torch import Tensor

from penjing.graph import Network
from penjing.sensitivity import Evidence, layer_weights


def lamp_importance(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score(u) = w_u^2 / sum over the weights v of its layer that are not smaller, w_v^2.

    Weights of equal size come in order of position, the first as the smallest. The largest of a layer has 1: in a global
    ranking no layer goes as a whole before every layer has only one weight left. Weights that are 0 have 0.

    Source: Lee et al. 2021, arXiv:2010.07611, eq. 4.
    """
    found = {}
    for name, w in layer_weights(network).items():
        squares, order = w.flatten().double().square().sort(stable=True)
        not_smaller = squares.flip(0).cumsum(0).flip(0)
        scores = torch.zeros_like(squares)
        scores[order] = squares / not_smaller.clamp_min(torch.finfo(torch.float64).tiny)
        found[name] = scores.float().view(w.shape)
    return found
