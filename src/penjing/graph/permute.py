"""Another order of the channels of a group: the same function, told otherwise."""

import copy
from collections.abc import Sequence

import numpy as np
import torch

from penjing.errors import SurgeryError
from penjing.graph.groups import Group, Removal, Slice
from penjing.graph.network import Network, tensor_at
from penjing.graph.surgery import remove_channels

_TOLERANCE = 1e-9


def permute_channels(network: Network, group: Group, order: Sequence[int]) -> Network:
    """A network whose group has its channels in another order, wherever they run.

    Args:
        group: one of `channel_groups(network)`.
        order: position i holds what was channel order[i]: a permutation of the group's channels.
    Returns: the new network, which gives the same answers, in float64 on random inputs.
    Raises: SurgeryError: no permutation, or it would change the function: channels in groups of their own are not free.
    """
    if sorted(order) != list(range(group.n_channels)):
        raise SurgeryError(f"surgery: order must be a permutation of 0 to {group.n_channels - 1}, got {list(order)}.")
    rank = np.argsort(np.asarray(order))
    slices = []
    for place in group.places:
        size = tensor_at(network.get_submodule(place.path) if place.path else network, place.name).shape[place.dim]
        keep = np.arange(size)
        arranged = np.lexsort((place.indices, rank[place.channels]))
        keep[np.sort(place.indices)] = place.indices[arranged]
        slices.append(Slice(place.path, place.name, place.dim, keep))
    changed = remove_channels(network, Removal({}, tuple(slices), (), (), ()))
    if not _same(network, changed):
        raise SurgeryError(
            f'surgery: the channels of "{group.name}" cannot be put in another order: that changes the answers.'
        )
    return changed


@torch.no_grad()
def _same(network: Network, changed: Network) -> bool:
    inputs = network.random_inputs(2, torch.Generator().manual_seed(0), torch.float64)
    before, after = (copy.deepcopy(each).cpu().double().eval().all_answers(*inputs) for each in (network, changed))
    return all(bool(((a - b).abs() <= _TOLERANCE * (1 + a.abs())).all()) for a, b in zip(before, after, strict=True))
