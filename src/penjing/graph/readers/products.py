"""Sums of products: matrices, convolutions, attention, embeddings; recurrent layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penjing.errors import TraceError
from penjing.graph.ops import default_scale
from penjing.graph.readers.reading import FxNode, Rule, arguments, shape_of, whole_numbers

if TYPE_CHECKING:
    from penjing.graph.reader import Reader


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
        reader.emit(node, "convolution", *tensors, transposed=transposed, **conv_settings(a, n_dims, where))

    return read


def conv_settings(a: dict[str, Any], n_dims: int, where: str) -> dict[str, Any]:
    padding = a["padding"]
    if isinstance(padding, str):
        if padding == "valid":
            padding = 0
        else:
            kernel = shape_of(a["weight"])[2:]
            total = [d * (k - 1) for d, k in zip(whole_numbers(a["dilation"], n_dims), kernel, strict=True)]
            if any(t % 2 for t in total):
                raise TraceError(f"trace: a convolution in {where} pads one side more than the other; not supported.")
            padding = [t // 2 for t in total]
    return {
        "stride": whole_numbers(a["stride"], n_dims),
        "padding": whole_numbers(padding, n_dims),
        "dilation": whole_numbers(a["dilation"], n_dims),
        "output_padding": whole_numbers(a.get("output_padding", 0), n_dims),
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


def _recurrent(reader: Reader, node: FxNode, where: str) -> None:
    raise TraceError(
        f"trace: the recurrent operation in {where} must be a torch.nn LSTM, GRU, LSTMCell or GRUCell that starts from zeros."
    )


PRODUCTS: dict[str, Rule] = {
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
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
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell"), _recurrent),
}
