"""Which channels belong together: what must be removed from every layer when one channel goes.

Every node's result gets one label per channel. A convolution draws fresh labels for its output and notes that its weight's
columns read the labels of its input; batch norm and depthwise convolution keep labels; an addition makes the labels of its
two inputs the same; a concatenation puts them one after another; flatten repeats each. Channels whose labels have become
the same stand or fall together.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT, Network, Node, node_shapes
from penjing.graph.ops import MODULES, OPERATIONS, kind_of

Role = Literal["out", "in", "through"]
_POOLS = {"MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d"}
_POOL_OPERATIONS = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}


@dataclass(frozen=True, order=True)
class Slot:
    """One index of one layer.

    Attributes:
        path: the layer.
        role: "out": a row of its weight and its bias; "in": a column of its weight;
            "through": a channel that it handles by itself (batch norm, depthwise convolution).
        index: which one.
    """

    path: str
    role: Role
    index: int


Channel = tuple[Slot, ...]
"""All slots that go when one channel goes, sorted."""


@dataclass(frozen=True)
class Group:
    """Channels of the same layers in the same roles: the set among which pruning chooses.

    Attributes:
        name: the paths of the layers that produce the channels, joined by " + ".
        channels: in the order of the first producer's output.
    """

    name: str
    channels: tuple[Channel, ...]

    @property
    def producers(self) -> list[str]:
        """The layers whose output rows these channels are."""
        return list(dict.fromkeys(slot.path for slot in self.channels[0] if slot.role == "out"))

    @property
    def layers(self) -> list[str]:
        """All layers that take part."""
        return list(dict.fromkeys(slot.path for slot in self.channels[0]))


@dataclass(frozen=True)
class Grouping:
    """The groups of a network, and the layers whose outputs stay whole, each with the reason."""

    groups: tuple[Group, ...]
    kept: dict[str, str]


class _Labels:
    """Union-find over channel labels; a label may carry a reason why it must stay."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.reason: dict[int, str] = {}

    def fresh(self, n: int) -> np.ndarray:
        start = len(self.parent)
        self.parent.extend(range(start, start + n))
        return np.arange(start, start + n)

    def find(self, label: int) -> int:
        root = label
        while self.parent[root] != root:
            root = self.parent[root]
        while self.parent[label] != root:
            self.parent[label], label = root, self.parent[label]
        return root

    def unite(self, left: Iterable[int], right: Iterable[int]) -> None:
        for a, b in zip(left, right, strict=True):
            ra, rb = self.find(int(a)), self.find(int(b))
            if ra != rb:
                low, high = min(ra, rb), max(ra, rb)
                self.parent[high] = low
                if high in self.reason:
                    self.reason.setdefault(low, self.reason[high])

    def lock(self, labels: Iterable[int], reason: str) -> None:
        for label in labels:
            self.reason.setdefault(self.find(int(label)), reason)


def channel_groups(network: Network) -> Grouping:
    """Find the groups of channels that can be removed.

    Returns: the groups, and per layer whose channels must stay, the reason.
    """
    labels = _Labels()
    slots: list[tuple[int, Slot]] = []
    seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # input and output labels of each layer's first call
    of: dict[str, np.ndarray] = {}  # labels of each node's result along dimension 1
    shapes = node_shapes(network)
    for node in network.nodes:
        inputs = [of[name] for name in node.inputs]
        if node.op == INPUT:
            shape = shapes[node.name]
            of[node.name] = labels.fresh(_n_labels(shape))
            labels.lock(of[node.name], "it is an input of the network")
        elif node.op in (OUTPUT, EXIT):
            labels.lock(inputs[0], "it is an output of the network")
        elif node.op == MODULE:
            of[node.name] = _through_layer(network, node, inputs[0], labels, slots, shapes)
        else:
            of[node.name] = _through_operation(node, inputs, labels, shapes)
        if node.op == MODULE and isinstance(
            network.get_submodule(node.path), (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)
        ):
            before, after = seen.setdefault(node.path, (inputs[0], of[node.name]))
            if len(before) == len(inputs[0]):  # called again: one weight, so what it reads and gives belongs together
                labels.unite(before, inputs[0])
                labels.unite(after, of[node.name])
            else:
                labels.lock([*before, *inputs[0], *after, *of[node.name]], f"{node.path} is called on different shapes")
    return _collect(labels, slots)


