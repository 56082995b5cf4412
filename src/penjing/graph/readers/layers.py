"""Steps of layers of torch.nn, and layers made of operations whose weights a class of the user's holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from penjing.graph.readers.products import conv_settings
from penjing.graph.readers.reading import FxNode, arguments, rank_of, shape_of

if TYPE_CHECKING:
    from penjing.graph.reader import Reader


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
        settings = conv_settings(a, n_dims, reader.where(node))
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
    kind = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}.get(rank_of(node))
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
