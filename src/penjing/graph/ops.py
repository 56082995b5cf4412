"""The operations a graph may contain: an allow-list, because a loaded file must not be able to name anything else.

Their order is the file format: only append. An operation takes the tensors of its node, then its settings as keywords.
Whole numbers among the settings may be a `Size`; the network computes it first.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.errors import TraceError

GATE, TAKE, PUT = "gate", "take", "put"
"""What parts samples; see `graph.program`."""
GATE_RULES = ("above", "largest")

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
"""Types of tensors that a setting may name, by position. Their order is the file format: only append."""


@dataclass(frozen=True)
class Operation:
    """A function of tensors that a node may apply.

    Attributes:
        function: takes the node's input tensors, then its settings as keywords.
        settings: the names of the settings, all required, in the order of the file format.
        elementwise: every output element depends on the input elements at the same place only (inputs may be broadcast), and
            0 need not map to 0.
        n_inputs: how many tensors it takes; None: one or more.
        creates: it makes a tensor of settings alone, on the device given as `device`.
    """

    function: Callable[..., Tensor]
    settings: tuple[str, ...] = ()
    elementwise: bool = False
    n_inputs: int | None = 1
    creates: bool = False


def _scalar(function: Callable[..., Tensor]) -> Operation:
    def apply(x: Tensor, value: float) -> Tensor:
        return function(x, value)

    return Operation(apply, ("value",), elementwise=True)


def _unary(function: Callable[..., Tensor], *settings: str) -> Operation:
    return Operation(function, settings, elementwise=True)


def _binary(function: Callable[..., Tensor], *settings: str) -> Operation:
    return Operation(function, settings, elementwise=True, n_inputs=2)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool,
    scale: float,
    enable_gqa: bool,
) -> Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout_p=0.0, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    transposed: bool,
    output_padding: tuple[int, ...],
    groups: int,
) -> Tensor:
    return torch.convolution(
        x, weight, bias, list(stride), list(padding), list(dilation), transposed, list(output_padding), groups
    )


def _index(x: Tensor, *indices: Tensor, dims: tuple[int, ...]) -> Tensor:
    places: list[Any] = [slice(None)] * x.dim()
    for dim, index in zip(dims, indices, strict=True):
        places[dim] = index
    return x[tuple(places)]


def _slice(x: Tensor, dim: int, start: int, end: int, step: int) -> Tensor:
    return torch.ops.aten.slice.Tensor(x, dim, start, end, step)


def _layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, shape: tuple[int, ...], eps: float
) -> Tensor:
    return F.layer_norm(x, list(shape), weight, bias, eps)


def _rms_norm(x: Tensor, weight: Tensor | None = None, *, shape: tuple[int, ...], eps: float | None) -> Tensor:
    return F.rms_norm(x, list(shape), weight, eps)


def _group_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, groups: int, eps: float
) -> Tensor:
    return F.group_norm(x, groups, weight, bias, eps)


def _batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float
) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)


def sign_through(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1; the gradient passes where |x| <= 1 as if nothing had been done.

    dL/dx = dL/dsign(x) 1[|x| <= 1]. Any shape; sign(0) = +1.
    Source: Hubara et al. 2016 (Binarized Neural Networks), arXiv:1602.02830, equation 4.
    """
    inside = x.clamp(-1, 1)
    signs = (x.detach() >= 0).to(x.dtype) * 2 - 1
    return signs + (inside - inside.detach())  # the second term is exactly 0


def fake_quantize(x: Tensor, step: float, zero: int) -> Tensor:
    """step * (clip(round(x / step) + zero, 0, 255) - zero): numbers as 8-bit integers hold them, still floats.

    Halves are rounded to even. The gradient passes where nothing is clipped as if nothing had been done. Any shape.
    Source: Jacob et al. 2018, arXiv:1712.05877, equations 1 and 12.
    """
    inside = x.clamp(-zero * step, (255 - zero) * step)
    codes = torch.clamp(torch.round(x.detach() / step) + zero, 0, 255)
    return (codes - zero) * step + (inside - inside.detach())  # the second term is exactly 0


def gate(logits: Tensor, column: int, rule: str) -> Tensor:
    """1 where a gate is open, else 0: (batch,) from (batch, columns), in the type of the logits.

    above: open where the column's logit is above 0, which is a probability above 1/2; largest: where it is the largest of all.
    The gradient is that of the probability, sigmoid or softmax, as if that had been answered.
    Sources: Wang et al. 2018 (SkipNet), arXiv:1711.09485, section 3.3; Bengio et al. 2013, arXiv:1308.3432 (straight through).
    """
    is_open = logits[:, column] > 0 if rule == "above" else logits.argmax(1) == column
    hard = is_open.to(logits.dtype)
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return hard
    soft = torch.sigmoid(logits[:, column]) if rule == "above" else logits.softmax(1)[:, column]
    return hard + (soft - soft.detach())  # the second term is exactly 0


