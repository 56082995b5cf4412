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
from penjing.graph.network import MODULE
from penjing.representation import Grid, representations


class Integers(nn.Module, ABC):
    """The answers of a network in integer arithmetic; only for writing."""

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.static = Static(start.copy_of_dense(), start.static.answers)
        self.functions: dict[str, Callable[..., Tensor]] = {}
        steps: dict[str, float] = {}
        for node in start.network.nodes:
            if node.op == "fake_quantize":
                steps[node.name] = float(node.settings["step"])
                self.functions[node.name] = self.activation(f"activation_{len(steps)}", **node.settings)
            elif node.op == MODULE and node.inputs[0] in steps:
                module = start.network.get_submodule(node.path)
                layer = self._layer(f"layer_{len(self.functions)}", module, steps[node.inputs[0]])
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

    def _layer(self, name: str, layer: nn.Module, step: float) -> Callable[[Tensor], Tensor] | None:
        """A convolution or a linear layer from its codes, None where it has none of 8 bits with a step a row or one for all."""
        stack = representations(layer, "weight")
        grid = stack[-1] if stack else None
        ordinary = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros")
        if not (ordinary and isinstance(grid, Grid)):
            return None
        scales = grid.stored_steps().detach()
        if (
            grid.zero is not None
            or grid.columns is not None
            or set(scales.shape[1:]) - {1}
            or grid.codes.dtype != torch.int8
        ):
            return None
        scales = scales.flatten().expand(len(grid.codes)).contiguous()
        codes = grid.codes.clone()
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
