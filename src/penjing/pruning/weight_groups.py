"""Groups of weights that stand for a structure: filters, channels, filter shapes, blocks; and which of them are zero."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.graph import Group, Network, Place, channel_groups
from penjing.pruning.blocks import find_blocks
from penjing.representation import Mask, representations

Kind = Literal["filters", "channels", "shapes", "depth"]
KINDS: tuple[Kind, ...] = ("shapes", "channels", "filters", "depth")
"""What lies within another first."""


@dataclass(frozen=True)
class Piece:
    """The part of one weight that belongs to groups.

    Attributes:
        path: the layer.
        group_of: int64, as many dimensions as the weight, size 1 where all indices are of one group; -1: of none.
    """

    path: str
    group_of: Tensor = field(repr=False)


@dataclass(frozen=True)
class WeightGroups:
    """Groups of weights that are penalised together.

    Attributes:
        kind, name: what they are, and of which layer or layers.
        n: how many.
        pieces: where their weights are.
        silent: one-dimensional parameters that are made zero with a group, so that it answers nothing at all.
    """

    kind: Kind
    name: str
    n: int
    pieces: tuple[Piece, ...] = field(repr=False)
    silent: tuple[Place, ...] = field(default=(), repr=False)


def weight_groups(network: Network, kinds: Sequence[Kind]) -> tuple[list[WeightGroups], dict[str, str]]:
    """The groups of a network's convolutions and linear layers.

    filters: W[o], with all that is removed together with it: the same filter of the layers that are added to it.
    channels: W[:, c] of each layer.  shapes: W[:, c, m, k] of each convolution.  depth: all weights of a block's branch.

    Returns: the groups, and by layer the reason why it has none: it has a representation other than a mask, or it is shared.
    """
    weights, left = _weights(network)
    found: list[WeightGroups] = []
    for kind in KINDS:
        if kind not in kinds:
            continue
        if kind == "filters":
            found += _filters(network, weights)
        elif kind == "depth":
            found += _depth(network, weights, left)
        else:
            of = [(p, w) for p, w in weights.items() if (w.shape[1] > 1 if kind == "channels" else w.dim() > 2)]
            found += [_columns(path, weight, kind) for path, weight in of]
    return found, left


def group_norms(network: Network, groups: WeightGroups) -> tuple[Tensor, Tensor]:
    """||w_g||_2 and |g| of each group, (groups,), of the weights as the layers use them."""
    return _sums(network, groups, torch.square).sqrt(), _sums(network, groups, torch.ones_like)


def zero_groups(network: Network, groups: WeightGroups) -> Tensor:
    """Which groups are exactly zero, bool, (groups,)."""
    return _sums(network, groups, lambda weight: (weight != 0).to(weight.dtype)) == 0


def silence_(network: Network, groups: WeightGroups, zero: Tensor) -> None:
    """Make the biases, scales and shifts of zero groups zero too."""
    gone = zero.cpu()
    with torch.no_grad():
        for place in groups.silent:
            indices = torch.as_tensor(place.indices)[gone[torch.as_tensor(place.channels)]]
            tensor = getattr(network.get_submodule(place.path), place.name)
            tensor.index_fill_(0, indices.to(tensor.device), 0.0)


def stored_weight(layer: nn.Module) -> Tensor:
    """The trained tensor behind a layer's weight, under its masks."""
    if parametrize.is_parametrized(layer, "weight"):
        original: Tensor = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
        return original
    return layer.weight  # type: ignore[return-value]


