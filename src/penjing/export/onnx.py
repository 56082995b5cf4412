"""ONNX, compared with PyTorch output by output in ONNX Runtime.

A network whose activations are quantized is written for integer arithmetic: QuantizeLinear and DequantizeLinear pairs where it
has `fake_quantize` (unsigned, 8 bits), weights as signed 8-bit codes with a scale for each output, biases as 32-bit integers in
units of both scales. A runtime makes integer kernels of a layer between such pairs. x86 has instructions for U8 with S8.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from penjing.errors import MissingError, RunError, SettingError
from penjing.files import write_atomically
from penjing.graph import Network
from penjing.graph.network import MODULE, module_at, set_module, set_tensor, tensor_at
from penjing.graph.sizes import Size
from penjing.representation import Grid, plain, representations

TOLERANCE = 1e-4
INTEGER_TOLERANCE = 0.1
"""For integer arithmetic: where a sum lies between two codes, runtimes round one way or the other, and layers behind go on."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path, size_bytes: the ONNX file.
        outputs: names of its outputs.
        largest_difference: between ONNX Runtime and PyTorch, over all outputs, relative to the largest value.
    """

    path: Path
    size_bytes: int
    outputs: tuple[str, ...]
    largest_difference: float


class _Static(nn.Module):
    """A network whose samples all go the same way."""

    def __init__(self, network: Network, answers: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.answers = network, answers

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.network.all_answers(*inputs)
        return tuple(found[k] for k in self.answers)


class _Integers(nn.Module):
    """The same with ONNX's own operations for quantization, wherever a layer has codes of 8 bits; only for writing."""

    def __init__(self, network: Network, dense: Network, answers: tuple[int, ...]) -> None:
        super().__init__()
        self.static = _Static(dense, answers)
        self.functions: dict[str, Callable[..., Tensor]] = {}
        steps: dict[str, float] = {}
        for node in network.nodes:
            if node.op == "fake_quantize":
                steps[node.name] = float(node.settings["step"])
                self.functions[node.name] = self._pair(f"activation_{len(steps)}", **node.settings)
            elif node.op == MODULE and node.inputs[0] in steps:
                layer = self._layer(
                    f"layer_{len(self.functions)}", network.get_submodule(node.path), steps[node.inputs[0]]
                )
                if layer is not None:
                    self.functions[node.name] = layer

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with self.static.network.replaced(self.functions):
            found: tuple[Tensor, ...] = self.static(*inputs)
        return found

    def _hold(self, name: str, tensor: Tensor) -> Callable[[], Tensor]:
        self.register_buffer(name, tensor)
        return lambda: self.get_buffer(name)

    def _pair(self, name: str, step: float, zero: int) -> Callable[[Tensor], Tensor]:
        scale = self._hold(f"{name}_scale", torch.tensor(step))
        point = self._hold(f"{name}_zero", torch.tensor(zero, dtype=torch.uint8))

        def pair(x: Tensor) -> Tensor:
            codes = symbolic("QuantizeLinear", (x, scale(), point()), dtype=torch.uint8, shape=x.shape)
            return symbolic("DequantizeLinear", (codes, scale(), point()), dtype=torch.float32, shape=x.shape)

        return pair

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
        weight = layer.weight.detach()  # type: ignore[operator]
        scales = scales.flatten().expand(len(weight)).contiguous()
        is_linear = isinstance(layer, nn.Linear)
        held = grid.codes.t().contiguous() if is_linear else grid.codes.clone()
        codes = self._hold(f"{name}_codes", held)
        scale = self._hold(f"{name}_scale", scales)
        zeros = self._hold(f"{name}_zeros", torch.zeros(len(weight), dtype=torch.int8))
        axis = 1 if is_linear else 0
        bias = layer.bias
        if isinstance(bias, Tensor):
            sums = scales.double() * step
            whole = torch.round(bias.detach().double() / sums).clamp(-(2**31) + 1, 2**31 - 1).int()
            bias_codes = self._hold(f"{name}_bias", whole)
            bias_scale = self._hold(f"{name}_bias_scale", sums.float())
            bias_zeros = self._hold(f"{name}_bias_zeros", torch.zeros_like(whole))

        def run(x: Tensor) -> Tensor:
            parts = codes(), scale(), zeros()
            own = symbolic("DequantizeLinear", parts, {"axis": axis}, dtype=torch.float32, shape=parts[0].shape)
            added = None
            if isinstance(bias, Tensor):
                parts = bias_codes(), bias_scale(), bias_zeros()
                added = symbolic("DequantizeLinear", parts, {"axis": 0}, dtype=torch.float32, shape=parts[0].shape)
            if isinstance(layer, nn.Conv2d):
                return F.conv2d(x, own, added, layer.stride, layer.padding, layer.dilation, layer.groups)
            y = torch.matmul(x, own)
            return y if added is None else y + added

        return run


