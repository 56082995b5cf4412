"""Convolutions swapped for something with less work: which ones, and within which limits.

What takes a convolution's place is a `Replacement`: layers, how they connect, and how far the weights that they stand for are
from the old ones. Nothing that does not save parameters or multiply-accumulates is swapped in.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from penjing.errors import SettingError, SurgeryError
from penjing.graph import Network, Node, channel_groups, node_shapes, permute_channels, replace_by_nodes, select
from penjing.graph.modules import kind_of
from penjing.graph.network import MODULE, TENSOR
from penjing.measurement.macs import macs_by_node
from penjing.shapes import Json
from penjing.training import Stage, Workbench
from penjing.units import parse_count

Activation = Literal["relu", "hardswish", "silu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "hardswish": nn.Hardswish, "silu": nn.SiLU}


@dataclass(frozen=True)
class Replacement:
    """What takes the place of a convolution.

    Attributes:
        layers, nodes: as `graph.replace_by_nodes` takes them.
        error: |W - W'|^2 / |W|^2, W' the convolution that the new layers are without norms and activations between them.
        order: the output channels come in this order, if not in the old one.
    """

    layers: Mapping[str, nn.Module]
    nodes: tuple[Node, ...]
    error: float
    order: tuple[int, ...] | None = field(default=None)


def like(conv: nn.Conv2d, inputs: int, outputs: int, *, groups: int = 1, bias: bool) -> nn.Conv2d:
    """A convolution with another's kernel, stride, padding and dilation, but other channels."""
    same = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    return nn.Conv2d(inputs, outputs, groups=groups, bias=bias, **same)


def behind(name: str, layers: dict[str, nn.Module], channels: int, norm: bool, activation: str | None) -> None:
    """Add a norm and an activation for so many channels behind the last of the layers."""
    if norm:
        layers[f"{name}norm"] = nn.BatchNorm2d(channels)
    if activation is not None:
        layers[f"{name}activation"] = _ACTIVATIONS[activation]()


def n_parameters(layers: Mapping[str, nn.Module]) -> int:
    """Of all layers together."""
    return sum(p.numel() for layer in layers.values() for p in layer.parameters())


