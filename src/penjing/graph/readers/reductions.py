"""Sums, means and the like over dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from penjing.errors import TraceError
from penjing.graph.readers.reading import END, FxNode, Rule, arguments, keep_samples_apart, rank_of, whole_numbers

if TYPE_CHECKING:
    from penjing.graph.reader import Reader


def _reduce(op: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        rank = rank_of(node.args[0])
        dims = a.get("dim")
        dims = tuple(range(rank)) if dims is None or dims == [] else whole_numbers(dims)
        keep_samples_apart(reader, dims, node.args[0], op, where)
        extra: dict[str, Any] = {}
        if op == "variance":
            extra["correction"] = a["correction"] if a.get("correction") is not None else int(a.get("unbiased", True))
        if op == "vector_norm":
            extra["order"] = float(a["ord"])
        source: Any = node.args[0]
        if a.get("dtype") is not None and source.meta["val"].dtype != node.meta["val"].dtype:
            source = reader.emit(node, "cast", source, dtype=reader.dtype(node.meta["val"].dtype, where))
        reader.emit(node, op, source, dims=dims, keepdim=bool(a.get("keepdim", False)), **extra)

    return read


def _deviation(reader: Reader, node: FxNode, where: str) -> None:
    _reduce("variance")(reader, node, where)
    reader.emit(node, "sqrt", reader.values[node])


def _best(op: str) -> Rule:
    """max and min along a dimension: values are known, places are not."""

    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        if "other" in a:
            reader.emit(node, "maximum" if op == "amax" else "minimum", a["self"], a["other"])
            return
        if "dim" not in a:
            dims = tuple(range(rank_of(node.args[0])))
            keep_samples_apart(reader, dims, node.args[0], op, where)
            reader.emit(node, op, node.args[0], dims=dims, keepdim=False)
            return
        dims = (a["dim"],)
        keep_samples_apart(reader, dims, node.args[0], op, where)
        values = reader.emit(node, op, node.args[0], dims=dims, keepdim=bool(a["keepdim"]))
        reader.values[node] = (values, None)

    return read


def _softmax(op: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        dim = int(a["dim"])
        keep_samples_apart(reader, [dim], node.args[0], op, where)
        source: Any = node.args[0]
        if source.meta["val"].dtype != node.meta["val"].dtype:
            source = reader.emit(node, "cast", source, dtype=reader.dtype(node.meta["val"].dtype, where))
        reader.emit(node, op, source, dim=dim)

    return read


def _along(op: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        dim = arguments(node)["dim"]
        keep_samples_apart(reader, [dim], node.args[0], op, where)
        reader.emit(node, op, node.args[0], dim=dim)

    return read


def _diff(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    if a["n"] != 1:
        raise TraceError(f"trace: diff in {where} more than once is not supported.")
    source: Any = node.args[0]
    dim = a["dim"] % rank_of(source)
    parts = [p for p in (a["prepend"], source, a["append"]) if p is not None]
    joined = reader.emit(node, "concat", *parts, dim=dim) if len(parts) > 1 else reader.value(source)
    later = reader.emit(node, "slice", joined, dim=dim, start=1, end=END, step=1)
    earlier = reader.emit(node, "slice", joined, dim=dim, start=0, end=-1, step=1)
    reader.emit(node, "not_equal" if node.meta["val"].dtype == torch.bool else "subtract", later, earlier)


REDUCTIONS: dict[str, Rule] = {
    "mean": _reduce("mean"),
    "sum": _reduce("sum"),
    "amax": _reduce("amax"),
    "amin": _reduce("amin"),
    "var": _reduce("variance"),
    "std": _deviation,
    "logsumexp": _reduce("logsumexp"),
    "linalg_vector_norm": _reduce("vector_norm"),
    "max": _best("amax"),
    "min": _best("amin"),
    "softmax": _softmax("softmax"),
    "log_softmax": _softmax("log_softmax"),
    "argmax": lambda r, n, w: r.emit(
        n, "argmax", n.args[0], dim=arguments(n)["dim"], keepdim=bool(arguments(n)["keepdim"])
    ),
    "cumsum": _along("cumsum"),
    "diff": _diff,
}
