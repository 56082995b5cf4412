"""The diagonal of the Fisher information: how much the predicted distribution changes when a weight moves."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.graph import ExitOutputs, Network
from penjing.sensitivity.evidence import Evidence
from penjing.sensitivity.hessian import cross_entropy_root
from penjing.sensitivity.per_sample import Direction, Jacobian
from penjing.training import Batch


def fisher_information(
    network: Network, evidence: Evidence, *, exact: bool = False, draws: int = 1
) -> dict[str, Tensor]:
    """F_i = E_x E_{y ~ p(y|x)} [(d log p(y|x) / d w_i)^2], p the softmax of the answers over their last dimension.

    Labels are drawn from the network's own answers: with the true ones the sum would vanish on a network that is always right.
    Each sample is squared by itself; the square of a batch's mean is something else. Answers of several positions are
    independent draws; the Fisher informations of several exits add up.

    Args:
        exact: the expectation over all classes instead of draws. It equals the Gauss-Newton diagonal of the cross entropy.
        draws: labels for each sample, drawn with `evidence.generator`.
    Returns: by the weight's full name, in its shape, at least 0. No labels of the data are looked at.
    Raises: SettingError: no samples in the evidence.
    Source: Kirkpatrick et al. 2017 (EWC), arXiv:1612.00796; Martens 2014, arXiv:1412.1193, section 9, for the equality.
    """

    def all_classes(answers: ExitOutputs, batch: Batch) -> Iterable[Direction]:
        for k, answer in enumerate(answers):
            for column in cross_entropy_root(answer):
                yield tuple(column if j == k else torch.zeros_like(a) for j, a in enumerate(answers))

    def drawn(answers: ExitOutputs, batch: Batch) -> Iterable[Direction]:
        for _ in range(draws):
            for k, answer in enumerate(answers):
                probabilities = answer.float().softmax(-1)
                flat = probabilities.flatten(0, -2).cpu()
                labels = torch.multinomial(flat, 1, generator=evidence.generator).view(answer.shape[:-1])
                score = F.one_hot(labels.to(answer.device), answer.shape[-1]) - probabilities
                yield tuple(score if j == k else torch.zeros_like(a) for j, a in enumerate(answers))

    found = Jacobian(network).mean(evidence.samples("fisher"), all_classes if exact else drawn, torch.square)
    return found if exact else {name: value / draws for name, value in found.items()}
