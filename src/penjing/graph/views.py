"""Results that share memory: a change in place of one is a change of the others, and a graph has to say so."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch

from penjing.errors import TraceError

if TYPE_CHECKING:
    from penjing.graph.reader import Reader, Value


class Views:
    """The views among the values that a reader has read so far."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._of: dict[torch.fx.Node, list[torch.fx.Node]] = {}
        self._stale: set[torch.fx.Node] = set()

    def up_to_date(self, node: torch.fx.Node) -> torch.fx.Node:
        """The fx node whose value this one's is; if something that it views was changed since, it is read again."""
        node = _root(node)
        if node in self._stale:
            self._stale.discard(node)
            self._reader.read(node)
        return node

    def note(self, node: torch.fx.Node) -> None:
        """Remember whose view a value is, if it is one."""
        parent = node.args[0] if node.args else None
        if isinstance(parent, torch.fx.Node) and (node.target is operator.getitem or _is_view(node.target)):
            self.add(node, parent)

    def add(self, view: torch.fx.Node, source: torch.fx.Node) -> None:
        """Remember that a value is a view of another."""
        self._of.setdefault(_root(source), []).append(view)

    def write_back(self, target: torch.fx.Node, value: Value, where: str) -> None:
        """`target` was changed in place: so are what it is a view of, and the other views of that."""
        values = self._reader.values
        target = _root(target)
        stored = self._reader.stored_path(target)
        if stored is not None:
            raise TraceError(
                f"trace: {where} changes {stored} in place; "
                "a network whose answer depends on earlier calls cannot be held as a graph."
            )
        values[target] = value
        for view in self._of.get(target, []):
            self._spoil(view)
        if not _is_view(target.target) or not target.args:
            return
        assert isinstance(target.args[0], torch.fx.Node)
        parent = _root(target.args[0])
        if parent not in values or self._reader.stored_path(parent) is not None:
            raise TraceError(f"trace: {where} changes a part of a parameter or buffer in place; that is not supported.")
        siblings = self._of[parent]
        siblings.remove(target)
        name = target.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
        before = values[parent]
        if name == "slice":
            dim, start, end, step = _slice_args(target)
            start, end = self._reader.size(start, where), self._reader.size(end, where)
            changed = self._reader.emit(
                parent, "slice_scatter", before, value, dim=dim, start=start, end=end, step=step
            )
        elif name == "select":
            changed = self._reader.emit(
                parent, "select_scatter", before, value, dim=target.args[1], index=target.args[2]
            )
        elif name in (
            "view",
            "unsqueeze",
            "squeeze",
            "flatten",
            "reshape",
            "unflatten",
            "_unsafe_view",
            "alias",
            "contiguous",
        ):
            shape = tuple(self._reader.size(size, where) for size in parent.meta["val"].shape)
            changed = self._reader.emit(parent, "reshape", value, shape=shape)
        elif name == "detach":
            changed = value  # type: ignore[assignment]
        else:
            raise TraceError(f"trace: {where} changes the result of {name} in place; that is not supported.")
        self.write_back(parent, changed, where)
        siblings.append(target)

    def _spoil(self, view: torch.fx.Node) -> None:
        self._stale.add(view)
        for below in self._of.get(view, []):
            self._spoil(below)


def _root(node: torch.fx.Node) -> torch.fx.Node:
    """An operation in place returns what it changed."""
    while isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        assert isinstance(node.args[0], torch.fx.Node)
        node = node.args[0]
    return node


def _slice_args(node: torch.fx.Node) -> tuple[int, Any, Any, int]:
    given = [*node.args[1:]]
    defaults: list[Any] = [0, None, None, 1]
    found = given + defaults[len(given) :]
    return found[0], 0 if found[1] is None else found[1], 2**63 - 1 if found[2] is None else found[2], found[3]


def _is_view(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    returns = target._schema.returns
    named = target._schema.name.removeprefix("aten::") in ("reshape", "flatten", "contiguous", "expand_as", "view_as")
    return named or any(r.alias_info is not None for r in returns)
