"""Importance of a channel by the size of its weights."""

import torch
from torch import Tensor

from penjing.graph import Group, Network


def magnitude_scores(network: Network, group: Group) -> Tensor:
    """How large each channel's weights are.

    score[c] = sqrt(sum over the weights that produce channel c of ||W[c]||_2^2), W[c] all rows that go with channel c.

    Returns: (channels,), at least 0.
    Source: Li et al. 2017, arXiv:1608.08710, section 3.1, with the L2 norm and summed over coupled layers.
    """
    total = torch.zeros(group.n_channels)
    for place in group.places:
        weight = getattr(network.get_submodule(place.path), place.name).detach().cpu().float()
        if place.produces and weight.dim() > 1:
            rows = weight.movedim(place.dim, 0).flatten(1).pow(2).sum(1)
            total.index_add_(0, torch.as_tensor(place.channels), rows[torch.as_tensor(place.indices)])
    return total.sqrt()
