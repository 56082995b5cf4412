"""Arithmetic, comparisons, activations, casts and tensors made of nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penjing.errors import TraceError
from penjing.graph.modules import MODULES
from penjing.graph.network import MODULE, Node
from penjing.graph.readers.reading import (
    FxNode,
    Rule,
    arguments,
    is_tensor,
    pass_on,
    plainly,
    rank_of,
    shape_of,
    sizes_of,
)
from penjing.graph.sizes import Size

if TYPE_CHECKING:
    from penjing.graph.reader import Reader

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


def _arithmetic(op: str, *, commutes: bool = False, flipped: str = "") -> Rule:
    """Two tensors, or one and a number."""

    def read(reader: Reader, node: FxNode, where: str) -> Any:
        a = arguments(node)
        left, right = list(a.values())[:2]
        alpha = a.get("alpha", 1)
        if not is_tensor(left):
            if not commutes:
                return reader.emit(node, flipped, right, value=number_of(reader, left, where))
            left, right = right, left
        if is_tensor(right):
            if alpha != 1:
                right = reader.emit(node, "multiply_scalar", right, value=alpha)
            return reader.emit(node, op, left, right)
        value = number_of(reader, right, where)
        op_here = f"{op}_scalar"
        if op == "subtract":
            op_here, value = "add_scalar", times_of(value, -1)
        value = times_of(value, alpha)
        nothing = (op_here == "add_scalar" and value == 0) or (
            op_here in ("multiply_scalar", "divide_scalar") and value == 1
        )
        kept = node.meta["val"].dtype == left.meta["val"].dtype and node.meta["val"].shape == left.meta["val"].shape
        if nothing and kept and not node.target._schema.is_mutable:  # type: ignore[union-attr]
            return pass_on(reader, node, where)
        return reader.emit(node, op_here, left, value=value)

    return read


def times_of(value: Any, factor: Any) -> Any:
    if factor == 1:
        return value
    return Size((*value.tokens, int(factor), "*")) if isinstance(value, Size) else value * factor


def number_of(reader: Reader, value: Any, where: str) -> Any:
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
        if is_tensor(value):
            parts.append(value)
        else:
            dtype = reader.dtype(node.meta["val"].dtype, where)
            parts.append(reader.emit(node, "scalar", value=number_of(reader, value, where), dtype=dtype))
    reader.emit(node, "where", *parts)


def _masked_fill(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    if is_tensor(a["value"]):
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
        return pass_on(reader, node, where)
    reader.emit(node, "cast", source, dtype=reader.dtype(after, where))
    return None


def _full(value: Any = None) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        fill = number_of(reader, a["fill_value"], where) if value is None else value
        dtype = reader.dtype(node.meta["val"].dtype, where)
        reader.emit(node, "full", shape=sizes_of(reader, node, where), value=fill, dtype=dtype)

    return read


def _fill(reader: Reader, node: FxNode, where: str) -> None:
    """fill_ and zero_: whatever was there is gone."""
    a = arguments(node)
    value = a.get("value", 0)
    if is_tensor(value):
        expanded = reader.emit(node, "expand", value, shape=sizes_of(reader, node, where))
        reader.values[node] = expanded
        return
    dtype = reader.dtype(node.meta["val"].dtype, where)
    reader.emit(node, "full", shape=sizes_of(reader, node, where), value=number_of(reader, value, where), dtype=dtype)


def _copy(reader: Reader, node: FxNode, where: str) -> None:
    target, source = node.args[:2]
    if [str(s) for s in shape_of(target)] != [str(s) for s in shape_of(source)]:
        reader.emit(node, "expand", source, shape=sizes_of(reader, node, where))
    else:
        reader.values[node] = reader.value(source)  # type: ignore[arg-type]


def _arange(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    start, end, step = (number_of(reader, x, where) for x in (a.get("start", 0), a["end"], a.get("step", 1)))
    reader.emit(node, "arange", start=start, end=end, step=step, dtype=reader.dtype(node.meta["val"].dtype, where))


def _square(reader: Reader, node: FxNode, where: str) -> None:
    reader.emit(node, "power_scalar", node.args[0], value=2)


def _glu(reader: Reader, node: FxNode, where: str) -> None:
    source: Any = node.args[0]
    dim = arguments(node)["dim"] % rank_of(source)
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
        made = kind if kind == "Dropout" else {3: "Dropout1d", 4: "Dropout2d", 5: "Dropout3d"}.get(rank_of(node))
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


ELEMENTWISE: dict[str, Rule] = {
    **{aten: plainly(op) for aten, op in _UNARY.items()},
    **dict.fromkeys(_ALIASES, pass_on),
    **dict.fromkeys(("to", "type_as", "_to_copy", "float", "half", "_autocast_to_full_precision"), _cast),
    **dict.fromkeys(("zeros", "new_zeros", "zeros_like"), _full(0)),
    **dict.fromkeys(("ones", "new_ones", "ones_like"), _full(1)),
    **dict.fromkeys(("full", "new_full", "full_like"), _full()),
    **dict.fromkeys(("fill", "zero"), _fill),
    **dict.fromkeys(("add",), _arithmetic("add", commutes=True)),
    **dict.fromkeys(("mul", "multiply"), _arithmetic("multiply", commutes=True)),
    **dict.fromkeys(("sub", "subtract"), _arithmetic("subtract", flipped="subtract_from_scalar")),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "hardtanh"), _clamp),
    "rsub": lambda r, n, w: r.emit(n, "subtract_from_scalar", n.args[0], value=number_of(r, n.args[1], w)),
    "div": _divide,
    "divide": _divide,
    "true_divide": _divide,
    "floor_divide": _arithmetic("floor_divide"),
    "remainder": lambda r, n, w: r.emit(n, "remainder_scalar", n.args[0], value=number_of(r, n.args[1], w)),
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
    "gelu": plainly("gelu", approximate="approximate"),
    "leaky_relu": plainly("leaky_relu", negative_slope="negative_slope"),
    "elu": plainly("elu", alpha="alpha"),
    "celu": plainly("celu", alpha="alpha"),
    "softplus": plainly("softplus", beta="beta", threshold="threshold"),
    "glu": _glu,
    "prelu": _prelu,
    "dropout": _dropout("Dropout"),
    "feature_dropout": _dropout("Dropout2d"),
}
