"""How each ATen operation becomes nodes: one rule an operation.

`READERS` is the table of operations, `IN_LAYER` says of which operations a layer of `torch.nn` consists, `REBUILT` makes
layers of operations whose weights a module of the user's own class holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penjing.errors import TraceError
from penjing.graph.modules import MODULES
from penjing.graph.network import MODULE, Node
from penjing.graph.ops import default_scale
from penjing.graph.sizes import Size

if TYPE_CHECKING:
    from penjing.graph.reader import Reader

FxNode = torch.fx.Node
Rule = Callable[["Reader", FxNode, str], Any]
_END = 2**63 - 1


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


def _rank(node: Any) -> int:
    return len(shape_of(node))


def _ints(value: Any, n: int | None = None) -> tuple[int, ...]:
    """One number or several as a tuple; of n where one stands for all."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * n if n is not None and len(values) == 1 else values


def _is_tensor(value: Any) -> bool:
    return isinstance(value, FxNode) and isinstance(value.meta.get("val"), Tensor)


def _sizes(reader: Reader, node: FxNode, where: str) -> tuple[int | Size, ...]:
    """The shape of a result, as a setting."""
    return tuple(reader.size(size, where) for size in shape_of(node))


def _apart(reader: Reader, dims: Sequence[int], node: Any, op: str, where: str) -> None:
    """Each sample is computed by itself. Raises: TraceError: the operation mixes samples."""
    shape = shape_of(node)
    mixes = any(d % len(shape) == 0 for d in dims) if shape else False
    if mixes and reader.size(shape[0], where) == Size(("batch",)):
        raise TraceError(
            f"trace: {op} in {where} runs along the batch dimension; each sample must be computed by itself. "
            "Move that step behind the network."
        )


def _plain(op: str, **renamed: str) -> Rule:
    """An operation of one tensor whose settings are arguments: setting = name in the schema."""

    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        reader.emit(node, op, node.args[0], **{setting: a[name] for setting, name in renamed.items()})

    return read


def _same(reader: Reader, node: FxNode, where: str) -> None:
    reader.values[node] = reader.value(node.args[0])  # type: ignore[arg-type]


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
    if len(before) == len(after) and all(_alike(reader, a, b, where) for a, b in zip(before, after, strict=True)):
        return _same(reader, node, where)
    if len(after) == 2 and len(before) > 2 and _alike(reader, before[0], after[0], where):
        reader.emit(node, "flatten", node.args[0], start_dim=1)
        return None
    sizes = list(_sizes(reader, node, where))
    symbolic = [i for i, size in enumerate(sizes) if isinstance(size, Size)]
    products = [i for i in symbolic if len(sizes[i].tokens) > 1]  # type: ignore[union-attr]
    if len(symbolic) == 1 or len(products) == 1:  # the same, in fewer bytes; and batch * heads follows the heads
        sizes[(products or symbolic)[0]] = -1
    reader.emit(node, "reshape", node.args[0], shape=tuple(sizes))
    return None


def _alike(reader: Reader, left: Any, right: Any, where: str) -> bool:
    return reader.size(left, where) == reader.size(right, where)


def _permute(reader: Reader, node: FxNode, where: str) -> None:
    op = node.target._schema.name.removeprefix("aten::").removesuffix("_")  # type: ignore[union-attr]
    rank = _rank(node.args[0])
    order = list(range(rank))
    a = arguments(node)
    if op == "permute":
        order = [d % rank for d in a["dims"]]
    elif op in ("t", "numpy_T", "mT", "adjoint"):
        order = order[:-2] + order[-2:][::-1]
    elif op == "movedim":
        sources, targets = [d % rank for d in _ints(a["source"])], [d % rank for d in _ints(a["destination"])]
        rest = [d for d in range(rank) if d not in sources]
        order = [
            sources[targets.index(i)] if i in targets else rest[i - sum(t < i for t in targets)] for i in range(rank)
        ]
    else:
        names = [name for name in a if name not in ("self", "input")]
        first, second = a[names[0]] % rank, a[names[1]] % rank
        order[first], order[second] = order[second], order[first]
    if order == list(range(rank)):
        return _same(reader, node, where)
    reader.emit(node, "permute", node.args[0], dims=tuple(order))
    return None


def _expand(reader: Reader, node: FxNode, where: str) -> None:
    before, after = shape_of(node.args[0]), shape_of(node)
    if len(before) == len(after) and all(_alike(reader, a, b, where) for a, b in zip(before, after, strict=True)):
        return _same(reader, node, where)
    sizes = list(_sizes(reader, node, where))
    offset = len(after) - len(before)
    for i, size in enumerate(before):
        if _alike(reader, size, after[offset + i], where):
            sizes[offset + i] = -1
    reader.emit(node, "expand", node.args[0], shape=tuple(sizes))
    return None


