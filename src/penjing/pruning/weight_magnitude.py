"""Importance of a weight by its size."""

from torch import Tensor

from penjing.graph import Network
from penjing.sensitivity import Evidence, layer_weights


def weight_magnitude(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = |w|. Ranking by |w|, w^2 or any other norm of one number is the same.

    Source: Han et al. 2015, arXiv:1506.02626, section 3.
    """
    return {name: w.abs() for name, w in layer_weights(network).items()}