def _free(shape: tuple[int | Size, ...]) -> dict[int, Any]:
    """The dimensions of an input that may have any size: the batch, and the lengths that the network leaves open."""
    free = {0: torch.export.Dim.AUTO}
    return free | {dim: torch.export.Dim.AUTO for dim, size in enumerate(shape, start=1) if isinstance(size, Size)}


def _apart(network: Network) -> Network:
    """Layers and tensors that are called like something of `Network` itself ("exits") get other names, in place.

    `torch.export` looks them up as attributes.
    """
    taken = {node.path.partition(".")[0] for node in network.nodes if node.path} & set(dir(Network))
    nodes = []
    for node in network.nodes:
        first, _, rest = node.path.partition(".")
        if first in taken:
            path = f"own_{first}.{rest}" if rest else f"own_{first}"
            if node.op == MODULE:
                set_module(network, path, module_at(network, node.path))
            else:
                set_tensor(network, path, tensor_at(network, node.path))
            node = replace(node, path=path)
        nodes.append(node)
    for name in taken:
        network._modules.pop(name, None)
    network.nodes = nodes
    return network


def export_onnx(network: Network, path: str | Path, *, exit_at: int | None = None) -> Export:
    """Write a network as ONNX, with a batch dimension of any size, and compare.

    A network with exits becomes a static graph: all answers are computed and are outputs exit_0, exit_1 ..., final, and the
    caller compares confidences; with `exit_at` only what that one answer needs. A network with quantized activations becomes
    one of integer arithmetic, see above.
    Args:
        exit_at: write one answer only: the number of an exit, or the number of exits for the final one.
    Raises: MissingError: onnx, onnxscript or onnxruntime is not installed. SettingError: no such exit.
        RunError: it cannot be written, or ONNX Runtime answers differently; then no file is left behind.
    """
    try:
        import onnx  # noqa: F401, PLC0415  optional dependency
        import onnxruntime  # noqa: PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingError(f"export: {error.name} is missing. Install it with: pip install 'penjing[onnx]'") from None
    n_exits = len(network.exits)
    if exit_at is not None and not 0 <= exit_at <= n_exits:
        raise SettingError(
            f"export: there is no exit {exit_at}; exits are 0 to {n_exits - 1}, {n_exits} is the final answer."
        )
    answers = tuple(range(n_exits + 1)) if exit_at is None else (exit_at,)
    names = tuple("final" if k == n_exits else f"exit_{k}" for k in answers)
    dense = _apart(plain(network).cpu().eval())
    static = _Static(dense, answers)
    in_integers = any(node.op == "fake_quantize" for node in network.nodes)
    written = _Integers(network, copy.deepcopy(dense), answers) if in_integers else static
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(network.random_inputs(3, generator))
    input_names = [node.name for node in network.nodes if node.op == "input"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names every optional package that is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            written,
            inputs,
            dynamo=True,
            verbose=False,
            input_names=input_names,
            output_names=list(names),
            dynamic_shapes=(tuple(_free(shape) for shape in network.input_shapes),),
        )
    assert program is not None
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, proto.graph, proto):
        part.ClearField("metadata_props")  # the source lines that each node came from
    content = proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for n in (3, 1):
        feeds = {node.name: x[:n].numpy() for node, x in zip(session.get_inputs(), inputs, strict=True)}
        with torch.no_grad():
            expected = static(*(x[:n] for x in inputs))
        for found, wanted in zip(session.run(None, feeds), expected, strict=True):
            scale = float(wanted.abs().max()) or 1.0
            worst = max(worst, float((torch.from_numpy(found) - wanted).abs().max()) / scale)
    allowed = INTEGER_TOLERANCE if in_integers else TOLERANCE
    if not worst <= allowed:
        raise RunError(
            f"export: ONNX Runtime differs from PyTorch by {worst:.2g} relative (at most {allowed:g}); nothing was written."
        )
    write_atomically(Path(path), content)
    return Export(Path(path), len(content), names, worst)