def _piece(
    reader: Reader, node: FxNode, source: Any, where: str, dim: int, start: Any, end: Any, step: int = 1
) -> None:
    rank = _rank(source)
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
    if start == 0 and step == 1 and end in (whole, _END):
        reader.values[node] = reader.value(source)
        return
    reader.emit(node, "slice", source, dim=dim % rank, start=start, end=end, step=step)


def _slice(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    rank = _rank(node.args[0])
    if "length" in a:  # narrow
        start = reader.size(a["start"], where)
        end = reader.size(a["length"], where)
        if not isinstance(start, int) or not isinstance(end, int):
            raise TraceError(f"trace: narrow in {where} by a size that is not fixed is not supported.")
        return _piece(reader, node, node.args[0], where, a["dim"] % rank, start, start + end)
    start, end = 0 if a["start"] is None else a["start"], _END if a["end"] is None else a["end"]
    return _piece(reader, node, node.args[0], where, a["dim"] % rank, start, end, a["step"])


def _split(reader: Reader, node: FxNode, where: str) -> None:
    """Each part becomes a slice where it is used."""
    source: Any = node.args[0]
    dim = arguments(node)["dim"] % _rank(source)
    start: int = 0
    parts: list[Any] = []
    for part in node.meta["val"]:
        size = reader.size(part.shape[dim], where)
        if not isinstance(size, int):
            raise TraceError(f"trace: a split in {where} by a size that is not fixed is not supported.")

        def read(item: FxNode, start: int = start, size: int = size) -> Any:
            _piece(reader, item, source, where, dim, start, start + size)
            return reader.values[item]

        parts.append(read)
        start += size
    reader.values[node] = tuple(parts)
    reader.views.setdefault(source, []).append(node)


def _unbind(reader: Reader, node: FxNode, where: str) -> None:
    source: Any = node.args[0]
    dim = arguments(node)["dim"] % _rank(source)
    _apart(reader, [dim], source, "unbind", where)

    def at(index: int) -> Callable[[FxNode], Any]:
        return lambda item: reader.emit(item, "select", source, dim=dim, index=index)

    reader.values[node] = tuple(at(i) for i in range(len(node.meta["val"])))
    reader.views.setdefault(source, []).append(node)


def _select(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    dim = a["dim"] % _rank(node.args[0])
    _apart(reader, [dim], node.args[0], "select", where)
    reader.emit(node, "select", node.args[0], dim=dim, index=reader.size(a["index"], where))


def _concat(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    parts = [p for p in a["tensors"] if _rank(p) > 1 or shape_of(p) != (0,)]
    dim = a["dim"] % _rank(node)
    _apart(reader, [dim], node, "concat", where)
    reader.emit(node, "concat", *parts, dim=1 if dim == 1 else dim)


def _stack(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    dim = a["dim"] % _rank(node)
    parts = []
    for part in a["tensors"]:
        sizes = [reader.size(size, where) for size in shape_of(part)]
        sizes.insert(dim, 1)
        parts.append(reader.emit(node, "reshape", part, shape=tuple(sizes)))
    reader.emit(node, "concat", *parts, dim=dim)


def _arithmetic(op: str, *, commutes: bool = False, flipped: str = "") -> Rule:
    """Two tensors, or one and a number."""

    def read(reader: Reader, node: FxNode, where: str) -> Any:
        a = arguments(node)
        left, right = list(a.values())[:2]
        alpha = a.get("alpha", 1)
        if not _is_tensor(left):
            if not commutes:
                return reader.emit(node, flipped, right, value=_number(reader, left, where))
            left, right = right, left
        if _is_tensor(right):
            if alpha != 1:
                right = reader.emit(node, "multiply_scalar", right, value=alpha)
            return reader.emit(node, op, left, right)
        value = _number(reader, right, where)
        op_here = f"{op}_scalar"
        if op == "subtract":
            op_here, value = "add_scalar", _times(value, -1)
        value = _times(value, alpha)
        nothing = (op_here == "add_scalar" and value == 0) or (
            op_here in ("multiply_scalar", "divide_scalar") and value == 1
        )
        kept = node.meta["val"].dtype == left.meta["val"].dtype and node.meta["val"].shape == left.meta["val"].shape
        if nothing and kept and not node.target._schema.is_mutable:  # type: ignore[union-attr]
            return _same(reader, node, where)
        return reader.emit(node, op_here, left, value=value)

    return read


def _times(value: Any, factor: Any) -> Any:
    if factor == 1:
        return value
    return Size((*value.tokens, int(factor), "*")) if isinstance(value, Size) else value * factor


def _number(reader: Reader, value: Any, where: str) -> Any:
    if isinstance(value, (bool, float)):
        return value
    return reader.size(value, where)


def _divide(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    mode = a.get("rounding_mode")
    op = {None: "divide", "floor": "floor_divide", "trunc": "truncate_divide"}[mode]
    _arithmetic(op, flipped="divide_scalar_by")(reader, node, where)


def _compare(op: str) -> Rule:
    return _arithmetic(op)


def _where(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    parts: list[Any] = []
    for value in list(a.values())[:3]:
        if _is_tensor(value):
            parts.append(value)
        else:
            dtype = reader.dtype(node.meta["val"].dtype, where)
            parts.append(reader.emit(node, "scalar", value=_number(reader, value, where), dtype=dtype))
    reader.emit(node, "where", *parts)


def _masked_fill(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    if _is_tensor(a["value"]):
        reader.emit(node, "where", a["mask"], a["value"], a["self"])
    else:
        reader.emit(node, "masked_fill", a["self"], a["mask"], value=float(a["value"]))


def _clamp(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    low, high = a.get("min", a.get("min_val")), a.get("max", a.get("max_val"))
    op = node.target._schema.name  # type: ignore[union-attr]
    if op.startswith("aten::hardtanh") and (low, high) == (0.0, 6.0):
        reader.emit(node, "relu6", node.args[0])
    else:
        reader.emit(node, "clamp", node.args[0], min=low, max=high)


def _cast(reader: Reader, node: FxNode, where: str) -> None:
    source: Any = node.args[0]
    before, after = source.meta["val"].dtype, node.meta["val"].dtype
    if before == after:
        return _same(reader, node, where)
    reader.emit(node, "cast", source, dtype=reader.dtype(after, where))
    return None


def _full(value: Any = None) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        fill = _number(reader, a["fill_value"], where) if value is None else value
        dtype = reader.dtype(node.meta["val"].dtype, where)
        reader.emit(node, "full", shape=_sizes(reader, node, where), value=fill, dtype=dtype)

    return read


def _fill(reader: Reader, node: FxNode, where: str) -> None:
    """fill_ and zero_: whatever was there is gone."""
    a = arguments(node)
    value = a.get("value", 0)
    if _is_tensor(value):
        expanded = reader.emit(node, "expand", value, shape=_sizes(reader, node, where))
        reader.values[node] = expanded
        return
    dtype = reader.dtype(node.meta["val"].dtype, where)
    reader.emit(node, "full", shape=_sizes(reader, node, where), value=_number(reader, value, where), dtype=dtype)


def _copy(reader: Reader, node: FxNode, where: str) -> None:
    target, source = node.args[:2]
    if [str(s) for s in shape_of(target)] != [str(s) for s in shape_of(source)]:
        reader.emit(node, "expand", source, shape=_sizes(reader, node, where))
    else:
        reader.values[node] = reader.value(source)  # type: ignore[arg-type]


def _arange(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    start, end, step = (_number(reader, x, where) for x in (a.get("start", 0), a["end"], a.get("step", 1)))
    reader.emit(node, "arange", start=start, end=end, step=step, dtype=reader.dtype(node.meta["val"].dtype, where))


def _reduce(op: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        rank = _rank(node.args[0])
        dims = a.get("dim")
        dims = tuple(range(rank)) if dims is None or dims == [] else _ints(dims)
        _apart(reader, dims, node.args[0], op, where)
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
            dims = tuple(range(_rank(node.args[0])))
            _apart(reader, dims, node.args[0], op, where)
            reader.emit(node, op, node.args[0], dims=dims, keepdim=False)
            return
        dims = (a["dim"],)
        _apart(reader, dims, node.args[0], op, where)
        values = reader.emit(node, op, node.args[0], dims=dims, keepdim=bool(a["keepdim"]))
        reader.values[node] = (values, None)

    return read


def _softmax(op: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        dim = int(a["dim"])
        _apart(reader, [dim], node.args[0], op, where)
        source: Any = node.args[0]
        if source.meta["val"].dtype != node.meta["val"].dtype:
            source = reader.emit(node, "cast", source, dtype=reader.dtype(node.meta["val"].dtype, where))
        reader.emit(node, op, source, dim=dim)

    return read


def _along(op: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        dim = arguments(node)["dim"]
        _apart(reader, [dim], node.args[0], op, where)
        reader.emit(node, op, node.args[0], dim=dim)

    return read


def _diff(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    if a["n"] != 1:
        raise TraceError(f"trace: diff in {where} more than once is not supported.")
    source: Any = node.args[0]
    dim = a["dim"] % _rank(source)
    parts = [p for p in (a["prepend"], source, a["append"]) if p is not None]
    joined = reader.emit(node, "concat", *parts, dim=dim) if len(parts) > 1 else reader.value(source)
    later = reader.emit(node, "slice", joined, dim=dim, start=1, end=_END, step=1)
    earlier = reader.emit(node, "slice", joined, dim=dim, start=0, end=-1, step=1)
    reader.emit(node, "not_equal" if node.meta["val"].dtype == torch.bool else "subtract", later, earlier)


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
    reader.emit(node, "index", a["self"], a["index"], dims=(a["dim"] % _rank(node.args[0]),))


def _gather(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    reader.emit(node, "gather", a["self"], a["index"], dim=a["dim"])


def _embedding(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    reader.emit(node, "embedding", a["indices"], a["weight"])


def _matmul(reader: Reader, node: FxNode, where: str) -> None:
    reader.emit(node, "matmul", *node.args[:2])


def _addmm(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    start, left, right = list(a.values())[:3]
    product: Any = reader.emit(node, "matmul", left, right)
    if a["alpha"] != 1:
        product = reader.emit(node, "multiply_scalar", product, value=a["alpha"])
    if a["beta"] != 1:
        start = reader.emit(node, "multiply_scalar", start, value=a["beta"])
    reader.emit(node, "add", product, start)


def _einsum(reader: Reader, node: FxNode, where: str) -> None:
    equation = str(node.args[0]).replace(" ", "")
    reader.emit(node, "einsum", *node.args[1], equation=equation)  # type: ignore[misc]


def _linear(reader: Reader, node: FxNode, where: str) -> None:
    reader.emit(node, "linear", *[a for a in list(arguments(node).values()) if a is not None])


def _conv(n_dims: int, transposed: bool = False) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        tensors = [x for x in (node.args[0], a["weight"], a["bias"]) if x is not None]
        reader.emit(node, "convolution", *tensors, transposed=transposed, **_conv_settings(a, n_dims, where))

    return read


def _conv_settings(a: dict[str, Any], n_dims: int, where: str) -> dict[str, Any]:
    padding = a["padding"]
    if isinstance(padding, str):
        if padding == "valid":
            padding = 0
        else:
            kernel = shape_of(a["weight"])[2:]
            total = [d * (k - 1) for d, k in zip(_ints(a["dilation"], n_dims), kernel, strict=True)]
            if any(t % 2 for t in total):
                raise TraceError(f"trace: a convolution in {where} pads one side more than the other; not supported.")
            padding = [t // 2 for t in total]
    return {
        "stride": _ints(a["stride"], n_dims),
        "padding": _ints(padding, n_dims),
        "dilation": _ints(a["dilation"], n_dims),
        "output_padding": _ints(a.get("output_padding", 0), n_dims),
        "groups": a["groups"],
    }


def _attention(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    tensors = [a["query"], a["key"], a["value"], *([a["attn_mask"]] if a["attn_mask"] is not None else [])]
    scale = a["scale"] if a["scale"] is not None else default_scale(shape_of(a["query"])[-1])
    reader.emit(
        node,
        "attention",
        *tensors,
        is_causal=bool(a["is_causal"]),
        scale=float(scale),
        enable_gqa=bool(a.get("enable_gqa", False)),
    )


def _weight_norm(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    reader.emit(node, "weight_norm", a["v"], a["g"], dim=a["dim"])


def _norm(op: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        affine = [a[name] for name in ("weight", "bias") if a.get(name) is not None]
        settings: dict[str, Any] = {"eps": a["eps"]}
        if op == "group_norm":
            settings["groups"] = a["num_groups"]
        else:
            settings["shape"] = tuple(a["normalized_shape"])
        reader.emit(node, op, node.args[0], *affine, **settings)

    return read


def _batch_norm(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    if a["running_mean"] is None:
        raise TraceError(
            f"trace: the batch norm in {where} takes its statistics from the batch, so samples depend on each other."
        )
    affine = [a[name] for name in ("weight", "bias") if a.get(name) is not None]
    reader.emit(node, "batch_norm", node.args[0], a["running_mean"], a["running_var"], *affine, eps=a["eps"])


def _instance_norm(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    if a["weight"] is not None or a["running_mean"] is not None:
        raise TraceError(f"trace: the instance norm in {where} is not held by a torch.nn layer; not supported.")
    reader.emit(node, "instance_norm", node.args[0], eps=a["eps"])


def _max_pool(n_dims: int) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        kernel = _ints(a["kernel_size"], n_dims)
        stride = _ints(a["stride"] or kernel, n_dims)
        padding, dilation = _ints(a["padding"], n_dims), _ints(a["dilation"], n_dims)
        if n_dims == 2 and dilation == (1, 1) and not a["ceil_mode"]:
            reader.emit(node, "max_pool2d", node.args[0], kernel_size=kernel, stride=stride, padding=padding)
            return
        reader.emit(
            node,
            "max_pool",
            node.args[0],
            kernel_size=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            ceil_mode=bool(a["ceil_mode"]),
        )

    return read


def _avg_pool(n_dims: int) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        kernel = _ints(a["kernel_size"], n_dims)
        stride, padding = _ints(a["stride"] or kernel, n_dims), _ints(a["padding"], n_dims)
        divisor = a.get("divisor_override")
        if n_dims == 2 and not a["ceil_mode"] and a["count_include_pad"] and divisor is None:
            reader.emit(node, "avg_pool2d", node.args[0], kernel_size=kernel, stride=stride, padding=padding)
            return
        reader.emit(
            node,
            "avg_pool",
            node.args[0],
            kernel_size=kernel,
            stride=stride,
            padding=padding,
            ceil_mode=bool(a["ceil_mode"]),
            count_include_pad=bool(a["count_include_pad"]),
            divisor=divisor,
        )

    return read


def _adaptive(kind: str, n_dims: int) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        size = _ints(arguments(node)["output_size"], n_dims)
        op = "adaptive_avg_pool2d" if (kind, n_dims) == ("avg", 2) else f"adaptive_{kind}_pool"
        reader.emit(node, op, node.args[0], output_size=size)
        if kind == "max":
            reader.values[node] = (reader.values[node], None)

    return read


def _resize(mode: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        rank = _rank(node)
        size = tuple(reader.size(s, where) for s in shape_of(node)[2:])
        align = arguments(node).get("align_corners")
        linear = {3: "linear", 4: "bilinear", 5: "trilinear"}[rank]
        reader.emit(
            node, "resize", node.args[0], size=size, mode=linear if mode == "linear" else mode, align_corners=align
        )

    return read


def _pad(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    amounts = tuple(reader.size(p, where) for p in a["pad"])
    if all(p == 0 for p in amounts):
        return _same(reader, node, where)
    reader.emit(node, "pad", node.args[0], pad=amounts, mode=a.get("mode", "constant"), value=a.get("value"))
    return None


def _padded(mode: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        reader.emit(node, "pad", node.args[0], pad=tuple(a["padding"]), mode=mode, value=None)

    return read


def _repeat(reader: Reader, node: FxNode, where: str) -> None:
    repeats = tuple(reader.size(r, where) for r in arguments(node)["repeats"])
    if len(repeats) == _rank(node.args[0]) and all(r == 1 for r in repeats):
        return _same(reader, node, where)
    reader.emit(node, "repeat", node.args[0], repeats=repeats)
    return None


def _repeat_interleave(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    if not isinstance(a.get("repeats"), int) or a.get("dim") is None:
        raise TraceError(f"trace: repeat_interleave in {where} needs one number and a dimension.")
    reader.emit(node, "repeat_interleave", node.args[0], repeats=a["repeats"], dim=a["dim"] % _rank(node))


def _roll(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    dims = tuple(d % _rank(node) for d in _ints(a["dims"]))
    _apart(reader, dims, node, "roll", where)
    reader.emit(node, "roll", node.args[0], shifts=_ints(a["shifts"]), dims=dims)


def _flip(reader: Reader, node: FxNode, where: str) -> None:
    dims = tuple(d % _rank(node) for d in arguments(node)["dims"])
    _apart(reader, dims, node, "flip", where)
    reader.emit(node, "flip", node.args[0], dims=dims)


def _pixel(op: str, setting: str) -> Rule:
    return lambda reader, node, where: reader.emit(node, op, node.args[0], **{setting: int(str(node.args[1]))})


def _square(reader: Reader, node: FxNode, where: str) -> None:
    reader.emit(node, "power_scalar", node.args[0], value=2)


def _glu(reader: Reader, node: FxNode, where: str) -> None:
    source: Any = node.args[0]
    dim = arguments(node)["dim"] % _rank(source)
    half = reader.size(shape_of(node)[dim], where)
    if not isinstance(half, int):
        raise TraceError(f"trace: glu in {where} along a size that is not fixed is not supported.")
    left = reader.emit(node, "slice", source, dim=dim, start=0, end=half, step=1)
    right = reader.emit(node, "slice", source, dim=dim, start=half, end=2 * half, step=1)
    reader.emit(node, "multiply", left, reader.emit(node, "sigmoid", right))


def _prelu(reader: Reader, node: FxNode, where: str) -> None:
    weight = node.args[1]
    if shape_of(weight) != (1,):
        raise TraceError(f"trace: prelu in {where} with a slope for each channel must be a torch.nn.PReLU.")
    positive = reader.emit(node, "relu", node.args[0])
    negative = reader.emit(node, "negate", reader.emit(node, "relu", reader.emit(node, "negate", node.args[0])))
    reader.emit(node, "add", positive, reader.emit(node, "multiply", negative, weight))


def _dropout(kind: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        made = kind if kind == "Dropout" else {3: "Dropout1d", 4: "Dropout2d", 5: "Dropout3d"}.get(_rank(node))
        if made is None:
            raise TraceError(
                f"trace: channel dropout of a result of shape {shape_of(node)} in {where} has no channels."
            )
        path = f"functional_{node.name}"
        while path in reader.modules:
            path += "_"
        reader.modules[path] = MODULES[made].build({"p": float(node.args[1])})  # type: ignore[arg-type]
        reader.modules[path].train(reader.model.training)
        reader.add(node, Node(node.name, MODULE, (reader.name(reader.value(node.args[0]), where),), path))  # type: ignore[arg-type]

    return read


def _recurrent(reader: Reader, node: FxNode, where: str) -> None:
    raise TraceError(
        f"trace: the recurrent operation in {where} must be a torch.nn LSTM, GRU, LSTMCell or GRUCell that starts from zeros."
    )


_UNARY = {
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "silu": "silu",
    "hardswish": "hardswish",
    "hardsigmoid": "hardsigmoid",
    "mish": "mish",
    "neg": "negate",
    "abs": "absolute",
    "exp": "exp",
    "log": "log",
    "sqrt": "sqrt",
    "rsqrt": "rsqrt",
    "reciprocal": "reciprocal",
    "sin": "sin",
    "cos": "cos",
    "erf": "erf",
    "selu": "selu",
    "log_sigmoid": "log_sigmoid",
    "log1p": "log1p",
    "sign": "sign",
    "floor": "floor",
    "round": "round",
    "bitwise_not": "bitwise_not",
    "logical_not": "logical_not",
}
_ALIASES = (
    "contiguous",
    "alias",
    "lift_fresh_copy",
    "lift_fresh",
    "conj",
    "resolve_conj",
    "positive",
    "requires_grad",
)

READERS: dict[str, Rule] = {
    **{aten: _plain(op) for aten, op in _UNARY.items()},
    **dict.fromkeys(_ALIASES, _same),
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
    **dict.fromkeys(("to", "type_as", "_to_copy", "float", "half", "_autocast_to_full_precision"), _cast),
    **dict.fromkeys(("zeros", "new_zeros", "zeros_like"), _full(0)),
    **dict.fromkeys(("ones", "new_ones", "ones_like"), _full(1)),
    **dict.fromkeys(("full", "new_full", "full_like"), _full()),
    **dict.fromkeys(("fill", "zero"), _fill),
    **dict.fromkeys(("add",), _arithmetic("add", commutes=True)),
    **dict.fromkeys(("mul", "multiply"), _arithmetic("multiply", commutes=True)),
    **dict.fromkeys(("sub", "subtract"), _arithmetic("subtract", flipped="subtract_from_scalar")),
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "hardtanh"), _clamp),
    "rsub": lambda r, n, w: r.emit(n, "subtract_from_scalar", n.args[0], value=_number(r, n.args[1], w)),
    "div": _divide,
    "divide": _divide,
    "true_divide": _divide,
    "floor_divide": _arithmetic("floor_divide"),
    "remainder": lambda r, n, w: r.emit(n, "remainder_scalar", n.args[0], value=_number(r, n.args[1], w)),
    "pow": _arithmetic("power", flipped="scalar_power"),
    "square": _square,
    "maximum": _arithmetic("maximum"),
    "minimum": _arithmetic("minimum"),
    "eq": _compare("equal"),
    "ne": _compare("not_equal"),
    "lt": _compare("less"),
    "le": _compare("less_equal"),
    "gt": _compare("greater"),
    "ge": _compare("greater_equal"),
    "__and__": _arithmetic("bitwise_and"),
    "__or__": _arithmetic("bitwise_or"),
    "bitwise_and": _arithmetic("bitwise_and"),
    "bitwise_or": _arithmetic("bitwise_or"),
    "bitwise_xor": _arithmetic("bitwise_xor"),
    "logical_and": _arithmetic("logical_and"),
    "logical_or": _arithmetic("logical_or"),
    "where": _where,
    "masked_fill": _masked_fill,
    "copy": _copy,
    "arange": _arange,
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
    "embedding": _embedding,
    "einsum": _einsum,
    "linear": _linear,
    "conv1d": _conv(1),
    "conv2d": _conv(2),
    "conv3d": _conv(3),
    "conv_transpose1d": _conv(1, True),
    "conv_transpose2d": _conv(2, True),
    "conv_transpose3d": _conv(3, True),
    "scaled_dot_product_attention": _attention,
    "_weight_norm": _weight_norm,
    "layer_norm": _norm("layer_norm"),
    "rms_norm": _norm("rms_norm"),
    "group_norm": _norm("group_norm"),
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
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
    "triu": _plain("triu", diagonal="diagonal"),
    "tril": _plain("tril", diagonal="diagonal"),
    "gelu": _plain("gelu", approximate="approximate"),
    "leaky_relu": _plain("leaky_relu", negative_slope="negative_slope"),
    "elu": _plain("elu", alpha="alpha"),
    "celu": _plain("celu", alpha="alpha"),
    "softplus": _plain("softplus", beta="beta", threshold="threshold"),
    "glu": _glu,
    "prelu": _prelu,
    "dropout": _dropout("Dropout"),
    "feature_dropout": _dropout("Dropout2d"),
    "max_pool1d": _max_pool(1),
    "max_pool2d": _max_pool(2),
    "max_pool3d": _max_pool(3),
    "avg_pool1d": _avg_pool(1),
    "avg_pool2d": _avg_pool(2),
    "avg_pool3d": _avg_pool(3),
    "adaptive_avg_pool1d": _adaptive("avg", 1),
    "adaptive_avg_pool2d": _adaptive("avg", 2),
    "adaptive_avg_pool3d": _adaptive("avg", 3),
    "adaptive_max_pool2d": _adaptive("max", 2),
    "upsample_nearest1d": _resize("nearest"),
    "upsample_nearest2d": _resize("nearest"),
    "upsample_nearest3d": _resize("nearest"),
    "upsample_linear1d": _resize("linear"),
    "upsample_bilinear2d": _resize("linear"),
    "upsample_trilinear3d": _resize("linear"),
    "upsample_bicubic2d": _resize("bicubic"),
    "pixel_shuffle": _pixel("pixel_shuffle", "upscale_factor"),
    "pixel_unshuffle": _pixel("pixel_unshuffle", "downscale_factor"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell"), _recurrent),
}

IN_LAYER: dict[str, tuple[str, ...]] = {
    **{
        f"Conv{n}d": (f"conv{n}d", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad2d")
        for n in (1, 2, 3)
    },
    **{f"ConvTranspose{n}d": (f"conv_transpose{n}d",) for n in (1, 2, 3)},
    **{f"BatchNorm{n}d": ("batch_norm",) for n in (1, 2, 3)},
    **{f"InstanceNorm{n}d": ("instance_norm",) for n in (1, 2)},
    **{f"MaxPool{n}d": (f"max_pool{n}d",) for n in (1, 2)},
    **{f"AdaptiveAvgPool{n}d": (f"adaptive_avg_pool{n}d",) for n in (1, 2)},
    "Linear": ("linear",),
    "LayerNorm": ("layer_norm",),
    "RMSNorm": ("rms_norm",),
    "GroupNorm": ("group_norm",),
    "Embedding": ("embedding",),
    "PReLU": ("prelu",),
    "ReLU": ("relu",),
    "ReLU6": ("hardtanh", "relu6"),
    "LeakyReLU": ("leaky_relu",),
    "ELU": ("elu",),
    "GELU": ("gelu",),
    "SiLU": ("silu",),
    "Mish": ("mish",),
    "Softplus": ("softplus",),
    "Hardswish": ("hardswish",),
    "Hardsigmoid": ("hardsigmoid",),
    "Sigmoid": ("sigmoid",),
    "Tanh": ("tanh",),
    "Softmax": ("softmax",),
    "LogSoftmax": ("log_softmax",),
    "Dropout": ("dropout",),
    "Dropout1d": ("feature_dropout",),
    "Dropout2d": ("feature_dropout",),
    "Dropout3d": ("feature_dropout",),
    "AlphaDropout": ("alpha_dropout",),
    "FeatureAlphaDropout": ("feature_alpha_dropout",),
    "AvgPool2d": ("avg_pool2d",),
    "Flatten": ("flatten",),
    "PixelShuffle": ("pixel_shuffle",),
    "LSTM": ("lstm",),
    "GRU": ("gru",),
    "LSTMCell": ("lstm_cell",),
    "GRUCell": ("gru_cell",),
}
"""The operations that a layer of each kind consists of; anything else in its call came from a hook."""


def _rebuild_conv(n_dims: int, transposed: bool = False) -> Callable[[Reader, FxNode], bool]:
    def rebuild(reader: Reader, node: FxNode) -> bool:
        a = arguments(node)
        weight = shape_of(a["weight"])
        settings = _conv_settings(a, n_dims, reader.where(node))
        groups = settings["groups"]
        settings |= {"in_channels": weight[1] * groups, "out_channels": weight[0]}
        if transposed:
            settings |= {"in_channels": weight[0], "out_channels": weight[1] * groups}
        else:
            del settings["output_padding"]
        settings |= {"kernel_size": tuple(weight[2:]), "bias": a["bias"] is not None}
        kind = f"Conv{'Transpose' if transposed else ''}{n_dims}d"
        return reader.rebuilt(node, kind, settings, {"weight": a["weight"], "bias": a["bias"]}, node.args[0])

    return rebuild


def _rebuild_linear(reader: Reader, node: FxNode) -> bool:
    a = arguments(node)
    out, inn = shape_of(a["weight"])
    settings = {"in_features": inn, "out_features": out, "bias": a["bias"] is not None}
    return reader.rebuilt(node, "Linear", settings, {"weight": a["weight"], "bias": a["bias"]}, node.args[0])


def _rebuild_batch_norm(reader: Reader, node: FxNode) -> bool:
    a = arguments(node)
    if (a["weight"] is None) != (a["bias"] is None) or a["running_mean"] is None:
        return False
    kind = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}.get(_rank(node))
    if kind is None:
        return False
    settings = {
        "num_features": shape_of(node)[1],
        "eps": a["eps"],
        "momentum": a["momentum"],
        "affine": a["weight"] is not None,
    }
    tensors = {name: a[name] for name in ("weight", "bias", "running_mean", "running_var")}
    return reader.rebuilt(node, kind, settings, tensors, node.args[0])


def _rebuild_layer_norm(reader: Reader, node: FxNode) -> bool:
    a = arguments(node)
    if a["weight"] is None:
        return False
    shape = tuple(a["normalized_shape"])
    settings = {"normalized_shape": shape, "eps": a["eps"], "bias": a["bias"] is not None}
    return reader.rebuilt(node, "LayerNorm", settings, {"weight": a["weight"], "bias": a["bias"]}, node.args[0])


def _rebuild_rms_norm(reader: Reader, node: FxNode) -> bool:
    a = arguments(node)
    if a["weight"] is None:
        return False
    settings = {"normalized_shape": tuple(a["normalized_shape"]), "eps": a["eps"]}
    return reader.rebuilt(node, "RMSNorm", settings, {"weight": a["weight"]}, node.args[0])


def _rebuild_group_norm(reader: Reader, node: FxNode) -> bool:
    a = arguments(node)
    if a["weight"] is None or a["bias"] is None:
        return False
    settings = {"num_groups": a["num_groups"], "num_channels": shape_of(node)[1], "eps": a["eps"]}
    return reader.rebuilt(node, "GroupNorm", settings, {"weight": a["weight"], "bias": a["bias"]}, node.args[0])


def _rebuild_embedding(reader: Reader, node: FxNode) -> bool:
    a = arguments(node)
    rows, width = shape_of(a["weight"])
    settings = {"num_embeddings": rows, "embedding_dim": width}
    return reader.rebuilt(node, "Embedding", settings, {"weight": a["weight"]}, a["indices"])


REBUILT: dict[str, Callable[[Reader, FxNode], bool]] = {
    "conv1d": _rebuild_conv(1),
    "conv2d": _rebuild_conv(2),
    "conv3d": _rebuild_conv(3),
    "conv_transpose1d": _rebuild_conv(1, True),
    "conv_transpose2d": _rebuild_conv(2, True),
    "conv_transpose3d": _rebuild_conv(3, True),
    "linear": _rebuild_linear,
    "batch_norm": _rebuild_batch_norm,
    "layer_norm": _rebuild_layer_norm,
    "rms_norm": _rebuild_rms_norm,
    "group_norm": _rebuild_group_norm,
    "embedding": _rebuild_embedding,
}
