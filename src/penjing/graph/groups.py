"""Which channels belong together: what must be removed from every tensor when one channel goes.

`channel_groups` lets labels flow through a network (`labels`, `rules`) and collects what came out of it: groups of channels
among which pruning may choose, and the reasons why other channels stay. `Grouping.removal` says what has to be cut where
when some of them go: slices of tensors, constants of nodes and layers, and the places where the large network must be
forced to zero to compute the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from penjing.errors import SurgeryError, nearest
from penjing.graph.garbage import collector_paused
from penjing.graph.labels import Edge, Labels, Resolved, Site, Value
from penjing.graph.network import EXIT, INPUT, OUTPUT, TENSOR, Network, node_shapes
from penjing.graph.rules import flow

_BATCH = 11
"""Samples while shapes are followed: a number that no channel count divides by accident."""
_MAX_PASSES = 6


@dataclass(frozen=True)
class Place:
    """Where the channels of a group are in one dimension of one tensor.

    Attributes:
        path, name, dim: the layer, its parameter or buffer, the dimension.
        produces: the channels come into being here: these are the rows of a weight.
        channels, indices: pair by pair, a channel of the group and an index that goes with it.
    """

    path: str
    name: str
    dim: int
    produces: bool
    channels: np.ndarray = field(repr=False)
    indices: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Group:
    """Channels that run through the same tensors: the set among which pruning chooses.

    Attributes:
        name: the paths of the layers that produce the channels, joined by " + ".
        producers: those paths.
        n_channels: how many channels can be removed one by one.
        places: where they are.
        reads: the nodes that sum over the channels, with the position among their inputs, the dimension, and pair by pair a
            channel and its index.
        roots: the channels' numbers in the grouping.
    """

    name: str
    producers: tuple[str, ...]
    n_channels: int
    places: tuple[Place, ...] = field(repr=False)
    reads: tuple["Read", ...] = field(repr=False)
    roots: np.ndarray = field(repr=False)

    @property
    def layers(self) -> list[str]:
        """All layers that take part."""
        return list(dict.fromkeys(place.path for place in self.places))


@dataclass(frozen=True)
class Read:
    """Where a node sums over channels of a group; see `Group.reads`."""

    node: str
    position: int
    dim: int
    channels: np.ndarray = field(repr=False)
    indices: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Slice:
    """One dimension of one tensor and the indices that stay."""

    path: str
    name: str
    dim: int
    keep: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Change:
    """A constant and its new value; the fields are those of `labels.Count`."""

    of: Literal["node", "layer"]
    owner: str
    setting: str
    position: int | None
    value: int


@dataclass(frozen=True)
class Force:
    """An input edge of a node of the large network, a dimension and the indices that are zero or left out there."""

    node: str
    position: int
    dim: int
    gone: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Removal:
    """Everything that changes when some channels go.

    Attributes:
        chosen: by group, how many of its channels go.
        slices, changes: what is cut and which constants follow.
        zeros: where the large network's channels are zero when it is compared.
        survivors: where it takes its statistics over the channels that stay: layer, RMS and group norm, means. This is a
            change of function, not only of size.
    """

    chosen: Mapping[str, int]
    slices: tuple[Slice, ...] = field(repr=False)
    changes: tuple[Change, ...] = field(repr=False)
    zeros: tuple[Force, ...] = field(repr=False)
    survivors: tuple[Force, ...] = field(repr=False)

    @property
    def n_channels(self) -> int:
        """How many channels go."""
        return sum(self.chosen.values())


class Grouping:
    """The groups of a network.

    Attributes:
        groups: what can be removed.
        kept: by layer, the reason why its outputs stay whole.
    """

    def __init__(self, network: Network, labels: Labels, resolved: Resolved) -> None:
        self._network = network
        self._labels = labels
        self._resolved = resolved
        self._sites = _with_tied_owners(network, labels.sites)
        self.groups: tuple[Group, ...] = ()
        self.kept: dict[str, str] = {}
        self._collect()

    @property
    def producers(self) -> dict[str, nn.Module]:
        """The layers that produce channels, by path; for a parameter of the model itself, under its name, the model."""
        modules = dict(self._network.named_modules())
        paths = dict.fromkeys(path for group in self.groups for path in group.producers)
        return {path: modules.get(path, self._network) for path in paths}

    def group(self, name: str) -> Group:
        """The group of that name. Raises: SurgeryError: there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise SurgeryError(f'surgery: there is no group "{name}"; {nearest(name, [g.name for g in self.groups])}.')

    def _collect(self) -> None:
        roots, locked = self._resolved.roots, self._resolved.locked
        made: dict[int, dict[str, None]] = {}  # by root, the layers that produce it
        for path, labels in self._labels.produced:
            found = np.unique(roots[labels])
            free = found[locked[found] == 0]
            if len(free) == 0:
                self.kept.setdefault(path, self._resolved.reasons[locked[found[0]]])
            for root in free.tolist():
                made.setdefault(root, {})[path] = None
        generator = np.random.default_rng(0)
        hashes = np.zeros(len(locked), dtype=np.int64)
        axes = [*(site.labels for site in self._sites), *self._labels.seen]
        for key, axis in zip(generator.integers(1, 1 << 62, len(axes), dtype=np.int64), axes, strict=True):
            hashes[np.unique(roots[axis])] += key  # wraps, which a hash may
        by_hash: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for root in sorted(made):
            by_hash.setdefault((int(hashes[root]), tuple(made[root])), []).append(root)
        group_of = np.full(len(locked), -1, dtype=np.int64)
        place_of = np.zeros(len(locked), dtype=np.int64)
        for number, members in enumerate(by_hash.values()):
            group_of[members] = number
            place_of[members] = np.arange(len(members))
        places: list[list[Place]] = [[] for _ in by_hash]
        produced = {id(labels) for _, labels in self._labels.produced}
        for site in self._sites:
            for number, channels, indices in _shares(roots[site.labels], group_of, place_of):
                produces = id(site.labels) in produced
                places[number].append(Place(site.path, site.name, site.dim, produces, channels, indices))
        reads: list[list[Read]] = [[] for _ in by_hash]
        for edge in self._labels.edges:
            for number, channels, indices in _shares(roots[edge.labels], group_of, place_of):
                reads[number].append(Read(edge.node, edge.position, edge.dim, channels, indices))
        names: dict[str, int] = {}
        groups = []
        for number, ((_, producers), members) in enumerate(by_hash.items()):
            name = " + ".join(producers)
            names[name] = names.get(name, 0) + 1
            unique = name if names[name] == 1 else f"{name} #{names[name]}"
            groups.append(
                Group(unique, producers, len(members), tuple(places[number]), tuple(reads[number]), np.array(members))
            )
        self.groups = tuple(groups)

    def removal(self, chosen: Mapping[str, Sequence[int]]) -> Removal:
        """What changes when channels go.

        Args:
            chosen: by the name of a group, the positions of its channels that go.
        Raises: SurgeryError: no such group or channel, or a tensor would lose its last channel.
        """
        roots = self._resolved.roots
        gone = np.zeros(len(self._resolved.locked), dtype=bool)
        for name, positions in chosen.items():
            group = self.group(name)
            if any(not 0 <= p < group.n_channels for p in positions):
                raise SurgeryError(
                    f'surgery: the group "{name}" has the channels 0 to {group.n_channels - 1}, got {list(positions)}.'
                )
            gone[group.roots[list(positions)]] = True
        slices, changes = [], []
        for site in self._sites:
            out = gone[roots[site.labels]]
            if out.all():
                raise SurgeryError(
                    f"surgery: all {len(out)} channels of {site.path} would be removed; leave it at least one."
                )
            if out.any():
                slices.append(Slice(site.path, site.name, site.dim, np.flatnonzero(~out)))
        for axis in self._labels.seen:
            if gone[roots[axis]].all():
                raise SurgeryError(
                    f"surgery: all {len(axis)} channels of a result would be removed; leave it at least one."
                )
        for count in self._labels.counts:
            out = gone[roots[count.labels]]
            if out.any():
                changes.append(Change(count.of, count.owner, count.setting, count.position, int((~out).sum())))
        return Removal(
            {name: len(positions) for name, positions in chosen.items() if len(positions)},
            tuple(slices),
            tuple(changes),
            self._forced(self._labels.edges, gone),
            self._forced(self._labels.statistics, gone),
        )

    def _forced(self, edges: Sequence[Edge], gone: np.ndarray) -> tuple[Force, ...]:
        found = []
        for edge in edges:
            out = gone[self._resolved.roots[edge.labels]]
            if out.any():
                found.append(Force(edge.node, edge.position, edge.dim, np.flatnonzero(out)))
        return tuple(found)


