"""What the rules share: arguments by name, shapes, and the simplest rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penjing.errors import TraceError
from penjing.graph.sizes import Size

if TYPE_CHECKING:
    from penjing.graph.reader import Reader

FxNode = torch.fx.Node
Rule = Callable[["Reader", FxNode, str], Any]
END = 2**63 - 1


def arguments(node: FxNode) -> dict[str, Any]:
    """The arguments of a call by the names in its schema, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    found: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            found[argument.name] = node.args[position]
        else:
            found[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return found


def shape_of(node: Any) -> tuple[Any, ...]:
    """The shape of what an fx node gives; sizes may be symbolic."""
    return tuple(node.meta["val"].shape)


def rank_of(node: Any) -> int:
    return len(shape_of(node))


def whole_numbers(value: Any, n: int | None = None) -> tuple[int, ...]:
    """One number or several as a tuple; of n where one stands for all."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * n if n is not None and len(values) == 1 else values


def is_tensor(value: Any) -> bool:
    return isinstance(value, FxNode) and isinstance(value.meta.get("val"), Tensor)


def sizes_of(reader: Reader, node: FxNode, where: str) -> tuple[int | Size, ...]:
    """The shape of a result, as a setting."""
    return tuple(reader.size(size, where) for size in shape_of(node))


def keep_samples_apart(reader: Reader, dims: Sequence[int], node: Any, op: str, where: str) -> None:
    """Each sample is computed by itself. Raises: TraceError: the operation mixes samples."""
    shape = shape_of(node)
    mixes = any(d % len(shape) == 0 for d in dims) if shape else False
    if mixes and reader.size(shape[0], where) == Size(("batch",)):
        raise TraceError(
            f"trace: {op} in {where} runs along the batch dimension; each sample must be computed by itself. "
            "Move that step behind the network."
        )


def plainly(op: str, **renamed: str) -> Rule:
    """An operation of one tensor whose settings are arguments: setting = name in the schema."""

    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        reader.emit(node, op, node.args[0], **{setting: a[name] for setting, name in renamed.items()})

    return read


def pass_on(reader: Reader, node: FxNode, where: str) -> None:
    reader.values[node] = reader.value(node.args[0])  # type: ignore[arg-type]


def alike(reader: Reader, left: Any, right: Any, where: str) -> bool:
    return reader.size(left, where) == reader.size(right, where)
