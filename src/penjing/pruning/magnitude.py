"""Importance of a channel by the size of its weights."""

import torch
from torch import Tensor

from penjing.graph import Group, Network


def magnitude_scores(network: Network, group: Group) -> Tensor:
    """How large each channel's weights are.

    score[c] = sqrt(sum over the layers that produce channel c of ||W[c]||_2^2), W[c] all weights of output row c.

    Returns: (channels,), at least 0.
    Source: Li et al. 2017, arXiv:1608.08710, section 3.1, with the L2 norm and summed over coupled layers.
    """
    total = torch.zeros(len(group.channels))
    for position, channel in enumerate(group.channels):
        for slot in channel:
            if slot.role == "out":
                total[position] += _rows(network, slot.path)[slot.index]
    return total.sqrt()


def _rows(network: Network, path: str) -> Tensor:
    weight = network.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return weight.detach().cpu().float().flatten(1).pow(2).sum(1)
