"""Integer arithmetic as exporters write it: pairs of quantizing and dequantizing, which runtimes turn into integer kernels.

A network whose activations are quantized has a `fake_quantize` wherever integers flow. There a pair is written. A layer behind
it has its weight as signed 8-bit codes with a scale for each output, and its bias as 32-bit integers in units of both scales.
What such operations are called is a runtime's own matter, and a subclass's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.export.static import Start, Static
from penjing.graph import Network, Node
from penjing.graph.network import MODULE
from penjing.representation import Grid, representations


class Integers(nn.Module, ABC):
    """The answers of a network in integer arithmetic; only for writing.

    Attributes:
        linear_takes_floats: a runtime's linear layers quantize what they take themselves.
    """

    linear_takes_floats = False

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.static = Static(start.copy_of_dense(), start.static.answers)
        self.functions: dict[str, Callable[..., Tensor]] = {}
        steps: dict[str, float] = {}
        for node in start.network.nodes:
            if node.op == "fake_quantize":
                steps[node.name] = float(node.settings["step"])
                if self.linear_takes_floats and _only_linear(start.network, node):
                    self.functions[node.name] = lambda x: x
                    continue
                self.functions[node.name] = self.activation(f"activation_{len(steps)}", **node.settings)
            elif node.op == MODULE:
                module, name = start.network.get_submodule(node.path), f"layer_{len(self.functions)}"
                step = steps.get(node.inputs[0])
                layer = self._table(name, module) if step is None else self._layer(name, module, step)
                if layer is not None:
                    self.functions[node.name] = layer

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with self.static.network.replaced(self.functions):
            found: tuple[Tensor, ...] = self.static(*inputs)
        return found

    @abstractmethod
    def activation(self, name: str, step: float, zero: int) -> Callable[[Tensor], Tensor]:
        """What rounds to codes 0 ... 255 and back: step (code - zero)."""

    @abstractmethod
    def weight(self, name: str, codes: Tensor, scales: Tensor, axis: int) -> Callable[[], Tensor]:
        """A weight in float32, of int8 codes and a scale for each index of `axis`."""

    @abstractmethod
    def bias(self, name: str, codes: Tensor, scales: Tensor) -> Callable[[], Tensor]:
        """A bias in float32, of int32 codes (n,) and scales (n,)."""

    @abstractmethod
    def linear(
        self, name: str, codes: Tensor, scales: Tensor, bias: Callable[[], Tensor] | None
    ) -> Callable[[Tensor], Tensor]:
        """A linear layer, of int8 codes (outputs, inputs) and a scale for each output."""

    def hold(self, name: str, tensor: Tensor) -> Callable[[], Tensor]:
        """Keep a tensor as a buffer, which becomes one of the file's; gives what reads it."""
        self.register_buffer(name, tensor)
        return lambda: self.get_buffer(name)

    def _table(self, name: str, layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
        """An embedding whose rows become floats when they are read, None where there are no codes of 8 bits."""
        found = _codes(layer) if isinstance(layer, nn.Embedding) and layer.max_norm is None else None
        if found is None:
            return None
        codes, scales = self.hold(f"{name}_codes", found[0]), self.hold(f"{name}_scale", found[1][:, None])
        return lambda indices: codes()[indices].float() * scales()[indices]

    def _layer(self, name: str, layer: nn.Module, step: float) -> Callable[[Tensor], Tensor] | None:
        """A convolution or a linear layer from its codes, None where it has none of 8 bits with a step a row or one for all."""
        found = _codes(layer)
        ordinary = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros")
        if found is None or not ordinary:
            return None
        codes, scales = found
        bias: Callable[[], Tensor] | None = None
        if isinstance(layer.bias, Tensor):
            sums = scales.double() * step
            whole = torch.round(layer.bias.detach().double() / sums).clamp(-(2**31) + 1, 2**31 - 1).int()
            bias = self.bias(f"{name}_bias", whole, sums.float())
        if isinstance(layer, nn.Linear):
            return self.linear(name, codes, scales, bias)
        place: Any = layer.stride, layer.padding, layer.dilation, layer.groups
        weight = self.weight(name, codes, scales, 0)

        def convolution(x: Tensor) -> Tensor:
            added = None if bias is None else bias()
            return F.conv2d(x, weight(), added, *place)

        return convolution


def _only_linear(network: Network, node: Node) -> bool:
    """Linear layers with codes, and nobody else, read a result."""
    readers = network.consumers(node.name)
    layers = [network.get_submodule(reader.path) for reader in readers if reader.op == MODULE]
    return len(layers) == len(readers) > 0 and all(isinstance(one, nn.Linear) and _codes(one) for one in layers)


def _codes(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The weight of a layer as int8 codes and a scale a row (n,); None where it is not."""
    stack = representations(layer, "weight")
    grid = stack[-1] if stack else None
    if (
        not isinstance(grid, Grid)
        or grid.zero is not None
        or grid.columns is not None
        or grid.codes.dtype != torch.int8
    ):
        return None
    scales = grid.stored_steps().detach()
    if set(scales.shape[1:]) - {1}:
        return None
    return grid.codes.clone(), scales.flatten().expand(len(grid.codes)).contiguous()
