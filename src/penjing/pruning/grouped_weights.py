"""Importance of a channel as the sum of that of its weights: every measure of single weights is one of channels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from penjing.errors import SettingError
from penjing.graph import Group
from penjing.sensitivity import Weights


def grouped_weights(scores: Weights, groups: Sequence[Group]) -> list[Tensor]:
    """Add up, channel by channel, the scores of all weights that produce it.

    score[c] = sum over the weights that produce channel c of the sum of scores[W][c], all rows that go with channel c.

    Args:
        scores: a number for each weight, by the parameter's full name; parameters that are not in it count nothing.
    Returns: per group (channels,).
    Raises: SettingError: none of the weights that produce a group's channels has scores.
    """
    found = []
    for group in groups:
        total, names, n_scored = torch.zeros(group.n_channels, dtype=torch.float64), [], 0
        for place in group.places:
            name = f"{place.path}.{place.name}" if place.path else place.name
            if not place.produces:
                continue
            names.append(name)
            if name in scores and scores[name].dim() > 1:
                rows = scores[name].detach().cpu().double().movedim(place.dim, 0).flatten(1).sum(1)
                total.index_add_(0, torch.as_tensor(place.channels), rows[torch.as_tensor(place.indices)])
                n_scored += 1
        if not n_scored:
            raise SettingError(f"channel scores: none of {', '.join(names)} has scores of its weights.")
        found.append(total.float())
    return found
