"""Memory aware synapses: how much the size of the answer changes when a weight moves. Needs no labels."""

from collections.abc import Iterable

import torch
from torch import Tensor

from penjing.graph import ExitOutputs, Network
from penjing.sensitivity.evidence import Evidence
from penjing.sensitivity.per_sample import Direction, Jacobian
from penjing.training import Batch


def memory_aware_synapses(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """Omega_i = (1 / N) sum_n | d ||F(x_n)||_2^2 / d w_i |, F the answers (of all exits together).

    Each sample by itself: the absolute value of a batch's mean gradient, as in the authors' code, is smaller.

    Returns: by the weight's full name, in its shape, at least 0.
    Raises: SettingError: no samples in the evidence.
    Source: Aljundi et al. 2018, arXiv:1711.09601, eq. 3 and section 4.1.
    """

    def twice_the_answers(answers: ExitOutputs, batch: Batch) -> Iterable[Direction]:
        yield tuple(2 * a for a in answers)

    return Jacobian(network).mean(evidence.samples("mas"), twice_the_answers, torch.abs)
