"""Importance of a channel by the scale that its batch norm gives it."""

import torch
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import Group, Network


def batch_norm_scales(network: Network, group: Group) -> Tensor:
    """How much of each channel its batch norms let through.

    score[c] = mean over the batch norms that channel c passes of |gamma_c|.

    The scores of different layers can be compared as they are. They mean most after a training that pulls the scales towards
    zero by an L1 penalty.
    Returns: (channels,), at least 0.
    Raises: SettingError: a channel passes no batch norm that has a scale.
    Source: Liu et al. 2017, arXiv:1708.06519 (network slimming), section 3, with the mean where channels are coupled.
    """
    total, count = torch.zeros(group.n_channels), torch.zeros(group.n_channels)
    for place in group.places:
        layer = network.get_submodule(place.path)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and place.name == "weight":
            scale = layer.weight.detach().cpu().float().abs()
            channels, indices = torch.as_tensor(place.channels), torch.as_tensor(place.indices)
            total.index_add_(0, channels, scale[indices])
            count.index_add_(0, channels, torch.ones(len(indices)))
    if bool((count == 0).any()):
        raise SettingError(
            f"batch-norm-scale: channels of {group.name} pass no batch norm with a scale; leave it out by "
            f'layers: ["!{group.producers[0]}"], or choose another score, such as magnitude.'
        )
    return total / count
