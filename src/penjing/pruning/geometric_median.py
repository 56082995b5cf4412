"""Importance of a channel by how far its filter is from those of its layer: what is near the middle can be replaced."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from penjing.graph import Group, Network


def geometric_median_scores(network: Network, group: Group) -> Tensor:
    """How far each filter is from all others of its layer.

    score[c] = sum over the layers that produce channel c, sum over the channels d of the group: ||W[c] - W[d]||_2
    with W[c] all rows that go with channel c. The smallest is the filter nearest to the geometric median of the layer, whose
    part the others can take over; its size does not matter.

    Returns: (channels,), at least 0.
    Source: He et al. 2019 (FPGM), arXiv:1811.00250, eq. 7, summed over coupled layers.
    """
    total = torch.zeros(group.n_channels, dtype=torch.float64)
    for place in group.places:
        weight = getattr(network.get_submodule(place.path), place.name).detach().cpu().double()
        if not place.produces or weight.dim() < 2:
            continue
        rows = weight.movedim(place.dim, 0).flatten(1)  # (rows, in)
        channels, indices = torch.as_tensor(place.channels), torch.as_tensor(place.indices)
        present = channels.unique()
        filters = pad_sequence([rows[indices[channels == c]].flatten() for c in present], batch_first=True)
        distances = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")  # (present, present)
        total.index_add_(0, present, distances.sum(1))
    return total.float()