def channel_groups(network: Network) -> Grouping:
    """Find the groups of channels that can be removed.

    A dimension that is read as several (heads and their width, groups and what is in them) loses channels along one of them:
    attention loses heads, shuffled channels the same of every group; where that is impossible, the other is tried.
    """
    with collector_paused():
        return _grouped(network)


def _grouped(network: Network) -> Grouping:
    shapes = node_shapes(network, batch=_BATCH)
    choices: dict[tuple[str, int], int] = {}
    tried: dict[tuple[str, int], dict[int, int]] = {}  # by split, the options so far and the channels that each left
    for _ in range(_MAX_PASSES):
        labels = _labels(network, shapes, choices)
        resolved = labels.resolve()
        attended = np.unique(resolved.roots[np.concatenate([np.zeros(0, dtype=np.int64), *labels.attended])])
        changed = False
        later: list[frozenset[int]] = []
        for split in reversed(labels.splits):
            own = frozenset(split.labels.tolist())
            outer = any(part < own for part in later)  # a part of it is split once more: there the heads are
            later.append(own)
            seen = tried.setdefault(split.key, {})
            first = not seen
            seen[split.chosen] = resolved.units(split.labels)
            at = split.options.index(split.chosen)
            heads = split.key[1] >= 0 and bool(np.isin(resolved.roots[split.labels], attended).any())
            if first and heads and at > 0 and not outer:
                choice = split.options[at - 1]
            elif seen[split.chosen] < 2:
                unseen = [option for option in reversed(split.options) if option not in seen]
                choice = unseen[0] if unseen else max(seen, key=seen.__getitem__)
            else:
                continue
            if choice != split.chosen:
                choices[split.key] = choice
                changed = True
        if not changed:
            break
    return Grouping(network, labels, resolved)


