"""Slimmable networks: one set of weights that works at several widths.

A width w uses the first w n of the n channels of every group. All widths are there at once, as answers of one network: training
sums their losses, a file holds the weights once, and in use one of them is computed.
Sources: Yu et al. 2019 (Slimmable Neural Networks), arXiv:1812.08928; Yu and Huang 2019 (Universally Slimmable Networks),
arXiv:1903.05134 (any width; the sandwich rule; in-place distillation; statistics measured after training).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch

from penjing.errors import SettingError, SurgeryError
from penjing.graph import (
    Grouping,
    Network,
    Node,
    Removal,
    channel_groups,
    cut_out,
    permute_channels,
    provable,
    remove_channels,
)
from penjing.graph.branch import WIDTHS, branch, with_layers
from penjing.graph.network import EXIT, NEVER, OUTPUT, tensor_at
from penjing.training import Batch, measure_batch_norms_


def check_widths(widths: Iterable[float], where: str = "slimmable") -> list[float]:
    """Widths below 1 in ascending order. Raises: SettingError: one outside (0, 1], or none below 1."""
    found = sorted({float(width) for width in widths})
    if any(not 0 < width <= 1 for width in found):
        raise SettingError(f"{where}: widths must be greater than 0 and at most 1, got {_shown(found)}.")
    if not found or found[0] == 1:
        raise SettingError(f"{where}: give at least one width below 1, such as 0.5; got {_shown(found) or 'none'}.")
    return [width for width in found if width < 1]


def _shown(widths: Sequence[float]) -> str:
    return ", ".join(f"{width:g}" for width in widths)


def narrowing(grouping: Grouping, width: float, *, rounded: bool = False) -> dict[str, list[int]]:
    """The channels that a width does not use, by group: all behind the first width n of n.

    Args:
        rounded: round to whole channels, at least one; else only widths that give whole numbers are taken.
    Raises: SettingError: a width that would split a channel, with widths that would not.
    """
    chosen: dict[str, list[int]] = {}
    for group in grouping.groups:
        wanted = width * group.n_channels
        keep = max(round(wanted), 1)
        if not rounded and abs(wanted - keep) > 1e-6:
            below, above = (Fraction(k, group.n_channels) for k in (int(wanted), int(wanted) + 1))
            near = " or ".join(f"{float(f):.4g} ({f.numerator}/{f.denominator})" for f in (below, above) if 0 < f <= 1)
            raise SettingError(
                f'slimmable: width {width:g} of the {group.n_channels} channels of "{group.name}" is {wanted:.3g}, '
                f"which is not a whole number; take {near}, or rounded: true."
            )
        chosen[group.name] = list(range(keep, group.n_channels))
    return chosen


def in_order_of_importance(network: Network) -> Network:
    """The same function with the channels of every group in falling order of the sum of |weight| that makes them.

    Groups whose order matters, such as those that grouped convolutions read, stay as they are.
    Source: Li et al. 2017, arXiv:1608.08710, section 3.1 (the L1 norm of a filter).
    """
    for group in channel_groups(network).groups:
        score = np.zeros(group.n_channels)
        for place in group.places:
            if place.produces:
                owner = network.get_submodule(place.path) if place.path else network
                weight = tensor_at(owner, place.name).detach().abs().double()
                sums = weight.sum([d for d in range(weight.dim()) if d != place.dim]).cpu().numpy()
                np.add.at(score, place.channels, sums[place.indices])
        try:
            network = permute_channels(network, group, np.argsort(-score, kind="stable").tolist())
        except SurgeryError:
            continue
    return network


def removal_for(network: Network, grouping: Grouping, width: float, *, rounded: bool) -> Removal:
    """What a width leaves out, proved: groups that cannot be narrower stay whole.

    Raises: SettingError: nothing can be narrower, or the width splits channels.
    """
    chosen, left, _ = provable(network, grouping, narrowing(grouping, width, rounded=rounded))
    if not any(chosen.values()):
        reasons = (
            "; ".join([*grouping.kept.values(), *left.values()]) or "it has no channels that nothing else depends on"
        )
        raise SettingError(f"slimmable: no layer of the network can be narrower ({reasons}).")
    return grouping.removal(chosen)


def make_slimmable(network: Network, widths: Iterable[float], *, rounded: bool = False) -> Network:
    """Give a network narrower selves, which share its weights, as further answers in front of its own.

    Exits that the network has are there at every width. Nothing is computed for widths that nobody asks for: choose one with
    `network.leave_at(k)`, or thresholds, with which samples that a narrow self is not sure of go on to a wider one.

    Args:
        widths: in (0, 1], such as (0.25, 0.5, 0.75); 1 is the network itself.
        rounded: see `narrowing`.
    Returns: the network; its exits are labelled "width 0.25" and so on, narrowest first.
    Raises: SettingError: impossible widths, no channels that can go.
    """
    grouping = channel_groups(network)
    nodes: list[Node] = []
    layers: dict[str, torch.nn.Module] = {}
    inner = [node for node in network.nodes if node.op not in (EXIT, OUTPUT)]
    for width in check_widths(widths):
        name = WIDTHS + f"{width:g}".replace(".", "_")
        made = branch(network, removal_for(network, grouping, width, rounded=rounded), inner, name)
        layers |= made.modules
        nodes += made.nodes
        for k, node in enumerate(n for n in network.nodes if n.op in (EXIT, OUTPUT)):
            source = made.names.get(node.inputs[0], node.inputs[0])
            label = f"width {width:g}" + (f", exit {k}" if node.op == EXIT else "")
            nodes.append(Node(f"{name}_answer_{k}", EXIT, (source,), settings={"threshold": NEVER, "label": label}))
    exits = [
        replace(node, settings={**node.settings, "label": f"width 1, exit {k}"}) for k, node in enumerate(network.exits)
    ]
    return with_layers(network, layers, [*inner, *nodes, *exits, network.nodes[-1]])


def at_width(
    network: Network, width: float, batches: Iterable[Batch] | None = None, *, rounded: bool = True
) -> Network:
    """A plain network of the first `width` of all channels, cut out of a (universally) slimmable one.

    Args:
        batches: from the training set, on which batch norms measure their statistics at this width anew; None: they keep those
            of the full width, which fit badly.
    Raises: SettingError: as `make_slimmable`.
    """
    whole = cut_out(network, len(network.exits)) if network.exits else network
    if width == 1:
        found = whole
    else:
        grouping = channel_groups(whole)
        check_widths((width,))
        found = remove_channels(whole, removal_for(whole, grouping, width, rounded=rounded))
    if batches is not None:
        measure_batch_norms_(found, batches)
    return found.eval()


def measure_widths_(network: Network, batches: Iterable[Batch]) -> None:
    """Measure the statistics of all batch norms anew, those of every width on what that width computes."""
    measure_batch_norms_(_Everything(network), batches)


class _Everything(torch.nn.Module):
    """Computes all answers whenever it is called."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.network.all_answers(*args, **kwargs))
