"""ONNX, compared with PyTorch output by output in ONNX Runtime.

A network whose activations are quantized is written for integer arithmetic: QuantizeLinear and DequantizeLinear pairs, unsigned
activations and signed weights. x86 has instructions for just that.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.onnx.ops import symbolic

from penjing.errors import MissingError, RunError, SettingError
from penjing.export.conditions import with_conditions
from penjing.export.integers import Integers
from penjing.export.static import Export, Start, relative, start
from penjing.graph import Network
from penjing.graph.network import ALWAYS
from penjing.graph.node import confidence
from penjing.graph.sizes import Size
from penjing.runtimes import onnx_session

UNREACHED = 1.5
"""A threshold that no confidence reaches, and that is compared all the same."""


class _Pairs(Integers):
    """QuantizeLinear and DequantizeLinear."""

    def activation(self, name: str, step: float, zero: int) -> Callable[[Tensor], Tensor]:
        scale = self.hold(f"{name}_scale", torch.tensor(step))
        point = self.hold(f"{name}_zero", torch.tensor(zero, dtype=torch.uint8))

        def pair(x: Tensor) -> Tensor:
            codes = symbolic("QuantizeLinear", (x, scale(), point()), dtype=torch.uint8, shape=x.shape)
            return symbolic("DequantizeLinear", (codes, scale(), point()), dtype=torch.float32, shape=x.shape)

        return pair

    def weight(self, name: str, codes: Tensor, scales: Tensor, axis: int) -> Callable[[], Tensor]:
        held = (
            self.hold(f"{name}_codes", codes),
            self.hold(f"{name}_scale", scales),
            self.hold(f"{name}_zeros", torch.zeros(len(scales), dtype=codes.dtype)),
        )

        def dequantized() -> Tensor:
            parts = [part() for part in held]
            return symbolic("DequantizeLinear", parts, {"axis": axis}, dtype=torch.float32, shape=codes.shape)

        return dequantized

    def bias(self, name: str, codes: Tensor, scales: Tensor) -> Callable[[], Tensor]:
        return self.weight(name, codes, scales, 0)

    def linear(
        self, name: str, codes: Tensor, scales: Tensor, bias: Callable[[], Tensor] | None
    ) -> Callable[[Tensor], Tensor]:
        weight = self.weight(name, codes.t().contiguous(), scales, 1)  # transposed in the file it would stay in floats

        def product(x: Tensor) -> Tensor:
            y = torch.matmul(x, weight())
            return y if bias is None else y + bias()

        return product


def _with_conditions(begun: Start, proto: Any, path: str | Path) -> Export:
    """Write the exits as conditions, and compare every way through them."""
    exits, worst = begun.network.exits, 0.0
    answers = begun.answers()
    for k in range(len(exits) + 1):  # everybody leaves at exit k
        forced = [
            replace(node, settings={**node.settings, "threshold": ALWAYS if i == k else UNREACHED})
            for i, node in enumerate(exits)
        ]
        for n in (3, 1):
            found = run_onnx(with_conditions(proto, forced).SerializeToString(), [x[:n] for x in begun.inputs.values()])
            worst = max(worst, relative(found[0], answers[k][:n]))
    sure = [confidence(node, logits) for node, logits in zip(exits, answers[:-1], strict=True)]
    middle = [float(c.sort().values[1]) - 1e-6 for c in sure]  # two of the three samples leave
    mixed = [replace(n, settings={**n.settings, "threshold": t}) for n, t in zip(exits, middle, strict=True)]
    found = run_onnx(with_conditions(proto, mixed).SerializeToString(), list(begun.inputs.values()))
    expected = answers[-1]
    for c, t, logits in reversed(list(zip(sure, middle, answers[:-1], strict=True))):
        expected = torch.where((c >= t)[:, None], logits, expected)
    worst = max(worst, relative(found[0], expected))
    content = with_conditions(proto, exits).SerializeToString()
    run_onnx(content, list(begun.inputs.values()))
    return replace(begun, outputs=("answer",)).keep(path, content, "ONNX Runtime", worst)


def run_onnx(content: bytes, inputs: list[Tensor]) -> list[Tensor]:
    """What ONNX Runtime answers on one thread, integers exact on any processor."""
    session = onnx_session(content)
    feeds = {node.name: x.numpy() for node, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, feeds)]


def _written(*args: Any, **settings: Any) -> Any:
    """What torch makes of a network. Raises: RunError: it cannot."""
    try:
        program = torch.onnx.export(*args, **settings)
    except Exception as error:  # torch raises whatever its passes do
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise RunError(
            f"export: torch cannot write this network as ONNX ({lines[0] if lines else error!r})."
        ) from error
    assert program is not None
    return program


def _own_zero_points_(graph: Any) -> None:
    """Give every dequantized weight zero points of its own; torch writes equal ones once.

    With `EXACT_INTEGERS` ONNX Runtime replaces those of each weight, and cannot replace the same ones twice.
    """
    held = {tensor.name: tensor for tensor in graph.initializer}
    used: dict[str, int] = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[0] not in held:
            continue
        name = node.input[2]
        used[name] = used.get(name, 0) + 1
        if name in held and used[name] > 1:
            node.input[2] = f"{name}_{used[name]}"
            graph.initializer.add().CopyFrom(held[name])
            graph.initializer[-1].name = node.input[2]


def _free(shape: tuple[int | Size, ...]) -> dict[int, Any]:
    """The dimensions of an input that may have any size: the batch, and the lengths that the network leaves open."""
    free = {0: torch.export.Dim.AUTO}
    return free | {dim: torch.export.Dim.AUTO for dim, size in enumerate(shape, start=1) if isinstance(size, Size)}


def export_onnx(network: Network, path: str | Path, *, exit_at: int | None = None, conditions: bool = False) -> Export:
    """Write a network as ONNX, with a batch dimension of any size, and compare.

    A network with exits becomes a static graph: all answers are computed and are outputs exit_0, exit_1 ..., final, and the
    caller compares confidences; with `exit_at` only what that one answer needs, as a plain network (a width, too); with
    `conditions` exits are `If`s and there is one answer, see `export.conditions`. A network with quantized activations becomes
    one of integer arithmetic, see above.
    Args:
        exit_at: write one answer only: the number of an exit, or the number of exits for the final one.
        conditions: leave at the exits whose confidence reaches the stored threshold.
    Raises: MissingError: onnx, onnxscript or onnxruntime is not installed. SettingError: no such exit; conditions without
        exits. RunError: it cannot be written, or ONNX Runtime answers differently; then no file is left behind.
    """
    try:
        import onnx  # noqa: F401, PLC0415  optional dependency
        import onnxruntime  # noqa: F401, PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingError(f"export: {error.name} is missing. Install it with: pip install 'penjing[onnx]'") from None
    if conditions and (exit_at is not None or not network.exits):
        raise SettingError("export: conditions are for a network with exits, written with all of them.")
    begun = start(network, exit_at, n_samples=3)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names every optional package that is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = _written(
            _Pairs(begun) if begun.in_integers else begun.static,
            tuple(begun.inputs.values()),
            dynamo=True,
            verbose=False,
            input_names=list(begun.inputs),
            output_names=list(begun.outputs),
            dynamic_shapes=(tuple(_free(shape) for shape in network.input_shapes),),
        )
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, proto.graph, proto):
        part.ClearField("metadata_props")  # the source lines that each node came from
    _own_zero_points_(proto.graph)
    if conditions:
        return _with_conditions(begun, proto, path)
    content = proto.SerializeToString()
    worst = max(begun.difference(run_onnx(content, [x[:n] for x in begun.inputs.values()])) for n in (3, 1))
    return begun.keep(path, content, "ONNX Runtime", worst)
