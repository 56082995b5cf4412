"""The `torch.nn` classes that a graph may call: an allow-list, with the constructor settings that describe each completely.

The order of the table is the file format: only append.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ModuleKind:
    """A `torch.nn` class that may travel in a file.

    Attributes:
        type: the class itself; subclasses do not count, they may compute something else.
        settings: constructor arguments and their defaults; all are attributes of the module too, `bias` as its presence.
        elementwise: as in `Operation`.
    """

    type: type[nn.Module]
    settings: Mapping[str, Any]
    elementwise: bool = False

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """The settings that rebuild this module, defaults included."""
        found: dict[str, Any] = {}
        for name in self.settings:
            value = getattr(module, name)
            found[name] = value is not None if name == "bias" and not isinstance(value, bool) else value
        return found

    def build(self, settings: Mapping[str, Any]) -> nn.Module:
        """A fresh module; weights are whatever the constructor draws, on the meta device nothing at all."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            return self.type(**{**self.settings, **settings})


_CONV = {
    "in_channels": 1,
    "out_channels": 1,
    "kernel_size": 3,
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "bias": True,
    "padding_mode": "zeros",
}
_TRANSPOSED = {**_CONV, "output_padding": 0}
_NORM = {"num_features": 1, "eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True}

_RECURRENT = {
    "input_size": 1,
    "hidden_size": 1,
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
}
_CELL = {"input_size": 1, "hidden_size": 1, "bias": True}

MODULES: dict[str, ModuleKind] = {
    "Conv2d": ModuleKind(nn.Conv2d, _CONV),
    "Linear": ModuleKind(nn.Linear, {"in_features": 1, "out_features": 1, "bias": True}),
    "BatchNorm2d": ModuleKind(nn.BatchNorm2d, _NORM),
    "ReLU": ModuleKind(nn.ReLU, {"inplace": False}, elementwise=True),
    "MaxPool2d": ModuleKind(
        nn.MaxPool2d,
        {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1, "return_indices": False, "ceil_mode": False},
    ),
    "AvgPool2d": ModuleKind(
        nn.AvgPool2d,
        {
            "kernel_size": 2,
            "stride": 2,
            "padding": 0,
            "ceil_mode": False,
            "count_include_pad": True,
            "divisor_override": None,
        },
    ),
    "AdaptiveAvgPool2d": ModuleKind(nn.AdaptiveAvgPool2d, {"output_size": 1}),
    "AdaptiveMaxPool2d": ModuleKind(nn.AdaptiveMaxPool2d, {"output_size": 1, "return_indices": False}),
    "Flatten": ModuleKind(nn.Flatten, {"start_dim": 1, "end_dim": -1}),
    "Dropout": ModuleKind(nn.Dropout, {"p": 0.5, "inplace": False}, elementwise=True),
    "Dropout2d": ModuleKind(nn.Dropout2d, {"p": 0.5, "inplace": False}, elementwise=True),
    "Identity": ModuleKind(nn.Identity, {}, elementwise=True),
    "BatchNorm1d": ModuleKind(nn.BatchNorm1d, _NORM),
    "ReLU6": ModuleKind(nn.ReLU6, {"inplace": False}, elementwise=True),
    "LeakyReLU": ModuleKind(nn.LeakyReLU, {"negative_slope": 0.01, "inplace": False}, elementwise=True),
    "GELU": ModuleKind(nn.GELU, {"approximate": "none"}, elementwise=True),
    "SiLU": ModuleKind(nn.SiLU, {"inplace": False}, elementwise=True),
    "Hardswish": ModuleKind(nn.Hardswish, {"inplace": False}, elementwise=True),
    "Hardsigmoid": ModuleKind(nn.Hardsigmoid, {"inplace": False}, elementwise=True),
    "Sigmoid": ModuleKind(nn.Sigmoid, {}, elementwise=True),
    "Tanh": ModuleKind(nn.Tanh, {}, elementwise=True),
    "Softmax": ModuleKind(nn.Softmax, {"dim": 1}),
    "LogSoftmax": ModuleKind(nn.LogSoftmax, {"dim": 1}),
    # here ends what the first format had
    "Conv1d": ModuleKind(nn.Conv1d, _CONV),
    "Conv3d": ModuleKind(nn.Conv3d, _CONV),
    "ConvTranspose1d": ModuleKind(nn.ConvTranspose1d, _TRANSPOSED),
    "ConvTranspose2d": ModuleKind(nn.ConvTranspose2d, _TRANSPOSED),
    "ConvTranspose3d": ModuleKind(nn.ConvTranspose3d, _TRANSPOSED),
    "BatchNorm3d": ModuleKind(nn.BatchNorm3d, _NORM),
    "LayerNorm": ModuleKind(
        nn.LayerNorm, {"normalized_shape": 1, "eps": 1e-5, "elementwise_affine": True, "bias": True}
    ),
    "RMSNorm": ModuleKind(nn.RMSNorm, {"normalized_shape": 1, "eps": None, "elementwise_affine": True}),
    "GroupNorm": ModuleKind(nn.GroupNorm, {"num_groups": 1, "num_channels": 1, "eps": 1e-5, "affine": True}),
    "InstanceNorm1d": ModuleKind(nn.InstanceNorm1d, {**_NORM, "affine": False, "track_running_stats": False}),
    "InstanceNorm2d": ModuleKind(nn.InstanceNorm2d, {**_NORM, "affine": False, "track_running_stats": False}),
    "Embedding": ModuleKind(nn.Embedding, {"num_embeddings": 1, "embedding_dim": 1, "padding_idx": None}),
    "PReLU": ModuleKind(nn.PReLU, {"num_parameters": 1}),
    "ELU": ModuleKind(nn.ELU, {"alpha": 1.0, "inplace": False}, elementwise=True),
    "Softplus": ModuleKind(nn.Softplus, {"beta": 1.0, "threshold": 20.0}, elementwise=True),
    "Mish": ModuleKind(nn.Mish, {"inplace": False}, elementwise=True),
    "AdaptiveAvgPool1d": ModuleKind(nn.AdaptiveAvgPool1d, {"output_size": 1}),
    "MaxPool1d": ModuleKind(
        nn.MaxPool1d,
        {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1, "return_indices": False, "ceil_mode": False},
    ),
    "PixelShuffle": ModuleKind(nn.PixelShuffle, {"upscale_factor": 2}),
    "Dropout1d": ModuleKind(nn.Dropout1d, {"p": 0.5, "inplace": False}, elementwise=True),
    "LSTM": ModuleKind(nn.LSTM, _RECURRENT),
    "GRU": ModuleKind(nn.GRU, _RECURRENT),
    "LSTMCell": ModuleKind(nn.LSTMCell, _CELL),
    "GRUCell": ModuleKind(nn.GRUCell, _CELL),
    "Dropout3d": ModuleKind(nn.Dropout3d, {"p": 0.5, "inplace": False}, elementwise=True),
    "AlphaDropout": ModuleKind(nn.AlphaDropout, {"p": 0.5, "inplace": False}, elementwise=True),
    "FeatureAlphaDropout": ModuleKind(nn.FeatureAlphaDropout, {"p": 0.5, "inplace": False}, elementwise=True),
}

_KIND_OF_TYPE = {kind.type: name for name, kind in MODULES.items()}
_PARAMETRIZED = "Parametrized"


def kind_of(module: nn.Module) -> str | None:
    """The name in `MODULES` of a module's class, seen through `torch.nn.utils.parametrize`; None where it has none."""
    cls = type(module)
    if cls.__name__.startswith(_PARAMETRIZED):
        cls = cls.__bases__[0]
    return _KIND_OF_TYPE.get(cls)


def keeps_shape(module: nn.Module) -> bool:
    """Whether a layer's result always has the shape and type of its input: an elementwise layer or a norm."""
    kind = kind_of(module)
    return kind is not None and (MODULES[kind].elementwise or "Norm" in kind)