def _put(inside: Tensor, outside: Tensor, is_open: Tensor) -> Tensor:
    share = is_open.reshape(-1, *[1] * (inside.dim() - 1))
    if torch.is_grad_enabled() and is_open.requires_grad:
        return share * inside + (1 - share) * outside
    return torch.where(share > 0, inside, outside)


def _resize(x: Tensor, size: tuple[int, ...], mode: str, align_corners: bool | None) -> Tensor:
    return F.interpolate(x, list(size), mode=mode, align_corners=align_corners)


def _pool(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(x: Tensor, kernel_size: Any, stride: Any, padding: Any, **settings: Any) -> Tensor:
        return function(x, kernel_size, stride, padding, **settings)

    return apply


_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_MAXIMUM = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

OPERATIONS: dict[str, Operation] = {
    "add": _binary(torch.add),
    "multiply": _binary(torch.mul),
    "subtract": _binary(torch.sub),
    "concat": Operation(lambda *tensors, dim: torch.cat(tensors, dim), ("dim",), n_inputs=None),
    "flatten": Operation(lambda x, start_dim: torch.flatten(x, start_dim), ("start_dim",)),
    "relu": _unary(F.relu),
    "relu6": _unary(F.relu6),
    "sigmoid": _unary(torch.sigmoid),
    "tanh": _unary(torch.tanh),
    "silu": _unary(F.silu),
    "gelu": _unary(lambda x, approximate: F.gelu(x, approximate=approximate), "approximate"),
    "hardswish": _unary(F.hardswish),
    "hardsigmoid": _unary(F.hardsigmoid),
    "leaky_relu": _unary(F.leaky_relu, "negative_slope"),
    "softmax": Operation(lambda x, dim: F.softmax(x, dim), ("dim",)),
    "log_softmax": Operation(lambda x, dim: F.log_softmax(x, dim), ("dim",)),
    "max_pool2d": Operation(_pool(F.max_pool2d), ("kernel_size", "stride", "padding")),
    "avg_pool2d": Operation(_pool(F.avg_pool2d), ("kernel_size", "stride", "padding")),
    "adaptive_avg_pool2d": Operation(lambda x, output_size: F.adaptive_avg_pool2d(x, output_size), ("output_size",)),
    "mean": Operation(lambda x, dims, keepdim: x.mean(dim=dims, keepdim=keepdim), ("dims", "keepdim")),
    "add_scalar": _scalar(torch.add),
    "multiply_scalar": _scalar(torch.mul),
    # here ends what the first format had
    "divide": _binary(torch.div),
    "divide_scalar": _scalar(torch.div),
    "floor_divide": _binary(lambda a, b: torch.div(a, b, rounding_mode="floor")),
    "floor_divide_scalar": _scalar(lambda x, v: torch.div(x, v, rounding_mode="floor")),
    "truncate_divide": _binary(lambda a, b: torch.div(a, b, rounding_mode="trunc")),
    "truncate_divide_scalar": _scalar(lambda x, v: torch.div(x, v, rounding_mode="trunc")),
    "subtract_from_scalar": _scalar(lambda x, v: v - x),
    "divide_scalar_by": _scalar(lambda x, v: v / x),
    "remainder_scalar": _scalar(torch.remainder),
    "power": _binary(torch.pow),
    "power_scalar": _scalar(torch.pow),
    "scalar_power": _scalar(lambda x, v: torch.pow(v, x)),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "equal": _binary(torch.eq),
    "not_equal": _binary(torch.ne),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "equal_scalar": _scalar(torch.eq),
    "not_equal_scalar": _scalar(torch.ne),
    "less_scalar": _scalar(torch.lt),
    "less_equal_scalar": _scalar(torch.le),
    "greater_scalar": _scalar(torch.gt),
    "greater_equal_scalar": _scalar(torch.ge),
    "bitwise_and": _binary(torch.bitwise_and),
    "bitwise_or": _binary(torch.bitwise_or),
    "bitwise_xor": _binary(torch.bitwise_xor),
    "bitwise_not": _unary(torch.bitwise_not),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "logical_not": _unary(torch.logical_not),
    "where": Operation(torch.where, elementwise=True, n_inputs=3),
    "masked_fill": _binary(lambda x, mask, value: x.masked_fill(mask, value), "value"),
    "negate": _unary(torch.neg),
    "absolute": _unary(torch.abs),
    "exp": _unary(torch.exp),
    "log": _unary(torch.log),
    "sqrt": _unary(torch.sqrt),
    "rsqrt": _unary(torch.rsqrt),
    "reciprocal": _unary(torch.reciprocal),
    "sin": _unary(torch.sin),
    "cos": _unary(torch.cos),
    "erf": _unary(torch.erf),
    "sign": _unary(torch.sign),
    "floor": _unary(torch.floor),
    "round": _unary(torch.round),
    "softplus": _unary(F.softplus, "beta", "threshold"),
    "elu": _unary(F.elu, "alpha"),
    "mish": _unary(F.mish),
    "clamp": _unary(lambda x, min, max: torch.clamp(x, min, max), "min", "max"),
    "cast": _unary(lambda x, dtype: x.to(DTYPES[dtype]), "dtype"),
    "reshape": Operation(lambda x, shape: x.reshape(shape), ("shape",)),
    "permute": Operation(lambda x, dims: x.permute(dims), ("dims",)),
    "expand": Operation(lambda x, shape: x.expand(shape), ("shape",)),
    "slice": Operation(_slice, ("dim", "start", "end", "step")),
    "select": Operation(lambda x, dim, index: x.select(dim, index), ("dim", "index")),
    "item": Operation(lambda x, index: x[index], ("index",)),
    "roll": Operation(lambda x, shifts, dims: torch.roll(x, shifts, dims), ("shifts", "dims")),
    "flip": Operation(lambda x, dims: torch.flip(x, dims), ("dims",)),
    "pad": Operation(lambda x, pad, mode, value: F.pad(x, list(pad), mode, value), ("pad", "mode", "value")),
    "repeat": Operation(lambda x, repeats: x.repeat(repeats), ("repeats",)),
    "repeat_interleave": Operation(
        lambda x, repeats, dim: torch.repeat_interleave(x, repeats, dim=dim), ("repeats", "dim")
    ),
    "index": Operation(_index, ("dims",), n_inputs=None),
    "gather": Operation(lambda x, index, dim: torch.gather(x, dim, index), ("dim",), n_inputs=2),
    "cumsum": Operation(lambda x, dim: torch.cumsum(x, dim), ("dim",)),
    "triu": Operation(torch.triu, ("diagonal",)),
    "tril": Operation(torch.tril, ("diagonal",)),
    "slice_scatter": Operation(
        lambda x, part, dim, start, end, step: torch.slice_scatter(x, part, dim, start, end, step),
        ("dim", "start", "end", "step"),
        n_inputs=2,
    ),
    "select_scatter": Operation(
        lambda x, part, dim, index: torch.select_scatter(x, part, dim, index), ("dim", "index"), n_inputs=2
    ),
    "matmul": Operation(torch.matmul, n_inputs=2),
    "einsum": Operation(lambda *x, equation: torch.einsum(equation, *x), ("equation",), n_inputs=None),
    "linear": Operation(lambda x, weight, *bias: F.linear(x, weight, *bias), n_inputs=None),
    "convolution": Operation(
        _convolution,
        ("stride", "padding", "dilation", "transposed", "output_padding", "groups"),
        n_inputs=None,
    ),
    "attention": Operation(_attention, ("is_causal", "scale", "enable_gqa"), n_inputs=None),
    "embedding": Operation(lambda indices, weight: F.embedding(indices, weight), n_inputs=2),
    "weight_norm": Operation(lambda v, g, dim: torch._weight_norm(v, g, dim), ("dim",), n_inputs=2),
    "layer_norm": Operation(_layer_norm, ("shape", "eps"), n_inputs=None),
    "rms_norm": Operation(_rms_norm, ("shape", "eps"), n_inputs=None),
    "group_norm": Operation(_group_norm, ("groups", "eps"), n_inputs=None),
    "batch_norm": Operation(_batch_norm, ("eps",), n_inputs=None),
    "instance_norm": Operation(lambda x, eps: F.instance_norm(x, eps=eps), ("eps",)),
    "sum": Operation(lambda x, dims, keepdim: x.sum(dim=dims, keepdim=keepdim), ("dims", "keepdim")),
    "amax": Operation(lambda x, dims, keepdim: x.amax(dim=dims, keepdim=keepdim), ("dims", "keepdim")),
    "amin": Operation(lambda x, dims, keepdim: x.amin(dim=dims, keepdim=keepdim), ("dims", "keepdim")),
    "argmax": Operation(lambda x, dim, keepdim: x.argmax(dim, keepdim), ("dim", "keepdim")),
    "variance": Operation(
        lambda x, dims, correction, keepdim: x.var(dim=dims, correction=correction, keepdim=keepdim),
        ("dims", "correction", "keepdim"),
    ),
    "vector_norm": Operation(
        lambda x, order, dims, keepdim: torch.linalg.vector_norm(x, order, dim=dims, keepdim=keepdim),
        ("order", "dims", "keepdim"),
    ),
    "local_response_norm": Operation(
        lambda x, size, alpha, beta, k: F.local_response_norm(x, size, alpha, beta, k), ("size", "alpha", "beta", "k")
    ),
    "max_pool": Operation(lambda x, **s: _max_pool(x, **s), _MAXIMUM),
    "avg_pool": Operation(lambda x, **s: _avg_pool(x, **s), (*_AVERAGE, "divisor")),
    "adaptive_avg_pool": Operation(lambda x, output_size: _adaptive(x, "avg", output_size), ("output_size",)),
    "adaptive_max_pool": Operation(lambda x, output_size: _adaptive(x, "max", output_size), ("output_size",)),
    "resize": Operation(_resize, ("size", "mode", "align_corners")),
    "pixel_shuffle": Operation(F.pixel_shuffle, ("upscale_factor",)),
    "pixel_unshuffle": Operation(F.pixel_unshuffle, ("downscale_factor",)),
    "scalar": Operation(
        lambda value, dtype, device: torch.full((), value, dtype=DTYPES[dtype], device=device),
        ("value", "dtype"),
        n_inputs=0,
        creates=True,
    ),
    "full": Operation(
        lambda shape, value, dtype, device: torch.full(shape, value, dtype=DTYPES[dtype], device=device),
        ("shape", "value", "dtype"),
        n_inputs=0,
        creates=True,
    ),
    "arange": Operation(
        lambda start, end, step, dtype, device: torch.arange(start, end, step, dtype=DTYPES[dtype], device=device),
        ("start", "end", "step", "dtype"),
        n_inputs=0,
        creates=True,
    ),
    "detach": _unary(torch.detach),
    "selu": _unary(F.selu),
    "celu": _unary(F.celu, "alpha"),
    "log_sigmoid": _unary(F.logsigmoid),
    "log1p": _unary(torch.log1p),
    "logsumexp": Operation(lambda x, dims, keepdim: torch.logsumexp(x, dims, keepdim), ("dims", "keepdim")),
    "sign_through": _unary(sign_through),
    "fake_quantize": _unary(fake_quantize, "step", "zero"),
    GATE: Operation(gate, ("column", "rule")),
    TAKE: Operation(lambda x, is_open: x, n_inputs=2),
    PUT: Operation(_put, n_inputs=3),
}


def _max_pool(x: Tensor, kernel_size: tuple[int, ...], **settings: Any) -> Tensor:
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel_size) - 1]
    return function(x, kernel_size, **settings)


