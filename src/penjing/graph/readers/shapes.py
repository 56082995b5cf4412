"""Operations that move, join and part dimensions, and look up places."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penjing.errors import TraceError
from penjing.graph.readers.reading import (
    END,
    FxNode,
    Rule,
    alike,
    arguments,
    keep_samples_apart,
    pass_on,
    plainly,
    rank_of,
    shape_of,
    sizes_of,
    whole_numbers,
)
from penjing.graph.sizes import Size

if TYPE_CHECKING:
    from penjing.graph.reader import Reader


def _detach(reader: Reader, node: FxNode, where: str) -> None:
    """No gradient goes this way; constants have none."""
    value = reader.value(node.args[0])  # type: ignore[arg-type]
    if isinstance(value, Tensor):
        reader.values[node] = value
    else:
        reader.emit(node, "detach", value)


def _clone(reader: Reader, node: FxNode, where: str) -> None:
    """A value of its own: what is done to it in place is not done to the parameter that it was."""
    reader.values[node] = reader.result(reader.value(node.args[0]), where)  # type: ignore[arg-type]


def _reshape(reader: Reader, node: FxNode, where: str) -> None:
    before, after = shape_of(node.args[0]), shape_of(node)
    if len(before) == len(after) and all(alike(reader, a, b, where) for a, b in zip(before, after, strict=True)):
        return pass_on(reader, node, where)
    if len(after) == 2 and len(before) > 2 and alike(reader, before[0], after[0], where):
        reader.emit(node, "flatten", node.args[0], start_dim=1)
        return None
    sizes = list(sizes_of(reader, node, where))
    symbolic = [i for i, size in enumerate(sizes) if isinstance(size, Size)]
    products = [i for i in symbolic if len(sizes[i].tokens) > 1]  # type: ignore[union-attr]
    if len(symbolic) == 1 or len(products) == 1:  # the same, in fewer bytes; and batch * heads follows the heads
        sizes[(products or symbolic)[0]] = -1
    reader.emit(node, "reshape", node.args[0], shape=tuple(sizes))
    return None


def _permute(reader: Reader, node: FxNode, where: str) -> None:
    op = node.target._schema.name.removeprefix("aten::").removesuffix("_")  # type: ignore[union-attr]
    rank = rank_of(node.args[0])
    order = list(range(rank))
    a = arguments(node)
    if op == "permute":
        order = [d % rank for d in a["dims"]]
    elif op in ("t", "numpy_T", "mT", "adjoint"):
        order = order[:-2] + order[-2:][::-1]
    elif op == "movedim":
        sources, targets = (
            [d % rank for d in whole_numbers(a["source"])],
            [d % rank for d in whole_numbers(a["destination"])],
        )
        rest = [d for d in range(rank) if d not in sources]
        order = [
            sources[targets.index(i)] if i in targets else rest[i - sum(t < i for t in targets)] for i in range(rank)
        ]
    else:
        names = [name for name in a if name not in ("self", "input")]
        first, second = a[names[0]] % rank, a[names[1]] % rank
        order[first], order[second] = order[second], order[first]
    if order == list(range(rank)):
        return pass_on(reader, node, where)
    reader.emit(node, "permute", node.args[0], dims=tuple(order))
    return None


def _expand(reader: Reader, node: FxNode, where: str) -> None:
    before, after = shape_of(node.args[0]), shape_of(node)
    if len(before) == len(after) and all(alike(reader, a, b, where) for a, b in zip(before, after, strict=True)):
        return pass_on(reader, node, where)
    sizes = list(sizes_of(reader, node, where))
    offset = len(after) - len(before)
    for i, size in enumerate(before):
        if alike(reader, size, after[offset + i], where):
            sizes[offset + i] = -1
    reader.emit(node, "expand", node.args[0], shape=tuple(sizes))
    return None


def piece_of(
    reader: Reader, node: FxNode, source: Any, where: str, dim: int, start: Any, end: Any, step: int = 1
) -> None:
    rank = rank_of(source)
    whole = reader.size(shape_of(source)[dim], where)
    start, end = reader.size(start, where), reader.size(end, where)
    if isinstance(whole, int):
        start = (
            max(0, start + whole if isinstance(start, int) and start < 0 else start)
            if isinstance(start, int)
            else start
        )
        if isinstance(end, int):
            end = min(whole, end + whole if end < 0 else end)
    if start == 0 and step == 1 and end in (whole, END):
        reader.values[node] = reader.value(source)
        return
    reader.emit(node, "slice", source, dim=dim % rank, start=start, end=end, step=step)


def _slice(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    rank = rank_of(node.args[0])
    if "length" in a:  # narrow
        start = reader.size(a["start"], where)
        end = reader.size(a["length"], where)
        if not isinstance(start, int) or not isinstance(end, int):
            raise TraceError(f"trace: narrow in {where} by a size that is not fixed is not supported.")
        return piece_of(reader, node, node.args[0], where, a["dim"] % rank, start, start + end)
    start, end = 0 if a["start"] is None else a["start"], END if a["end"] is None else a["end"]
    return piece_of(reader, node, node.args[0], where, a["dim"] % rank, start, end, a["step"])


def _split(reader: Reader, node: FxNode, where: str) -> None:
    """Each part becomes a slice where it is used."""
    source: Any = node.args[0]
    dim = arguments(node)["dim"] % rank_of(source)
    start: int = 0
    parts: list[Any] = []
    for part in node.meta["val"]:
        size = reader.size(part.shape[dim], where)
        if not isinstance(size, int):
            raise TraceError(f"trace: a split in {where} by a size that is not fixed is not supported.")

        def read(item: FxNode, start: int = start, size: int = size) -> Any:
            piece_of(reader, item, source, where, dim, start, start + size)
            return reader.values[item]

        parts.append(read)
        start += size
    reader.values[node] = tuple(parts)
    reader.views.add(node, source)


def _unbind(reader: Reader, node: FxNode, where: str) -> None:
    source: Any = node.args[0]
    dim = arguments(node)["dim"] % rank_of(source)
    keep_samples_apart(reader, [dim], source, "unbind", where)

    def at(index: int) -> Callable[[FxNode], Any]:
        return lambda item: reader.emit(item, "select", source, dim=dim, index=index)

    reader.values[node] = tuple(at(i) for i in range(len(node.meta["val"])))
    reader.views.add(node, source)


def _select(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    dim = a["dim"] % rank_of(node.args[0])
    keep_samples_apart(reader, [dim], node.args[0], "select", where)
    reader.emit(node, "select", node.args[0], dim=dim, index=reader.size(a["index"], where))


def _concat(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    parts = [p for p in a["tensors"] if rank_of(p) > 1 or shape_of(p) != (0,)]
    dim = a["dim"] % rank_of(node)
    keep_samples_apart(reader, [dim], node, "concat", where)
    reader.emit(node, "concat", *parts, dim=1 if dim == 1 else dim)


def _stack(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    dim = a["dim"] % rank_of(node)
    parts = []
    for part in a["tensors"]:
        sizes = [reader.size(size, where) for size in shape_of(part)]
        sizes.insert(dim, 1)
        parts.append(reader.emit(node, "reshape", part, shape=tuple(sizes)))
    reader.emit(node, "concat", *parts, dim=dim)


def _index(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    dims = tuple(i for i, index in enumerate(a["indices"]) if index is not None)
    indices = [a["indices"][i] for i in dims]
    if any(index.meta["val"].dtype == torch.bool for index in indices):
        raise TraceError(
            f"trace: {where} chooses by a mask, so a shape depends on the data; that cannot be held as a graph."
        )
    reader.emit(node, "index", a["self"], *indices, dims=dims)


def _index_select(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    reader.emit(node, "index", a["self"], a["index"], dims=(a["dim"] % rank_of(node.args[0]),))


def _gather(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    reader.emit(node, "gather", a["self"], a["index"], dim=a["dim"])


def _pad(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    amounts = tuple(reader.size(p, where) for p in a["pad"])
    if all(p == 0 for p in amounts):
        return pass_on(reader, node, where)
    reader.emit(node, "pad", node.args[0], pad=amounts, mode=a.get("mode", "constant"), value=a.get("value"))
    return None


def _padded(mode: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        reader.emit(node, "pad", node.args[0], pad=tuple(a["padding"]), mode=mode, value=None)

    return read


def _repeat(reader: Reader, node: FxNode, where: str) -> None:
    repeats = tuple(reader.size(r, where) for r in arguments(node)["repeats"])
    if len(repeats) == rank_of(node.args[0]) and all(r == 1 for r in repeats):
        return pass_on(reader, node, where)
    reader.emit(node, "repeat", node.args[0], repeats=repeats)
    return None


def _repeat_interleave(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    if not isinstance(a.get("repeats"), int) or a.get("dim") is None:
        raise TraceError(f"trace: repeat_interleave in {where} needs one number and a dimension.")
    reader.emit(node, "repeat_interleave", node.args[0], repeats=a["repeats"], dim=a["dim"] % rank_of(node))


def _roll(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    dims = tuple(d % rank_of(node) for d in whole_numbers(a["dims"]))
    keep_samples_apart(reader, dims, node, "roll", where)
    reader.emit(node, "roll", node.args[0], shifts=whole_numbers(a["shifts"]), dims=dims)


def _flip(reader: Reader, node: FxNode, where: str) -> None:
    dims = tuple(d % rank_of(node) for d in arguments(node)["dims"])
    keep_samples_apart(reader, dims, node, "flip", where)
    reader.emit(node, "flip", node.args[0], dims=dims)


def _pixel(op: str, setting: str) -> Rule:
    return lambda reader, node, where: reader.emit(node, op, node.args[0], **{setting: int(str(node.args[1]))})


SHAPES: dict[str, Rule] = {
    "clone": _clone,
    "detach": _detach,
    **dict.fromkeys(
        (
            "view",
            "reshape",
            "_unsafe_view",
            "flatten",
            "unflatten",
            "squeeze",
            "unsqueeze",
            "reshape_as",
            "view_as",
        ),
        _reshape,
    ),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "movedim"), _permute),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("slice", "narrow"), _slice),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), _split),
    "select": _select,
    "unbind": _unbind,
    "cat": _concat,
    "concat": _concat,
    "stack": _stack,
    "roll": _roll,
    "flip": _flip,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "reflection_pad1d": _padded("reflect"),
    "reflection_pad2d": _padded("reflect"),
    "replication_pad2d": _padded("replicate"),
    "repeat": _repeat,
    "repeat_interleave": _repeat_interleave,
    "index": _index,
    "index_select": _index_select,
    "gather": _gather,
    "triu": plainly("triu", diagonal="diagonal"),
    "tril": plainly("tril", diagonal="diagonal"),
    "pixel_shuffle": _pixel("pixel_shuffle", "upscale_factor"),
    "pixel_unshuffle": _pixel("pixel_unshuffle", "downscale_factor"),
}
