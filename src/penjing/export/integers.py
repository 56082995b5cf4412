"""Integer arithmetic as exporters write it: pairs of quantizing and dequantizing, which runtimes turn into integer kernels.

A network whose activations are quantized has a `fake_quantize` wherever integers flow. There a pair is written. A layer behind
it has its weight as signed 8-bit codes with a scale for each output, and its bias as 32-bit integers in units of both scales; a
batch norm that alone reads it is multiplied into both.
What such operations are called is a runtime's own matter, and a subclass's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.export.static import Start, Static
from penjing.graph import Network, Node
from penjing.graph.network import MODULE
from penjing.representation import Grid, representations

_LARGEST_CODE = 127
_LARGEST_SUM = 2**31 - 1


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
                if step is None:
                    table = self._table(name, module)
                    if table is not None:
                        self.functions[node.name] = table
                    continue
                norm = _norm_behind(start.network, node)
                whole = (
                    None if norm is None else _in_whole_numbers(module, step, start.network.get_submodule(norm.path))
                )
                if norm is not None and whole is not None:
                    self.functions[norm.name] = lambda x: x
                else:
                    whole = _in_whole_numbers(module, step)
                if whole is not None:
                    self.functions[node.name] = self._layer(name, module, whole)

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

    def _layer(self, name: str, layer: nn.Module, whole: _Whole) -> Callable[[Tensor], Tensor]:
        """A convolution or a linear layer."""
        bias = None if whole.bias is None else self.bias(f"{name}_bias", whole.bias, whole.sums)
        if isinstance(layer, nn.Linear):
            return self.linear(name, whole.codes, whole.scales, bias)
        place: Any = layer.stride, layer.padding, layer.dilation, layer.groups
        weight = self.weight(name, whole.codes, whole.scales, 0)

        def convolution(x: Tensor) -> Tensor:
            added = None if bias is None else bias()
            return F.conv2d(x, weight(), added, *place)

        return convolution


class _Whole(NamedTuple):
    """A layer in whole numbers.

    Attributes:
        codes, scales: of the weight, int8 and a scale a row (n,).
        bias, sums: of the bias, int32 in units of `sums` (n,), the scales of inputs and rows; None: there is none.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None
    sums: Tensor


def _in_whole_numbers(layer: nn.Module, step: float, norm: nn.Module | None = None) -> _Whole | None:
    """A convolution or a linear layer from its codes, None where it has none of 8 bits with a step a row or one for all.

    With a batch norm behind it, scale_o = |s_o| scale_o, s_o the norm's gamma / sqrt(var + eps), and codes change their sign
    where s_o < 0; None where that leaves the range of integers.
    """
    found = _codes(layer)
    ordinary = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros")
    if found is None or not ordinary:
        return None
    codes, scales = found
    bias = layer.bias.detach().double() if isinstance(layer.bias, Tensor) else None
    if norm is not None:
        factors, shift = _affine(norm)
        bias = shift + factors * (0.0 if bias is None else bias)
        turned = codes.short() * torch.sign(factors).short().view(-1, *[1] * (codes.dim() - 1))
        scales = (scales.double() * factors.abs()).float()
        largest = float((bias / (scales.double() * step)).abs().max())  # not a number where a factor is 0
        if int(turned.max()) > _LARGEST_CODE or not largest < _LARGEST_SUM:
            return None
        codes = turned.to(torch.int8)
    sums = scales.double() * step
    whole = None if bias is None else torch.round(bias / sums).clamp(-_LARGEST_SUM, _LARGEST_SUM).int()
    return _Whole(codes, scales, whole, sums.float())


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation as factors and shifts, (n,), float64."""
    factors = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factors = factors * norm.weight.detach().double()
    shift = -norm.running_mean.double() * factors
    return factors, shift if norm.bias is None else shift + norm.bias.detach().double()


def _norm_behind(network: Network, node: Node) -> Node | None:
    """The batch norm with statistics that alone reads a convolution."""
    readers = network.consumers(node.name)
    if len(readers) != 1 or readers[0].op != MODULE:
        return None
    norm = network.get_submodule(readers[0].path)
    is_one = isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    return readers[0] if is_one and isinstance(network.get_submodule(node.path), nn.Conv2d) else None


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
