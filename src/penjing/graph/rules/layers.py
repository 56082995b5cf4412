"""Labels through layers of torch.nn, whose weights are their own."""

from collections.abc import Callable

from torch import nn

from penjing.graph.labels import Labels, Value
from penjing.graph.modules import kind_of
from penjing.graph.network import Node
from penjing.graph.rules.products import convolution_on, linear_on
from penjing.graph.rules.rule import Shape, edge, places_locked
from penjing.graph.rules.shapes import reshape
from penjing.graph.rules.statistics import whole_groups

LayerRule = Callable[[Labels, Node, list[Value], Shape, nn.Module], Value]


def _own(labels: Labels, node: Node, layer: nn.Module, name: str) -> Value | None:
    return labels.tensor(node.path, name) if getattr(layer, name, None) is not None else None


def _linear_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    weight = labels.tensor(node.path, "weight")
    found = linear_on(labels, node, inputs[0], weight, _own(labels, node, layer, "bias"), shape, node.path)
    if weight.axes[0] is not None:
        labels.produced.append((node.path, weight.axes[0]))
    labels.count("layer", node.path, "out_features", None, weight.axes[0])
    labels.count("layer", node.path, "in_features", None, weight.axes[1])
    return found


def _conv_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    weight, bias = labels.tensor(node.path, "weight"), _own(labels, node, layer, "bias")
    groups, transposed = int(layer.groups), bool(layer.transposed)  # type: ignore[arg-type]
    x = inputs[0]
    found = convolution_on(labels, node, x, weight, bias, shape, groups, transposed, node.path)
    produced = weight.axes[1 if transposed else 0]
    if produced is not None and not (groups > 1 and groups == int(layer.in_channels)):  # type: ignore[arg-type]
        labels.produced.append((node.path, produced))
    labels.count("layer", node.path, "in_channels", None, x.axes[1])
    labels.count("layer", node.path, "out_channels", None, found.axes[1])
    return found


def _batch_norm_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    axis = inputs[0].axes[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        own = _own(labels, node, layer, name)
        if own is not None:
            axis = labels.same(axis, own.axes[0], f"{node.path} scales it")
    labels.count("layer", node.path, "num_features", None, axis)
    axes = list(inputs[0].axes)
    axes[1] = axis
    return Value(shape, tuple(axes))


def _last_norm_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    x = inputs[0]
    n = len(layer.normalized_shape)  # type: ignore[arg-type]
    own = [o for o in (_own(labels, node, layer, name) for name in ("weight", "bias")) if o is not None]
    if n != 1:
        for value in own:
            labels.lock_all(value, f"{node.path} takes statistics over {n} dimensions")
        return Value(shape, places_locked(labels, node, list(x.axes), n))
    axis = x.axes[-1]
    for value in own:
        axis = labels.same(axis, value.axes[0], f"{node.path} scales it")
    if axis is not None:
        labels.statistics.append(edge(node, 0, len(shape) - 1, axis))
        labels.count("layer", node.path, "normalized_shape", 0, axis)
    return Value(shape, (*x.axes[:-1], axis))


def _group_norm_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    axis = inputs[0].axes[1]
    for name in ("weight", "bias"):
        own = _own(labels, node, layer, name)
        if own is not None:
            axis = labels.same(axis, own.axes[0], f"{node.path} scales it")
    axis = whole_groups(labels, node, axis, int(layer.num_groups), len(shape))  # type: ignore[arg-type]
    labels.count("layer", node.path, "num_channels", None, axis)
    return Value(shape, places_locked(labels, node, [inputs[0].axes[0], axis, *inputs[0].axes[2:]], len(shape) - 2))


def _embedding_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    weight = labels.tensor(node.path, "weight")
    labels.lock(weight.axes[0], "its rows are looked up by number")
    labels.lock_all(inputs[0], "they are places, not channels")
    if weight.axes[1] is not None:
        labels.produced.append((node.path, weight.axes[1]))
    labels.count("layer", node.path, "embedding_dim", None, weight.axes[1])
    return Value(shape, (*[None] * len(inputs[0].shape), weight.axes[1]))


def _prelu_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    weight = labels.tensor(node.path, "weight")
    axes = list(inputs[0].axes)
    if weight.axes[0] is not None:
        axes[1] = labels.same(axes[1], weight.axes[0], f"{node.path} scales it")
        labels.count("layer", node.path, "num_parameters", None, axes[1])
    return Value(shape, tuple(axes))


def _flatten_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    return reshape(labels, node, inputs, shape)


def _softmax_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    dim = int(layer.dim) % len(shape)  # type: ignore[arg-type]
    labels.lock(inputs[0].axes[dim], f"{node.path} runs along it")
    return Value(shape, tuple(None if d == dim else axis for d, axis in enumerate(inputs[0].axes)))


def _pool_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    n = 1 if kind_of(layer) in ("AdaptiveAvgPool1d", "MaxPool1d", "InstanceNorm1d") else 2
    return Value(shape, places_locked(labels, node, list(inputs[0].axes), n))


def _pixel_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    axes = list(inputs[0].axes)
    axis, r = axes[-3], int(layer.upscale_factor)  # type: ignore[arg-type]
    axes[-3] = None if axis is None else labels.tie_all(axis.reshape(-1, r * r))
    return Value(shape, places_locked(labels, node, axes, 2))


def _instance_norm_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    n = len(shape) - 2
    found = _batch_norm_layer(labels, node, inputs, shape, layer)
    return Value(shape, places_locked(labels, node, list(found.axes), n))


LAYERS: dict[str, LayerRule] = {
    "Linear": _linear_layer,
    **{f"Conv{n}d": _conv_layer for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": _conv_layer for n in (1, 2, 3)},
    **{f"BatchNorm{n}d": _batch_norm_layer for n in (1, 2, 3)},
    **{f"InstanceNorm{n}d": _instance_norm_layer for n in (1, 2)},
    "LayerNorm": _last_norm_layer,
    "RMSNorm": _last_norm_layer,
    "GroupNorm": _group_norm_layer,
    "Embedding": _embedding_layer,
    "PReLU": _prelu_layer,
    "Flatten": _flatten_layer,
    "Softmax": _softmax_layer,
    "LogSoftmax": _softmax_layer,
    "PixelShuffle": _pixel_layer,
    **dict.fromkeys(
        ("MaxPool1d", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d"),
        _pool_layer,
    ),
}
