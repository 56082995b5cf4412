"""Labels: which indices of which tensors stand or fall together.

Every index of every dimension of every parameter gets a label. Labels flow through the nodes: a convolution's output channels
carry the labels of its weight's rows, its weight's columns are tied to the labels of its input; an addition ties the labels of
its two inputs; a concatenation puts them one after another. What is tied is removed together; what meets something that
cannot be removed is locked, with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from torch import nn

from penjing.graph.network import Network, tensor_at

Axis = np.ndarray | None
"""One label for each index along a dimension, int64; None: nothing along it can be removed."""


@dataclass(frozen=True)
class Value:
    """What is known of a node's result.

    Attributes:
        shape: its sizes; axes: one for each dimension.
        learned: it is computed of parameters and constants alone.
    """

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    learned: bool = False


@dataclass(frozen=True)
class Site:
    """One dimension of one parameter or buffer, with a label for each index."""

    path: str
    name: str
    dim: int
    labels: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Count:
    """A constant that is the number of surviving labels: of a node's setting or of a layer's attribute.

    Attributes:
        owner: the node's name or the layer's path; which, says `of`.
        position: in a tuple of numbers; None: the constant is one number.
    """

    of: Literal["node", "layer"]
    owner: str
    setting: str
    position: int | None
    labels: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Edge:
    """Where a node sums or averages over labels: its input at `position`, along `dim`."""

    node: str
    position: int
    dim: int
    labels: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Split:
    """A dimension that is read as several; channels of it are removed along one of them.

    Attributes:
        key: the node and the dimension.
        options: which parts can be chosen; chosen: which one is.
        labels: of the chosen part.
    """

    key: tuple[str, int]
    options: tuple[int, ...]
    chosen: int
    labels: np.ndarray = field(repr=False)


class Labels:
    """All labels of a network and what is known of them.

    Args:
        choices: for splits, which part carries the labels; else the last.
    """

    def __init__(self, network: Network, choices: dict[tuple[str, int], int]) -> None:
        self.network = network
        self.choices = choices
        self.n = 0
        self.tied: list[tuple[np.ndarray, np.ndarray]] = []
        self.locked: list[tuple[np.ndarray, str]] = []
        self.sites: list[Site] = []
        self.counts: list[Count] = []
        self.edges: list[Edge] = []
        self.statistics: list[Edge] = []
        self.produced: list[tuple[str, np.ndarray]] = []
        self.attended: list[np.ndarray] = []
        self.splits: list[Split] = []
        self.seen: list[np.ndarray] = []  # kept, so that their ids stay unique
        self._seen_ids: set[int] = set()
        self.virtual: set[int] = set()
        self._tensors: dict[tuple[int, str], Value] = {}

    def fresh(self, n: int) -> np.ndarray:
        """New labels."""
        self.n += n
        return np.arange(self.n - n, self.n)

    def free(self, n: int) -> np.ndarray:
        """Labels of numbers that no parameter holds: zeros that are padded, a size that is broadcast."""
        found = self.fresh(n)
        self.virtual.update(found.tolist())
        return found

    def tie(self, left: np.ndarray, right: np.ndarray) -> None:
        """These labels, pair by pair, stand or fall together."""
        if left is not right:
            self.tied.append((left, right))

    def tie_all(self, rows: np.ndarray) -> np.ndarray:
        """In (n, k) labels those of each row are one. Returns: one label a row, (n,)."""
        if rows.shape[1] > 1:
            self.tied.append((np.repeat(rows[:, 0], rows.shape[1] - 1), rows[:, 1:].reshape(-1)))
        return rows[:, 0].copy()

    def lock(self, axis: Axis, reason: str) -> None:
        """These channels must stay."""
        if axis is not None and len(axis):
            self.locked.append((axis, reason))

    def lock_all(self, value: Value, reason: str, but: Sequence[int] = ()) -> None:
        """All channels of a value must stay, except along some dimensions."""
        for dim, axis in enumerate(value.axes):
            if dim not in but:
                self.lock(axis, reason)

    def same(self, left: Axis, right: Axis, reason: str) -> Axis:
        """Two dimensions that are one: tied, or locked where only one can lose channels."""
        if left is None or right is None:
            self.lock(left if right is None else right, reason)
            return None
        if len(left) != len(right):
            self.lock(left, reason)
            self.lock(right, reason)
            return None
        self.tie(left, right)
        return left

    def tensor(self, path: str, name: str) -> Value:
        """A parameter or buffer; the same object always has the same labels."""
        found = tensor_at(self.network, f"{path}.{name}" if path else name)
        owner = self.network.get_submodule(path)
        stored = (
            name in owner._parameters or name in owner._buffers
        )  # else its parametrization makes a new one each time
        key = (id(found), "") if stored else (id(owner), name)
        known = self._tensors.get(key)
        if known is None:
            shape = tuple(found.shape)
            axes: list[Axis] = []
            for dim, size in enumerate(shape):
                labels = self.fresh(size) if size > 1 else None
                if labels is not None:
                    self.sites.append(Site(path, name, dim, labels))
                axes.append(labels)
            known = self._tensors[key] = Value(shape, tuple(axes), learned=True)
        return known

    def has(self, layer: nn.Module, name: str) -> bool:
        """Whether a layer has a tensor of that name."""
        return getattr(layer, name, None) is not None

    def count(self, of: Literal["node", "layer"], owner: str, setting: str, position: int | None, axis: Axis) -> None:
        """A constant that changes with the channels along an axis."""
        if axis is not None:
            self.counts.append(Count(of, owner, setting, position, axis))

    def note(self, value: Value) -> None:
        """Remember a result's axes: a slice of a layer's channels keeps one of its own."""
        self.seen.extend(axis for axis in value.axes if axis is not None and id(axis) not in self._seen_ids)
        self._seen_ids.update(id(axis) for axis in value.axes)

    def split(self, node: str, dim: int, labels: np.ndarray, sizes: Sequence[int], free: Sequence[bool]) -> list[Axis]:
        """Read one dimension as several: the labels go to one of them.

        Args:
            labels: (product of sizes,).
            free: which of them may carry labels.
        Returns: an axis for each size; all but one None.
        """
        options = tuple(i for i, size in enumerate(sizes) if size > 1 and free[i])
        if not options:
            self.lock(labels, f"{node} computes its size")
            return [None] * len(sizes)
        chosen = self.choices.get((node, dim), options[-1])
        rows = np.moveaxis(labels.reshape(sizes), chosen, 0).reshape(sizes[chosen], -1)
        found = self.tie_all(rows)
        if len(options) > 1:
            self.splits.append(Split((node, dim), options, chosen, found))
        return [found if i == chosen else None for i in range(len(sizes))]

    def merge(self, axes: Sequence[Axis], sizes: Sequence[int], reason: str) -> Axis:
        """Read several dimensions as one; only one of them may carry labels."""
        carrying = [i for i, axis in enumerate(axes) if axis is not None and sizes[i] > 1]
        if not carrying:
            return None
        chosen = max(carrying, key=lambda i: (not self._is_virtual(axes[i]), sizes[i]))
        for i in carrying:
            if i != chosen:
                self.lock(axes[i], reason)
        axis = axes[chosen]
        assert axis is not None
        shape = [sizes[i] if i == chosen else 1 for i in range(len(sizes))]
        return np.broadcast_to(axis.reshape(shape), tuple(sizes)).reshape(-1)

    def _is_virtual(self, axis: Axis) -> bool:
        return axis is not None and int(axis[0]) in self.virtual

    def resolve(self) -> "Resolved":
        """Tie everything: one root for each set of labels that stand or fall together."""
        left = np.concatenate([pair[0] for pair in self.tied]) if self.tied else np.zeros(0, dtype=np.int64)
        right = np.concatenate([pair[1] for pair in self.tied]) if self.tied else np.zeros(0, dtype=np.int64)
        links = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(self.n, self.n))
        n, roots = connected_components(links, directed=False) if self.n else (0, np.zeros(0, dtype=np.int64))
        first = np.full(n, self.n, dtype=np.int64)
        np.minimum.at(first, roots, np.arange(self.n))
        order = np.argsort(first, kind="stable")  # number the roots in order of appearance
        rank = np.empty(n, dtype=np.int64)
        rank[order] = np.arange(n)
        roots = rank[roots]
        reasons = ["", *dict.fromkeys(reason for _, reason in self.locked)]
        number = {reason: i for i, reason in enumerate(reasons)}
        locked = np.zeros(n, dtype=np.int64)
        for labels, reason in reversed(self.locked):  # the first reason counts
            locked[roots[labels]] = number[reason]
        return Resolved(roots, locked, tuple(reasons))


@dataclass(frozen=True)
class Resolved:
    """The roots of all labels.

    Attributes:
        roots: (labels,) the set that each label belongs to, numbered in order of appearance.
        locked: (sets,) 0 where the set can be removed, else the number of the reason in `reasons`.
    """

    roots: np.ndarray
    locked: np.ndarray
    reasons: tuple[str, ...]

    def units(self, axis: np.ndarray) -> int:
        """How many sets along an axis can be removed by themselves."""
        found = np.unique(self.roots[axis])
        return int((self.locked[found] == 0).sum())
