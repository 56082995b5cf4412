"""Pools and changes of resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing.graph.readers.reading import FxNode, Rule, arguments, rank_of, shape_of, whole_numbers

if TYPE_CHECKING:
    from penjing.graph.reader import Reader


def _max_pool(n_dims: int) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        kernel = whole_numbers(a["kernel_size"], n_dims)
        stride = whole_numbers(a["stride"] or kernel, n_dims)
        padding, dilation = whole_numbers(a["padding"], n_dims), whole_numbers(a["dilation"], n_dims)
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
        kernel = whole_numbers(a["kernel_size"], n_dims)
        stride, padding = whole_numbers(a["stride"] or kernel, n_dims), whole_numbers(a["padding"], n_dims)
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
        size = whole_numbers(arguments(node)["output_size"], n_dims)
        op = "adaptive_avg_pool2d" if (kind, n_dims) == ("avg", 2) else f"adaptive_{kind}_pool"
        reader.emit(node, op, node.args[0], output_size=size)
        if kind == "max":
            reader.values[node] = (reader.values[node], None)

    return read


def _resize(mode: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        rank = rank_of(node)
        size = tuple(reader.size(s, where) for s in shape_of(node)[2:])
        align = arguments(node).get("align_corners")
        linear = {3: "linear", 4: "bilinear", 5: "trilinear"}[rank]
        reader.emit(
            node, "resize", node.args[0], size=size, mode=linear if mode == "linear" else mode, align_corners=align
        )

    return read


POOLS: dict[str, Rule] = {
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
}
