"""Importance of a channel by the size of its weights."""

from typing import Literal

import torch
from torch import Tensor

from penjing.graph import Group, Network


def magnitude_scores(network: Network, group: Group, *, norm: Literal[1, 2] = 2) -> Tensor:
    """How large each channel's weights are.

    norm 2: score[c] = sqrt(sum over the weights that produce channel c of ||W[c]||_2^2)
    norm 1: score[c] = sum over the weights that produce channel c of ||W[c]||_1
    with W[c] all rows that go with channel c.

    Returns: (channels,), at least 0.
    Source: Li et al. 2017, arXiv:1608.08710, section 3.1 (norm 1) and section 4.5 (norm 2), summed over coupled layers.
    """
    total = torch.zeros(group.n_channels)
    for place in group.places:
        weight = getattr(network.get_submodule(place.path), place.name).detach().cpu().float()
        if place.produces and weight.dim() > 1:
            rows = weight.movedim(place.dim, 0).flatten(1).abs().pow(norm).sum(1)
            total.index_add_(0, torch.as_tensor(place.channels), rows[torch.as_tensor(place.indices)])
    return total.sqrt() if norm == 2 else total
