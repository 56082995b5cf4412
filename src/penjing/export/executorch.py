"""ExecuTorch programs (.pte) for phones and small boards, computed by XNNPACK, compared with PyTorch in ExecuTorch's runtime.

A network whose activations are quantized is written for integer arithmetic, in signed codes as XNNPACK wants them: what is
code q of 0 ... 255 elsewhere is q - 128 here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.errors import MissingError, RunError, SettingError
from penjing.export.integers import Integers
from penjing.export.static import Export, start
from penjing.graph import Network

_LEAST, _MOST = -128, 127


class _Decomposed(Integers):
    """Operations of PyTorch's own quantized graphs, which XNNPACK's partitioner knows."""

    linear_takes_floats = True

    def activation(self, name: str, step: float, zero: int) -> Callable[[Tensor], Tensor]:
        grid = step, zero + _LEAST, _LEAST, _MOST, torch.int8
        ops = torch.ops.quantized_decomposed

        def pair(x: Tensor) -> Tensor:
            found: Tensor = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *grid), *grid)
            return found

        return pair

    def weight(self, name: str, codes: Tensor, scales: Tensor, axis: int) -> Callable[[], Tensor]:
        held = self.hold(f"{name}_codes", codes), self.hold(f"{name}_scale", scales)
        zeros = self.hold(f"{name}_zeros", torch.zeros(len(scales), dtype=torch.int64))

        def dequantized() -> Tensor:
            found: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
                held[0](), held[1](), zeros(), axis, -127, 127, torch.int8
            )
            return found

        return dequantized

    def bias(self, name: str, codes: Tensor, scales: Tensor) -> Callable[[], Tensor]:
        return self.hold(name, (codes.double() * scales.double()).float())  # XNNPACK makes the codes again

    def linear(
        self, name: str, codes: Tensor, scales: Tensor, bias: Callable[[], Tensor] | None
    ) -> Callable[[Tensor], Tensor]:
        """XNNPACK's integer layers give floats only where they find the range of what they take themselves, at each call."""
        weight = self.weight(name, codes, scales, 0)
        ops = torch.ops.quantized_decomposed
        ends = _LEAST, _MOST

        def product(x: Tensor) -> Tensor:
            step, zero = ops.choose_qparams(x, *ends, 1e-9, torch.int8)
            x = ops.quantize_per_tensor.tensor(x, step, zero, *ends, torch.int8)
            x = ops.dequantize_per_tensor.tensor(x, step, zero, *ends, torch.int8)
            return F.linear(x, weight(), None if bias is None else bias())

        return product


def _one_for_each_reader(graph: torch.fx.Graph) -> None:
    """Dequantize a result anew for each operation that reads it, in place: XNNPACK takes operations with pairs of their own."""
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    for node in graph.find_nodes(op="call_function", target=dequantize):
        for reader in list(node.users)[1:]:
            with graph.inserting_after(node):
                own = graph.node_copy(node)
            reader.replace_input_with(node, own)


def export_executorch(
    network: Network, path: str | Path, *, exit_at: int | None = None, batch: int = 1, length: int | None = None
) -> Export:
    """Write a network as an ExecuTorch program, computed by XNNPACK where it can, and compare.

    Memory is planned ahead: a call takes exactly `batch` contiguous samples, of one `length` where the network leaves that open
    (None: as in the example that it was traced with). Exits are as in `export_onnx`. A network with quantized activations
    computes in integers; linear layers find the range of what they take at each call, as XNNPACK wants it.
    Args:
        exit_at: write one answer only: the number of an exit, or the number of exits for the final one.
    Raises: MissingError: executorch is not installed. SettingError: no such exit, or a batch below 1.
        RunError: it cannot be written, or ExecuTorch answers differently; then no file is left behind.
    """
    for name, size in (("batch", batch), ("length", length)):
        if size is not None and size < 1:
            raise SettingError(f"export: {name} must be at least 1, got {size}.")
    if length is not None and not network.hints:
        raise SettingError("export: length is for networks that leave one open; this one takes inputs of one size.")
    with _quiet():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # noqa: PLC0415
            from executorch.exir import to_edge_transform_and_lower  # noqa: PLC0415
            from executorch.runtime import Runtime  # noqa: PLC0415
        except ImportError as error:
            missing = f"export: {error.name} is missing. Install it with: pip install 'penjing[executorch]'"
            raise MissingError(missing) from None
        begun = start(network, exit_at, n_samples=batch, length=length)
        inputs = tuple(begun.inputs.values())
        program = torch.export.export((_Decomposed(begun) if begun.in_integers else begun.static).eval(), inputs)
        _one_for_each_reader(program.graph_module.graph)
        try:
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunError(f"export: ExecuTorch cannot take this network ({reason}); nothing was written.") from error
        content = lowered.buffer
        found = Runtime.get().load_program(content).load_method("forward").execute(inputs)
    return begun.keep(path, content, "ExecuTorch", begun.difference(found))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what ExecuTorch and what it imports tell about themselves, also from C++; warnings of ours come elsewhere."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    level = logging.root.manager.disable
    try:
        os.dup2(nowhere, 2)
        logging.disable(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        logging.disable(level)
