"""The operations a graph may contain: an allow-list, because a loaded file must not be able to name anything else.

Two tables. `OPERATIONS` are functions of tensors; `MODULES` are `torch.nn` classes with the constructor settings that
describe them completely. Their order is the file format: only append.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import TraceError


def _mean(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.mean(dim=dims, keepdim=keepdim)


def _scalar(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(x: Tensor, value: float) -> Tensor:
        return function(x, value)

    return apply


@dataclass(frozen=True)
class Operation:
    """A function of tensors that a node may apply.

    Attributes:
        function: takes the node's input tensors, then its settings as keywords.
        settings: the names of the settings, all required, in the order of the file format.
        elementwise: every output element depends on the input elements at the same place only, and 0 need not map to 0.
        n_inputs: how many tensors it takes; None: one or more.
    """

    function: Callable[..., Tensor]
    settings: tuple[str, ...] = ()
    elementwise: bool = False
    n_inputs: int | None = 1


OPERATIONS: dict[str, Operation] = {
    "add": Operation(torch.add, elementwise=True, n_inputs=2),
    "multiply": Operation(torch.mul, elementwise=True, n_inputs=2),
    "subtract": Operation(torch.sub, elementwise=True, n_inputs=2),
    "concat": Operation(lambda *tensors, dim: torch.cat(tensors, dim), ("dim",), n_inputs=None),
    "flatten": Operation(lambda x, start_dim: torch.flatten(x, start_dim), ("start_dim",)),
    "relu": Operation(F.relu, elementwise=True),
    "relu6": Operation(F.relu6, elementwise=True),
    "sigmoid": Operation(torch.sigmoid, elementwise=True),
    "tanh": Operation(torch.tanh, elementwise=True),
    "silu": Operation(F.silu, elementwise=True),
    "gelu": Operation(lambda x, approximate: F.gelu(x, approximate=approximate), ("approximate",), elementwise=True),
    "hardswish": Operation(F.hardswish, elementwise=True),
    "hardsigmoid": Operation(F.hardsigmoid, elementwise=True),
    "leaky_relu": Operation(F.leaky_relu, ("negative_slope",), elementwise=True),
    "softmax": Operation(lambda x, dim: F.softmax(x, dim), ("dim",)),
    "log_softmax": Operation(lambda x, dim: F.log_softmax(x, dim), ("dim",)),
    "max_pool2d": Operation(
        lambda x, kernel_size, stride, padding: F.max_pool2d(x, kernel_size, stride, padding),
        ("kernel_size", "stride", "padding"),
    ),
    "avg_pool2d": Operation(
        lambda x, kernel_size, stride, padding: F.avg_pool2d(x, kernel_size, stride, padding),
        ("kernel_size", "stride", "padding"),
    ),
    "adaptive_avg_pool2d": Operation(lambda x, output_size: F.adaptive_avg_pool2d(x, output_size), ("output_size",)),
    "mean": Operation(_mean, ("dims", "keepdim")),
    "add_scalar": Operation(_scalar(torch.add), ("value",), elementwise=True),
    "multiply_scalar": Operation(_scalar(torch.mul), ("value",), elementwise=True),
}


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
            found[name] = value is not None if name == "bias" else value
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
_NORM = {"num_features": 1, "eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True}

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
}

_KIND_OF_TYPE = {kind.type: name for name, kind in MODULES.items()}
_PARAMETRIZED = "Parametrized"


def kind_of(module: nn.Module) -> str | None:
    """The name in `MODULES` of a module's class, seen through `torch.nn.utils.parametrize`; None where it has none."""
    cls = type(module)
    if cls.__name__.startswith(_PARAMETRIZED):
        cls = cls.__bases__[0]
    return _KIND_OF_TYPE.get(cls)


def apply_operation(name: str, inputs: tuple[Tensor, ...], settings: Mapping[str, Any]) -> Tensor:
    """Apply one operation of the table.

    Raises: TraceError: the table has no operation of that name.
    """
    if name not in OPERATIONS:
        raise TraceError(f'graph: there is no operation "{name}". Known: {", ".join(sorted(OPERATIONS))}')
    return OPERATIONS[name].function(*inputs, **settings)