class ConvSwap(Stage):
    """Base of stages that put something else in the place of k x k convolutions. Subclasses are final."""

    needs: ClassVar[tuple[str, ...]] = ("convolutions larger than 1 x 1",)
    layers: tuple[str, ...] = Field(default=("type:Conv2d",), description="which: names, globs, type:Class, !not-this")
    norm: bool = Field(default=True, description="batch norm between the new layers")
    activation: Activation | None = Field(default=None, description="between the new layers")
    max_parameters: int | None = Field(
        default=None, description="of the network: swap no more layers than that takes, those first that change least"
    )
    max_macs: int | None = Field(default=None, description="the same for multiply-accumulates")

    @field_validator("max_parameters", "max_macs", mode="before")
    @classmethod
    def _count(cls, value: Any, info: ValidationInfo) -> Any:
        return None if value is None else parse_count(value, f"{cls.label}: {info.field_name}")

    @abstractmethod
    def replacement(self, conv: nn.Conv2d, places: tuple[int, int], *, ordered: bool = False) -> Replacement:
        """What takes the place of a convolution, whose result has so many places; `ordered`: in the old order of channels.

        Raises: SettingError: it cannot be made for this one, with the reason.
        """

    def swap(self, network: Network, paths: list[str]) -> tuple[Network, dict[str, Json], dict[str, str]]:
        """Swap what can be.

        Args:
            paths: the layers to choose from.
        Returns: the new network; by path what was swapped, with figures; by path why the others stayed.
        Raises: SettingError: a limit that cannot be reached, with what can.
        """
        sizes = node_shapes(network)
        made: dict[str, Replacement] = {}
        stayed: dict[str, str] = {}
        saved: dict[str, tuple[int, int]] = {}
        total = _size(network)
        for path in paths:
            reason = reason_to_stay(network, path)
            if reason is None:
                conv: Any = network.get_submodule(path)
                places = sizes[network.node_of(path).name][-2:]
                try:
                    made[path] = self.replacement(conv, (places[0], places[1]))
                except SettingError as error:
                    reason = str(error)
                else:
                    after = _size(replace_by_nodes(network, path, made[path].layers, made[path].nodes))
                    saved[path] = (total[0] - after[0], total[1] - after[1])
                    if max(saved[path]) <= 0:
                        before = sum(p.numel() for p in conv.parameters())
                        reason = (
                            f"it would grow: {n_parameters(made.pop(path).layers):,} instead of {before:,} parameters, "
                            f"{-saved.pop(path)[1]:+,} MACs"
                        )
            if reason is not None:
                stayed[path] = reason
        chosen = self._within_limits(made, saved, total)
        stayed |= {path: "the limits are met without it" for path in made if path not in chosen}
        swapped: dict[str, Json] = {}
        for path in chosen:
            network, found = self._put(network, path, made[path], sizes)
            swapped[path] = {
                "relative error of the weight": round(math.sqrt(found.error), 4),
                "parameters saved": saved[path][0],
                "MACs saved": saved[path][1],
            }
        return network, swapped, stayed

    def _put(
        self, network: Network, path: str, made: Replacement, sizes: Mapping[str, tuple[int, ...]]
    ) -> tuple[Network, Replacement]:
        """Put one in, the channels in its order where they can be told otherwise, else in the old one."""
        if made.order is not None and made.order != tuple(range(len(made.order))):
            group = next(
                (
                    g
                    for g in channel_groups(network).groups
                    if g.producers == (path,) and g.n_channels == len(made.order)
                ),
                None,
            )
            try:
                if group is None:
                    raise SurgeryError("its channels are not a group of their own")
                network = permute_channels(network, group, made.order)
            except SurgeryError:
                conv: Any = network.get_submodule(path)
                places = sizes[network.node_of(path).name][-2:]
                made = self.replacement(conv, (places[0], places[1]), ordered=True)
        return replace_by_nodes(network, path, made.layers, made.nodes), made

    def _within_limits(
        self, made: Mapping[str, Replacement], saved: Mapping[str, tuple[int, int]], total: tuple[int, int]
    ) -> list[str]:
        """All, or the first that meet the limits, in the order of error for what is saved."""
        limits = [(k, limit) for k, limit in enumerate((self.max_parameters, self.max_macs)) if limit is not None]
        if not limits:
            return list(made)
        chosen: list[str] = []
        left = list(total)
        kind = limits[0][0]
        for path in sorted(
            made, key=lambda p: made[p].error / max(saved[p][kind], 1e-9) if saved[p][kind] > 0 else 1e18
        ):
            if all(left[k] <= limit for k, limit in limits):
                break
            chosen.append(path)
            left = [n - s for n, s in zip(left, saved[path], strict=True)]
        if any(left[k] > limit for k, limit in limits):
            raise SettingError(
                f"{self.label}: with every layer swapped that can be, {left[0]:,} parameters and {left[1]:,} MACs are left; "
                f"the limit is {limits[0][1]:,}. Choose a larger limit, or another stage before it."
            )
        return [path for path in made if path in chosen]

    def apply(self, bench: Workbench) -> None:
        paths = select(bench.network.layers().items(), self.layers, f"{self.label}: layers")
        network, swapped, stayed = self.swap(bench.network, paths)
        limited = self.max_parameters is not None or self.max_macs is not None
        if not swapped and not (limited and "the limits are met without it" in stayed.values()):
            reasons = "; ".join(f"{path}: {reason}" for path, reason in stayed.items())
            raise SettingError(f"{self.label}: none of the chosen layers can be replaced ({reasons}).")
        bench.network = network
        bench.facts |= {"replaced": swapped, "stayed": stayed}


def reason_to_stay(network: Network, path: str) -> str | None:
    """Why a layer is no convolution that can be swapped; None if it is."""
    layer = network.get_submodule(path)
    if kind_of(layer) != "Conv2d" or not isinstance(layer, nn.Conv2d):
        return "not a convolution"
    if hasattr(layer, "parametrizations"):
        return "its weight has a representation; swap it before that"
    if sum(node.path == path for node in network.nodes if node.op == MODULE) > 1:
        return "it is called several times"
    if any(node.op == TENSOR and node.path.rpartition(".")[0] == path for node in network.nodes):
        return "its weight is used in other places too"
    if layer.groups > 1:
        return "grouped or depthwise already"
    if max(layer.kernel_size) == 1:
        return "its kernel is 1 x 1"
    return None


def _size(network: Network) -> tuple[int, int]:
    """Parameters and multiply-accumulates."""
    return sum(p.numel() for p in network.parameters()), sum(macs_by_node(network).values())