def _avg_pool(x: Tensor, kernel_size: tuple[int, ...], divisor: int | None, **settings: Any) -> Tensor:
    if len(kernel_size) == 1:
        return F.avg_pool1d(x, kernel_size, **settings)
    function = (F.avg_pool2d, F.avg_pool3d)[len(kernel_size) - 2]
    return function(x, kernel_size, divisor_override=divisor, **settings)


def _adaptive(x: Tensor, kind: str, output_size: tuple[int, ...]) -> Tensor:
    function = getattr(F, f"adaptive_{kind}_pool{len(output_size)}d")
    found: Tensor = function(x, output_size if len(output_size) > 1 else output_size[0])
    return found


def default_scale(width: int) -> float:
    """What attention divides by where nothing is given: 1 / sqrt(width of a head)."""
    return 1.0 / math.sqrt(width)


def apply_operation(
    name: str, inputs: tuple[Tensor, ...], settings: Mapping[str, Any], device: torch.device | str | None = None
) -> Tensor:
    """Apply one operation of the table.

    Args:
        device: where an operation that creates a tensor puts it.
    Raises: TraceError: the table has no operation of that name.
    """
    if name not in OPERATIONS:
        raise TraceError(f'graph: there is no operation "{name}". Known: {", ".join(sorted(OPERATIONS))}')
    operation = OPERATIONS[name]
    if operation.creates:
        return operation.function(**settings, device=device)
    return operation.function(*inputs, **settings)
