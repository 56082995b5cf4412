"""Magnitude times the size of the input: what a weight adds to its output."""

from torch import Tensor

from penjing.graph import Network
from penjing.sensitivity import Evidence, input_mean_squares, layer_weights


def wanda_importance(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = |w_ij| sqrt(E[x_j^2]), to be compared within an output's row.

    E over samples and places; the paper's norm ||x_j||_2 is the same but for a factor of the layer. No labels are looked at.

    Source: Sun et al. 2024, arXiv:2306.11695, eq. 1; convolutions by their windows.
    """
    inputs = input_mean_squares(network, evidence.samples("wanda"))
    return {name: w.abs() * inputs[name].sqrt() for name, w in layer_weights(network).items()}