def _through_layer(
    network: Network,
    node: Node,
    inputs: np.ndarray,
    labels: _Labels,
    slots: list[tuple[int, Slot]],
    shapes: dict[str, tuple[int, ...]],
) -> np.ndarray:
    layer = network.get_submodule(node.path)
    kind = kind_of(layer)

    def note(found: np.ndarray, role: Role) -> None:
        slots.extend((int(label), Slot(node.path, role, index)) for index, label in enumerate(found))

    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        out = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        if groups > 1 and groups == len(inputs):  # depthwise; out = groups x multiplier
            result = np.repeat(inputs, out // groups)
            note(result, "through")
            return result
        if isinstance(layer, nn.Linear) and len(shapes[node.inputs[0]]) != 2:
            result = labels.fresh(_n_labels(shapes[node.name]))
            labels.lock(inputs, f"{node.path} reads it along another dimension")
            labels.lock(result, f"{node.path} works along another dimension than the channels")
            return result
        result = labels.fresh(out)
        if groups > 1:
            labels.lock(inputs, f"the grouped convolution {node.path} reads it")
            labels.lock(result, f"{node.path} is a grouped convolution")
        else:
            note(inputs, "in")
            note(result, "out")
        return result
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        note(inputs, "through")
        return inputs
    if kind == "Flatten" and layer.start_dim == 1 and layer.end_dim == -1:
        return _flatten(inputs, shapes[node.inputs[0]])
    if kind in _POOLS or (kind is not None and MODULES[kind].elementwise):
        return inputs
    labels.lock(inputs, f"{node.path} ({kind or type(layer).__name__}) mixes channels")
    result = labels.fresh(_n_labels(shapes[node.name]))
    labels.lock(result, f"{node.path} ({kind or type(layer).__name__}) mixes channels")
    return result


def _through_operation(
    node: Node, inputs: list[np.ndarray], labels: _Labels, shapes: dict[str, tuple[int, ...]]
) -> np.ndarray:
    operation = OPERATIONS[node.op]
    if operation.elementwise:
        for other in inputs[1:]:
            labels.unite(inputs[0], other)
        return inputs[0]
    if node.op in _POOL_OPERATIONS:
        return inputs[0]
    if node.op == "concat" and node.settings["dim"] in (1, 1 - len(shapes[node.name])):
        return np.concatenate(inputs)
    if node.op == "flatten" and node.settings["start_dim"] == 1:
        return _flatten(inputs[0], shapes[node.inputs[0]])
    if node.op == "mean":
        rank = len(shapes[node.inputs[0]])
        if all(d % rank > 1 for d in node.settings["dims"]):
            return inputs[0]
    for each in inputs:
        labels.lock(each, f"{node.name} ({node.op}) mixes channels")
    result = labels.fresh(_n_labels(shapes[node.name]))
    labels.lock(result, f"{node.name} ({node.op}) mixes channels")
    return result


def _n_labels(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) > 1 else 1


def _flatten(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.repeat(labels, math.prod(shape[2:]))


def _collect(labels: _Labels, slots: list[tuple[int, Slot]]) -> Grouping:
    channels: dict[int, set[Slot]] = {}
    kept: dict[str, str] = {}
    for label, slot in slots:
        root = labels.find(label)
        if root in labels.reason:
            if slot.role == "out":
                kept.setdefault(slot.path, labels.reason[root])
        else:
            channels.setdefault(root, set()).add(slot)
    groups: dict[tuple[tuple[str, str], ...], list[Channel]] = {}
    for found in channels.values():
        channel = tuple(sorted(found))
        if any(slot.role == "out" for slot in channel):
            signature = tuple(dict.fromkeys((slot.path, slot.role) for slot in channel))
            groups.setdefault(signature, []).append(channel)
    return Grouping(
        tuple(
            Group(" + ".join(dict.fromkeys(p for p, role in signature if role == "out")), tuple(members))
            for signature, members in groups.items()
        ),
        kept,
    )