def _labels(network: Network, shapes: Mapping[str, tuple[int, ...]], choices: dict[tuple[str, int], int]) -> Labels:
    """Let labels flow through the network once."""
    labels = Labels(network, choices)
    known: dict[str, Value] = {}
    for node in network.nodes:
        inputs = [known[name] for name in node.inputs]
        shape = shapes[node.name]
        if node.op == INPUT:
            known[node.name] = Value(shape, (None,) * len(shape))
        elif node.op in (OUTPUT, EXIT):
            for value in inputs:
                labels.lock_all(value, "it is an output of the network")
        elif node.op == TENSOR:
            owner, _, name = node.path.rpartition(".")
            known[node.name] = labels.tensor(owner, name)
        else:
            known[node.name] = flow(labels, network, node, inputs, shape)
            labels.note(known[node.name])
    return labels


def _shares(roots: np.ndarray, group_of: np.ndarray, place_of: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Of an axis with these roots: each group that has part in it, its channels, and their indices along the axis."""
    groups = group_of[roots]
    found = []
    for number in np.unique(groups):
        if number >= 0:
            indices = np.flatnonzero(groups == number)
            found.append((int(number), place_of[roots[indices]], indices))
    return found


def _with_tied_owners(network: Network, sites: Sequence[Site]) -> list[Site]:
    """The sites, and again for every other place where the same tensor object is held."""
    owners: dict[int, list[tuple[str, str]]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                owners.setdefault(id(tensor), []).append((path, name))
    found = []
    for site in sites:
        layer = network.get_submodule(site.path)
        own: Any = layer._parameters.get(site.name)
        own = layer._buffers.get(site.name) if own is None else own
        places = owners.get(id(own), []) if own is not None else []
        seen: set[int] = set()
        for path, name in [(site.path, site.name), *places]:
            holder: nn.Module = network.get_submodule(path)
            if id(holder) in seen and name == site.name:
                continue
            seen.add(id(holder))
            found.append(Site(path, name, site.dim, site.labels))
    return found