def _weights(network: Network) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of convolutions and linear layers by path, and the reasons why others are left out."""
    calls: dict[int, int] = {}
    for module in network.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                calls[id(parameter)] = calls.get(id(parameter), 0) + 1
    found: dict[str, Tensor] = {}
    left: dict[str, str] = {}
    for path, layer in network.layers().items():
        if not isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            continue
        others = [r.kind for r in representations(layer, "weight") if not isinstance(r, Mask)]
        if others:
            left[path] = f"its weight is written as a {others[0]}"
        elif parametrize.is_parametrized(layer, "bias"):
            left[path] = "its bias has a representation"
        elif calls.get(id(stored_weight(layer)), 0) > 1:
            left[path] = "its weight is shared"
        else:
            found[path] = getattr(layer, "weight").detach()  # noqa: B009  a parametrized one is no declared attribute
    return found, left


def _filters(network: Network, weights: Mapping[str, Tensor]) -> list[WeightGroups]:
    found = []
    for group in channel_groups(network).groups:
        pieces, whole = [], True
        for place in group.places:
            if not place.produces or getattr(network.get_submodule(place.path), place.name).dim() < 2:
                continue
            if place.path not in weights or place.name != "weight":
                whole = False  # some of what comes out there cannot become zero
                continue
            shape = [1] * weights[place.path].dim()
            shape[place.dim] = weights[place.path].shape[place.dim]
            numbers = torch.full((shape[place.dim],), -1, dtype=torch.int64)
            numbers[torch.as_tensor(place.indices)] = torch.as_tensor(place.channels)
            pieces.append(Piece(place.path, numbers.reshape(shape)))
        silent = _beside(network, group)
        if pieces and whole and silent is not None:
            found.append(WeightGroups("filters", group.name, group.n_channels, tuple(pieces), silent))
    return found


def _beside(network: Network, group: Group) -> tuple[Place, ...] | None:
    """The biases, scales and shifts that run with a group's channels; None where one has a representation."""
    found = []
    for place in group.places:
        owner = network.get_submodule(place.path)
        if parametrize.is_parametrized(owner, place.name):
            if getattr(owner, place.name).dim() == 1:
                return None
        elif place.name in owner._parameters and getattr(owner, place.name).dim() == 1:
            found.append(place)
    return tuple(found)


def _depth(network: Network, weights: Mapping[str, Tensor], left: Mapping[str, str]) -> list[WeightGroups]:
    found = []
    modules = dict(network.named_modules())
    for block in find_blocks(network)[0]:
        pieces, silent, whole = [], [], True
        for path in block.layers:
            layer = modules.get(path)
            if layer is None or path in left or parametrize.is_parametrized(layer, "bias"):
                whole = False
                continue
            if path in weights:
                pieces.append(Piece(path, torch.zeros([1] * weights[path].dim(), dtype=torch.int64)))
            for name, parameter in layer.named_parameters(recurse=False):
                if parameter.dim() == 1:
                    places = np.arange(len(parameter))
                    silent.append(Place(path, name, 0, False, np.zeros_like(places), places))
                else:
                    whole = whole and path in weights
        if pieces and whole:
            found.append(WeightGroups("depth", block.name, 1, tuple(pieces), tuple(silent)))
    return found


def _columns(path: str, weight: Tensor, kind: Kind) -> WeightGroups:
    shape = [1, weight.shape[1], *(weight.shape[2:] if kind == "shapes" else [1] * (weight.dim() - 2))]
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape)
    return WeightGroups(kind, path, numbers.numel(), (Piece(path, numbers),))


def _weight(network: Network, piece: Piece) -> Tensor:
    found: Tensor = getattr(network.get_submodule(piece.path), "weight")  # noqa: B009
    return found.detach()


def _sums(network: Network, groups: WeightGroups, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum over each group of a function of its weights, (groups,)."""
    total: Tensor | None = None
    for piece in groups.pieces:
        weight = _weight(network, piece)
        own = piece.group_of.to(weight.device)
        over = [d for d in range(weight.dim()) if own.shape[d] == 1]
        values = of(weight).sum(over, keepdim=True) if over else of(weight)
        inside = own >= 0
        total = weight.new_zeros(groups.n) if total is None else total
        total.index_add_(0, own[inside], values[inside])
    assert total is not None
    return total
