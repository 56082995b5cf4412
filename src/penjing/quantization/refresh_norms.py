"""Batch norms whose statistics are those of other samples, or of other weights, than they had."""

from collections.abc import Sequence

import torch
from torch import nn

from penjing.graph import Network
from penjing.training import Batch


@torch.no_grad()
def refresh_norms_(network: Network, batches: Sequence[Batch]) -> None:
    """Give batch norms the mean and variance of these batches, in place; the rest computes as in evaluation."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    was_training = network.training
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # a plain mean over batches
    for batch in batches:
        network.all_answers(*batch.args, **batch.kwargs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(was_training)
