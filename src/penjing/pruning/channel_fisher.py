"""Importance of a channel by how much the loss would change without it, to second order, with Fisher for the Hessian."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from penjing.graph import Group, Network
from penjing.pruning.taylor import sample_changes
from penjing.training import Batch


def fisher_scores(
    network: Network, groups: Sequence[Group], loss: Callable[[Batch], Tensor], batches: Iterable[Batch]
) -> list[Tensor]:
    """Half the mean squared gradient of the loss with respect to a gate of each channel.

    score[c] = 1/(2 N) * sum over samples n of (sum over positions and readers of a_c dL_n/da_c)^2
    with a_c the values of channel c at the inputs of the layers that read it and L_n the loss of sample n alone. The network is
    in evaluation mode. Scores of different layers can be compared as they are: all are in the unit of the loss.

    Args:
        loss: computes the loss of a batch with `network`, a mean over the batch.
        batches: the samples to average over; the true labels make it the empirical Fisher.
    Returns: per group (channels,), at least 0.
    Source: Theis et al. 2018, arXiv:1801.05787, eq. 8, taken at the readers' inputs so that coupled channels add up.
    """
    totals = [torch.zeros(group.n_channels, dtype=torch.float64) for group in groups]
    n = 0
    for size, changes in sample_changes(network, groups, loss, batches):
        n += size
        for total, change in zip(totals, changes, strict=True):
            total += (change * size).square().sum(0)  # per sample: the square of a batch's mean is something else
    return [(total / (2 * max(n, 1))).float() for total in totals]
