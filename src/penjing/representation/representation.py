"""How a weight is written: the interface, and how representations are attached to a layer.

A representation is a parametrization (`torch.nn.utils.parametrize`): the layer keeps its place and its use, and its weight
becomes the result of a chain, original -> mask -> codebook -> weight. Each link holds its own codes and tables.
"""

import copy
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.errors import SettingError
from penjing.graph.modules import MODULES, kind_of
from penjing.graph.network import Network, set_module


class Representation(nn.Module):
    """One way to write a tensor. Subclasses are final; each has a codec of the same `kind` in the artifact."""

    kind: ClassVar[str]

    @abstractmethod
    def forward(self, original: Tensor) -> Tensor:
        """The weight as the layer uses it, same shape as `original`; differentiable in what this representation trains."""

    @abstractmethod
    def sliced(self, dim: int, keep: Tensor) -> Self:
        """The representation of the weight that is left when only the indices `keep` of dimension `dim` stay."""

    @property
    @abstractmethod
    def bits_per_weight(self) -> float:
        """Bits one weight takes before entropy coding, tables not counted."""


def represent_(layer: nn.Module, name: str, representation: Representation) -> None:
    """Put a representation on top of a layer's parameter, in place. Those already there stay below it.

    The original stops being trained where the representation no longer reads it; it counts neither as a parameter nor in
    the file.
    Raises: SettingError: the layer has no such parameter.
    """
    if not isinstance(getattr(layer, name, None), Tensor):
        raise SettingError(f'represent: a {type(layer).__name__} has no parameter "{name}".')
    if parametrize.is_parametrized(layer):
        # deep copies share the class that torch made for them, and would get this property too
        cls = type(layer)
        members = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
        layer.__class__ = type(cls.__name__, cls.__bases__, members)
    parametrize.register_parametrization(layer, name, representation, unsafe=True)
    if not getattr(representation, "reads_original", True):
        layer.parametrizations[name].original.requires_grad_(False)  # type: ignore[index, union-attr]


def representations(layer: nn.Module, name: str) -> list[Representation]:
    """The representations of a parameter, from the original upwards; empty where it is plain."""
    if not parametrize.is_parametrized(layer, name):
        return []
    return [part for part in layer.parametrizations[name] if isinstance(part, Representation)]  # type: ignore[index]


def named_weights(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every parameter as the layers use it: (full name, owner, name in the owner), hidden originals left out."""
    hidden: set[int] = set()
    for owner in module.modules():
        if parametrize.is_parametrized(owner):
            hidden.update(id(part) for part in owner.get_submodule("parametrizations").modules())
    for path, owner in module.named_modules():
        if id(owner) in hidden:
            continue
        names = list(owner._parameters)
        if parametrize.is_parametrized(owner):
            names = [*dict.fromkeys([*owner.parametrizations, *names])]
        for name in sorted(names, key=lambda n: (n != "weight", n)):
            if getattr(owner, name) is not None:
                yield (f"{path}.{name}" if path else name), owner, name


def _make_plain_(module: nn.Module) -> None:
    """The same in place, for a module that is no layer but holds parameters, such as the network itself."""
    values = {
        name: getattr(module, name).detach().clone() for name in module.get_submodule("parametrizations")._modules
    }
    module.__class__ = type(module).__bases__[
        0
    ]  # copies share the class that torch made, which has the weights as properties
    del module._modules["parametrizations"]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def plain(network: Network) -> Network:
    """A copy whose weights are ordinary parameters: what the representations materialise to, bit for bit."""
    dense = copy.deepcopy(network)
    for path, layer in list(dense.named_modules()):
        if not parametrize.is_parametrized(layer):
            continue
        kind = MODULES.get(str(kind_of(layer)))
        if kind is None:
            _make_plain_(layer)
            continue
        with torch.device("meta"):
            fresh = kind.build(kind.describe(layer))
        # a class of the user's may hold more than the layer's own
        parametrized = layer.parametrizations
        for name in dict.fromkeys([*fresh._parameters, *parametrized, *layer._parameters]):
            value = getattr(layer, name)
            fresh.register_parameter(name, None if value is None else nn.Parameter(value.detach().clone()))
        for name in dict.fromkeys([*fresh._buffers, *layer._buffers]):
            value = getattr(layer, name)
            lasting = name not in layer._non_persistent_buffers_set
            fresh.register_buffer(name, None if value is None else value.detach().clone(), persistent=lasting)
        set_module(dense, path, fresh.train(layer.training))
    return dense
